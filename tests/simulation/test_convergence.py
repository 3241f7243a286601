"""Whatever breaks in whatever order, the job comes to rest, and nothing is lost and nothing done twice.

Hypothesis chooses who goes on, what is lost, who dies and what people do meanwhile; the operator is the real one.
Invariants 1 to 8 of docs/reliability.md; the violations name theirs.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import Counter
from random import Random
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from ingestion_api.auth import Principal
from ingestion_api.job_index import JobIndex
from ingestion_api.jobs import Jobs
from ingestion_api.metrics import Metrics
from ingestion_api.problems import ProblemError
from ingestion_api.retry import Retries
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Stage
from ingestion_crds.job import IngestionJob
from ingestion_crds.kube import MERGE_PATCH, ApiError, child_path, core_path, ingestion_path
from ingestion_operator.children import child_name
from support.builders import foreign_job, ingestion_job
from support.campaign import record

from simulation.api import INGESTION_JOBS, Release, finished, owner_of
from simulation.cluster import NAMESPACE, Fate, SimulatedClient, SimulatedCluster
from simulation.controllers import GOOD, Verdict
from simulation.oracle import Oracle, ViolationError
from simulation.stories import says_why, turns

JOB: Final = "9f0b8e6e-54a1-4d59-8a2c-7b9d2f3c4e55"  # a UUID, so that the API finds it by its name
PATH: Final = ingestion_path(NAMESPACE, JOB)
FULL: Final = os.environ.get("INGESTION_FAULTS") == "full"
# A mutant only has to be noticed, not explained.
SHRINK: Final = os.environ.get("INGESTION_SIMULATION_SHRINK") != "no"
# Longer than any deadline, backoff and resync together.
BOUND_SECONDS: Final = 4 * 3_600.0
REST_SECONDS: Final = 400.0

SOON = st.integers(0, 2**16)
PACE = st.integers(0, 60)
FAULTS = st.sampled_from([fate for fate in Fate if fate is not Fate.ANSWERED])
ALL_VERDICTS: Final = [
    GOOD,
    Verdict(code="EmbeddingRejected"),
    Verdict(code="EmbeddingUnavailable"),
    Verdict(hangs=True),
    Verdict(image=True),
    Verdict(sidecar=True),
]
VERDICTS = st.sampled_from(ALL_VERDICTS)
ALL_PLACES: Final[list[tuple[str, int | None]]] = [(Stage.SEGMENTS.value, number) for number in range(6)] + [
    (Stage.PREPARE.value, None),
    (Stage.PUBLISH.value, None),
]
PLACES = st.sampled_from(ALL_PLACES)
# How often each disaster happens, in the order of `Convergence.disaster`.
WEIGHTS: Final = (6, 4, 6, 4, 2, 2, 3, 1, 1, 2, 2, 3, 1, 0.2)
CHILDREN: Final = ["Job: Background", "Job: Foreground", "Job: Orphan", "Job: its labels", "ConfigMap"]
CHANGES: Final = [
    "parallelism",
    "suspend",
    "resume",
    "suspend",
    "resume",
    "cancel",
    "delete",
    "create",
    "retrySegments",
    "suspend the Job",
    "resume the Job",
]
WAYS = st.sampled_from(["post", "annotate", "patch"])
TALLY: Counter[str] = Counter()


class Convergence(RuleBasedStateMachine):
    """One document, its operators, its users, and bad luck."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster: SimulatedCluster | None = None
        self.failed = False
        self.tokens = 0
        self.requests: list[tuple[int, str, asyncio.Task[None]]] = []
        self.injected: Counter[str] = Counter()

    @initialize(
        segments=st.integers(1, 6),
        single=st.sampled_from([False, False, False, False, True]),
        two=st.booleans(),
        seed=st.integers(0, 2**32),
        verdicts=st.dictionaries(PLACES, VERDICTS, max_size=3),
        disasters=st.integers(0, 20),
        skew=st.sampled_from([0.0, 0.0, 300.0, -300.0]),
        release=st.sampled_from(list(Release)),
        spec=st.fixed_dictionaries(
            {
                "parallelism": st.integers(1, 4),
                "segmentBackoffLimit": st.integers(0, 1),
                "activeDeadlineSeconds": st.sampled_from([600, 40]),
            },
            optional={"maxFailedSegments": st.integers(0, 2)},
        ),
    )
    def begin(
        self,
        segments: int,
        single: bool,
        two: bool,
        seed: int,
        verdicts: dict[tuple[str, int | None], Verdict],
        disasters: int,
        skew: float,
        release: Release,
        spec: JsonObject,
    ) -> None:
        self.cluster = SimulatedCluster(segments=segments, single=single)
        self.cluster.api.release = release
        self.cluster.verdicts.update(verdicts)
        self.random = Random(seed)
        self.oracle = Oracle(self.cluster)
        self.spec = spec
        client: Any = SimulatedClient(self.cluster, "api")
        metrics = Metrics()

        async def build() -> tuple[Jobs, Retries]:
            index = JobIndex(kube=client, metrics=metrics)
            jobs = Jobs(kube=client, index=index)
            return jobs, Retries(kube=client, jobs=jobs, index=index, metrics=metrics)

        self.jobs, self.retries = self.cluster.run(build())
        self.cluster.start_operator()
        if two:
            self.cluster.start_operator(skew=skew)
            self.injected["two operators at once"] += 1
            self.injected["clocks that differ by five minutes"] += bool(skew)
        self.create()
        self.disasters(disasters)

    # ── who goes on ───────────────────────────────────────────────────────────────────────────────────────────

    def wander(self, pace: int) -> None:
        """Go on for some steps, so that what comes next may hit any place."""
        for _ in range(pace):
            self.world.step(self.random.randrange(1, 1 << 16))

    @rule(steps=st.integers(1, 250))
    def go_on(self, steps: int) -> None:
        for _ in range(steps):
            if not self.world.step(self.random.randrange(1, 1 << 16)):
                self.world.pass_time(self.world.next_time() or 1.0)
        self.check()

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 5.0, 11.0, 35.0, 130.0]))
    def settle_down_and_wait(self, seconds: float) -> None:
        self.world.settle_down()
        self.world.pass_time(seconds)
        self.check()

    @rule(way=WAYS, mend=st.booleans(), pace=PACE)
    def end_and_retry(self, way: str, mend: bool, pace: int) -> None:
        self.world.pass_until(self.over, seconds=1_300.0)
        if mend:
            self.world.verdicts.clear()
        self.retry(way, None)
        self.wander(pace)
        self.check()

    @rule(way=WAYS, chosen=st.sets(st.integers(0, 5), min_size=1))
    def end_and_retry_again(self, way: str, chosen: set[int]) -> None:
        self.world.pass_until(self.over, seconds=1_300.0)
        self.retry(way, None)
        self.world.pass_until(self.over, seconds=1_300.0)
        self.retry("patch", ",".join(map(str, sorted(chosen))))
        self.check()

    @rule(number=st.integers(1, 8))
    def disasters(self, number: int) -> None:
        """Let so many things go wrong at random: more of them, and in more places, than Hypothesis would choose."""
        for _ in range(number):
            self.disaster(self.random)

    def disaster(self, random: Random) -> None:
        choice, pace = random.randrange(1 << 16), random.choice([0, 3, 10, 30, 100])
        way = random.choice(["post", "annotate", "patch"])
        match random.choices(range(len(WEIGHTS)), WEIGHTS)[0]:
            case 0:
                self.go_on(random.randrange(1, 250))
            case 1:
                self.end_and_retry(way, random.random() < 0.3, pace)
            case 2:
                self.disturb_a_request(random.choice(list(Fate)[1:]), choice, random.random() < 0.7, pace)
            case 3 if self.world.operators:
                self.kill_an_operator(choice, random.choice(["never", "done", "late"]), pace, random.random() < 0.7)
            case 4 if len(self.world.operators) < 2:
                self.start_an_operator()
            case 5 if self.world.operators:
                self.disturb_a_watch(choice, random.choice([INGESTION_JOBS, "jobs"]), random.randrange(8), pace)
            case 6:
                self.break_or_mend(random.choice(ALL_PLACES), random.choice(ALL_VERDICTS), random.random() < 0.2)
            case 7:
                self.disturb_pods(choice, random.choice(["evict", "delete", "refuse", "admit"]), pace)
            case 8:
                self.take_a_child_away(choice, random.choice(CHILDREN), pace)
            case 9:
                self.change(random.choice(CHANGES), random.randrange(1, 7), pace)
            case 10:
                self.retry_at_any_time(way, random.random() < 0.5, pace)
            case 11 if self.world.late:
                self.a_late_request_arrives(choice, pace)
            case 12:
                self.settle_down_and_wait(random.choice([0.3, 1.0, 5.0, 35.0, 130.0]))
            case 13:
                self.take_the_next_name(random.random() < 0.5)

    # ── bad luck ──────────────────────────────────────────────────────────────────────────────────────────────

    @rule(fate=FAULTS, choice=SOON, only_writes=st.booleans(), pace=PACE)
    def disturb_a_request(self, fate: Fate, choice: int, only_writes: bool, pace: int) -> None:
        self.wander(pace)
        for _ in range(200):
            calls = [call for call in self.world.calls if not call.tells and (call.writes or not only_writes)]
            if calls:
                self.world.settle(calls[choice % len(calls)], fate)
                self.injected[f"request: {fate.value}"] += 1
                break
            if not self.world.step(choice):
                break
        self.check()

    @precondition(lambda self: self.cluster and self.cluster.late)
    @rule(choice=SOON, pace=PACE)
    def a_late_request_arrives(self, choice: int, pace: int) -> None:
        self.wander(pace)
        self.world.arrive(self.world.late[choice % len(self.world.late)])
        self.injected["a late request arrived"] += 1
        self.check()

    @precondition(lambda self: self.cluster and self.cluster.operators)
    @rule(choice=SOON, after=st.sampled_from(["never", "done", "late"]), pace=PACE, again=st.booleans())
    def kill_an_operator(self, choice: int, after: str, pace: int, again: bool) -> None:
        """Kill it while a write is on its way, which never arrives, is done, or arrives later."""
        world = self.world
        self.wander(pace)
        for _ in range(200):
            if any(call.writes and not call.tells for call in world.calls) or not world.step(choice):
                break
        for call in world.kill(world.operators[choice % len(world.operators)]):
            if after == "done":
                world.commit(call)
            elif after == "late":
                world.late.append(call)
        self.injected[f"operator killed, its requests {after}"] += 1
        if again:
            world.start_operator()
        self.check()

    @precondition(lambda self: self.cluster and len(self.cluster.operators) < 2)
    @rule()
    def start_an_operator(self) -> None:
        self.world.start_operator()

    @precondition(lambda self: self.cluster and self.cluster.operators)
    @rule(choice=SOON, resource=st.sampled_from([INGESTION_JOBS, "jobs"]), many=st.integers(0, 8), pace=PACE)
    def disturb_a_watch(self, choice: int, resource: str, many: int, pace: int) -> None:
        """Lose so many events, or bring an old one again."""
        self.wander(pace)
        running = self.world.operators[choice % len(self.world.operators)]
        if not many:
            self.world.repeat(running, choice)
            self.injected["watch event repeated"] += 1
        for _ in range(many):
            if self.world.undelivered(running, resource) is not None:
                self.world.deliver(running, resource, lose=True)
                self.injected["watch event lost"] += 1
        self.check()

    @rule(place=PLACES, verdict=VERDICTS, all_good=st.booleans())
    def break_or_mend(self, place: tuple[str, int | None], verdict: Verdict, all_good: bool) -> None:
        if all_good:
            self.world.verdicts.clear()
        else:
            self.world.verdicts[place] = verdict

    @rule(choice=SOON, how=st.sampled_from(["evict", "evict", "delete", "delete", "refuse", "admit"]), pace=PACE)
    def disturb_pods(self, choice: int, how: str, pace: int) -> None:
        self.wander(pace)
        if how in ("refuse", "admit"):
            self.world.jobs.refuse_pods = how == "refuse"
            self.injected["pods refused by a quota"] += how == "refuse"
            return
        pods = [pod for pod in self.world.api.all("pods") if pod["status"]["phase"] in ("Pending", "Running")]
        if not pods:
            return
        name = pods[choice % len(pods)]["metadata"]["name"]
        self.injected["pod evicted" if how == "evict" else "pod deleted by hand"] += 1
        if how == "evict":
            self.world.kubelet.evict(("pods", NAMESPACE, name))
        else:
            self.by_hand("DELETE", core_path("pods", NAMESPACE, name))
        self.check()

    @rule(
        choice=SOON,
        how=st.sampled_from(CHILDREN),
        pace=PACE,
    )
    def take_a_child_away(self, choice: int, how: str, pace: int) -> None:
        self.wander(pace)
        resource = "configmaps" if how == "ConfigMap" else "jobs"
        found = self.world.api.all(resource)
        if not found:
            return
        name = found[choice % len(found)]["metadata"]["name"]
        if how == "ConfigMap":
            self.by_hand("DELETE", core_path("configmaps", NAMESPACE, name))
        elif how == "Job: its labels":
            body = {"metadata": {"labels": None, "annotations": None}}
            self.by_hand("PATCH", child_path(NAMESPACE, name), body)
        else:
            self.by_hand("DELETE", child_path(NAMESPACE, name), {"propagationPolicy": how.removeprefix("Job: ")})
        self.injected[f"taken away by hand: {how}"] += 1
        self.check()

    @rule(own=st.booleans())
    def take_the_next_name(self, own: bool) -> None:
        """Somebody has a Job, or a ConfigMap, of the name that the next attempt wants."""
        live = self.live()
        if live is None:
            return
        job = IngestionJob.model_validate(live)
        name = child_name(job=job, stage=Stage.SEGMENTS, generation=job.spec.retry_generation)
        if own:
            body = {"metadata": {"name": name}, "data": {names.ATTEMPT_KEY: "{}"}}
            self.by_hand("POST", core_path("configmaps", NAMESPACE), body)
        else:
            self.by_hand("POST", child_path(NAMESPACE), foreign_job(name))
        self.injected["the next name taken by another"] += 1

    # ── what people do ────────────────────────────────────────────────────────────────────────────────────────

    def retry(self, way: str, chosen: str | None) -> None:
        live = self.live()
        if live is None:
            return
        if way == "annotate":
            self.tokens += 1
            self.patch({"metadata": {"annotations": {names.ANNOTATION_RETRY_REQUESTED: f"token-{self.tokens}"}}})
        elif way == "patch":
            self.patch({"spec": {"retryGeneration": live["spec"]["retryGeneration"] + 1, "retrySegments": chosen}})
        elif way == "post":
            self.post_a_retry(live)

    def post_a_retry(self, live: JsonObject) -> None:
        async def post() -> None:
            job = await self.jobs.find(namespace=NAMESPACE, wanted=uuid.UUID(JOB))
            await self.retries.accept(caller=Principal(key_id="k1", namespace=NAMESPACE), job=job, key=None)

        task = self.world.loop.create_task(post())
        # A retry that is recorded and has not begun is this one too; else the generation has to be raised.
        generation, observed = live["spec"]["retryGeneration"], live["status"].get("observedRetryGeneration")
        least = generation if observed is not None and observed < generation else generation + 1
        self.requests.append((least, live["metadata"]["uid"], task))
        self.world.loop.run_until_idle()

    @rule(way=WAYS, twice=st.booleans(), pace=PACE)
    def retry_at_any_time(self, way: str, twice: bool, pace: int) -> None:
        self.wander(pace)
        for _ in range(1 + twice):
            self.retry(way, None)
        self.check()

    @rule(
        what=st.sampled_from(CHANGES),
        number=st.integers(1, 6),
        pace=PACE,
    )
    def change(self, what: str, number: int, pace: int) -> None:
        self.wander(pace)
        live = self.live()
        if live is None:
            self.create()
        elif what == "delete" and number < 3:
            self.by_hand("DELETE", PATH, {"propagationPolicy": "Background" if number == 1 else "Foreground"})
        elif what == "cancel":
            self.patch({"spec": {"cancelGeneration": live["spec"]["retryGeneration"] if number < 5 else None}})
        elif what in ("suspend", "resume"):
            self.patch({"spec": {"suspend": what == "suspend"}})
        elif what in ("suspend the Job", "resume the Job"):
            self.turn_jobs(suspend=what == "suspend the Job")
        elif what == "retrySegments":
            self.patch({"spec": {what: "" if number < 5 else None}})  # what is none to the CRD may change at any time
        else:
            self.patch({"spec": {"parallelism": number}})
        self.injected[f"{what} by hand"] += 1
        self.check()

    def turn_jobs(self, *, suspend: bool) -> None:
        """Suspend the Jobs or resume them, beside the operator, as Kueue does."""
        for job in self.world.api.all("jobs"):
            if not finished(job) and job["spec"]["suspend"] != suspend:
                path = child_path(NAMESPACE, job["metadata"]["name"])
                if not suspend:
                    self.by_hand("PATCH", f"{path}/status", {"status": {"startTime": None}})
                self.by_hand("PATCH", path, {"spec": {"suspend": suspend}})

    def create(self) -> None:
        body = ingestion_job(name=JOB, namespace=NAMESPACE, **self.spec)
        self.by_hand("POST", ingestion_path(NAMESPACE), body)

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────

    def teardown(self) -> None:
        if self.cluster is None:
            return
        try:
            if not self.failed:
                self.come_to_rest()
                TALLY.update(self.injected)
        finally:
            for _, _, task in self.requests:
                task.cancel()
            self.cluster.close()

    def come_to_rest(self) -> None:
        """Faults stop: everything has to come to rest, or to say why it does not."""
        world = self.world
        for call in list(world.late):
            world.arrive(call)
        world.jobs.refuse_pods = False
        if not world.operators:
            world.start_operator()
        if not world.pass_until(self.quiet, seconds=BOUND_SECONDS):
            live = self.live()
            raise ViolationError(f"invariant 5: it neither ends nor says why: {live and live['status']}")
        self.check()
        self.patch({"spec": {"suspend": False}})
        for resource, path in (("jobs", child_path), ("configmaps", lambda *place: core_path("configmaps", *place))):
            for item in world.api.all(resource):
                if owner_of(item) is None:  # whoever took the name gives it back
                    self.by_hand(
                        "DELETE", path(NAMESPACE, item["metadata"]["name"]), {"propagationPolicy": "Background"}
                    )
        if world.pass_until(lambda: self.over() or self.waits_for_somebody(), seconds=BOUND_SECONDS):
            self.turn_jobs(suspend=False)
        if not world.pass_until(self.over, seconds=BOUND_SECONDS):
            live = self.live()
            raise ViolationError(f"invariant 5: it does not end: {live and live['status']}")
        live = self.live()
        self.rest()
        if live is None:
            assert not world.api.all("jobs"), "children outlive their job"
        else:
            self.oracle.at_rest(live)
        self.check()

    def quiet(self) -> bool:
        live = self.live()
        return self.over() or (live is not None and says_why(live) is not None)

    def waits_for_somebody(self) -> bool:
        """Return whether the job says that its Job was suspended by somebody else, which must be so."""
        live = self.live()
        if live is None or says_why(live) != "Waiting":
            return False
        turned = [change for change in self.world.api.changes if turns(change) and change.after["spec"]["suspend"]]
        if turned[-1].by.startswith("operator"):
            raise ViolationError(f"invariant 5: the operator waits for what it has suspended itself: {turned[-1]}")
        return True

    def over(self) -> bool:
        live = self.live()
        if live is None:
            # What has no owner is somebody else's, or somebody has made it so by hand.
            left = [*self.world.api.peek("jobs"), *self.world.api.peek("pods")]
            return not any(map(owner_of, left))
        status, metadata = live["status"], live["metadata"]
        token = metadata.get("annotations", {}).get(names.ANNOTATION_RETRY_REQUESTED)
        return (
            all(task.done() for _, _, task in self.requests)
            and status["phase"] in names.TERMINAL_PHASES
            and status.get("observedRetryGeneration") == live["spec"]["retryGeneration"]
            and status.get("observedGeneration") == metadata["generation"]
            and status.get("lastHandledRetryRequest") == token
        )

    def rest(self) -> None:
        """Let several resyncs pass; then the operators must write nothing any more."""
        self.world.pass_until(lambda: False, seconds=REST_SECONDS)
        before = self.oracle.writes
        self.world.pass_until(lambda: False, seconds=REST_SECONDS)
        if self.oracle.writes != before:
            changes = [change for change in self.world.api.changes if change.by.startswith("operator")]
            raise ViolationError(f"invariant 8: written at rest: {changes[-1]}")

    # ── helpers ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def world(self) -> SimulatedCluster:
        assert self.cluster is not None
        return self.cluster

    def live(self) -> JsonObject | None:
        return self.world.api.find(INGESTION_JOBS, NAMESPACE, JOB)

    def patch(self, body: JsonObject) -> None:
        self.by_hand("PATCH", PATH, body)

    def by_hand(self, method: str, path: str, body: JsonObject | None = None) -> None:
        """Do what a person with kubectl does; what the API server refuses is refused."""
        kind = MERGE_PATCH if method == "PATCH" else "application/json"
        try:
            self.world.api.request(method, path, body=body, content_type=kind)
        except ApiError as error:
            if error.status not in (404, 409, 422):
                raise

    def check(self) -> None:
        try:
            self.check_requests()
            self.oracle.raise_found()
        except BaseException:
            self.failed = True
            raise

    def check_requests(self) -> None:
        """A retry that was answered 202 is recorded."""
        for least, job, task in [entry for entry in self.requests if entry[2].done()]:
            self.requests.remove((least, job, task))
            error = task.exception()
            if error is None:
                live = self.live()
                same = live is not None and live["metadata"]["uid"] == job
                if same and live["spec"]["retryGeneration"] < least:  # type: ignore[index]
                    raise ViolationError(f"invariant 4: 202, and generation {least} is not recorded")
            elif not isinstance(error, ProblemError | ApiError):
                raise error


def run(*, examples: int, steps: int) -> None:
    """Run the state machine, then record what was injected."""
    TALLY.clear()
    run_state_machine_as_test(
        Convergence,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=not FULL,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink] if SHRINK else [Phase.generate],
        ),
    )
    for fault, count in sorted(TALLY.items()):
        record(f"simulation: {fault}", injected=count, survived=count, invariants=range(1, 9))


@pytest.mark.timeout(3_600)
def test_everything_comes_to_rest_whatever_breaks() -> None:
    """Invariants 1 to 8."""
    run(examples=int(os.environ.get("INGESTION_SIMULATION_EXAMPLES", "500" if FULL else "120")), steps=12)
