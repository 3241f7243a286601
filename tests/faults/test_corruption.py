"""Somebody's script takes labels, annotations and owners off what belongs to a job, or writes nonsense into them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final

import pytest
from faults.rig import NAME, Api, Run
from faults.scenarios import PREPARE, SEGMENTS, annotation, script, segmented
from faults.stages import comes_to_the_same, held_at, job_of, until_pods_run
from faults.stand import FULL, Arrange, Stand, Struck
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Phase
from ingestion_crds.kube import MERGE_PATCH, child_path, core_path, ingestion_path
from support.kubelet import PodRun

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(3600)]

INVARIANTS: Final = (1, 2, 3, 4, 5, 8)
CONTROLLER_UID: Final = names.LABEL_CONTROLLER_UID
INDEX: Final = names.LABEL_COMPLETION_INDEX

Harm = Callable[[Run, str], Awaitable[None]]


async def change(run: Run, path: str, **metadata: object) -> None:
    await run.kube.request("PATCH", path, body={"metadata": metadata}, content_type=MERGE_PATCH)


async def job(run: Run, stage: str, **metadata: object) -> None:
    """Change the metadata of a stage's Job."""
    await change(run, child_path(run.namespace, (await job_of(run, stage))["metadata"]["name"]), **metadata)


async def config_map(run: Run, stage: str, **metadata: object) -> None:
    """Change the metadata of a stage's ConfigMap."""
    name = (await job_of(run, stage))["metadata"]["name"]
    await change(run, core_path("configmaps", run.namespace, name), **metadata)


async def pods(run: Run, stage: str, **metadata: object) -> None:
    """Change the metadata of a stage's pods."""
    for pod in await run.listed("pods"):
        if pod["metadata"]["labels"][names.LABEL_STAGE] == stage:
            await change(run, core_path("pods", run.namespace, pod["metadata"]["name"]), **metadata)


async def ours(run: Run, stage: str, **metadata: object) -> None:
    """Change the metadata of the IngestionJob."""
    await change(run, ingestion_path(run.namespace, NAME), **metadata)


# ── what changes nothing in the end ───────────────────────────────────────────────────────────────────────────


class Corruption:
    """Comes when the pods of a stage's first attempt run; they go on when it is done.

    Args:
        run: where.
        stage: which.
        harm: what is done.
    """

    def __init__(self, run: Run, stage: str, harm: Harm) -> None:
        self.injected = 0
        self._run, self._stage, self._harm = run, stage, harm
        self._seen: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def holds(self, pod: PodRun) -> bool:
        """Have the pods run until it is done."""
        if pod.stage != self._stage or pod.generation or self.injected:
            return False
        if pod.uid in self._seen and self._task is None:  # seen a second time: it runs
            self._task = asyncio.create_task(self._strike())
        self._seen.add(pod.uid)
        return True

    async def _strike(self) -> None:
        await self._run.until(lambda job: "uid" in job["status"]["attempts"][-1]["jobs"][-1])
        await self._harm(self._run, self._stage)
        self.injected = 1


def while_pods_run(stage: str, harm: Harm) -> Arrange:
    """Corrupt something while the pods of a stage run."""

    def arrange(run: Run, api: Api | None) -> Struck:
        corruption = Corruption(run, stage, harm)
        run.kubelet.holds = corruption.holds
        return corruption

    return arrange


def label(name: str, value: str | None) -> JsonObject:
    return {"labels": {name: value}}


def note(name: str, value: str | None) -> JsonObject:
    return {"annotations": {name: value}}


OURS: Final = (names.LABEL_STAGE, names.LABEL_GENERATION, names.LABEL_JOB_UID, names.LABEL_MANAGED_BY)
NO_LABELS: Final[JsonObject] = {"labels": dict.fromkeys(OURS)}
NO_NOTES: Final[JsonObject] = {"annotations": {names.ANNOTATION_MAP_DIGEST: None, names.ANNOTATION_JOB_NAME: None}}
HARMLESS: Final[dict[str, Harm]] = {
    "Job: stage label taken off": partial(job, **label(names.LABEL_STAGE, None)),
    "Job: another stage's label": partial(job, **label(names.LABEL_STAGE, "publish_version")),
    "Job: nonsense as stage label": partial(job, **label(names.LABEL_STAGE, "x")),
    "Job: generation label taken off": partial(job, **label(names.LABEL_GENERATION, None)),
    "Job: nonsense as generation label": partial(job, **label(names.LABEL_GENERATION, "99999999999999999999")),
    "Job: another generation's label": partial(job, **label(names.LABEL_GENERATION, "7")),
    "Job: managed-by label taken off": partial(job, **label(names.LABEL_MANAGED_BY, None)),
    "Job: map digest taken off": partial(job, **note(names.ANNOTATION_MAP_DIGEST, None)),
    "Job: nonsense as map digest": partial(job, **note(names.ANNOTATION_MAP_DIGEST, "☃" * 400)),
    "Job: name of its IngestionJob taken off": partial(job, **note(names.ANNOTATION_JOB_NAME, None)),
    "Job: another IngestionJob's name": partial(job, **note(names.ANNOTATION_JOB_NAME, "somebody-else")),
    "Job: nonsense as IngestionJob's name": partial(job, **note(names.ANNOTATION_JOB_NAME, "../../pods/☃?x=y")),
    "Job: annotations taken off": partial(job, **NO_NOTES),
    "ConfigMap: labels and annotations taken off": partial(config_map, **NO_LABELS, **NO_NOTES),
    "ConfigMap: nonsense as labels": partial(config_map, labels=dict.fromkeys(OURS, "x")),
    "pods: labels and annotations taken off": partial(pods, **NO_LABELS, **NO_NOTES),
    "pods: nonsense as labels": partial(pods, labels=dict.fromkeys(OURS, "x")),
    "IngestionJob: nonsense as retry origin": partial(ours, **note(names.ANNOTATION_RETRY_ORIGIN, '[{"trigger": []}]')),
    "IngestionJob: wrong types as retry origin": partial(
        ours, **note(names.ANNOTATION_RETRY_ORIGIN, '{"generation": 1, "trigger": {}, "requestedBy": 7}')
    ),
    "IngestionJob: nonsense as handled retry": partial(ours, **note(names.ANNOTATION_RETRY_HANDLED, "☃" * 400)),
    "IngestionJob: labels of a child": partial(
        ours, labels={**dict.fromkeys(OURS[:3], "x"), names.LABEL_MANAGED_BY: names.MANAGED_BY}
    ),
}
SAMPLE: Final = (
    "Job: nonsense as stage label",
    "Job: map digest taken off",
    "pods: labels and annotations taken off",
    "IngestionJob: nonsense as handled retry",
)


async def test_labels_and_annotations_that_are_wrong_change_nothing_in_the_end(stand: Stand) -> None:
    """Invariants 1, 2, 3, 4, 5, 8."""
    cases = {
        f"{what}: {stage}": while_pods_run(stage, harm)
        for what, harm in HARMLESS.items()
        for stage in ((PREPARE, SEGMENTS) if what in SAMPLE and FULL else (SEGMENTS,))
        if FULL or what in SAMPLE
    }
    await stand.survive(
        annotation,
        cases,
        invariants=INVARIANTS,
        fault_of=lambda case: f"corrupted labels and annotations: {case.partition(':')[0]}",
    )


@pytest.mark.skipif(not FULL, reason="part of `make faults`")
async def test_idempotency_keys_that_are_nonsense_change_nothing_in_the_end(stand: Stand) -> None:
    """Invariants 4, 5, 8."""
    texts = ("", "[", "{}", "7", '[{"key": []}]', "☃" * 4000)
    harms = [partial(ours, **note(names.ANNOTATION_IDEMPOTENCY_KEYS, text)) for text in texts]
    cases = {f"{text[:20]!r}": while_pods_run(SEGMENTS, harm) for text, harm in zip(texts, harms, strict=True)}
    await stand.survive(
        segmented, cases, invariants=(4, 5, 8), fault_of=lambda case: "corrupted labels and annotations: IngestionJob"
    )


# ── what leaves something behind, or costs an attempt ─────────────────────────────────────────────────────────


async def corrupt(run: Run, stage: str, harm: Harm) -> None:
    """Corrupt something while the pods of a stage run."""
    run.kubelet.script = held_at(stage)
    await run.create()
    await until_pods_run(run, stage, count=3 if stage == SEGMENTS else 1)
    await harm(run, stage)


async def disowned(run: Run, *, harm: Harm) -> int:
    """The Job is no longer known as the IngestionJob's: it does its work all the same, once, and stays behind."""
    await corrupt(run, SEGMENTS, harm)
    run.kubelet.script = script(segments=3)
    found = await run.settled("completed")
    await run.at_rest()
    assert found["status"]["segments"]["completed"] == "0-2"
    assert set(run.pods_run().values()) == {1}
    assert run.pods_run().total() == 5
    return 1


async def given_away(run: Run) -> int:
    """The Job's owner is somebody who does not exist: the garbage collector takes it, and the attempt ends."""
    reference = (await owner_of(run)) | {"uid": "00000000-0000-4000-8000-000000000000"}
    await job(run, SEGMENTS, ownerReferences=[reference])
    found = await run.settled("failed")
    assert set(found["status"]["failureSummary"]) == {"JobLost"}
    await comes_to_the_same(run)
    return 1


async def owner_of(run: Run) -> JsonObject:
    run.kubelet.script = held_at(SEGMENTS)
    await run.create()
    await until_pods_run(run, SEGMENTS, count=3)
    owners: list[JsonObject] = (await job_of(run, SEGMENTS))["metadata"]["ownerReferences"]
    return owners[0]


async def pods_without(run: Run, *, stage: str, metadata: JsonObject) -> int:
    """Kubernetes does not know its own pods any more, and runs others in their place: the effect is still one."""
    await corrupt(run, stage, partial(pods, **metadata))
    run.kubelet.script = script(segments=3)
    found = await run.until(lambda job: job["status"]["phase"] in names.TERMINAL_PHASES)
    if found["status"]["phase"] != Phase.COMPLETED:
        await run.patch({"retryGeneration": 1})
        found = await run.settled("completed", generation=1)
    await run.at_rest()
    assert found["status"]["segments"]["completed"] == "0-2"
    assert found["status"]["version"]["state"] == "active"
    return 1


async def handled_is_forgotten(run: Run, *, value: str | None) -> int:
    """The mark of an answered retry is lost while its token still stands: nobody asks for another one."""
    run.kubelet.script = lambda pod: script(segments=3, bad=frozenset({1}))(replace(pod, generation=0))
    await run.create()
    await run.settled("partial_failure")
    await run.annotate("token")
    await run.settled("partial_failure", generation=1)
    await run.until(lambda job: job["status"].get("lastHandledRetryRequest") == "token")
    await run.at_rest()
    await ours(run, SEGMENTS, **note(names.ANNOTATION_RETRY_HANDLED, value))
    await run.at_rest()
    found = await run.get()
    assert found["spec"]["retryGeneration"] == found["status"]["observedRetryGeneration"] == 1
    assert run.pods_run()[SEGMENTS, 1, 1] == 1
    await run.annotate("another token")
    await run.settled("partial_failure", generation=2)
    await run.at_rest()
    return 1


CASES: Final[dict[str, Callable[[Run], Awaitable[int]]]] = {
    "Job: its label of the IngestionJob taken off": partial(
        disowned, harm=partial(job, **label(names.LABEL_JOB_UID, None))
    ),
    "Job: label of another IngestionJob": partial(disowned, harm=partial(job, **label(names.LABEL_JOB_UID, "x"))),
    "Job: all labels taken off": partial(disowned, harm=partial(job, **NO_LABELS)),
    "Job: its owner taken off": partial(disowned, harm=partial(job, ownerReferences=None)),
    "Job: owner that does not exist": given_away,
    "pods: label of their Job taken off": partial(pods_without, stage=SEGMENTS, metadata=label(CONTROLLER_UID, None)),
    "pods: index taken off": partial(pods_without, stage=SEGMENTS, metadata=label(INDEX, None) | note(INDEX, None)),
    "pods: nonsense as index": partial(pods_without, stage=PREPARE, metadata=label(INDEX, "x") | note(INDEX, "x")),
    "IngestionJob: mark of an answered retry taken off": partial(handled_is_forgotten, value=None),
    "IngestionJob: nonsense as mark of an answered retry": partial(handled_is_forgotten, value="nonsense"),
}
SMALL: Final = ("Job: its label of the IngestionJob taken off", "IngestionJob: mark of an answered retry taken off")


async def test_objects_that_lost_their_labels_run_nothing_twice(stand: Stand) -> None:
    """Invariants 1, 2, 3, 4, 5, 8."""
    cases = CASES if FULL else {case: CASES[case] for case in SMALL}
    await stand.each(
        lambda case: f"corrupted labels and annotations: {case.partition(':')[0]}", cases, invariants=INVARIANTS
    )
