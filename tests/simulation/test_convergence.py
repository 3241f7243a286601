"""Whatever breaks in whatever order, the job comes to rest, and nothing is lost and nothing done twice.

Hypothesis chooses who goes on, what is lost, who dies and what people do meanwhile; the operator is the real one.
Invariants 1 to 8 of docs/reliability.md; the violations name theirs.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import Counter
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
from ingestion_crds import constants as names
from ingestion_crds.constants import Stage
from ingestion_crds.kube import MERGE_PATCH, ApiError, JsonObject, core_path, ingestion_path, job_path
from support.builders import ingestion_job
from support.campaign import record

from simulation.api import INGESTION_JOBS
from simulation.cluster import NAMESPACE, Fate, SimulatedClient, SimulatedCluster
from simulation.controllers import GOOD, Verdict
from simulation.oracle import Oracle, ViolationError

JOB: Final = "9f0b8e6e-54a1-4d59-8a2c-7b9d2f3c4e55"  # a UUID, so that the API finds it by its name
PATH: Final = ingestion_path(NAMESPACE, JOB)
FULL: Final = os.environ.get("INGESTION_FAULTS") == "full"
# Longer than any deadline, backoff and resync together.
BOUND_SECONDS: Final = 4 * 3_600.0
REST_SECONDS: Final = 400.0

SOON = st.integers(0, 2**16)
FAULTS = st.sampled_from([fate for fate in Fate if fate is not Fate.ANSWERED])
VERDICTS = st.sampled_from(
    [
        GOOD,
        Verdict(code="EmbeddingRejected"),
        Verdict(code="EmbeddingUnavailable"),
        Verdict(hangs=True),
        Verdict(image=True),
    ]
)
PLACES = st.one_of(
    st.just((Stage.PREPARE.value, None)),
    st.just((Stage.PUBLISH.value, None)),
    st.tuples(st.just(Stage.SEGMENTS.value), st.integers(0, 5)),
)
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
        single=st.integers(0, 7).map(lambda number: number == 0),
        two=st.booleans(),
        skew=st.sampled_from([0.0, 0.0, 300.0, -300.0]),
        spec=st.fixed_dictionaries(
            {
                "parallelism": st.integers(1, 4),
                "segmentBackoffLimit": st.integers(0, 1),
                "activeDeadlineSeconds": st.sampled_from([600, 40]),
            },
            optional={"maxFailedSegments": st.integers(0, 2)},
        ),
    )
    def begin(self, segments: int, single: bool, two: bool, skew: float, spec: JsonObject) -> None:
        self.cluster = SimulatedCluster(segments=segments, single=single)
        self.oracle = Oracle(self.cluster)
        self.spec = spec
        client: Any = SimulatedClient(self.cluster, "api")
        metrics = Metrics()

        async def build() -> Retries:
            index = JobIndex(kube=client, metrics=metrics)
            return Retries(kube=client, jobs=Jobs(kube=client, index=index), index=index, metrics=metrics)

        self.retries: Retries = self.cluster.run(build())
        self.cluster.start_operator()
        if two:
            self.cluster.start_operator(skew=skew)
            self.injected["two operators at once"] += 1
            self.injected["clocks that differ by five minutes"] += bool(skew)
        self.create()

    # ── who goes on ───────────────────────────────────────────────────────────────────────────────────────────

    @rule(choices=st.lists(SOON, min_size=5, max_size=40))
    def go_on(self, choices: list[int]) -> None:
        for choice in choices:
            if not self.world.step(choice):
                self.world.pass_time(self.world.next_time() or 1.0)
        self.check()

    @rule()
    def settle_down(self) -> None:
        self.world.settle_down()
        self.check_conflicts()
        self.check()

    @rule(seconds=st.sampled_from([0.3, 1.0, 5.0, 11.0, 35.0, 130.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)
        self.check()

    # ── bad luck ──────────────────────────────────────────────────────────────────────────────────────────────

    def chosen_call(self, choice: int) -> Any:
        """Let things go on until a request is on its way, and return one of those."""
        for _ in range(200):
            calls = [call for call in self.world.calls if not call.tells]
            if calls:
                return calls[choice % len(calls)]
            if not self.world.step(choice):
                return None
        return None

    @rule(fate=FAULTS, choice=SOON, only_writes=st.booleans())
    def disturb_a_request(self, fate: Fate, choice: int, only_writes: bool) -> None:
        for _ in range(20 if only_writes else 1):
            call = self.chosen_call(choice)
            if call is None:
                return
            if not only_writes or call.writes:
                self.world.settle(call, fate)
                self.injected[f"request: {fate.value}"] += 1
                break
            self.world.settle(call)
        self.check()

    @precondition(lambda self: self.cluster and self.cluster.late)
    @rule(choice=SOON)
    def a_late_request_arrives(self, choice: int) -> None:
        self.world.arrive(self.world.late[choice % len(self.world.late)])
        self.check()

    @precondition(lambda self: self.cluster and self.cluster.operators)
    @rule(choice=SOON, after=st.sampled_from(["never", "done", "late"]), writing=st.booleans(), again=st.booleans())
    def kill_an_operator(self, choice: int, after: str, writing: bool, again: bool) -> None:
        world = self.world
        for _ in range(60 if writing else 0):
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
    @rule(choice=SOON, resource=st.sampled_from([INGESTION_JOBS, "jobs"]), many=st.integers(1, 8))
    def lose_watch_events(self, choice: int, resource: str, many: int) -> None:
        running = self.world.operators[choice % len(self.world.operators)]
        for _ in range(many):
            if self.world.undelivered(running, resource) is not None:
                self.world.deliver(running, resource, lose=True)
                self.injected["watch event lost"] += 1
        self.check()

    @precondition(lambda self: self.cluster and self.cluster.operators)
    @rule(choice=SOON, number=SOON)
    def repeat_a_watch_event(self, choice: int, number: int) -> None:
        self.world.repeat(self.world.operators[choice % len(self.world.operators)], number)
        self.injected["watch event repeated"] += 1

    @rule(place=PLACES, verdict=VERDICTS)
    def break_or_mend(self, place: tuple[str, int | None], verdict: Verdict) -> None:
        self.world.verdicts[place] = verdict

    @rule()
    def mend_all(self) -> None:
        self.world.verdicts.clear()

    @rule(refuse=st.booleans())
    def refuse_pods(self, refuse: bool) -> None:
        self.world.jobs.refuse_pods = refuse
        self.injected["pods refused by a quota"] += refuse

    @rule(choice=SOON, evict=st.booleans())
    def put_a_pod_out(self, choice: int, evict: bool) -> None:
        pods = [pod for pod in self.world.api.all("pods") if pod["status"]["phase"] in ("Pending", "Running")]
        if not pods:
            return
        pod = pods[choice % len(pods)]
        self.injected["pod evicted" if evict else "pod deleted by hand"] += 1
        if evict:
            self.world.kubelet.evict(("pods", NAMESPACE, pod["metadata"]["name"]))
        else:
            self.by_hand("DELETE", core_path("pods", NAMESPACE, pod["metadata"]["name"]))

    @rule(
        choice=SOON,
        resource=st.sampled_from(["jobs", "configmaps"]),
        policy=st.sampled_from(["Background", "Foreground", "Orphan"]),
    )
    def delete_a_child(self, choice: int, resource: str, policy: str) -> None:
        found = self.world.api.all(resource)
        if not found:
            return
        name = found[choice % len(found)]["metadata"]["name"]
        path = job_path(NAMESPACE, name) if resource == "jobs" else core_path("configmaps", NAMESPACE, name)
        if resource == "configmaps":
            policy = "Background"
        self.by_hand("DELETE", path, {"propagationPolicy": policy})
        self.injected[f"{resource} deleted by hand ({policy})"] += 1
        self.check()

    @rule(choice=SOON)
    def take_the_labels_off_a_job(self, choice: int) -> None:
        found = self.world.api.all("jobs")
        if found:
            body = {"metadata": {"labels": None, "annotations": None}}
            self.by_hand("PATCH", job_path(NAMESPACE, found[choice % len(found)]["metadata"]["name"]), body)
            self.injected["labels and annotations of a Job removed"] += 1

    # ── what people do ────────────────────────────────────────────────────────────────────────────────────────

    @rule()
    def post_a_retry(self) -> None:
        live = self.live()
        if live is None:
            return
        caller = Principal(key_id="k1", namespace=NAMESPACE)
        work = self.retries.accept(caller=caller, wanted=uuid.UUID(JOB), key=None)
        task = self.world.loop.create_task(work)
        # A retry that is recorded and has not begun is this one too; else the generation has to be raised.
        generation, observed = live["spec"]["retryGeneration"], live["status"].get("observedRetryGeneration")
        least = generation if observed is not None and observed < generation else generation + 1
        self.requests.append((least, live["metadata"]["uid"], task))
        self.world.loop.run_until_idle()

    @rule()
    def annotate(self) -> None:
        self.tokens += 1
        self.patch({"metadata": {"annotations": {names.ANNOTATION_RETRY_REQUESTED: f"token-{self.tokens}"}}})

    @rule(
        chosen=st.none() | st.sets(st.integers(0, 5), min_size=1).map(lambda found: ",".join(map(str, sorted(found))))
    )
    def patch_a_retry(self, chosen: str | None) -> None:
        live = self.live()
        if live is not None:
            self.patch({"spec": {"retryGeneration": live["spec"]["retryGeneration"] + 1, "retrySegments": chosen}})

    @rule(parallelism=st.integers(1, 6))
    def change_parallelism(self, parallelism: int) -> None:
        self.patch({"spec": {"parallelism": parallelism}})

    @rule(suspend=st.booleans())
    def suspend_or_resume(self, suspend: bool) -> None:
        self.patch({"spec": {"suspend": suspend}})

    @rule()
    def cancel(self) -> None:
        live = self.live()
        if live is not None:
            self.patch({"spec": {"cancelGeneration": live["spec"]["retryGeneration"]}})

    @rule(policy=st.sampled_from(["Background", "Foreground"]))
    def delete(self, policy: str) -> None:
        self.by_hand("DELETE", PATH, {"propagationPolicy": policy})

    @precondition(lambda self: self.cluster and self.live() is None)
    @rule()
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
        return self.over() or (live is not None and Oracle.says_why(live) is not None)

    def over(self) -> bool:
        live = self.live()
        if live is None:
            return not self.world.api.all("jobs") and not self.world.api.all("pods")
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

    def check_conflicts(self) -> None:
        pass


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
            phases=[Phase.generate, Phase.shrink],
        ),
    )
    for fault, count in sorted(TALLY.items()):
        record(f"simulation: {fault}", injected=count, survived=count, invariants=range(1, 9))


@pytest.mark.timeout(3_600)
def test_everything_comes_to_rest_whatever_breaks() -> None:
    """Invariants 1 to 8."""
    run(examples=int(os.environ.get("INGESTION_SIMULATION_EXAMPLES", "4000" if FULL else "80")), steps=40)
