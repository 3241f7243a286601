"""The simulated cluster against a real API server, Job controller and garbage collector: one script, two answers.

A script sends requests and waits; each answer is noted without what differs by nature (times, UIDs, versions). The
notes of both sides must be equal, so that the simulation cannot drift from what Kubernetes does.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.kube import JSON_PATCH, MERGE_PATCH, ApiError, KubeClient, child_path, core_path, ingestion_path
from local_cluster.control_plane import ControlPlane
from support.builders import ingestion_job
from support.namespaces import make_namespace

from simulation.api import JOB_TRACKING, Release, copied
from simulation.cluster import SimulatedCluster

INDEX: Final = names.LABEL_COMPLETION_INDEX
CONTROLLER: Final = names.LABEL_CONTROLLER_UID
_WAIT_SECONDS: Final = 240.0
_JOB_STATUS: Final = ("active", "ready", "terminating", "succeeded", "completedIndexes", "failedIndexes")
_JOB_SPEC: Final = ("completions", "parallelism", "suspend", "activeDeadlineSeconds", "backoffLimit")


class Side(Protocol):
    """A cluster, real or simulated."""

    namespace: str

    async def request(
        self, method: str, path: str, *, query: Any = None, body: Any = None, content_type: str = "application/json"
    ) -> JsonObject: ...
    async def bind(self, pod: JsonObject) -> None: ...
    async def until(self, wish: Callable[[], Awaitable[bool]]) -> None: ...


class RealSide:
    """The bare control plane."""

    def __init__(self, kube: KubeClient, namespace: str) -> None:
        self.kube = kube
        self.namespace = namespace

    async def request(self, method: str, path: str, **arguments: Any) -> JsonObject:
        return await self.kube.request(method, path, **arguments)

    async def bind(self, pod: JsonObject) -> None:
        name = pod["metadata"]["name"]
        body = {"metadata": {"name": name}, "target": {"kind": "Node", "name": self.namespace}}
        await self.kube.request("POST", core_path("pods", self.namespace, name) + "/binding", body=body)

    async def until(self, wish: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while not await wish():
            assert time.monotonic() < deadline, "the real cluster does not come to what the script waits for"
            await asyncio.sleep(0.05)


class SimulatedSide:
    """The simulated cluster, without kubelets: the scripts end the pods themselves."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.cluster = cluster
        self.namespace = "truth"

    async def request(self, method: str, path: str, **arguments: Any) -> JsonObject:
        return self.cluster.api.request(method, path, **arguments)

    async def bind(self, pod: JsonObject) -> None:
        assert pod["spec"]["nodeName"]  # pods are bound as they are made

    async def until(self, wish: Callable[[], Awaitable[bool]]) -> None:
        for _ in range(1_000):
            steps = [*self.cluster.jobs.steps(), *self.cluster.garbage.steps()]
            for step in steps:
                step()
            if not steps:
                # A real cluster is looked at whenever it likes; the simulated one between two syncs would be a race.
                if await wish():
                    return
                due = self.cluster.next_time()
                assert due is not None, "the simulated cluster does not come to what the script waits for"
                self.cluster.loop.move_to(self.cluster.seconds + due)
        raise AssertionError("the simulated cluster does not come to rest")


class Script:
    """Sends requests to one side and notes the answers.

    Args:
        side: the cluster.
    """

    def __init__(self, side: Side) -> None:
        self.side = side
        self.notes: list[Any] = []

    @property
    def job(self) -> str:
        return ingestion_path(self.side.namespace, "handbook")

    def note(self, *words: Any) -> None:
        """Note something that both sides must agree on."""
        self.notes.append(list(words))

    async def ask(self, method: str, path: str, body: Any = None, *, kind: str = "", query: Any = None) -> JsonObject:
        """Send a request, note its outcome, and return the answer ({} for an error)."""
        content_type = kind or (MERGE_PATCH if method == "PATCH" else "application/json")
        try:
            answer = await self.side.request(method, path, query=query, body=body, content_type=content_type)
        except ApiError as error:
            self.note(method, error.status, error.reason)
            return {}
        self.note(method, 200, _seen(answer))
        return answer

    async def read(self, path: str) -> JsonObject | None:
        """Return an object, None when there is none; nothing is noted."""
        try:
            return await self.side.request("GET", path)
        except ApiError as error:
            if error.not_found:
                return None
            raise

    async def pods(self, job: JsonObject) -> list[JsonObject]:
        """Return a Job's pods in the order of their indexes, those that are finished last."""
        query = {"labelSelector": f"{CONTROLLER}={job['metadata']['uid']}"}
        listed = await self.side.request("GET", core_path("pods", self.side.namespace), query=query)
        return sorted(listed["items"], key=lambda pod: (int(pod["metadata"]["labels"][INDEX]), _over(pod)))

    async def running(self, job: JsonObject, count: int) -> list[JsonObject]:
        """Wait for so many active pods, bind them, let them run until their Job counts them ready, and return them."""
        found: list[JsonObject] = []

        async def there() -> bool:
            found[:] = [pod for pod in await self.pods(job) if not _over(pod) and not _deleting(pod)]
            return len(found) == count

        await self.side.until(there)
        for pod in found:
            if pod["status"]["phase"] == "Pending":
                if not pod["spec"].get("nodeName") or isinstance(self.side, SimulatedSide):
                    await self.side.bind(pod)
                await self._status(pod, {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
        path = child_path(self.side.namespace, job["metadata"]["name"])

        async def counted() -> bool:
            # Which pods go when there are too many depends on it.
            return (await self.side.request("GET", path))["status"].get("ready") == count

        await self.side.until(counted)
        return found

    async def end(self, pod: JsonObject, code: int, *, disrupted: bool = False) -> None:
        """End a pod's container with an exit code."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if isinstance(self.side, SimulatedSide):
            now = self.side.cluster.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        terminated = {"exitCode": code, "reason": "Error" if code else "Completed", "finishedAt": now, "startedAt": now}
        container = {"name": "worker", "state": {"terminated": terminated}, "ready": False, "restartCount": 0}
        status: JsonObject = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [{**container, "image": "worker", "imageID": ""}],
            "conditions": [{"type": "DisruptionTarget", "status": "True"}] if disrupted else [],
        }
        await self._status(pod, status)

    async def gone(self, pod: JsonObject) -> None:
        """Do what a kubelet does when a deleted pod's containers have ended."""
        path = core_path("pods", self.side.namespace, pod["metadata"]["name"])
        try:
            await self.side.request("DELETE", path, body={"gracePeriodSeconds": 0})
        except ApiError as error:
            if not error.not_found:
                raise

    async def _status(self, pod: JsonObject, status: JsonObject) -> None:
        path = core_path("pods", self.side.namespace, pod["metadata"]["name"]) + "/status"
        await self.side.request("PATCH", path, body={"status": status}, content_type=MERGE_PATCH)

    async def until_job(self, job: JsonObject, wish: Callable[[JsonObject], bool]) -> JsonObject:
        """Wait for something of a Job, note the Job as it is then, and return it."""
        path = child_path(self.side.namespace, job["metadata"]["name"])
        found: JsonObject = {}

        async def there() -> bool:
            found.clear()
            found.update(await self.read(path) or {})
            return bool(found) and wish(found)

        await self.side.until(there)
        self.note("job", _seen(found))
        return found

    async def until_gone(self, *paths: str) -> None:
        """Wait until objects are gone."""

        async def there() -> bool:
            return not any([await self.read(path) for path in paths])

        await self.side.until(there)
        self.note("gone", len(paths))


def _over(pod: JsonObject) -> bool:
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def _deleting(body: JsonObject) -> bool:
    return "deletionTimestamp" in body["metadata"]


def _seen(body: JsonObject) -> Any:
    """Return what both sides must agree on in an object or a list."""
    if "items" in body:
        return [_seen(item) for item in body["items"]]
    metadata = body.get("metadata", {})
    told: JsonObject = {
        "name": metadata.get("name"),
        "generation": metadata.get("generation"),
        "deleting": _deleting(body) if metadata else False,
        "finalizers": sorted(metadata.get("finalizers", [])),
        "annotations": _ours(metadata.get("annotations", {})),
        "owners": len(metadata.get("ownerReferences", [])),
    }
    match body.get("kind"):
        case "IngestionJob":
            status = copied(body.get("status", {}))
            for condition in status.get("conditions", []):
                condition.pop("lastTransitionTime", None)
            return {**told, "spec": body["spec"], "status": status}
        case "Job":
            labels = body["spec"]["template"]["metadata"]["labels"]
            return {
                **told,
                "spec": {key: body["spec"].get(key) for key in _JOB_SPEC},
                "labels": sorted(labels),
                "status": {key: body.get("status", {}).get(key) or 0 for key in _JOB_STATUS},
                "conditions": conditions(body),
                "started": "startTime" in body.get("status", {}),
                "completed": "completionTime" in body.get("status", {}),
            }
        case "ConfigMap":
            return {**told, "generation": None, "data": body.get("data"), "immutable": body.get("immutable")}
        case _ if "containers" in body.get("spec", {}):
            kept = {key: value for key, value in metadata.get("annotations", {}).items() if "job-" in key}
            return {"phase": body["status"].get("phase"), "deleting": _deleting(body), "annotations": kept}
        case _:
            return None


def _ours(annotations: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in annotations.items() if key.startswith(names.GROUP)}


def conditions(job: JsonObject) -> list[list[str]]:
    """Return the Job's true conditions and reasons."""
    found = job.get("status", {}).get("conditions", [])
    return sorted([item["type"], item["status"], item.get("reason", "")] for item in found)


def has(job: JsonObject, kind: str) -> bool:
    """True when a Job's condition is true."""
    return any(kind == found and status == "True" for found, status, _ in conditions(job))


def indexed_job(name: str = "work", **spec: Any) -> JsonObject:
    """Return a Job as the operator makes them; keyword arguments go into spec."""
    template = {
        "metadata": {"labels": {names.LABEL_MANAGED_BY: "test"}},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "worker", "image": "worker"}],
            "tolerations": [{"operator": "Exists"}],
        },
    }
    rules = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "FailIndex",
            "onExitCodes": {"containerName": "worker", "operator": "In", "values": list(names.PERMANENT_EXIT_CODES)},
        },
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completionMode": "Indexed",
            "completions": 3,
            "parallelism": 3,
            "backoffLimitPerIndex": 0,
            "activeDeadlineSeconds": 3_600,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": rules},
            "template": template,
            **spec,
        },
    }


def config_map(name: str, *, owner: JsonObject | None = None, block: bool = False, **fields: Any) -> JsonObject:
    """Return a ConfigMap, with an owner if one is given."""
    metadata: JsonObject = {"name": name}
    if owner is not None:
        reference = {key: owner[key] for key in ("apiVersion", "kind")}
        reference |= {key: owner["metadata"][key] for key in ("name", "uid")}
        metadata["ownerReferences"] = [{**reference, "controller": True, "blockOwnerDeletion": block}]
    return {"metadata": metadata, "data": {"a": "1"}, **fields}


# ── the scripts ───────────────────────────────────────────────────────────────────────────────────────────────


async def names_and_uids(script: Script) -> None:
    """404, 409 AlreadyExists, the uid precondition of a delete, and a new UID under an old name."""
    side = script.side
    await script.ask("GET", script.job)
    await script.ask("PATCH", script.job, {"spec": {"parallelism": 2}})
    await script.ask("DELETE", script.job)
    first = await script.ask("POST", ingestion_path(side.namespace), ingestion_job(namespace=side.namespace))
    await script.ask("POST", ingestion_path(side.namespace), ingestion_job(namespace=side.namespace))
    wrong = {"propagationPolicy": "Background", "preconditions": {"uid": "11111111-1111-1111-1111-111111111111"}}
    await script.ask("DELETE", script.job, wrong)
    right = {"propagationPolicy": "Background", "preconditions": {"uid": first["metadata"]["uid"]}}
    await side.request("DELETE", script.job, body=right)
    second = await script.ask("POST", ingestion_path(side.namespace), ingestion_job(namespace=side.namespace))
    script.note(first["metadata"]["uid"] == second["metadata"]["uid"])
    await script.ask("DELETE", script.job, right)


async def versions_and_status(script: Script) -> None:
    """resourceVersion preconditions, wrong UIDs, spec and status apart, generation, writes that change nothing."""
    side = script.side
    made = await script.ask("POST", ingestion_path(side.namespace), ingestion_job(namespace=side.namespace))
    old = made["metadata"]["resourceVersion"]
    changed = await script.ask("PATCH", script.job, {"spec": {"parallelism": 2}, "status": {"phase": "failed"}})
    stale: JsonObject = {"metadata": {"resourceVersion": old}}
    await script.ask("PATCH", script.job + "/status", {**stale, "status": {"phase": "failed"}})
    await script.ask("PATCH", script.job, {**stale, "spec": {"parallelism": 3}})
    fresh = {"metadata": {"resourceVersion": changed["metadata"]["resourceVersion"]}}
    written = await script.ask(
        "PATCH", script.job + "/status", {**fresh, "status": {"phase": "failed"}, "spec": {"parallelism": 9}}
    )
    again = await script.ask("PATCH", script.job + "/status", {"status": {"phase": "failed"}})
    script.note(written["metadata"]["resourceVersion"] == again["metadata"]["resourceVersion"])
    again = await script.ask("PATCH", script.job, {"spec": {"parallelism": 2}})
    script.note(written["metadata"]["resourceVersion"] == again["metadata"]["resourceVersion"])
    uid = {"uid": "11111111-1111-1111-1111-111111111111"}
    await script.ask("PATCH", script.job + "/status", {"metadata": uid, "status": {"stage": "process_segments"}})
    await script.ask("PATCH", script.job, {"metadata": uid, "spec": {"parallelism": 4}})
    await script.ask("PATCH", script.job, {"metadata": {"annotations": {f"{names.GROUP}/x": "1"}}})
    await script.ask("PATCH", script.job + "/status", {"metadata": {"annotations": {f"{names.GROUP}/y": "1"}}})


async def json_patches(script: Script) -> None:
    """Tests that hold and that fail, missing parents, escaped names."""
    side = script.side
    await script.ask("POST", ingestion_path(side.namespace), ingestion_job(namespace=side.namespace))
    path = f"/metadata/annotations/{names.GROUP}~1retry-requested-at"
    await script.ask("PATCH", script.job, [{"op": "test", "path": path, "value": "1"}], kind=JSON_PATCH)
    await script.ask("PATCH", script.job, [{"op": "add", "path": path, "value": "1"}], kind=JSON_PATCH)
    annotations = {names.ANNOTATION_RETRY_REQUESTED: "1"}
    await script.ask("PATCH", script.job, {"metadata": {"annotations": annotations}})
    for value in ("2", "1"):
        operations = [
            {"op": "test", "path": path, "value": value},
            {"op": "test", "path": "/spec/retryGeneration", "value": 0},
            {"op": "test", "path": "/status/phase", "value": "queued"},
            {"op": "add", "path": f"/metadata/annotations/{names.GROUP}~1retry-handled", "value": value},
        ]
        await script.ask("PATCH", script.job, operations, kind=JSON_PATCH)
    for operation in (
        {"op": "test", "path": "/status/observedRetryGeneration", "value": 0},
        {"op": "remove", "path": "/spec/retrySegments"},
        {"op": "replace", "path": "/spec/retrySegments", "value": "1"},
        {"op": "replace", "path": "/status/phase", "value": "failed"},
    ):
        await script.ask("PATCH", script.job, [operation], kind=JSON_PATCH)


async def retry_rules(script: Script) -> None:
    """The CRD's transition rules."""
    side = script.side
    await script.ask("POST", ingestion_path(side.namespace), ingestion_job(namespace=side.namespace))
    for spec in (
        {"retryGeneration": 1},
        {"cancelGeneration": 1},
        {"cancelGeneration": 0},
        {"retrySegments": "1"},
        {"knowledgeBase": "2b1d7a52-6c1e-4a0b-9f55-0d3c0f2f8a12"},
        {"mode": "Segmented"},
        {"document": {"title": "another"}},
        {"pipeline": None},
        {"pipeline": {"chunkSize": 500}},
        {"cancelGeneration": None, "suspend": True},
        {"parallelism": 0},
    ):
        await script.ask("PATCH", script.job, {"spec": spec})
    steps: list[tuple[JsonObject, JsonObject]] = [
        ({"phase": "failed"}, {"retryGeneration": 1}),
        ({"observedRetryGeneration": 0}, {"retryGeneration": 2}),
        ({"phase": "processing"}, {"retryGeneration": 1}),
        ({"phase": "partial_failure"}, {"retryGeneration": 1, "retrySegments": "3"}),
        ({"phase": "failed"}, {"retryGeneration": 2}),
        ({"observedRetryGeneration": 1}, {"retryGeneration": 0}),
        ({"phase": "completed"}, {"retryGeneration": 2}),
        ({"phase": "failed"}, {"retryGeneration": 2, "retrySegments": None, "cancelGeneration": 2}),
        ({"phase": "queued"}, {"parallelism": 5}),
    ]
    for status, spec in steps:
        await script.ask("PATCH", script.job + "/status", {"status": status})
        await script.ask("PATCH", script.job, {"spec": spec})


async def lists(script: Script) -> None:
    """Selectors, field selectors, pages, and the delete of a collection."""
    side = script.side
    for number in range(4):
        body = {**ingestion_job(name=f"job-{number}", namespace=side.namespace)}
        body["metadata"]["labels"] = {"team": "a" if number % 2 else "b"} if number < 3 else {}
        await side.request("POST", ingestion_path(side.namespace), body=body)
    for selector in ("team=a", "team=nobody", "team notin (a)", "team notin (a,b)", "team=b,team notin (a)"):
        await script.ask("GET", ingestion_path(side.namespace), query={"labelSelector": selector})
    await side.request(
        "PATCH",
        ingestion_path(side.namespace, "job-1", "status"),
        body={"status": {"phase": "failed"}},
        content_type=MERGE_PATCH,
    )
    await script.ask("GET", ingestion_path(side.namespace), query={"fieldSelector": "status.phase=failed"})
    page = await script.ask("GET", ingestion_path(side.namespace), query={"limit": 3})
    more = {"limit": 3, "continue": page["metadata"]["continue"]}
    last = await script.ask("GET", ingestion_path(side.namespace), query=more)
    script.note(bool(last["metadata"].get("continue")))


async def config_maps(script: Script) -> None:
    """Immutable data, a second one of the same name, owners that are gone."""
    path = core_path("configmaps", script.side.namespace)
    await script.ask("POST", path, config_map("map", immutable=True))
    await script.ask("POST", path, config_map("map", immutable=True))
    await script.ask("PATCH", f"{path}/map", {"data": {"a": "2"}})
    await script.ask("PATCH", f"{path}/map", {"metadata": {"annotations": {f"{names.GROUP}/x": "1"}}})
    owner = await script.ask("POST", path, config_map("owner"))
    await script.ask("POST", path, config_map("child", owner={"apiVersion": "v1", "kind": "ConfigMap", **owner}))
    await script.side.request("DELETE", f"{path}/owner", body={"propagationPolicy": "Background"})
    await script.until_gone(f"{path}/child")


async def foreground(script: Script) -> None:
    """A foreground deletion waits for dependents that block it; a background one does not."""
    side = script.side
    path = core_path("configmaps", side.namespace)
    for policy in ("Foreground", "Background"):
        owner = await script.ask("POST", ingestion_path(side.namespace), ingestion_job(namespace=side.namespace))
        await side.request("POST", path, body=config_map("child", owner=owner, block=True))
        await side.request(
            "PATCH", f"{path}/child", body={"metadata": {"finalizers": ["a.io/b"]}}, content_type=MERGE_PATCH
        )
        await side.request("DELETE", script.job, body={"propagationPolicy": policy})

        async def deleted() -> bool:
            return _deleting(await side.request("GET", f"{path}/child"))

        await side.until(deleted)
        script.note(policy, await script.read(script.job) is not None)
        await script.ask("PATCH", script.job, {"metadata": {"finalizers": ["a.io/late"]}})
        await side.request("PATCH", f"{path}/child", body={"metadata": {"finalizers": None}}, content_type=MERGE_PATCH)
        await script.until_gone(f"{path}/child", script.job)


async def job_fields(script: Script) -> None:
    """What is filled in on a Job, what may be changed, and the uid as a precondition of a patch."""
    path = child_path(script.side.namespace)
    made = await script.ask("POST", path, indexed_job(suspend=True))
    await script.ask("POST", path, indexed_job(suspend=True))
    await script.until_job(made, lambda job: has(job, "Suspended"))
    for spec in (
        {"parallelism": 1},
        {"activeDeadlineSeconds": 7},
        {"activeDeadlineSeconds": 0},
        {"backoffLimitPerIndex": 2},
        {"podReplacementPolicy": "TerminatingOrFailed"},
        {"completionMode": "NonIndexed"},
    ):
        await script.ask("PATCH", f"{path}/work", {"spec": spec})
    for uid in ("11111111-1111-1111-1111-111111111111", made["metadata"]["uid"]):
        await script.ask("PATCH", f"{path}/work", {"metadata": {"uid": uid}, "spec": {"parallelism": 2}})
    wrong = {"propagationPolicy": "Background", "preconditions": {"uid": "11111111-1111-1111-1111-111111111111"}}
    await script.ask("DELETE", f"{path}/work", wrong)
    await script.side.request("DELETE", f"{path}/work", body={"propagationPolicy": "Background"})
    await script.until_gone(f"{path}/work")


async def all_succeed(script: Script) -> None:
    """Complete, with every index, and finished pods without finalizers."""
    job = await script.ask("POST", child_path(script.side.namespace), indexed_job(parallelism=2))
    first = await script.running(job, 2)
    await script.until_job(job, lambda job: job["status"].get("ready") == 2)
    await script.end(first[0], 0)
    last = await script.running(job, 2)
    for pod in last:
        await script.end(pod, 0)
    await script.until_job(job, lambda job: has(job, "Complete"))
    pods = await script.pods(job)
    script.note([_seen(pod) for pod in pods], [JOB_TRACKING in pod["metadata"].get("finalizers", []) for pod in pods])
    await _removed(script, job, keep="1")


async def _removed(script: Script, job: JsonObject, *, keep: str) -> None:
    selector = f"{CONTROLLER}={job['metadata']['uid']},{INDEX} notin ({keep})"
    path = core_path("pods", script.side.namespace)
    await script.side.request(
        "DELETE", path, query={"labelSelector": selector}, body={"propagationPolicy": "Background"}
    )
    script.note("left", [pod["metadata"]["labels"][INDEX] for pod in await script.pods(job)])


async def fail_index(script: Script) -> None:
    """A permanent exit code fails its index at once; the others go on; then the Job has failed."""
    job = await script.ask("POST", child_path(script.side.namespace), indexed_job(backoffLimitPerIndex=3))
    pods = await script.running(job, 3)
    await script.end(pods[1], 64)
    await script.until_job(job, lambda job: job["status"].get("failedIndexes") == "1" and job["status"]["active"] == 2)
    await script.end(pods[0], 0)
    await script.end(pods[2], 113)
    await script.until_job(job, lambda job: has(job, "Failed"))
    script.note([_seen(pod) for pod in await script.pods(job)])


async def backoff_per_index(script: Script) -> None:
    """A transient failure is run again after its backoff, by a pod that carries the count, up to the limit."""
    job = await script.ask(
        "POST", child_path(script.side.namespace), indexed_job(completions=1, parallelism=1, backoffLimitPerIndex=1)
    )
    (pod,) = await script.running(job, 1)
    await script.end(pod, 1)
    (pod,) = await script.running(job, 1)
    script.note(_seen(pod)["annotations"])
    await script.end(pod, 1)
    await script.until_job(job, lambda job: has(job, "Failed"))


async def disruption(script: Script) -> None:
    """A disrupted pod does not count, whatever it exited with."""
    job = await script.ask("POST", child_path(script.side.namespace), indexed_job(completions=1, parallelism=1))
    (pod,) = await script.running(job, 1)
    await script.end(pod, 64, disrupted=True)
    (pod,) = await script.running(job, 1)
    script.note(_seen(pod)["annotations"])
    await script.end(pod, 0)
    await script.until_job(job, lambda job: has(job, "Complete"))


async def too_many_failures(script: Script) -> None:
    """Over maxFailedIndexes the Job is FailureTarget until the last pod has ended, and only then Failed."""
    job = await script.ask("POST", child_path(script.side.namespace), indexed_job(maxFailedIndexes=0))
    pods = await script.running(job, 3)
    await script.end(pods[0], 0)
    await script.until_job(job, lambda job: job["status"].get("succeeded") == 1 and job["status"].get("active") == 2)
    await script.end(pods[1], 64)
    job = await script.until_job(
        job, lambda job: has(job, "FailureTarget") and job["status"].get("terminating") == 1 and not has(job, "Failed")
    )
    await script.end(pods[2], 143)
    await script.gone(pods[2])
    await script.until_job(job, lambda job: has(job, "Failed"))


async def deadline_of_zero(script: Script) -> None:
    """activeDeadlineSeconds patched to 0 ends a Job and keeps what is done; a pod may still end well, and is lost."""
    path = child_path(script.side.namespace)
    job = await script.ask("POST", path, indexed_job())
    pods = await script.running(job, 3)
    await script.end(pods[0], 0)
    await script.until_job(job, lambda job: job["status"].get("succeeded") == 1 and job["status"].get("active") == 2)
    await script.ask("PATCH", f"{path}/work", {"spec": {"activeDeadlineSeconds": 0}})
    await script.until_job(job, lambda job: has(job, "FailureTarget") and job["status"].get("terminating") == 2)
    await script.end(pods[1], 0)
    await script.gone(pods[1])
    await script.end(pods[2], 143)
    await script.gone(pods[2])
    await script.until_job(job, lambda job: has(job, "Failed"))


async def suspension(script: Script) -> None:
    """Suspended: pods are deleted, their indexes run again; a deadline does not reach a suspended Job."""
    path = child_path(script.side.namespace)
    job = await script.ask("POST", path, indexed_job(suspend=True, completions=2))
    await script.until_job(job, lambda job: has(job, "Suspended"))
    await script.ask("PATCH", f"{path}/work", {"spec": {"suspend": False}})
    pods = await script.running(job, 2)
    await script.end(pods[0], 0)
    await script.until_job(job, lambda job: job["status"].get("succeeded") == 1 and job["status"].get("ready") == 1)
    await script.ask("PATCH", f"{path}/work", {"spec": {"suspend": True}})
    await script.until_job(job, lambda job: has(job, "Suspended") and job["status"].get("terminating") == 1)
    await script.ask("PATCH", f"{path}/work", {"spec": {"activeDeadlineSeconds": 0}})
    await script.end(pods[1], 143)
    await script.gone(pods[1])
    await script.until_job(job, lambda job: has(job, "Suspended") and not job["status"].get("terminating"))
    await script.ask("PATCH", f"{path}/work", {"spec": {"suspend": False, "activeDeadlineSeconds": 600}})


async def resumption(script: Script) -> None:
    """The startTime of a suspended Job may be taken off, if the suspension has not done so; that of another may not."""
    path = child_path(script.side.namespace)
    job = await script.ask("POST", path, indexed_job(completions=1, parallelism=1))
    (pod,) = await script.running(job, 1)
    cleared: JsonObject = {"status": {"startTime": None}}
    await script.ask("PATCH", f"{path}/work/status", cleared)
    await script.ask("PATCH", f"{path}/work", {"spec": {"suspend": True}})
    await script.until_job(job, lambda job: has(job, "Suspended") and job["status"].get("terminating") == 1)
    await script.end(pod, 143)
    await script.gone(pod)
    await script.until_job(job, lambda job: has(job, "Suspended") and not job["status"].get("terminating"))
    stale = {"metadata": {"resourceVersion": job["metadata"]["resourceVersion"]}}
    await script.ask("PATCH", f"{path}/work/status", stale | cleared)
    await script.ask("PATCH", f"{path}/work/status", cleared)
    await script.ask("PATCH", f"{path}/work", {"spec": {"suspend": False}})
    (pod,) = await script.running(job, 1)
    await script.until_job(job, lambda job: ["Suspended", "False", "JobResumed"] in conditions(job))
    await script.ask("PATCH", f"{path}/work/status", cleared)
    await script.end(pod, 0)
    await script.until_job(job, lambda job: has(job, "Complete"))
    await script.ask("PATCH", f"{path}/work/status", cleared)


async def parallelism(script: Script) -> None:
    """Less parallelism deletes pods, whose indexes wait until they have ended; more starts more."""
    path = child_path(script.side.namespace)
    job = await script.ask("POST", path, indexed_job(backoffLimitPerIndex=2))
    pods = await script.running(job, 3)
    await script.ask("PATCH", f"{path}/work", {"spec": {"parallelism": 1}})
    await script.until_job(job, lambda job: job["status"].get("active") == 1 and job["status"].get("terminating") == 2)
    deleted = [pod for pod in await script.pods(job) if _deleting(pod)]
    await script.ask("PATCH", f"{path}/work", {"spec": {"parallelism": 3}})
    script.note(len(deleted))
    kept = {pod["metadata"]["uid"] for pod in pods} - {pod["metadata"]["uid"] for pod in deleted}
    for pod in pods:
        if pod["metadata"]["uid"] in kept:
            await script.end(pod, 0)
    job = await script.until_job(job, lambda job: job["status"].get("succeeded") == 1)
    script.note(conditions(job))


async def a_pod_deleted_by_hand(script: Script) -> None:
    """It runs until its kubelet has ended it, is kept until it is counted, and then replaced or its index failed."""
    path = core_path("pods", script.side.namespace)
    job = await script.ask("POST", child_path(script.side.namespace), indexed_job(completions=1, parallelism=1))
    (pod,) = await script.running(job, 1)
    await script.ask("DELETE", f"{path}/{pod['metadata']['name']}")
    script.notes.pop()  # a pod's name is its own
    await script.until_job(job, lambda job: job["status"].get("terminating") == 1)
    await script.end(pod, 143)
    await script.gone(pod)
    await script.until_job(job, lambda job: has(job, "Failed"))


async def job_deleted(script: Script) -> None:
    """Background: the Job is gone at once, its pods run on until their kubelet ends them. Orphan: they stay."""
    path = child_path(script.side.namespace)
    for policy in ("Background", "Foreground", None):
        body = {} if policy is None else {"propagationPolicy": policy}
        # Names of their own: the Job controller expects pods by a Job's name, and may wait for those of an earlier one.
        name = f"work-{policy or 'Orphan'}".lower()
        own = f"{path}/{name}"
        job = await script.ask("POST", path, indexed_job(name))
        pods = await script.running(job, 3)
        await script.side.request("DELETE", own, body=body)

        async def deleted(job: JsonObject = job, policy: str | None = policy, own: str = own) -> bool:
            live = await script.pods(job)
            if policy is None:
                return not await script.read(own) and not any(
                    pod["metadata"].get("ownerReferences") or pod["metadata"].get("finalizers") for pod in live
                )
            return all(map(_deleting, live))

        await script.side.until(deleted)
        live = await script.pods(job)
        script.note(policy, len(live), [pod["status"]["phase"] for pod in live], list(map(_deleting, live)))
        script.note(await script.read(own) is not None)
        for pod in pods:
            await script.gone(pod)

        async def empty(job: JsonObject = job, own: str = own) -> bool:
            return not await script.pods(job) and await script.read(own) is None

        await script.side.until(empty)


async def job_deleted_and_held(script: Script) -> None:
    """One of its pods has ended, and a finalizer holds it: the Job makes no more pods, and ends at its deadline."""
    path = child_path(script.side.namespace)
    job = await script.ask("POST", path, indexed_job(completions=2, parallelism=2, backoffLimitPerIndex=2))
    pods = await script.running(job, 2)
    await script.end(pods[0], 0)
    await script.until_job(job, lambda job: job["status"].get("succeeded") == 1 and job["status"].get("active") == 1)
    own = core_path("pods", script.side.namespace, pods[1]["metadata"]["name"])
    held: JsonObject = {"metadata": {"finalizers": [JOB_TRACKING, "example.com/logs"]}}
    await script.side.request("PATCH", own, body=held, content_type=MERGE_PATCH)
    await script.side.request("DELETE", f"{path}/work", body={"propagationPolicy": "Foreground"})
    await script.until_job(job, lambda job: job["status"].get("terminating") == 1)
    await script.end(pods[1], 143)
    await script.gone(pods[1])
    await script.until_job(job, lambda job: not job["status"].get("terminating") and not job["status"].get("active"))
    await script.ask("PATCH", f"{path}/work", {"spec": {"activeDeadlineSeconds": 0}})
    await script.until_job(job, lambda job: has(job, "Failed"))
    await script.side.request("PATCH", own, body={"metadata": {"finalizers": None}}, content_type=MERGE_PATCH)
    await script.until_gone(f"{path}/work")


SCRIPTS: Final = (
    names_and_uids,
    versions_and_status,
    json_patches,
    retry_rules,
    lists,
    config_maps,
    foreground,
    job_fields,
    all_succeed,
    fail_index,
    backoff_per_index,
    disruption,
    too_many_failures,
    deadline_of_zero,
    suspension,
    resumption,
    parallelism,
    a_pod_deleted_by_hand,
    job_deleted,
    job_deleted_and_held,
)


@asynccontextmanager
async def real_side(kube: KubeClient, namespace: str) -> AsyncIterator[RealSide]:
    """A namespace of a real cluster, with a node that nothing is scheduled to and pods can be bound to.

    A node of its own: one that is not heard of for a minute is taken for lost, and its pods are ready no more.
    """
    await kube.request("POST", "/api/v1/nodes", body={"metadata": {"name": namespace}})
    yield RealSide(kube, namespace)
    await kube.request("DELETE", f"/api/v1/nodes/{namespace}")


async def simulated(run: Callable[[Script], Awaitable[None]], release: Release) -> list[Any]:
    """Return the simulated cluster's notes."""
    cluster = SimulatedCluster()
    cluster.api.release = release
    try:
        script = Script(SimulatedSide(cluster))
        await run(script)
        return script.notes
    finally:
        cluster.loop.close()


def written(notes: list[Any], namespace: str) -> list[str]:
    """Return the notes as lines of text."""
    return json.dumps(notes, indent=1, sort_keys=True).replace(namespace, "truth").splitlines()


async def compare(real: RealSide, run: Callable[[Script], Awaitable[None]], release: Release) -> None:
    """Run a script on both sides and see that their notes are equal."""
    script = Script(real)
    await run(script)
    truth = written(script.notes, real.namespace)
    difference = "\n".join(
        difflib.unified_diff(truth, written(await simulated(run, release), "truth"), "real", "simulated", n=8)
    )
    assert not difference, difference


@pytest.mark.parametrize("run", SCRIPTS, ids=lambda run: run.__name__)
async def test_the_simulated_cluster_does_what_the_real_one_does(
    kube: KubeClient, namespace: str, run: Callable[[Script], Awaitable[None]]
) -> None:
    async with real_side(kube, namespace) as real:
        await compare(real, run, Release.CLEARED)


@pytest.mark.parametrize("run", [suspension, resumption], ids=lambda run: run.__name__)
async def test_it_does_so_too_as_one_before_1_36(
    control_plane_before_1_36: ControlPlane, run: Callable[[Script], Awaitable[None]]
) -> None:
    async with (
        await KubeClient.connect(kubeconfig=str(control_plane_before_1_36.kubeconfig)) as kube,
        real_side(kube, await make_namespace(kube)) as real,
    ):
        await compare(real, run, Release.RESET)
