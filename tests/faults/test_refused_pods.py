"""A cluster that does not let a job's pods be made or start, until somebody mends it: a reason meanwhile, then the end.

The denials are the API server's own (quota, limits, admission, accounts); only what a kubelet says is played.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import pytest
from faults.rig import Run
from faults.scenarios import PREPARE, PUBLISH, SEGMENTS, script
from faults.stages import STAGES, held_at, stalled, until_pods_run
from faults.stand import FULL, Stand
from ingestion_crds import JsonObject
from ingestion_crds.constants import WORKER_SERVICE_ACCOUNT, Reason
from ingestion_crds.kube import MERGE_PATCH, ApiError, child_path, core_path
from support.kubelet import Exit, PodRun, Wait
from support.namespaces import forbid_all

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(3600)]

INVARIANTS: Final = (1, 2, 3, 5, 8)
BEFORE: Final = {SEGMENTS: PREPARE, PUBLISH: SEGMENTS}
# Half a minute is how often the operator tries again what was refused.
WATCHED_SECONDS: Final = 40.0 if FULL else 6.0
EVERY_SECONDS: Final = 5.0
SEGMENTS_RUN: Final = {
    (PREPARE, 0, 0): 1,
    (SEGMENTS, 0, 0): 1,
    (SEGMENTS, 0, 1): 1,
    (SEGMENTS, 0, 2): 1,
    (PUBLISH, 0, 0): 1,
}

Mend = Callable[[], Awaitable[object]]
Deny = Callable[[Run], Awaitable[Mend]]


async def made(run: Run, path: str, body: JsonObject) -> Mend:
    """Create an object; taking it away mends what it broke."""
    name = body["metadata"]["name"]
    await run.kube.request("POST", path, body=body)
    return lambda: run.kube.request("DELETE", f"{path}/{name}")


async def quota(run: Run, *, of: str) -> Mend:
    path = await forbid_all(run.kube, namespace=run.namespace, of=of)
    return lambda: run.kube.request("DELETE", path)


MUCH: Final = {"requests": {"memory": "64Mi"}, "limits": {"memory": "64Mi"}}


async def limits(run: Run) -> Mend:
    most = {"type": "Container", "max": {"memory": "1Mi"}}
    return await made(
        run, core_path("limitranges", run.namespace), {"metadata": {"name": "small"}, "spec": {"limits": [most]}}
    )


async def no_account(run: Run) -> Mend:
    path = core_path("serviceaccounts", run.namespace)
    await run.kube.request("DELETE", f"{path}/{WORKER_SERVICE_ACCOUNT}")
    return lambda: run.kube.request("POST", path, body={"metadata": {"name": WORKER_SERVICE_ACCOUNT}})


async def policy(run: Run, *, resource: str, group: str) -> Mend:
    """Forbid all objects of a kind by an admission policy, as a cluster's own rules do."""
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
    name = f"{run.namespace}-{resource}"
    rule = {"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resource]}
    spec = {
        "matchConstraints": {
            "resourceRules": [rule],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": run.namespace}},
        },
        "validations": [{"expression": "false", "message": "not on my cluster"}],
    }
    unmake = await made(run, path, {"metadata": {"name": name}, "spec": spec})
    bindings = f"{path.removesuffix('policies')}policybindings"
    binding = {"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}}
    unbind = await made(run, bindings, binding)
    pod = {"restartPolicy": "Never", "containers": [{"name": "probe", "image": "probe"}]}
    probe = {"metadata": {"name": "probe"}, "spec": {"template": {"spec": pod}} if group else pod}
    asked = child_path(run.namespace) if group else core_path(resource, run.namespace)
    while not await is_refused(run, asked, probe):
        await asyncio.sleep(0.1)
    return partial(both, unbind, unmake)


async def is_refused(run: Run, path: str, body: JsonObject) -> bool:
    """Ask the API server whether it would refuse an object."""
    try:
        await run.kube.request("POST", path, query={"dryRun": "All"}, body=body)
    except ApiError as error:
        if error.status not in (403, 422):
            raise
        return True
    return False


async def both(*mends: Mend) -> None:
    for mend in mends:
        await mend()


def says(job: JsonObject, reason: Reason, words: str) -> bool:
    """True when the condition tells why, and not only (there being no nodes) that a pod has no place yet."""
    condition = stalled(job)
    return condition.get("reason") == reason and words in condition["message"]


async def stays_stalled(run: Run, reason: str) -> None:
    """Check that the reason stays, without a change of the condition, and with few writes."""
    before = stalled(await run.get())
    calls = len(run.proxy.calls)
    until = time.monotonic() + WATCHED_SECONDS
    while time.monotonic() < until:
        condition = stalled(await run.get())
        assert condition.get("reason") == reason, condition
        assert condition["lastTransitionTime"] == before["lastTransitionTime"]
        await asyncio.sleep(0.2)
    made = [str(call) for call in run.proxy.calls[calls:]]
    assert made.count("patch ingestionjobs/status") <= WATCHED_SECONDS / EVERY_SECONDS + 1, made
    assert made.count("create events") <= 1, made  # the one that tells of the reason comes after it


async def refused(run: Run, *, stage: str, deny: Deny, reason: Reason, words: str, **spec: Any) -> int:
    """Deny a stage what it needs, and mend it."""
    if stage in BEFORE:
        run.kubelet.script = held_at(BEFORE[stage])
        await run.create(**spec)
        await until_pods_run(run, BEFORE[stage], count=3 if stage == PUBLISH else 1)
        mend = await deny(run)
    else:
        mend = await deny(run)
        await run.create(**spec)
    run.kubelet.script = script(segments=3)
    await run.until(lambda job: says(job, reason, words))
    await stays_stalled(run, reason)
    await mend()
    await completed_as_if_nothing_had_been(run)
    return 1


async def completed_as_if_nothing_had_been(run: Run) -> None:
    job = await run.settled("completed")
    await run.at_rest()
    assert run.pods_run() == SEGMENTS_RUN
    assert job["status"]["segments"]["completed"] == "0-2"
    assert job["status"]["version"]["state"] == "active"
    assert "failures" not in job["status"] or not job["status"]["failures"]
    assert [attempt["generation"] for attempt in job["status"]["attempts"]] == [0]


PODS: Final = partial(refused, reason=Reason.POD_CREATION_FAILED)
CHILDREN: Final = partial(refused, reason=Reason.REJECTED_BY_CLUSTER)
DENIALS: Final[dict[str, Callable[..., Awaitable[int]]]] = {
    "pods refused by a quota, then mended": partial(PODS, deny=partial(quota, of="pods"), words="exceeded quota"),
    "pods refused by a limit range, then mended": partial(
        PODS, deny=limits, words="memory", template={"resources": MUCH}
    ),
    "pods refused by an admission policy, then mended": partial(
        PODS, deny=partial(policy, resource="pods", group=""), words="not on my cluster"
    ),
    "pods refused for want of their ServiceAccount, then mended": partial(
        PODS, deny=no_account, words="serviceaccount"
    ),
    "Jobs refused by a quota, then mended": partial(
        CHILDREN, deny=partial(quota, of="count/jobs.batch"), words="exceeded quota"
    ),
    "Jobs refused by an admission policy, then mended": partial(
        CHILDREN, deny=partial(policy, resource="jobs", group="batch"), words="not on my cluster"
    ),
    "ConfigMaps refused by a quota, then mended": partial(
        CHILDREN, deny=partial(quota, of="count/configmaps"), words="exceeded quota"
    ),
}


async def restricted(run: Run, *, stage: str) -> int:
    """The worker pods keep to the strictest of Kubernetes' Pod Security Standards, which refuses a bare pod."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    path = f"/api/v1/namespaces/{run.namespace}"
    await run.kube.request("PATCH", path, body={"metadata": {"labels": labels}}, content_type=MERGE_PATCH)
    bare = {"metadata": {"name": "probe"}, "spec": {"containers": [{"name": "probe", "image": "probe"}]}}
    while not await is_refused(run, core_path("pods", run.namespace), bare):
        await asyncio.sleep(0.1)
    run.kubelet.script = script(segments=3)
    await run.create()
    await completed_as_if_nothing_had_been(run)
    return 1


# ── pods that cannot start ────────────────────────────────────────────────────────────────────────────────────


def fetched_in_vain() -> Callable[[PodRun], Wait]:
    """Return what a kubelet says of an image that is not there: in turns that it tried, and that it will."""
    turns = itertools.cycle(["ErrImagePull"] * 20 + ["ImagePullBackOff"] * 20)
    return lambda pod: Wait(reason=next(turns), message=f'pulling image "{pod.image}": not found')


async def mended(run: Run, *, stage: str, waits: Callable[[PodRun], Wait], reason: Reason, words: str) -> int:
    """The pods of a stage cannot start, and then they can."""
    run.kubelet.script = lambda pod: waits(pod) if pod.stage == stage else script(segments=3)(pod)
    await run.create()
    await run.until(lambda job: says(job, reason, words))
    await stays_stalled(run, reason)
    run.kubelet.script = script(segments=3)
    await completed_as_if_nothing_had_been(run)
    return 1


async def replaced(run: Run, *, stage: str) -> int:
    """The image does not exist: the attempt is cancelled, another image is chosen, and the job retried with it."""
    waits = fetched_in_vain()

    def end(pod: PodRun) -> Exit | Wait | None:
        return waits(pod) if pod.stage == stage and pod.image == MISSING else script(segments=3)(pod)

    run.kubelet.script = end
    await run.create(template={"image": MISSING})
    await run.until(lambda job: stalled(job).get("reason") == Reason.IMAGE_UNAVAILABLE)
    await run.patch({"cancelGeneration": 0})
    job = await run.settled("failed")
    assert job["status"]["attempts"][0]["reason"] == Reason.CANCELLED
    await run.patch({"template": {"image": "worker:there"}})
    await run.patch({"retryGeneration": 1})
    job = await run.settled("completed", generation=1)
    await run.at_rest()
    assert job["status"]["segments"]["completed"] == "0-2"
    again = {(ran.stage, ran.image) for ran in run.kubelet.runs if ran.generation == 1}
    assert again == {(name, "worker:there") for name in STAGES[STAGES.index(stage) :]}
    return 1


MISSING: Final = "worker:missing"
NO_IMAGE: Final = partial(mended, waits=fetched_in_vain(), reason=Reason.IMAGE_UNAVAILABLE, words=" not found")
NO_SECRET: Final = partial(
    mended,
    waits=lambda pod: Wait(reason="CreateContainerConfigError", message='secret "ingestion-store" not found'),
    reason=Reason.POD_PENDING,
    words="ingestion-store",
)
STARTS: Final[dict[str, Callable[..., Awaitable[int]]]] = {
    "image missing, then there": NO_IMAGE,
    "image missing, cancelled, another image, retried": replaced,
    "Secret of the worker missing, then there": NO_SECRET,
}


QUOTA: Final = "pods refused by a quota, then mended"
RESTRICTED: Final = "pod security restricted"
EVERYWHERE: Final = {QUOTA, "Jobs refused by a quota, then mended", "image missing, then there"}
SAMPLE: Final = (QUOTA, RESTRICTED, "image missing, then there")


async def test_what_the_cluster_refuses_is_a_reason_until_it_is_mended(stand: Stand) -> None:
    """Invariants 1, 2, 3, 5, 8."""
    faults = DENIALS | STARTS | {RESTRICTED: restricted}
    cases = {
        f"{fault}: {stage}": partial(play, stage=stage)
        for fault, play in faults.items()
        for stage in STAGES
        if stage == SEGMENTS or (FULL and fault in EVERYWHERE)
    }
    if not FULL:
        cases = {case: cases[case] for case in (f"{fault}: {SEGMENTS}" for fault in SAMPLE)}
    await stand.each(lambda case: case.partition(":")[0], cases, invariants=INVARIANTS)
