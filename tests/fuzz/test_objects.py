"""IngestionJobs as nobody would write them, against a real API server with the operator at work.

Three kinds of objects are generated from the CRD's own schema: valid ones, valid ones that something was done to, and
JSON of any form. The short part has a fixed seed; INGESTION_FAULTS=full makes thousands, with a seed of the day.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.job import MAX_CODES
from ingestion_crds.kube import JSON_PATCH, MERGE_PATCH, ApiError, KubeClient, ingestion_path
from ingestion_crds.schema import custom_resource_definition
from local_cluster.control_plane import ControlPlane
from support.builders import failure, ingestion_job, prepared
from support.campaign import record
from support.kubelet import Exit, FakeKubelet, PodRun, fails
from support.operator_process import operator, write_config

pytestmark = pytest.mark.controlplane

FULL = os.environ.get("INGESTION_FAULTS") == "full"
OBJECTS = 1200 if FULL else 120
SEED = random.randrange(2**32) if FULL else 4
SIDE_BY_SIDE = 8
# A refusal has to say which field, or that the whole is no object: these are the API server's own words. What it begins
# with, the object's kind and name, says nothing.
CLEAR = re.compile(r"is invalid: .*\b(spec|metadata)\b|cannot unmarshal|strict decoding", re.DOTALL)
# All that the API server says of a JSON patch that does not fit.
JSON_PATCH_WORDS = re.compile(CLEAR.pattern + "|error in our request", re.DOTALL)
MEBIBYTE = 2**20


(CRD_VERSION,) = custom_resource_definition()["spec"]["versions"]
SPEC_SCHEMA = CRD_VERSION["schema"]["openAPIV3Schema"]["properties"]["spec"]


def values_of(schema: JsonObject) -> st.SearchStrategy[Any]:
    """Return a strategy for what a structural schema allows, with a liking for its bounds.

    What is said in CEL alone is not kept to: some of the values are refused.
    """
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:  # a quantity
        return st.integers(0, 64) | st.sampled_from(["1", "500m", "1Gi", "0.5", "1e3", "x", "--"])
    match schema["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            low, high = schema.get("minimum", -(2**31)), schema.get("maximum", 2**31 - 1)
            return st.sampled_from([low, high]) | st.integers(low, high) | st.integers(low, min(high, low + 100))
        case "string" if "pattern" in schema:
            pattern = schema["pattern"].removesuffix("$") + r"\Z"  # Python's $ also matches before a last newline
            return st.from_regex(pattern).filter(lambda text: len(text) <= schema["maxLength"])
        case "string":
            long = st.sampled_from("aé☃<").map(lambda character: character * schema["maxLength"])
            return st.text(min_size=schema.get("minLength", 0), max_size=min(schema["maxLength"], 40)) | long
        case "array":
            return st.lists(values_of(schema["items"]), max_size=3)
    if "additionalProperties" in schema:
        return st.dictionaries(NAMES, values_of(schema["additionalProperties"]), max_size=3)
    fields = {name: values_of(field) for name, field in schema["properties"].items()}
    required = {name: fields.pop(name) for name in schema.get("required", [])}
    return st.fixed_dictionaries(required, optional=fields)


NAMES = st.sampled_from(["cpu", "memory", "nvidia.com/gpu", "kubernetes.io/os", "disk", "a/b/c", "-"])
SPECS = values_of(SPEC_SCHEMA)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=20)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=12,
)
TEXTS = st.sampled_from(
    ["", " ", "\u0000", "\n", "☃" * 400, "a" * 5000, "-1", "true", "../..", "${x}", "\ud83d\ude00", "0-"]
)
ODD = JSON | TEXTS | st.sampled_from([-1, 0, 2**31 - 1, 2**31, 2**53, 1e308, [], {}, None])


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of everything inside a JSON value."""
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(found for key, value in inside for found in places(value, (*path, key)))]


@st.composite
def spoilt(draw: st.DrawFn, valid: st.SearchStrategy[Any]) -> Any:
    """Draw a valid value and do something to a place or two of it."""
    value = copy.deepcopy(draw(valid))
    for _ in range(draw(st.integers(1, 2))):
        *parents, last = draw(st.sampled_from([path for path in places(value) if path] or [("spoilt",)]))
        node = value
        for key in parents:
            node = node[key]
        if draw(st.booleans()) or isinstance(node, list):
            node[last] = draw(ODD)
        elif isinstance(node, dict):
            node.pop(last, None)
            node[draw(st.sampled_from([f"{last}s", "", str(last).upper()]))] = draw(ODD)
    return value


ANNOTATIONS = st.dictionaries(
    st.sampled_from(
        [names.ANNOTATION_RETRY_REQUESTED, names.ANNOTATION_RETRY_HANDLED, names.ANNOTATION_RETRY_ORIGIN,
         names.ANNOTATION_IDEMPOTENCY_KEYS]
    ),
    TEXTS | JSON.map(json.dumps),
    max_size=2,
)  # fmt: skip
OBJECTS_OF_A_KIND = st.one_of(
    st.tuples(st.just("valid"), SPECS),
    st.tuples(st.just("valid"), SPECS),
    st.tuples(st.just("nearly valid"), spoilt(SPECS)),
    st.tuples(st.just("wild"), JSON),
)
PATCHES = st.lists(
    spoilt(SPECS)
    | st.fixed_dictionaries(
        {},
        optional={
            "retryGeneration": st.integers(-1, 3),
            "retrySegments": st.sampled_from(["", "0", "1-2", "0-999999", "5-2", "999999", "1,1,1"]),
            "cancelGeneration": st.integers(-1, 2),
            "suspend": st.booleans(),
            "parallelism": st.integers(0, 10_001),
            "ttlSecondsAfterFinished": st.integers(0, 2**31),
            "template": st.one_of(st.none(), values_of(SPEC_SCHEMA["properties"]["template"])),
        },
    ),
    max_size=3,
)


def pods(run: PodRun) -> Exit | None:
    """End pods at once, some badly, and some with words that no contract allows."""
    chance = random.Random(run.uid).random()
    if chance < 0.15:
        return fails(failure("EmbeddingRejected", "content\u0000 rejected <b>"))
    if chance < 0.25:
        return Exit(code=0 if chance < 0.2 else 70, says="{" * 50)
    return Exit(says=prepared(segments=3) if run.stage == names.Stage.PREPARE else {"chunks": 3})


async def refused_clearly(attempt: Awaitable[JsonObject], *, words: re.Pattern[str] = CLEAR) -> JsonObject | None:
    """Return what the API server stored, None when it refused in words that name what is wrong.

    Raises:
        ApiError: it failed, or its words do not help.
    """
    try:
        return await attempt
    except ApiError as error:
        if error.status in (404, 409) or (error.status in (400, 413, 422) and words.search(error.message)):
            return None
        raise


def drawn(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """Return so many values of a strategy.

    The seed says which, together with the modules that are loaded: Hypothesis likes the constants in them.
    """
    values: list[Any] = []

    @seed(SEED)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(value: Any) -> None:
        values.append(value)

    collect()
    return values


def explained(job: JsonObject) -> bool:
    """True when a job has ended, or says in a condition why it has not (invariant 5)."""
    status = job.get("status", {})
    if status.get("phase") in names.TERMINAL_PHASES:
        return True
    stalled = next((item for item in status.get("conditions", []) if item["type"] == "Stalled"), {})
    # A pod that is pending is one that the test's kubelet has not come to yet.
    return stalled.get("status") == "True" and bool(stalled.get("message")) and stalled["reason"] != "PodPending"


async def every_job_explained(kube: KubeClient, namespace: str, kubelet: FakeKubelet) -> list[JsonObject]:
    """Wait until each job has ended or says why not, and return them."""
    deadline = asyncio.get_running_loop().time() + (1200 if FULL else 300)
    while True:
        jobs = await every_job(kube, namespace)
        waiting = [job for job in jobs if not explained(job)]
        if not waiting:
            return jobs
        # These alone, or the API server does little else than to list: many a job is hundreds of KB.
        while waiting:
            kubelet.check()
            assert asyncio.get_running_loop().time() < deadline, json.dumps(waiting[:3], indent=1)
            await asyncio.sleep(0.5)
            paths = [ingestion_path(namespace, job["metadata"]["name"]) for job in waiting]
            waiting = [job for path in paths if (job := await live(kube, path)) is not None and not explained(job)]


async def live(kube: KubeClient, path: str) -> JsonObject | None:
    """GET a job; None when its time to live is over."""
    try:
        return await get(kube, path)
    except ApiError as error:
        if error.not_found:
            return None
        raise


async def every_job(kube: KubeClient, namespace: str) -> list[JsonObject]:
    """List all jobs of a namespace, page by page."""
    jobs: list[JsonObject] = []
    query: JsonObject = {"limit": 50}
    while True:
        page = await get(kube, ingestion_path(namespace), query)
        jobs += page["items"]
        if not (more := page["metadata"].get("continue")):
            return jobs
        query["continue"] = more


async def get(kube: KubeClient, path: str, query: JsonObject | None = None) -> JsonObject:
    """GET, and again where the API server has too much to do with the largest objects to answer in time."""
    while True:
        try:
            return await kube.request("GET", path, query=query)
        except ApiError as error:
            if error.status not in (0, 504):
                raise
            await asyncio.sleep(1.0)


async def side_by_side(work: Callable[[Any], Awaitable[None]], items: list[Any]) -> None:
    """Do work on every item, some at the same time."""
    queue = list(reversed(items))

    async def worker() -> None:
        while queue:
            await work(queue.pop())

    async with asyncio.TaskGroup() as group:
        for _ in range(SIDE_BY_SIDE):
            group.create_task(worker())


@pytest.mark.timeout(2400)
async def test_any_object_is_refused_clearly_or_ends(
    control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    """Invariant 5, and never an exception that nobody caught."""
    objects = drawn(st.tuples(OBJECTS_OF_A_KIND, ANNOTATIONS, PATCHES), OBJECTS)
    log = tmp_path / "operator.log"
    config = write_config(tmp_path, tenants=[namespace])
    tally: Counter[str] = Counter()
    with operator(kubeconfig=control_plane.kubeconfig, config=config, log=log) as process:
        async with FakeKubelet(client=kube, namespace=namespace, script=pods) as kubelet:

            async def one(item: Any) -> None:
                number, ((kind, spec), annotations, patches) = item
                body = ingestion_job(name=f"job-{number}", namespace=namespace)
                body["spec"] = spec
                body["metadata"]["annotations"] = annotations
                made = await refused_clearly(kube.request("POST", ingestion_path(namespace), body=body))
                tally[f"{kind}, {'stored' if made else 'refused'}"] += 1
                if made is None:
                    return
                path = ingestion_path(namespace, f"job-{number}")
                for patch in patches:
                    change = kube.request("PATCH", path, body={"spec": patch}, content_type=MERGE_PATCH)
                    changed = await refused_clearly(change)
                    tally[f"patch {'stored' if changed else 'refused'}"] += 1

            await side_by_side(one, list(enumerate(objects)))
            # What was asked to wait is let go, so that it too has to end.
            for job in await every_job(kube, namespace):
                if job["spec"].get("suspend"):
                    path = ingestion_path(namespace, job["metadata"]["name"])
                    await kube.request("PATCH", path, body={"spec": {"suspend": False}}, content_type=MERGE_PATCH)
            jobs = await every_job_explained(kube, namespace, kubelet)
        assert process.poll() is None, log.read_text()
    print(dict(sorted(tally.items())), Counter(job["status"]["phase"] for job in jobs), f"seed {SEED}")
    unexpected = [line for line in log.read_text().splitlines() if '"exception":' in line or '"level": "error"' in line]
    assert not unexpected, unexpected[:3]
    assert max(len(json.dumps(job)) for job in jobs) < MEBIBYTE
    # About half: the rest breaks a rule that is CEL alone. How many it is differs, even with the same seed.
    assert 4 * tally["valid, stored"] > tally["valid, refused"], "the strategy does not make what the CRD takes"
    record("malformed or odd IngestionJob or patch", injected=tally.total(), survived=tally.total(), invariants=[5])


async def test_the_largest_object_that_the_schema_allows_stays_under_a_mebibyte_and_is_understood(
    control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    """With what users choose and what the operator records, every character of which takes six bytes in JSON."""
    long = "<"
    keys = [f"{number:02}".ljust(317, "k") for number in range(32)]
    spec = ingestion_job(namespace=namespace)["spec"]
    spec["document"]["title"] = long * 512
    spec["document"]["source"] = {"uri": "s3://" + long * 2043, "contentType": long * 128, "sha256": "a" * 64}
    spec["pipeline"] = {"embedding": {"provider": "p" * 63, "model": long * 128}}
    spec["retrySegments"] = ",".join(["99999"] * 10922)
    toleration = {"operator": "Equal", "value": "v" * 63, "effect": "PreferNoSchedule", "tolerationSeconds": 2**31 - 1}
    quantities = dict.fromkeys(keys[:16], "1" * 64)
    spec["template"] = {
        "image": long * 512,
        "resources": {"requests": quantities, "limits": quantities},
        "nodeSelector": dict.fromkeys(keys, "v" * 63),
        "tolerations": [{"key": key, **toleration} for key in keys],
        "priorityClassName": "p" * 253,
        "imagePullSecrets": [{"name": f"{number}".ljust(253, "s")} for number in range(8)],
    }
    body = {**ingestion_job(name="n" * 253, namespace=namespace), "spec": spec}
    await kube.request("POST", ingestion_path(namespace), body=body)
    odd, even = (",".join(str(number) for number in range(first, 100_000, 2)) for first in (1, 0))
    moment = "2026-01-01T00:00:00Z"
    codes = {f"{number:02}".ljust(32, "c"): 100_000 for number in range(MAX_CODES)}
    child = {"stage": "process_segments", "name": "n" * 63, "uid": "u" * 36, "mapDigest": "d" * 32}
    attempt = {
        "generation": 2**31 - 1,
        "trigger": "Annotation",
        "requestedBy": long * 128,
        "segments": 100_000,
        "completed": 100_000,
        "failed": 100_000,
        "codes": codes,
        "reason": max(names.Reason, key=len),
        "jobs": [{**child, "startTime": moment, "completionTime": moment}] * 3,
        "startTime": moment,
        "completionTime": moment,
    }
    failed = {"segment": 99_999, "stage": "process_segments", "code": "c" * 32, "retryable": False, "exitCode": 255}
    condition = {"status": "Unknown", "reason": "ProcessingSegments", "message": long * 1024}
    status = {
        "jobID": "j" * 64,
        "lastHandledRetryRequest": long * 256,
        "phase": "partial_failure",
        "version": {"id": "v" * 64, "number": 2**31, "planHash": "h" * 64, "state": "processing"},
        "segments": {"total": 100_000, "completed": even, "failed": odd, "progress": "99999/100000"},
        "failures": [{**failed, "message": long * 200, "attempt": 2**31 - 1}] * 100,
        "failureSummary": codes,
        "attempts": [attempt] * 20,
        "startTime": moment,
        "completionTime": moment,
        "conditions": [
            {"type": kind.value, **condition, "lastTransitionTime": moment, "observedGeneration": 2**31}
            for kind in names.ConditionType
        ],
    }
    path = ingestion_path(namespace, "n" * 253)
    await kube.request("PATCH", f"{path}/status", body={"status": status}, content_type=MERGE_PATCH)
    stored = await kube.request("GET", path)
    # Go writes <, > and & as six bytes; Python does not.
    size = len(json.dumps(stored, separators=(",", ":"), ensure_ascii=False).encode()) + 5 * json.dumps(stored).count(
        "<"
    )
    print(f"{size:,} bytes")
    assert size < MEBIBYTE
    log = tmp_path / "operator.log"
    with operator(kubeconfig=control_plane.kubeconfig, config=write_config(tmp_path, tenants=[namespace]), log=log):
        async with asyncio.timeout(60):
            while "observedGeneration" not in stored["status"]:
                assert '"exception":' not in log.read_text(), log.read_text()
                await asyncio.sleep(0.1)
                stored = await kube.request("GET", path)


@pytest.mark.parametrize("field", ["requests", "limits", "nodeSelector"])
async def test_a_maps_keys_are_bounded_too(kube: KubeClient, namespace: str, field: str) -> None:
    """OpenAPI bounds a map's values and their number; one key of a megabyte would fill an object."""
    names_ = {"k" * 1000: "1"}
    template = {"nodeSelector": names_} if field == "nodeSelector" else {"resources": {field: names_}}
    body = ingestion_job(namespace=namespace, template=template)
    with pytest.raises(ApiError, match="has at most 317 characters"):
        await kube.request("POST", ingestion_path(namespace), body=body)


async def test_a_json_patch_of_any_form(kube: KubeClient, namespace: str) -> None:
    await kube.request("POST", ingestion_path(namespace), body=ingestion_job(namespace=namespace))
    path = ingestion_path(namespace, "handbook")
    pointers = st.sampled_from(
        ["", "/", "/spec", "/spec/retryGeneration", "/status", "/metadata/annotations/a~1b", "x"]
    )
    verbs = st.sampled_from(["add", "remove", "replace", "move", "copy", "test", "wish"])
    operation = st.fixed_dictionaries({"op": verbs, "path": pointers}, optional={"value": ODD, "from": pointers})
    # Of these, and of no other, the API server's own JSON patch library panics: the connection ends without an answer.
    operation = operation.filter(
        lambda item: item["op"] not in ("replace", "test") or item["path"] != "" or "value" in item
    )
    for operations in drawn(st.lists(operation | JSON, max_size=3), OBJECTS // 4):
        attempt = kube.request("PATCH", path, body=operations, content_type=JSON_PATCH)
        await refused_clearly(attempt, words=JSON_PATCH_WORDS)
    assert (await kube.request("GET", path))["spec"]["retryGeneration"] == 0
