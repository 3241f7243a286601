"""The planner over random histories: whatever happens in whatever order, the invariants of docs/reliability hold.

The little world below applies the planner's actions and plays the cluster; crashes are actions that are not applied.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingestion_crds import JsonObject, retry
from ingestion_crds.config import Config, Tenant
from ingestion_crds.constants import (
    ANNOTATION_SUSPEND,
    LABEL_GENERATION,
    TERMINAL_PHASES,
    Phase,
    Reason,
    Stage,
    VersionState,
)
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import IngestionJob, NotRead, Spec, Status, Template, dump_status
from ingestion_crds.schema import custom_resource_definition
from ingestion_operator.actions import (
    AnswerAnnotation,
    CreateChild,
    DeleteChild,
    DeleteConfigMap,
    PatchChild,
    RemovePods,
    RestoreConfigMap,
)
from ingestion_operator.children import ChildJob, read_child
from ingestion_operator.obstacles import Waiting
from ingestion_operator.plan import Snapshot, plan
from ingestion_operator.questions import current, is_news, settled, wants_harvest
from ingestion_operator.results import Harvest, PodResult
from ingestion_operator.summary import why
from support.builders import ingestion_job, prepared

CONFIG = Config(worker_image="worker:test", tenants=[Tenant(namespace="team-a", bucket="team-a")])
START = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """An IngestionJob, its Jobs, and what was ever dispatched."""

    def __init__(self, **spec: Any) -> None:
        body = ingestion_job(**spec)
        body["metadata"] |= {"uid": "u-1", "creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "1"}
        self.job = IngestionJob.model_validate(body)
        self.children: dict[str, ChildJob] = {}
        self.files: dict[str, list[int]] = {}
        self.harvests: dict[str, Harvest] = {}
        self.now = START
        self.uids = 0
        self.config = CONFIG
        self.dispatched: list[tuple[int, list[int]]] = []
        self.completed_before: IndexSet = IndexSet()
        self.held: set[str] = set()  # UIDs of Jobs that somebody else has suspended

    def step(self, *, crash_after: int | None = None, tidied: frozenset[str] = frozenset()) -> bool:
        """Make one plan and apply it, or only its first parts; return whether anything changed."""
        self.now += timedelta(seconds=1)
        record = current(self.job)
        child = next((child for child in self.children.values() if record and child.name == record.name), None)
        harvest = self.harvests.get(child.uid, {}) if child and wants_harvest(self.job, child) else None
        snapshot = Snapshot(
            job=self.job, config=self.config, children=tuple(self.children.values()), harvest=harvest, tidied=tidied
        )
        decided = plan(snapshot, now=self.now)
        if crash_after == 0:
            return False
        changed = dump_status(decided.status) != dump_status(self.job.status)
        # What is written is read back as stored: nothing may hide in the models.
        stored = Status.model_validate(dump_status(decided.status))
        self.job = self.job.model_copy(update={"status": stored})
        self.check()
        for number, action in enumerate(decided.actions, start=1):
            if crash_after == number:
                return True
            changed = self.apply(action, tidied) or changed
        return changed

    def apply(self, action: Any, tidied: frozenset[str]) -> bool:
        match action:
            case CreateChild():
                name = action.body["metadata"]["name"]
                if any(child.name == name for child in self.children.values()):
                    return False
                self.uids += 1
                raw = {**action.body, "metadata": {**action.body["metadata"], "uid": f"j-{self.uids}"}}
                child = replace(read_child(raw), start_time=self.now)
                assert not [one for one in self.children.values() if not one.finished], "invariant 1: two live Jobs"
                self.children[child.uid] = child
                if child.stage == Stage.SEGMENTS:
                    file = json.loads(action.config_map["data"]["attempt.json"])
                    assert file["job"]["created"] == "2026-01-01T00:00:00Z"
                    segments = list(IndexSet.parse(file["segments"]))
                    self.files[child.uid] = segments
                    generation = int(raw["metadata"]["labels"][LABEL_GENERATION])
                    self.dispatched.append((generation, segments))
                    done = IndexSet.parse(self.job.status.segments.completed if self.job.status.segments else "")
                    assert not IndexSet.of(segments) & done, "invariant 2: a completed segment dispatched again"
                return True
            case DeleteChild():
                self.children.pop(action.uid, None)
                return True
            case PatchChild():
                child = self.children[action.uid]
                said = action.annotations.get(ANNOTATION_SUSPEND, str(child.let_go).lower())
                resumed = action.spec.get("suspend") is False
                assert not (resumed and child.uid in self.held), "somebody else is to resume it"
                if "suspend" in action.spec:
                    self.held.discard(child.uid)
                assert resumed == (action.clear_start_of is not None), "its time does not begin anew"
                if action.spec.get("activeDeadlineSeconds") == 0:
                    self.children[action.uid] = replace(child, failure_reason="DeadlineExceeded", deadline_seconds=0)
                else:
                    self.children[action.uid] = replace(
                        child,
                        suspended=action.spec.get("suspend", child.suspended),
                        let_go=said == "false",
                        parallelism=action.spec.get("parallelism", child.parallelism),
                        start_time=self.now if resumed else child.start_time,
                    )
                return True
            case RemovePods():
                self.harvests.pop(action.child_uid, None)
                if action.child_uid not in tidied:
                    self.step(tidied=tidied | {action.child_uid})
                    return True
                return False
            case AnswerAnnotation() | DeleteConfigMap():
                return False
        raise AssertionError(action)

    def check(self) -> None:
        status = self.job.status
        if status.segments is None:
            return
        completed = IndexSet.parse(status.segments.completed)
        if status.mode == "Segmented":
            assert self.completed_before <= completed, "invariant 3: the completed set shrank"
            self.completed_before = completed
        if status.version is not None and status.version.state is VersionState.ACTIVE:
            assert len(completed) == status.segments.total, "invariant 6: a version published in part"

    def rest(self) -> None:
        for _ in range(40):
            if not self.step():
                return
        raise AssertionError("the planner does not come to rest")

    def edit(self, **spec: Any) -> None:
        self.job = self.job.model_copy(
            update={
                "spec": self.job.spec.model_copy(update=spec),
                "metadata": self.job.metadata.model_copy(update={"generation": self.job.metadata.generation + 1}),
            }
        )

    def live(self) -> ChildJob | None:
        return next((child for child in self.children.values() if not child.finished), None)

    def end(self, *, good: set[int], code: str = "EmbeddingRejected", segments: int = 6) -> None:
        """End the live Job: these indexes succeed, the others fail."""
        child = self.live()
        if child is None or child.suspended:
            return
        count = len(self.files.get(child.uid, [0]))
        done = IndexSet.of(index for index in good if index < count)
        failed = IndexSet.span(count) - done
        ended: dict[str, Any] = {"completed": done, "failed": failed, "succeeded": len(done)}
        ended |= {"failure_reason": "FailedIndexes"} if failed else {"complete": True}
        self.children[child.uid] = replace(child, start_time=self.now, completion_time=self.now, **ended)
        results = {index: PodResult(succeeded=False, code=code, exit_code=75) for index in failed}
        if child.stage == Stage.PREPARE and 0 in done:
            said = prepared(segments=segments, version="2b1d7a52-6c1e-4a0b-9f55-0d3c0f2f8a12")
            results = {0: PodResult(succeeded=True, payload=said)}
        self.harvests[child.uid] = results

    def hold(self, suspended: bool) -> None:
        """Suspend or resume the live Job as somebody else does."""
        child = self.live()
        if child is None or child.queue or child.suspended == suspended:
            return
        self.children[child.uid] = replace(child, suspended=suspended)
        (self.held.add if suspended else self.held.discard)(child.uid)

    def queue(self, name: str) -> None:
        """Put the live Job into a queue, which suspends it and is looked at, or take it out with the empty name."""
        child = self.live()
        if child is not None and child.queue != name:
            self.held.discard(child.uid)
            self.children[child.uid] = replace(child, queue=name, suspended=child.suspended or bool(name))
            self.rest()


def segments_run(*, count: int = 6) -> tuple[World, ChildJob]:
    """Return a job whose document was prepared, and the Job that runs its segments."""
    world = World()
    world.rest()
    world.end(good={0}, segments=count)
    world.rest()
    child = world.live()
    assert child is not None
    return world, child


OPERATIONS = st.one_of(
    st.tuples(st.just("end"), st.sets(st.integers(0, 7))),
    st.tuples(st.just("end"), st.just(set(range(8)))),
    st.tuples(st.just("crash"), st.integers(0, 3)),
    st.tuples(st.just("look"), st.none()),
    st.tuples(st.just("retry"), st.none() | st.sets(st.integers(0, 7), min_size=1)),
    st.tuples(st.just("suspend"), st.booleans()),
    st.tuples(st.just("hold"), st.booleans()),
    st.tuples(st.just("queue"), st.sampled_from(["night", ""])),
    st.tuples(st.just("cancel"), st.none()),
    st.tuples(st.just("lose"), st.none()),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(OPERATIONS, max_size=40))
def test_the_invariants_hold_over_any_history(history: list[tuple[str, Any]]) -> None:
    """Invariants 1, 2, 3, 6, 8, and: when all goes well in the end, the job is completed."""
    world = World()
    for operation, argument in history:
        match operation:
            case "end":
                world.end(good=argument)
            case "crash":
                world.step(crash_after=argument)
            case "look":
                world.step()
            case "retry" if retry.why_not(world.job) is None:
                wanted = None if argument is None else str(IndexSet.of(argument))
                world.edit(retry_generation=world.job.spec.retry_generation + 1, retry_segments=wanted)
            case "suspend":
                world.edit(suspend=argument)
            case "hold":
                world.hold(argument)
            case "queue":
                world.queue(argument)
            case "cancel":
                world.edit(cancel_generation=world.job.spec.retry_generation)
            case "lose":
                child = world.live()
                if child is not None:
                    del world.children[child.uid]
    world.edit(suspend=False)
    for _ in range(30):
        world.rest()
        if world.job.status.phase is Phase.COMPLETED:
            break
        if retry.why_not(world.job) is None:
            world.edit(retry_generation=world.job.spec.retry_generation + 1, retry_segments=None)
        if world.held:
            world.hold(False)
        world.queue("")
        world.end(good=set(range(8)))
    assert world.job.status.phase is Phase.COMPLETED
    assert settled(world.job)
    before = dump_status(world.job.status)
    world.rest()
    assert dump_status(world.job.status) == before
    assert len(world.children) <= 1


@pytest.mark.parametrize(("prepared_before", "begins_anew"), [(False, True), (True, False)])
def test_a_job_that_is_prepared_anew_begins_anew(prepared_before: bool, begins_anew: bool) -> None:
    """What a retry of a single pass resets: its errors and times."""
    world = World()
    world.rest()
    began = world.job.status.start_time
    if prepared_before:
        world.end(good={0})
        world.rest()
    world.end(good=set())
    world.rest()
    assert world.job.status.phase is Phase.FAILED
    world.edit(retry_generation=1)
    world.rest()
    assert (world.job.status.start_time != began) == begins_anew
    assert world.job.status.start_time == world.job.status.attempts[1 if begins_anew else 0].start_time
    assert not world.job.status.failures


def test_a_crash_between_intent_and_create_makes_the_same_children() -> None:
    world = World()
    world.step(crash_after=1)  # the status is written, nothing is created
    assert not world.children
    attempt = world.job.status.attempts[0]
    assert attempt.jobs[0].uid is None
    world.rest()
    [child] = world.children.values()
    assert (child.name, child.map_digest) == (attempt.jobs[0].name, attempt.jobs[0].map_digest)


def says(world: World) -> str:
    """Return why the job is stalled, or nothing."""
    stalled = next(item for item in world.job.status.conditions if item.type == "Stalled")
    return f"{stalled.reason.value}: {stalled.message}" if stalled.status == "True" else ""


def test_a_running_job_is_counted_and_steered_by_its_record_and_not_by_the_stage_that_is_told() -> None:
    """A release that knows more stages may have told of one of them, which reads as the last."""
    world, child = segments_run()
    world.job = world.job.changed(status=world.job.status.changed(stage=Stage.PUBLISH))
    runs = replace(child, active=4, ready=4, succeeded=2)
    decided = plan(Snapshot(job=world.job, config=CONFIG, children=(runs,)), now=world.now)
    assert decided.status.segments is not None
    assert decided.status.segments.completed_count == 2
    assert not decided.actions


def test_the_deadline_is_what_the_stages_before_have_left() -> None:
    world = World(activeDeadlineSeconds=100)
    world.rest()
    [child] = world.children.values()
    assert child.deadline_seconds == 100
    world.end(good={0})
    world.children[child.uid] = replace(
        world.children[child.uid], start_time=world.now, completion_time=world.now + timedelta(seconds=30)
    )
    world.rest()
    assert world.live() is not None
    assert world.live().deadline_seconds == 70  # type: ignore[union-attr]


def test_a_terminal_phase_is_reached_or_a_reason_is_given() -> None:
    """Invariant 5."""
    world = World()
    world.edit(suspend=True)
    world.rest()
    assert world.job.status.phase not in TERMINAL_PHASES
    assert {item.reason.value for item in world.job.status.conditions if item.type == "Ready"} == {"Suspended"}


def ready(world: World) -> str:
    """Return the reason of condition Ready."""
    return next(item.reason.value for item in world.job.status.conditions if item.type == "Ready")


def test_a_job_that_somebody_else_suspends_is_theirs_to_resume() -> None:
    """Kueue suspends what it has not admitted, again and again."""
    world, child = segments_run()
    world.hold(True)
    world.rest()
    assert world.children[child.uid].suspended
    assert ready(world) == "Waiting"
    world.hold(False)
    world.rest()
    assert ready(world) == "ProcessingSegments"
    world.edit(suspend=True)
    world.rest()
    world.hold(False)
    world.rest()
    assert world.children[child.uid].suspended, "spec.suspend is true"


@pytest.mark.parametrize("held", [False, True])
def test_what_spec_suspend_has_suspended_is_resumed_by_it(held: bool) -> None:
    """Also what somebody else had suspended before: that is taken over."""
    world, child = segments_run()
    world.hold(held)
    world.rest()
    world.edit(suspend=True)
    world.rest()
    assert ready(world) == "Suspended"
    world.edit(suspend=False)
    world.rest()
    assert not world.children[child.uid].suspended


def test_a_job_of_a_release_that_did_not_say_who_suspended_it_is_resumed() -> None:
    world, child = segments_run()
    world.children[child.uid] = replace(child, suspended=True, let_go=False)
    world.rest()
    assert not world.children[child.uid].suspended
    world.hold(True)
    world.rest()
    assert world.children[child.uid].suspended


@pytest.mark.parametrize(("takes_fewer", "suspended", "asked"), [(False, False, 3), (True, False, 1), (True, True, 3)])
def test_what_kueue_has_admitted_with_fewer_pods_keeps_them_while_it_runs(
    takes_fewer: bool, suspended: bool, asked: int
) -> None:
    """It refuses any other parallelism, and gives the Job's own back when it evicts it."""
    world, child = segments_run()
    admitted = replace(child, queue="night", takes_fewer=takes_fewer, suspended=suspended, parallelism=1)
    world.children[child.uid] = admitted
    world.edit(parallelism=3)
    world.rest()
    assert world.children[child.uid].parallelism == asked


def test_an_image_that_the_chart_does_not_allow_waits_until_either_changes() -> None:
    """Invariant 5: at the beginning, between two stages, and when the intent is recorded already."""
    team, mine = "registry.example/team/*", Template(image="registry.example/mine:1")
    restricted = CONFIG.model_copy(update={"worker_allowed_images": [team]})
    world = World(template={"image": mine.image})
    world.config = restricted
    world.rest()
    assert world.live() is None
    assert world.job.status.phase is Phase.QUEUED
    assert says(world) == f"ImageNotAllowed: spec.template.image: {mine.image!r} is none of worker:test, {team}"
    world.edit(template=Template(image="registry.example/team/worker:2"))
    world.step(crash_after=1)
    world.edit(template=mine)
    world.rest()
    assert world.live() is None
    assert says(world).startswith("ImageNotAllowed")
    world.edit(template=Template(image="worker:test"))
    world.rest()
    world.edit(template=mine)
    world.end(good={0})
    world.rest()
    assert world.live() is None
    assert says(world).startswith("ImageNotAllowed")
    world.config = CONFIG
    world.rest()
    assert world.live() is not None
    assert not says(world)


def test_names_leave_room_for_the_index() -> None:
    world = World(name="a.very.long-name-" + "x" * 200)
    world.rest()
    [child] = world.children.values()
    assert len(child.name) + 1 + 5 <= 63
    assert "." not in child.name


def test_a_refusal_stands_until_the_cluster_takes_the_job() -> None:
    """Invariant 8: a try that is refused in the same words writes nothing."""
    world = World()
    dispatched = world.job.model_copy(update={"status": plan(Snapshot(job=world.job, config=CONFIG), now=START).status})
    refused = plan(Snapshot(job=dispatched, config=CONFIG, rejection="no room"), now=START)
    job = dispatched.model_copy(update={"status": refused.status})
    again = plan(Snapshot(job=job, config=CONFIG), now=START + timedelta(minutes=1))
    assert again.status == job.status
    (create,) = again.actions
    assert isinstance(create, CreateChild)
    made = read_child(create.body | {"metadata": create.body["metadata"] | {"uid": "j-1"}})
    taken = Snapshot(job=job, config=CONFIG, children=(made,))
    stalled = next(item for item in plan(taken, now=START).status.conditions if item.type == "Stalled")
    assert stalled.status == "False"


def test_why_a_job_failed_counts_all_of_its_segments() -> None:
    """Also those beyond the hundred whose failures are kept."""
    world, _ = segments_run(count=5_000)
    world.end(good=set())
    world.rest()
    assert world.job.status.phase is Phase.FAILED
    assert why(world.job.status).startswith("5000 segments, first 0: ")


def test_of_many_failed_pods_twenty_are_kept() -> None:
    world, child = segments_run(count=25)
    world.end(good=set())
    snapshot = Snapshot(
        job=world.job, config=CONFIG, children=tuple(world.children.values()), harvest=world.harvests[child.uid]
    )
    assert plan(snapshot, now=START).actions == (RemovePods(child_uid=child.uid, keep=tuple(range(20))),)


@pytest.mark.parametrize("cancelled", [False, True], ids=["deadline", "cancelled"])
@pytest.mark.parametrize("mode", ["Segmented", "SinglePass"])
def test_a_version_that_went_live_while_its_job_was_ended_is_active(mode: str, cancelled: bool) -> None:
    """The pod had a second left after the deadline, or the cancel, and published in it: searches find the version."""
    world = World()
    world.rest()
    if mode == "Segmented":
        world.end(good={0})
        world.rest()
        world.end(good=set(range(6)))
        world.rest()
    child = world.live()
    assert child is not None
    world.edit(cancel_generation=0 if cancelled else None)
    world.children[child.uid] = replace(
        child,
        completed=IndexSet.span(1),
        succeeded=1,
        failure_reason="DeadlineExceeded",
        start_time=world.now,
        completion_time=world.now,
    )
    said = prepared(segments=1, mode="SinglePass", version="2b1d7a52-6c1e-4a0b-9f55-0d3c0f2f8a12")
    world.harvests[child.uid] = {0: PodResult(succeeded=True, payload=said)}
    world.rest()
    assert world.job.status.phase is Phase.COMPLETED
    assert world.job.status.version is not None
    assert world.job.status.version.state is VersionState.ACTIVE


def test_what_is_not_read_is_told_with_the_version_by_whoever_publishes_it() -> None:
    """Segments of an earlier attempt are not run again, and publishing may fail before it succeeds."""
    world, _ = segments_run()
    for generation, good in enumerate([set(range(5)), {0}]):
        world.end(good=good)
        world.rest()
        world.end(good=set())
        world.rest()
        assert world.job.status.not_read is None
        world.edit(retry_generation=generation + 1)
        world.rest()
    world.end(good={0})
    child = next(child for child in world.children.values() if child.stage == Stage.PUBLISH and child.complete)
    said = {"pageCount": 4, "pages": "2-4,6", "attachments": 2}
    world.harvests[child.uid] = {0: PodResult(succeeded=True, payload={"notRead": said})}
    world.rest()
    status = world.job.status
    assert status.phase is Phase.COMPLETED
    assert status.not_read == NotRead(page_count=4, pages="2-4,6", attachments=2)
    ready = next(item for item in status.conditions if item.type == "Ready")
    assert (ready.status, ready.message) == (
        "True",
        "The version is active; pages without text: 4; attachments that are not read: 2",
    )


@pytest.mark.parametrize("said", [{"pageCount": 1, "pages": "2"}, None])
def test_a_single_pass_tells_what_is_not_read(said: JsonObject | None) -> None:
    world = World()
    world.rest()
    world.end(good={0})
    child = next(iter(world.children.values()))
    payload = prepared(segments=1, mode="SinglePass", version="2b1d7a52-6c1e-4a0b-9f55-0d3c0f2f8a12")
    world.harvests[child.uid] = {0: PodResult(succeeded=True, payload=payload | ({"notRead": said} if said else {}))}
    world.rest()
    status = world.job.status
    assert status.not_read == (NotRead(page_count=1, pages="2") if said else None)
    ready = next(item for item in status.conditions if item.type == "Ready")
    assert ready.message == "The version is active" + ("; pages without text: 1" if said else "")


def test_a_segment_that_its_job_left_out_is_unfinished() -> None:
    """Somebody has made an Indexed Job smaller (KEP-3715): it is Complete without its last indexes."""
    world, child = segments_run()
    world.children[child.uid] = replace(
        child,
        completed=IndexSet.span(5),
        succeeded=5,
        complete=True,
        start_time=world.now,
        completion_time=world.now,
    )
    world.rest()
    status = world.job.status
    assert status.segments is not None
    assert (status.phase, status.segments.failed) == (Phase.PARTIAL_FAILURE, "5")
    world.edit(retry_generation=1)
    world.rest()
    assert world.dispatched[-1] == (1, [5])


def test_a_retry_of_some_segments_lists_their_failures_first_and_counts_the_others_as_they_were() -> None:
    world, _ = segments_run(count=200)
    world.end(good=set(), code="OOMKilled")
    world.rest()
    world.edit(retry_generation=1, retry_segments="150-159")
    world.rest()
    world.end(good=set(), code="EmbeddingUnauthorized")
    world.rest()
    status = world.job.status
    assert status.failure_summary == {"OOMKilled": 190, "EmbeddingUnauthorized": 10}
    assert [failure.segment for failure in status.failures] == [*range(150, 160), *range(90)]
    assert {failure.code for failure in status.failures[:10]} == {"EmbeddingUnauthorized"}


def test_of_unlisted_failures_that_stay_only_one_code_can_be_known() -> None:
    world, child = segments_run(count=200)
    world.end(good=set(), code="OOMKilled")
    evicted = PodResult(succeeded=False, code="Evicted", exit_code=None)
    world.harvests[child.uid] |= dict.fromkeys(range(195, 200), evicted)
    world.rest()
    assert world.job.status.failure_summary == {"OOMKilled": 195, "Evicted": 5}
    world.edit(retry_generation=1, retry_segments="150-159")
    world.rest()
    assert world.job.status.failure_summary == {"OOMKilled": 100, "Unknown": 90}


def test_pods_without_a_node_are_a_reason_while_none_runs() -> None:
    """A cluster with less room than `parallelism` is no fault: the job goes on with what it has."""
    world, child = segments_run()
    no_room = Waiting(reason=Reason.POD_UNSCHEDULABLE, message="0/3 nodes are available")

    def stalled(child: ChildJob, obstacle: Waiting) -> bool:
        decided = plan(Snapshot(job=world.job, config=CONFIG, children=(child,), obstacle=obstacle), now=world.now)
        world.job = world.job.model_copy(update={"status": decided.status})
        return any(item.type == "Stalled" and item.status == "True" for item in decided.status.conditions)

    none_runs, some_run = replace(child, active=6, ready=0), replace(child, active=6, ready=4)
    assert stalled(none_runs, no_room)
    assert is_news(world.job.status, before=none_runs, after=some_run)
    assert not stalled(some_run, no_room)
    assert stalled(some_run, Waiting(reason=Reason.IMAGE_UNAVAILABLE, message="no such image"))


@pytest.mark.parametrize(("truncated", "unread"), [(True, "Unknown"), (False, "PodLost")])
@pytest.mark.parametrize(
    ("failure_reason", "never_ended"),
    [
        ("MaxFailedIndexesExceeded", "TooManyFailures"),
        ("DeadlineExceeded", "Deadline"),
        ("DeadlineExceeded", "Cancelled"),
    ],
)
def test_a_segment_that_failed_was_not_stopped_although_its_pod_was_not_read(
    failure_reason: str, never_ended: str, truncated: bool, unread: str
) -> None:
    """There are more failed pods than are looked at, or the node of some is gone."""
    world, child = segments_run()
    world.edit(cancel_generation=0 if never_ended == "Cancelled" else None)
    child = replace(
        child,
        failed=IndexSet.span(3),
        failure_reason=failure_reason,
        start_time=world.now,
        completion_time=world.now,
    )
    snapshot = Snapshot(
        job=world.job,
        config=CONFIG,
        children=(child,),
        harvest={0: PodResult(succeeded=False, code="EmbeddingUnavailable", exit_code=1)},
        harvest_truncated=truncated,
    )
    status = plan(snapshot, now=world.now).status
    assert status.failure_summary == {"EmbeddingUnavailable": 1, unread: 2, never_ended: 3}


SPEC_SCHEMA = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
FIXED = {rule["fieldPath"][1:] for rule in SPEC_SCHEMA["x-kubernetes-validations"] if "immutable" in rule["message"]}
# Of each field of spec another value: where the CRD lets it change, one that it admits while an attempt runs.
CHANGED = {
    "knowledgeBase": "11111111-2222-4333-8444-555555555555",
    "document": ingestion_job()["spec"]["document"] | {"title": "Another"},
    "mode": "Segmented",
    "segmentation": {"pagesPerSegment": 1},
    "pipeline": {"chunkSize": 500},
    "template": {"image": "worker:test"},
    "parallelism": 1,
    "segmentBackoffLimit": 0,
    "maxFailedSegments": 1,
    "activeDeadlineSeconds": 60,
    "suspend": True,
    "retryGeneration": 2,
    "retrySegments": "",
    "cancelGeneration": 1,
    "ttlSecondsAfterFinished": 1,
    "parentGeneration": 1,
}


@pytest.mark.parametrize("field", SPEC_SCHEMA["properties"])
def test_what_an_attempt_is_made_from_is_immutable_and_nothing_else(field: str) -> None:
    """Invariant 2: while it runs, the spec says which segment an index of its Job is."""
    world, _ = segments_run()
    world.end(good={1, 2})
    world.rest()
    world.edit(retry_generation=1)
    world.rest()
    spec = Spec.model_validate(world.job.spec.model_dump(by_alias=True) | {field: CHANGED[field]})
    job = world.job.model_copy(update={"spec": spec})
    snapshot = Snapshot(job=job, config=CONFIG, children=tuple(world.children.values()), config_map_gone=True)
    restored = [action for action in plan(snapshot, now=world.now).actions if isinstance(action, RestoreConfigMap)]
    assert bool(restored) is (field not in FIXED), "it is made again only as it was"


def prepare_runs() -> tuple[World, ChildJob]:
    """Return a new job, and the Job that prepares its document."""
    world = World()
    world.rest()
    child = world.live()
    assert child is not None
    return world, child


PUT_OUT = PodResult(succeeded=False, code="Evicted", message="The node was low on resource: memory")
STOPPED = PodResult(succeeded=False, code="Interrupted", message="told to stop")


@pytest.mark.parametrize("runs", [prepare_runs, segments_run])
@pytest.mark.parametrize(
    ("last", "waits_since", "says"),
    [
        (None, None, ""),
        (PUT_OUT, None, "; Evicted: The node was low on resource: memory"),
        (PUT_OUT, 500, "; Evicted: The node was low on resource: memory"),
        (STOPPED, 500, "; PodUnschedulable: 0/3 nodes are available"),
        (None, 500, "; PodUnschedulable: 0/3 nodes are available"),
        (None, 650, ""),
        (STOPPED, None, ""),
    ],
)
def test_what_ran_out_of_time_says_what_kept_it(
    runs: Callable[[], tuple[World, ChildJob]], last: PodResult | None, waits_since: int | None, says: str
) -> None:
    """A pod that its node puts out is run again until then; and a job may have waited for a node all the time."""
    world, child = runs()
    child = replace(child, start_time=START, deadline_seconds=600, active=1)
    if waits_since is not None:
        waiting = Waiting(reason=Reason.POD_UNSCHEDULABLE, message="0/3 nodes are available")
        snapshot = Snapshot(job=world.job, config=CONFIG, children=(child,), obstacle=waiting)
        status = plan(snapshot, now=START + timedelta(seconds=waits_since)).status
        world.job = world.job.model_copy(update={"status": status})
    child = replace(child, active=0, failure_reason="DeadlineExceeded", failure_message="It took too long")
    harvest = {0: last} if last is not None else {}
    snapshot = Snapshot(job=world.job, config=CONFIG, children=(child,), harvest=harvest)
    failure = plan(snapshot, now=START + timedelta(seconds=700)).status.failures[0]
    assert (failure.code, failure.message) == ("Deadline", f"It took too long{says}")
