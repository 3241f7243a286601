"""The CRDs against a real API server: what is accepted, what is refused, and what the refusal says.

What the two have in common is here, and what is the jobs' alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from ingestion_crds import JsonObject
from ingestion_crds.constants import ANNOTATION_RETRY_REQUESTED, MAX_PAGES_LENGTH, RETRYABLE_PHASES, Phase
from ingestion_crds.job import INT32_MAX, IngestionJob
from ingestion_crds.kube import MERGE_PATCH, ApiError, KubeClient, batch_path, ingestion_path
from ingestion_crds.schema import batch_resource_definition, custom_resource_definition
from local_cluster import binaries
from local_cluster.control_plane import ControlPlane
from pydantic import ValidationError
from support.builders import DOCUMENT, KNOWLEDGE_BASE, ingestion_batch, ingestion_job

pytestmark = pytest.mark.controlplane

OTHER_UUID = "11111111-2222-4333-8444-555555555555"


class Kind(NamedTuple):
    """A CRD as it is written, and objects of it."""

    word: str
    crd: JsonObject
    path: Callable[..., str]
    body: Callable[..., JsonObject]
    selectors: tuple[str, ...]

    def one(self, namespace: str, subresource: str = "") -> str:
        """Return the path of the object that `create` makes."""
        return self.path(namespace, self.body()["metadata"]["name"], subresource)

    async def read(self, kube: KubeClient) -> JsonObject:
        """Return the CRD as it is stored."""
        name = self.crd["metadata"]["name"]
        return await kube.request("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")


SELECTORS = ("status.phase=queued", f"spec.knowledgeBase={KNOWLEDGE_BASE}")
OF_DOCUMENT = f"spec.document.id={DOCUMENT}"
JOBS = Kind("job", custom_resource_definition(), ingestion_path, ingestion_job, (*SELECTORS, OF_DOCUMENT))
BATCHES = Kind("batch", batch_resource_definition(), batch_path, ingestion_batch, SELECTORS)


@pytest.fixture(params=[JOBS, BATCHES], ids=["jobs", "batches"])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


async def create(kube: KubeClient, namespace: str, *, kind: Kind = JOBS, **spec: Any) -> JsonObject:
    return await kube.request("POST", kind.path(namespace), body=kind.body(namespace=namespace, **spec))


async def patch(kube: KubeClient, namespace: str, body: JsonObject, *, kind: Kind = JOBS) -> JsonObject:
    return await kube.request("PATCH", kind.one(namespace), body=body, content_type=MERGE_PATCH)


async def set_status(kube: KubeClient, namespace: str, *, kind: Kind = JOBS, **status: Any) -> JsonObject:
    path = kind.one(namespace, "status")
    return await kube.request("PATCH", path, body={"status": status}, content_type=MERGE_PATCH)


async def test_defaults_and_a_fresh_status(kube: KubeClient, namespace: str) -> None:
    job = await create(kube, namespace)
    assert job["spec"]["mode"] == "Auto"
    assert job["spec"]["retryGeneration"] == 0
    assert job["spec"]["activeDeadlineSeconds"] == 21600
    assert job["spec"]["pipeline"] == {
        "chunkSize": 1000,
        "chunkOverlap": 100,
        "embedding": {"provider": "builtin", "model": "wordllama-l2-256", "dimensions": 256},
    }
    assert job["status"]["phase"] == "queued"
    assert [(item["type"], item["status"]) for item in job["status"]["conditions"]] == [("Ready", "Unknown")]


async def test_a_status_given_on_create_is_dropped(kube: KubeClient, namespace: str) -> None:
    body = {**ingestion_job(namespace=namespace), "status": {"phase": "completed"}}
    job = await kube.request("POST", ingestion_path(namespace), body=body)
    assert job["status"]["phase"] == "queued"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"knowledgeBase": "mine"}, "spec.knowledgeBase"),
        ({"document": {"id": DOCUMENT}}, "spec.document.source"),
        ({"document": {"id": DOCUMENT, "source": {"uri": "file:///etc/passwd"}}}, "spec.document.source.uri"),
        ({"document": {"id": DOCUMENT, "source": {"uri": "s3://b/k", "sha256": "zz"}}}, "source.sha256"),
        ({"mode": "Fast"}, "spec.mode"),
        ({"parallelism": 0}, "spec.parallelism"),
        ({"retryGeneration": -1}, "spec.retryGeneration"),
        ({"retrySegments": "3-"}, "spec.retrySegments"),
        ({"cancelGeneration": 1}, "cancelGeneration must not be greater than retryGeneration"),
        ({"pipeline": {"chunkSize": 100, "chunkOverlap": 100}}, "chunkOverlap must be less than chunkSize"),
        ({"pipeline": {"embedding": {"provider": "http://evil"}}}, "spec.pipeline.embedding.provider"),
        ({"template": {"image": ""}}, "spec.template.image"),
        ({"template": {"nodeSelector": {"k" * 400: "v"}}}, "a label's name has at most 317 characters"),
        ({"template": {"tolerations": [{"operator": "Sometimes"}]}}, "spec.template.tolerations[0].operator"),
    ],
)
async def test_a_wrong_spec_is_refused_by_name(kube: KubeClient, namespace: str, spec: JsonObject, words: str) -> None:
    with pytest.raises(ApiError) as refused:
        await create(kube, namespace, **spec)
    assert refused.value.status == 422
    assert words in refused.value.message


# What Unicode calls a space, and what JSON lets through besides.
SPACES = [*" \t\n\r\f\v\0\x1c\x85\xa0\u1680\u2003\u2028\u202f\u3000\ufeff"]


@pytest.mark.parametrize("place", ["s3://team-a/Screenshot 9.41.00{}AM.pdf", "s3://team{}a/notes.txt"])
async def test_what_the_api_server_takes_for_a_uri_the_models_do_too(
    kube: KubeClient, namespace: str, place: str
) -> None:
    """Of an object that the models refuse, no condition would ever tell."""
    place = place.replace(" ", "%20")
    taken, refused = [], []
    for number, space in enumerate(SPACES):
        body = ingestion_job(name=f"job-{number}", namespace=namespace)
        body["spec"]["document"] = {"id": DOCUMENT, "source": {"uri": place.format(space)}}
        try:
            IngestionJob.model_validate(await kube.request("POST", ingestion_path(namespace), body=body))
            taken.append(space)
        except ApiError as error:
            refused.append(error)
            with pytest.raises(ValidationError):
                IngestionJob.model_validate({**body, "status": {}})
    assert all(error.status == 422 and "spec.document.source.uri" in error.message for error in refused)
    assert taken == [space for space in SPACES if space not in " \t\n\r\f"]


async def test_no_pattern_means_one_thing_to_the_api_server_and_another_to_the_models(kube: KubeClient) -> None:
    schema = json.dumps(IngestionJob.model_json_schema(by_alias=True))
    assert re.findall(r'"pattern": "', schema)
    assert not re.findall(r"\\\\[sSwWdDbB]", schema), "classes are of ASCII to the one, and of Unicode to the other"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("knowledgeBase", OTHER_UUID),
        ("pipeline", {"chunkSize": 500}),
        ("mode", "SinglePass"),
        ("segmentation", {"pagesPerSegment": 1}),
    ],
)
async def test_what_a_version_is_made_from_is_immutable(
    kube: KubeClient, namespace: str, kind: Kind, field: str, value: Any
) -> None:
    await create(kube, namespace, kind=kind)
    with pytest.raises(ApiError, match=f"{field} is immutable: make a new {kind.word}"):
        await patch(kube, namespace, {"spec": {field: value}}, kind=kind)


async def test_a_job_s_document_is_immutable(kube: KubeClient, namespace: str) -> None:
    await create(kube, namespace)
    with pytest.raises(ApiError, match="document is immutable"):
        await patch(kube, namespace, {"spec": {"document": {"title": "Another"}}})


async def test_a_defaulted_field_cannot_be_changed_by_removing_it(kube: KubeClient, namespace: str, kind: Kind) -> None:
    await create(kube, namespace, kind=kind, segmentation={"pagesPerSegment": 7})
    with pytest.raises(ApiError, match="segmentation is immutable"):
        await patch(kube, namespace, {"spec": {"segmentation": None}}, kind=kind)


@pytest.mark.parametrize(
    ("phase", "observed", "wanted", "admitted"),
    [
        ("failed", 0, 1, True),
        ("partial_failure", 0, 1, True),
        ("partial_failure", 0, 2, False),
        ("partial_failure", None, 1, False),
        ("processing", 0, 1, False),
        ("queued", 0, 1, False),
        ("completed", 0, 1, False),
    ],
)
async def test_a_retry_is_admitted_from_failure_only(
    kube: KubeClient, namespace: str, kind: Kind, phase: str, observed: int | None, wanted: int, admitted: bool
) -> None:
    """Invariant 4."""
    await create(kube, namespace, kind=kind)
    await set_status(kube, namespace, kind=kind, phase=phase, observedRetryGeneration=observed)
    if admitted:
        raised = await patch(kube, namespace, {"spec": {"retryGeneration": wanted}}, kind=kind)
        assert raised["spec"]["retryGeneration"] == wanted
        wanted += 1
    with pytest.raises(ApiError, match=f"can only be raised by one, and only while the {kind.word} is failed"):
        await patch(kube, namespace, {"spec": {"retryGeneration": wanted}}, kind=kind)


async def test_a_generation_given_on_create_is_the_baseline(kube: KubeClient, namespace: str) -> None:
    assert (await create(kube, namespace, retryGeneration=3))["spec"]["retryGeneration"] == 3


PATCHES = re.findall(r"`'(\{.*?\})'`", (Path(__file__).parents[2] / "README.md").read_text())


@pytest.mark.parametrize("text", PATCHES)
async def test_the_readme_s_patches_of_a_failed_job_are_admitted(kube: KubeClient, namespace: str, text: str) -> None:
    await create(kube, namespace)
    await set_status(kube, namespace, phase="partial_failure", observedRetryGeneration=0)
    wanted = json.loads(text)["spec"]
    assert (await patch(kube, namespace, {"spec": wanted}))["spec"].items() >= wanted.items()


def test_the_readme_s_patches_pause_cancel_and_retry() -> None:
    fields = {field for text in PATCHES for field in json.loads(text)["spec"]}
    assert fields == {"suspend", "cancelGeneration", "retryGeneration", "retrySegments"}


async def test_retry_segments_change_only_with_a_retry(kube: KubeClient, namespace: str) -> None:
    await create(kube, namespace)
    with pytest.raises(ApiError, match="retrySegments can only change together with retryGeneration"):
        await patch(kube, namespace, {"spec": {"retrySegments": "1"}})
    job = await patch(kube, namespace, {"spec": {"retrySegments": ""}})
    assert job["spec"]["retrySegments"] == "", "the same as none"
    await set_status(kube, namespace, phase="failed", observedRetryGeneration=0)
    job = await patch(kube, namespace, {"spec": {"retrySegments": "1", "retryGeneration": 1}})
    assert job["spec"]["retrySegments"] == "1"
    with pytest.raises(ApiError, match="retrySegments can only change together with retryGeneration"):
        await patch(kube, namespace, {"spec": {"retrySegments": ""}})


async def test_they_are_listed_by_selectable_fields(kube: KubeClient, namespace: str, kind: Kind) -> None:
    await create(kube, namespace, kind=kind)
    for selector in kind.selectors:
        found = await kube.request("GET", kind.path(namespace), query={"fieldSelector": selector})
        assert len(found["items"]) == 1, selector
        field, _, _ = selector.partition("=")
        other = await kube.request("GET", kind.path(namespace), query={"fieldSelector": f"{field}=other"})
        assert other["items"] == [], selector


async def test_the_crd_is_stored_as_it_is_written(kube: KubeClient, kind: Kind) -> None:
    """Else Argo CD finds a difference for ever: it compares lists whole (argoproj/argo-cd#3889)."""
    written = kind.crd["spec"]
    stored = (await kind.read(kube))["spec"]
    assert {name: stored[name] for name in written} == written


async def test_every_field_is_explained(kube: KubeClient, kind: Kind) -> None:
    crd = await kind.read(kube)
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

    def fields(node: JsonObject, place: str) -> list[str]:
        found: list[str] = []
        for name, child in node.get("properties", {}).items():
            if "description" not in child:
                found.append(f"{place}.{name}")
            found += fields(child, f"{place}.{name}") + fields(child.get("items", {}), f"{place}.{name}[]")
        return found

    missing = fields(schema["properties"]["spec"], "spec") + fields(schema["properties"]["status"], "status")
    assert missing == []


async def test_the_biggest_status_fits(kube: KubeClient, namespace: str) -> None:
    """100,000 segments with 5,000 scattered failures after 20 attempts stay under 1 MiB."""
    await create(kube, namespace)
    completed = ",".join(f"{index}-{index + 18}" for index in range(0, 100_000, 20))
    failed = ",".join(str(index) for index in range(19, 100_000, 20))
    attempt = {
        "generation": 1,
        "trigger": "REST",
        "requestedBy": "key:abc",
        "segments": 5000,
        "startTime": "2026-01-01T00:00:00Z",
        "codes": {"EmbeddingRejected": 5000},
        "jobs": [
            {"stage": "process_segments", "name": "n" * 63, "uid": OTHER_UUID, "mapDigest": "0" * 32} for _ in range(3)
        ],
    }
    failures = [
        {
            "segment": index,
            "stage": "process_segments",
            "code": "EmbeddingRejected",
            "retryable": True,
            "message": "m" * 200,
            "exitCode": 75,
            "attempt": 20,
        }
        for index in range(100)
    ]
    job = await set_status(
        kube,
        namespace,
        phase="partial_failure",
        observedRetryGeneration=0,
        failures=failures,
        attempts=[attempt] * 20,
        segments={"total": 100_000, "completed": completed, "failed": failed},
        notRead={"pageCount": INT32_MAX, "pages": "1," * 499 + "99", "attachments": INT32_MAX},
    )
    assert len(job["status"]["notRead"]["pages"]) == MAX_PAGES_LENGTH
    assert len(orjson.dumps(job)) < 2**20


async def test_the_page_s_commands_ask_for_a_retry_of_all_that_failed_and_nothing_else(
    control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    """docs/operate.md, with the kubectl of its readers."""
    for phase in Phase:
        name = phase.replace("_", "-")
        await kube.request("POST", ingestion_path(namespace), body=ingestion_job(name=name, namespace=namespace))
        path = ingestion_path(namespace, name, "status")
        await kube.request("PATCH", path, body={"status": {"phase": phase.value}}, content_type=MERGE_PATCH)
    page = (Path(__file__).parents[2] / "docs" / "operate.md").read_text()
    commands = re.findall(r"^    (kubectl -n team-a annotate .*)$", page, re.MULTILINE)
    assert len(commands) == len(RETRYABLE_PHASES)
    environment = {
        "PATH": f"{binaries.ensure(names=['kubectl'])}{os.pathsep}{os.environ['PATH']}",
        "KUBECONFIG": str(control_plane.kubeconfig),
        "HOME": str(tmp_path),  # where kubectl keeps what it has discovered
    }
    script = "\n".join(commands).replace("team-a", namespace)
    await asyncio.to_thread(subprocess.run, ["bash", "-euc", script], env=environment, check=True)
    jobs = (await kube.request("GET", ingestion_path(namespace)))["items"]
    asked = {
        job["status"]["phase"] for job in jobs if ANNOTATION_RETRY_REQUESTED in job["metadata"].get("annotations", {})
    }
    assert asked == RETRYABLE_PHASES
