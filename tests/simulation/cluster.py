"""The simulated cluster: operators over an API server in memory, on a clock that only the simulation moves.

Every request of an operator waits until somebody decides what becomes of it, so that a test chooses who goes on,
what is lost, and when an operator dies. The operator itself is the real one: queue, loop, planner, requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial
from typing import Any, Final, Protocol

import ingestion_operator.main
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.config import Config, Tenant
from ingestion_crds.kube import ApiError
from ingestion_operator.main import Operator

from simulation.api import BATCHES, INGESTION_JOBS, ApiServer, Change, copied
from simulation.controllers import GOOD, GarbageCollector, JobController, Kubelet, Step, Store, Verdict
from simulation.loop import SimulatedLoop

NAMESPACE: Final = "team-a"
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
# A request that nobody waits for any more is given up by the API server after a minute (--request-timeout).
_LATEST_ARRIVAL_SECONDS: Final = 60.0
_MOST_STEPS: Final = 5_000

ingestion_operator.main.WORKERS = 2  # type: ignore[misc]  # there is one job: sixty more only cost time
ingestion_operator.main._MOST_DUE = 1  # type: ignore[misc]
log = logging.getLogger("ingestion_operator")


class Fate(Enum):
    """What becomes of a request."""

    ANSWERED = "answered"
    LOST_REQUEST = "request lost"
    LOST_ANSWER = "answer lost"
    LATE = "arrives after its sender gave up"
    REFUSED_403 = "403"
    REFUSED_409 = "409"
    REFUSED_429 = "429"
    REFUSED_500 = "500"
    REFUSED_504 = "504, though done"


@dataclass(slots=True, kw_only=True)
class Call:
    """A request on its way."""

    by: str
    method: str
    path: str
    arguments: dict[str, Any]
    answer: asyncio.Future[JsonObject]
    sent: float

    @property
    def writes(self) -> bool:
        return self.method != "GET"

    @property
    def tells(self) -> bool:
        """True for an event for people: nothing depends on it."""
        return self.path.endswith("/events") and self.writes


class SimulatedClient:
    """What an operator or the API takes for a `KubeClient`.

    Args:
        cluster: where its requests go.
        name: who asks.
    """

    def __init__(self, cluster: SimulatedCluster, name: str) -> None:
        self._cluster = cluster
        self.name = name

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout: float = 30.0,
    ) -> JsonObject:
        """Wait until the simulation has decided, then answer as `KubeClient.request` does."""
        answer: asyncio.Future[JsonObject] = asyncio.get_running_loop().create_future()
        arguments = {"query": query, "body": copied(body), "content_type": content_type, "accept": accept}
        call = Call(
            by=self.name, method=method, path=path, arguments=arguments, answer=answer, sent=self._cluster.seconds
        )
        self._cluster.calls.append(call)
        return await answer

    async def close(self) -> None:
        """Do nothing: there are no connections."""


@dataclass(slots=True)
class RunningOperator:
    """An operator process: all of it is forgotten when it dies.

    Args:
        name: it signs its requests with this.
        operator: the real thing.
        seen: how many changes its watches of IngestionJobs and Jobs have brought.
    """

    name: str
    operator: Operator
    seen: dict[str, int] = field(default_factory=dict)
    delivered: list[Change] = field(default_factory=list)


class Part(Protocol):
    """One of the cluster's own parts, or a guest of it."""

    def steps(self) -> Iterator[Step]:
        """Yield what it can do now."""
        ...


class _Broken(logging.Handler):
    """Remembers exceptions that the operator did not expect."""

    def __init__(self) -> None:
        super().__init__(level=logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(logging.Formatter().format(record))


class SimulatedCluster:
    """Everything: API server, controllers, kubelets, operators, clock.

    Args:
        segments: segments of the document.
        single: the document is done in a single pass.
    """

    def __init__(self, *, segments: int = 4, single: bool = False) -> None:
        self.loop = SimulatedLoop()
        self.segments = segments
        self.single = single
        self.verdicts: dict[tuple[str, int | None], Verdict] = {}
        self.api = ApiServer(self.now)
        self.store = Store()
        self.jobs = JobController(self.api, self.now)
        self.garbage = GarbageCollector(self.api)
        self.kubelet = Kubelet(self.api, self.store, self.now, self._verdict, lambda: (self.segments, self.single))
        self.parts: list[Part] = [self.jobs, self.kubelet, self.garbage]
        self.calls: list[Call] = []
        self.late: list[Call] = []
        self.kept_pods: set[str] = set()  # UIDs of Jobs whose pods nobody was allowed to remove
        self.operators: list[RunningOperator] = []
        self.config = Config(worker_image="worker:test", tenants=[Tenant(namespace=NAMESPACE, bucket=NAMESPACE)])
        self.broken = _Broken()
        self._started = 0
        log.addHandler(self.broken)
        log.setLevel(logging.ERROR)
        log.propagate = False

    def close(self) -> None:
        """End all operators and the loop."""
        for running in list(self.operators):
            self.kill(running)
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_idle()
        self.loop.close()
        log.removeHandler(self.broken)
        log.setLevel(logging.NOTSET)
        log.propagate = True

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def seconds(self) -> float:
        return self.loop.time()

    def now(self) -> datetime:
        """Return the wall clock, whole seconds."""
        return (START + timedelta(seconds=self.seconds)).replace(microsecond=0)

    def pass_time(self, seconds: float) -> None:
        """Let so many seconds pass, and the operators do what they have waited for."""
        self.loop.move_to(self.seconds + seconds)
        self.loop.run_until_idle()

    def next_time(self) -> float | None:
        """Return in how many seconds something is due; None when nothing is."""
        due = [timer for timer in [self.loop.next_timer] if timer is not None]
        later = self.jobs.next_time()
        if later is not None:
            due.append((later - START).total_seconds())
        return max(min(due) - self.seconds, 0.001) if due else None

    # ── operators ─────────────────────────────────────────────────────────────────────────────────────────────

    def start_operator(self, *, skew: float = 0.0, stands_by: bool = False) -> RunningOperator:
        """Start an operator: it knows nothing, and lists first.

        Args:
            skew: seconds that its wall clock is wrong by.
            stands_by: another replica leads, until `lead` is called with this one.
        """
        self._started += 1
        client = SimulatedClient(self, f"operator-{self._started}")

        async def build() -> Operator:
            return Operator(
                client=client,  # type: ignore[arg-type]
                config=self.config,
                now=lambda: self.now() + timedelta(seconds=skew),
                monotonic=self.loop.time,
            )

        running = RunningOperator(name=client.name, operator=self.run(build()))
        self.operators.append(running)
        if not stands_by:
            self.lead(running)
        for resource in (BATCHES, INGESTION_JOBS, "jobs"):
            running.seen[resource] = len(self.api.changes)
            for body in self.api.all(resource):
                self._deliver(running, Change(kind="ADDED", resource=resource, before=None, after=body, by=""))
        self.loop.run_until_idle()
        return running

    def lead(self, running: RunningOperator) -> None:
        """Give an operator the Lease."""

        async def begin() -> None:
            running.operator.begin()

        self.run(begin())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine that needs no request, and return its result."""
        task = self.loop.create_task(work)
        self.loop.run_until_idle()
        return task.result()

    def kill(self, running: RunningOperator) -> list[Call]:
        """End an operator as kill -9 does; return the requests that were on their way."""
        self.operators.remove(running)
        cut = [call for call in self.calls if call.by == running.name]
        self.calls = [call for call in self.calls if call.by != running.name]
        for task in running.operator._work:
            task.cancel()
        self.loop.run_until_idle()
        return cut

    # ── requests ──────────────────────────────────────────────────────────────────────────────────────────────

    def settle(self, call: Call, fate: Fate = Fate.ANSWERED) -> None:
        """Decide what becomes of a request."""
        self.calls.remove(call)
        silence = ApiError(status=0, reason="NoAnswer", message=fate.value)
        match fate:
            case Fate.ANSWERED:
                self._answer(call, self.commit(call))
            case Fate.LOST_REQUEST:
                self._answer(call, silence)
            case Fate.LOST_ANSWER:
                self.commit(call)
                self._answer(call, silence)
            case Fate.LATE:
                self.late.append(call)
                self._answer(call, silence)
            case Fate.REFUSED_403:
                if call.method == "DELETE" and call.path.endswith("/pods"):
                    self.kept_pods.add(call.arguments["query"]["labelSelector"].partition("=")[2].partition(",")[0])
                self._answer(call, ApiError(status=403, reason="Forbidden", message="exceeded quota: none"))
            case Fate.REFUSED_409:
                self._answer(call, ApiError(status=409, reason="Conflict", message="the object has been modified"))
            case Fate.REFUSED_429:
                self._answer(call, ApiError(status=429, reason="TooManyRequests", message="slow down"))
            case Fate.REFUSED_500:
                self._answer(call, ApiError(status=500, reason="InternalError", message="etcdserver: timed out"))
            case Fate.REFUSED_504:
                self.commit(call)
                self._answer(call, ApiError(status=504, reason="Timeout", message="request did not complete"))
        self.loop.run_until_idle()

    def _answer(self, call: Call, result: JsonObject | ApiError) -> None:
        if call.answer.done():
            return
        if isinstance(result, ApiError):
            call.answer.set_exception(result)
        else:
            call.answer.set_result(result)

    def commit(self, call: Call) -> JsonObject | ApiError:
        """Let the API server do what a request asks; return its answer."""
        try:
            return self.api.request(call.method, call.path, by=call.by, **call.arguments)
        except ApiError as error:
            return error

    def hold_answer(self, call: Call) -> Callable[[], None]:
        """Let the API server do what a request asks, and keep the answer back; return what lets it arrive."""
        self.calls.remove(call)
        result = self.commit(call)

        def arrive() -> None:
            self._answer(call, result)
            self.loop.run_until_idle()

        return arrive

    def arrive(self, call: Call) -> None:
        """Let a request arrive that nobody waits for any more."""
        self.late.remove(call)
        if self.seconds - call.sent <= _LATEST_ARRIVAL_SECONDS:
            self.commit(call)

    # ── watches ───────────────────────────────────────────────────────────────────────────────────────────────

    def undelivered(self, running: RunningOperator, resource: str) -> Change | None:
        """Return the next change that an operator's watch has not brought yet."""
        at = running.seen[resource]
        while at < len(self.api.changes) and self.api.changes[at].resource != resource:
            at += 1
        running.seen[resource] = at
        return self.api.changes[at] if at < len(self.api.changes) else None

    def deliver(self, running: RunningOperator, resource: str, *, lose: bool = False) -> None:
        """Bring an operator the next change of a resource, or lose it."""
        change = self.undelivered(running, resource)
        if change is None:
            return
        running.seen[resource] += 1
        if not lose:
            running.delivered.append(change)
            self._deliver(running, change)
        self.loop.run_until_idle()

    def repeat(self, running: RunningOperator, number: int) -> None:
        """Bring an operator an old change again, as a watch that begins anew does."""
        if running.delivered:
            self._deliver(running, running.delivered[number % len(running.delivered)])
            self.loop.run_until_idle()

    def _deliver(self, running: RunningOperator, change: Change) -> None:
        """Do what kopf's session and the handlers of `main.registry_for` do."""
        metadata = change.after["metadata"]
        intake = running.operator.intake
        if change.resource == INGESTION_JOBS:
            self.loop.call_soon(self._deliver_job, running, change)
            return
        if change.resource == BATCHES:
            deleted = change.kind == "DELETED"
            seen = partial(running.operator.batch_intake.on_batch_seen, copied(change.after), deleted=deleted)
            self.loop.call_soon(seen)
            return
        if metadata.get("labels", {}).get(names.LABEL_MANAGED_BY) == names.MANAGED_BY:
            seen = partial(intake.on_child_seen, copied(change.after), deleted=change.kind == "DELETED")
            self.loop.call_soon(seen)

    @staticmethod
    def _deliver_job(running: RunningOperator, change: Change) -> None:
        intake = running.operator.intake
        if change.kind == "MODIFIED" and intake.passes_over(copied(change.after)):
            return
        take = intake.on_job_deleted if change.kind == "DELETED" else intake.on_job_seen
        take(copied(change.after))

    # ── what may happen next ──────────────────────────────────────────────────────────────────────────────────

    def _verdict(self, stage: str, segment: int | None) -> Verdict:
        return self.verdicts.get((stage, segment), GOOD)

    def steps(self, held: Callable[[Call], bool] = lambda _: False) -> Iterator[Step]:
        """Yield everything that can happen now without time passing, but for answers that are held back."""
        for call in list(self.calls):
            if not held(call):
                yield partial(self.settle, call)
        for running in self.operators:
            for resource in (INGESTION_JOBS, "jobs", BATCHES):
                if self.undelivered(running, resource) is not None:
                    yield partial(self.deliver, running, resource)
        for part in self.parts:
            yield from part.steps()

    def step(self, choice: int, held: Callable[[Call], bool] = lambda _: False) -> bool:
        """Take one of the possible steps; False when there is none."""
        steps = self.steps(held)
        possible: list[Step | None] = [next(steps, None)] if choice == 0 else [*steps] or [None]
        chosen = possible[choice % len(possible)]
        if chosen is None:
            return False
        chosen()
        self.loop.run_until_idle()
        return True

    def settle_down(self, *, held: Callable[[Call], bool] = lambda _: False) -> None:
        """Take steps until none is left without time passing, but for answers that are held back."""
        for _ in range(_MOST_STEPS):
            if not self.step(0, held):
                return
        raise AssertionError(f"invariant 8: {_MOST_STEPS} steps, and it still goes on without time passing")

    def pass_until(
        self, wish: Callable[[], bool], *, seconds: float, held: Callable[[Call], bool] = lambda _: False
    ) -> bool:
        """Let everything go on fairly until a wish comes true; False when it did not within the simulated time.

        Args:
            wish: what is waited for.
            seconds: for so long.
            held: requests that nothing becomes of meanwhile.
        """
        end = self.seconds + seconds
        while True:
            self.settle_down(held=held)
            if wish():
                return True
            due = self.next_time()
            if due is None or self.seconds + due > end:
                return False
            self.pass_time(due)
