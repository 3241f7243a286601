"""The operator process: kopf runs it and watches IngestionJobs, a queue does the work.

kopf's change handlers, indexes and daemons stay unused: they copy the spec into annotations, add finalizers that block
deletion while the operator is down, and start slowly with thousands of objects (docs/decisions/0002-kopf-as-shell.md).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final

import aiohttp.web
import kopf
import prometheus_client
import uvloop
from ingestion_crds import JsonObject, logs
from ingestion_crds import constants as names
from ingestion_crds.config import Config, ConfigError
from ingestion_crds.follow import follow
from ingestion_crds.kube import ApiError, KubeClient, batch_path, child_path, ingestion_path

from ingestion_operator import metrics
from ingestion_operator.batch_cluster import PAGE, BatchCluster
from ingestion_operator.batch_intake import BatchIntake
from ingestion_operator.batch_memory import BatchMemory
from ingestion_operator.batch_reconcile import BatchReconciler
from ingestion_operator.cluster import KubeCluster
from ingestion_operator.custom_resources import ConflictError
from ingestion_operator.intake import Intake
from ingestion_operator.leader import LeaderClient, Leadership, Lease, LeaseLostError, leave
from ingestion_operator.login import log_in
from ingestion_operator.memory import Memory
from ingestion_operator.queue import WorkQueue
from ingestion_operator.reconcile import Reconciler, utc_now

WORKERS: Final = 64
# So many of them may look at what is merely due: else all of them might wait for a slow API server with that.
_MOST_DUE: Final = 16
# Batches have workers of their own: their looks are long, and are not to hold up those at jobs.
_BATCH_WORKERS: Final = 4
_RESYNC_SECONDS: Final = 120.0
# With more than 2,400 jobs the pause is longer: a full list of 10,000 takes one or two seconds of processor time, and
# all lists together are to take less than half a percent of a core.
_RESYNC_SECONDS_FOR_EACH: Final = 0.05
_LONGEST_RESYNC_SECONDS: Final = 600.0
_FIRST_RESYNC_AGAIN_SECONDS: Final = 2.0
_FIRST_DISCOVERY_AGAIN_SECONDS: Final = 1.0
_LONGEST_DISCOVERY_PAUSE_SECONDS: Final = 10.0
_WARN_AGAIN_SECONDS: Final = 600.0
_STANDS_STILL_SECONDS: Final = 300.0
_END_SECONDS: Final = 15.0
_HEALTH_PORT: Final = 8080
_KOPF_IDLE_SECONDS: Final = 0.1
_KOPF_PAGE: Final = 5
_PROBE_SECONDS: Final = 5.0
# kopf takes its finalizer off whatever needs none, and by default it is the same in every operator made with kopf.
_FINALIZER: Final = f"{names.GROUP}/unused"
_INGESTION_JOBS: Final = (names.GROUP, names.VERSION, names.PLURAL)
# JSON has no cycles: at Python's own thresholds a tenth of the processor time goes into searching it for them.
GARBAGE_THRESHOLDS: Final = (50_000, 10, 20)

log = logging.getLogger("ingestion_operator")


def resync_pause(jobs: int) -> float:
    """Return how many seconds after a full list of so many jobs the next one is made."""
    return min(max(_RESYNC_SECONDS, jobs * _RESYNC_SECONDS_FOR_EACH), _LONGEST_RESYNC_SECONDS)


class Operator:
    """The running parts: connection, leadership, intake of what the watches show, queue, reconciler, resync, health.

    Args:
        client: the API server.
        config: the installation's configuration.
        leadership: the claim to the Lease; None for an operator that is alone and leads from the start.
        health_port: where /healthz, /readyz and /metrics are served; 0 for any free port.
        now: the wall clock; for tests.
        monotonic: the clock for pacing, in seconds; for tests.
    """

    def __init__(
        self,
        *,
        client: KubeClient,
        config: Config,
        leadership: Leadership | None = None,
        health_port: int = _HEALTH_PORT,
        now: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._leadership = leadership
        self._discovered = False
        self._cluster = KubeCluster(client)
        self.memory = Memory(monotonic=monotonic)
        waits = {due: metrics.QUEUE_WAIT.labels(why="due" if due else "happened") for due in (False, True)}
        self.queue = WorkQueue(
            waited=lambda seconds, due: waits[due].observe(seconds),
            most_due=_MOST_DUE,
            done_with=self.memory.up_to_date,
        )
        self._batch_cluster = BatchCluster(client)
        batch_memory = BatchMemory(monotonic=monotonic)
        self.batch_queue = WorkQueue(most_due=_BATCH_WORKERS, done_with=batch_memory.up_to_date)
        self.batch_intake = BatchIntake(memory=batch_memory, queue=self.batch_queue)
        self._batch_reconciler = BatchReconciler(
            cluster=self._batch_cluster, config=config, memory=batch_memory, now=now
        )
        self.intake = Intake(memory=self.memory, queue=self.queue, batches=self.batch_intake)
        self._reconciler = Reconciler(
            cluster=self._cluster, config=config, memory=self.memory, now=now, is_due=self.queue.is_due
        )
        self._health_port = health_port
        self._health: aiohttp.web.AppRunner | None = None
        self._watch: list[asyncio.Task[None]] = []
        self._election: list[asyncio.Task[None]] = []
        self._work: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the health endpoint, the watch of Jobs, and the work as soon as this replica leads."""
        app = aiohttp.web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._health = aiohttp.web.AppRunner(app, access_log=None)
        await self._health.setup()
        await aiohttp.web.TCPSite(self._health, port=self._health_port).start()
        if self._leadership is None:
            self.begin()
        else:
            self._election = [self._start(self._lead(self._leadership), "lead")]
        self._watch = [
            self._start(self._watch_children(), "watch Jobs"),
            self._start(self._watch_batches(), "watch IngestionBatches"),
        ]

    async def stop(self) -> None:
        """Stop everything; what is half done is continued at the next start."""
        await self._end([*self._watch, *self._election, *self._work])
        await asyncio.gather(self._cluster.events.flush(), self._batch_cluster.events.flush())
        if self._leadership is not None:
            await self._leadership.release()
            await self._leadership.close()
        if self._health is not None:
            await self._health.cleanup()
        await self._client.close()

    async def discover(self) -> None:
        """Return once the API server lists IngestionJobs among its resources: it may be there before their CRD is.

        That is also how each login waits for a token that is taken: kopf logs in again as often as one is refused.
        """
        self._discovered = False
        wait = _FIRST_DISCOVERY_AGAIN_SECONDS
        while not self._discovered:
            try:
                groups = (await self._client.request("GET", "/apis"))["groups"]
                resources = (await self._client.request("GET", f"/apis/{names.GROUP}/{names.VERSION}"))["resources"]
                group_there = any(item["name"] == names.GROUP for item in groups)
                self._discovered = group_there and any(item["name"] == names.PLURAL for item in resources)
                why = "its group and version do not show it"
            except (ApiError, KeyError, TypeError) as error:  # a proxy may answer in the API server's place
                why = repr(error)
            if not self._discovered:
                log.warning("the API server does not serve %s, look again in %.0f s: %s", names.PLURAL, wait, why)
                await asyncio.sleep(wait)
                wait = min(wait * 2, _LONGEST_DISCOVERY_PAUSE_SECONDS)

    async def streams_lists(self) -> bool:
        """Return whether a watch begins with all objects there are, one event each, if it is asked to (KEP-3157).

        Kubernetes has that from 1.34 on, unless somebody has switched it off.
        """
        query = {
            "sendInitialEvents": "true",
            "resourceVersionMatch": "NotOlderThan",
            "fieldSelector": "metadata.name=-",
        }
        watch = self._client.watch(ingestion_path(), resource_version="", query=query)
        try:
            async with asyncio.timeout(_PROBE_SECONDS), aclosing(watch) as events:
                return await anext(events, None) is not None
        except (ApiError, TimeoutError) as error:
            log.info("lists of %s come in pages: %s", names.PLURAL, error)
            return False

    def begin(self) -> None:
        """Start the work."""
        log.info("leading")
        metrics.LEADER.set(1)
        self.intake.begin()
        self._work = [
            self._start(self.queue.work(self._handle, workers=WORKERS), "work"),
            self._start(self.batch_queue.work(self._handle_batch, workers=_BATCH_WORKERS), "work on batches"),
            self._start(self._resync(), "resync"),
            self._start(self._cluster.events.send(), "send Events"),
            self._start(self._batch_cluster.events.send(), "send Events of batches"),
        ]

    async def _lead(self, leadership: Leadership) -> None:
        """Wait for the Lease, work while it is held, and end the process when it cannot be kept."""
        log.info("standing by")
        await leadership.acquire()
        self.begin()
        try:
            await leadership.hold(healthy=lambda: self._healthy)
        except LeaseLostError as error:
            leave(str(error))
        await self._end(self._work)
        await leadership.release()
        leave("the work has stopped: another replica may do it")

    @staticmethod
    def _start(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start what goes on until it is cancelled; the log has the error that ends it sooner: nobody waits for it."""

        def say_why(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("the task %r has ended", name, exc_info=error)

        task = asyncio.create_task(work, name=name)
        task.add_done_callback(say_why)
        return task

    @staticmethod
    async def _end(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _handle(self, key: str) -> None:
        await self._look(key, self._reconciler.reconcile, self.queue)

    async def _handle_batch(self, key: str) -> None:
        await self._look(key, self._batch_reconciler.reconcile, self.batch_queue)

    @staticmethod
    async def _look(key: str, reconcile: Callable[[str], Awaitable[float | None]], queue: WorkQueue) -> None:
        """Look at a job, or a batch, and say when to do so again."""
        begun = time.monotonic()
        try:
            wait = await reconcile(key)
        except ConflictError as error:
            # After ever longer delays: what looks like a conflict may be a patch that is refused for good.
            metrics.CONFLICTS.inc()
            delay = queue.retry(key)
            log.info("changed meanwhile, look again in %.1f s: %s", delay, error, extra={"job": key})
        except ApiError as error:
            metrics.RECONCILE_ERRORS.labels(reason=error.reason).inc()
            delay = queue.retry(key)
            log.warning("look again in %.1f s: %s", delay, error, extra={"job": key})
        except Exception:
            # One broken object must not stop the others; it is looked at again after ever longer delays.
            metrics.RECONCILE_ERRORS.labels(reason="Internal").inc()
            log.exception("look again in %.1f s", queue.retry(key), extra={"job": key})
        else:
            queue.forget(key)
            if wait is not None:
                queue.add_after(key, wait)
        metrics.RECONCILE_SECONDS.observe(time.monotonic() - begun)

    async def _resync(self) -> None:
        """List everything at once and now and then, so that a lost watch event costs minutes, not a job.

        The first list brings what was passed over while another replica led. An operator that is alone has passed over
        nothing, and begins later. A list that fails is tried again after ever longer pauses: lists are no help to an
        API server that is overwhelmed.
        """
        again = _FIRST_RESYNC_AGAIN_SECONDS
        if self._leadership is None:
            await asyncio.sleep(_RESYNC_SECONDS)
        while True:
            listed = 0
            try:
                async for item in self._cluster.list_ingestion_jobs():
                    listed += 1
                    self.intake.on_job_seen(item, listed=True)
                async for item in self._batch_cluster.list_batches():
                    self.batch_intake.on_listed(item)
            except ApiError as error:
                pause, again = again, min(again * 2, _RESYNC_SECONDS)
                log.warning("resync failed, again in %.0f s: %s", pause, error)
            else:
                again = _FIRST_RESYNC_AGAIN_SECONDS
                pause = resync_pause(listed)
            await asyncio.sleep(pause)

    async def _watch_children(self) -> None:
        """Watch all Jobs that were made for IngestionJobs.

        Not through kopf: there are many events for each Job, and each would cost several times the processor time.
        """
        events = metrics.WATCH_EVENTS.labels(kind="Job")

        def take(body: JsonObject, deleted: bool) -> None:
            events.inc()
            self.intake.on_child_seen(body, deleted=deleted)

        def failed(error: ApiError, pause: float) -> None:
            log.warning("the watch of Jobs ended, it begins again in %.1f s: %s", pause, error)

        query = {"labelSelector": f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"}
        await follow(self._client, child_path(), query=query, take=take, failed=failed)

    async def _watch_batches(self) -> None:
        """Watch all IngestionBatches. Not through kopf, which would have them wait until both CRDs are there."""
        events = metrics.WATCH_EVENTS.labels(kind=names.BATCH_KIND)

        def take(body: JsonObject, deleted: bool) -> None:
            events.inc()
            self.batch_intake.on_batch_seen(body, deleted=deleted)

        warned = -_WARN_AGAIN_SECONDS

        def failed(error: ApiError, pause: float) -> None:
            nonlocal warned
            if not error.not_found:
                log.warning("the watch of IngestionBatches ended, it begins again in %.1f s: %s", pause, error)
            elif time.monotonic() - warned >= _WARN_AGAIN_SECONDS:
                warned = time.monotonic()
                log.warning("the API server does not serve %s: apply both CRDs", names.BATCH_PLURAL)

        await follow(self._client, batch_path(), most=PAGE, take=take, failed=failed)

    @property
    def _healthy(self) -> bool:
        """True while the tasks run and the queues move; a replica that stands by has nothing to move.

        However long one is: what takes hours to work off takes the next replica as long.
        """
        dead = any(task.done() for task in (*self._watch, *self._election, *self._work))
        return not dead and max(self.queue.stands_still, self.batch_queue.stands_still) < _STANDS_STILL_SECONDS

    @property
    def _depth(self) -> int:
        return len(self.queue) + len(self.batch_queue)

    @property
    def _oldest_age(self) -> float:
        return max(self.queue.oldest_age, self.batch_queue.oldest_age)

    async def _healthz(self, _: aiohttp.web.Request) -> aiohttp.web.Response:
        healthy = self._healthy
        body = {
            "healthy": healthy,
            "leading": self.intake.leading,
            "queue": self._depth,
            "oldestAgeSeconds": round(self._oldest_age, 1),
        }
        return aiohttp.web.json_response(body, status=200 if healthy else 503)

    async def _readyz(self, _: aiohttp.web.Request) -> aiohttp.web.Response:
        """Ready means able to take over: a rolling update, or a drain, ends another replica only then."""
        ready = self._healthy and self._discovered and (self._leadership is None or self._leadership.reached)
        return aiohttp.web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _metrics(self, _: aiohttp.web.Request) -> aiohttp.web.Response:
        metrics.QUEUE_DEPTH.set(self._depth)
        metrics.QUEUE_AGE.set(self._oldest_age)
        return aiohttp.web.Response(
            body=prometheus_client.generate_latest(),
            headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST},
        )


class NoDiff(kopf.DiffBaseStorage):
    """Nothing to compare objects by. Else kopf would copy each object at each event, for handlers that are not here."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Return nothing."""
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        """Return nothing."""
        return None

    def store(self, **_: Any) -> None:
        """Store nothing."""


def _configure(settings: kopf.OperatorSettings) -> None:
    """Have kopf do no more than watch IngestionJobs, with little memory."""
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = 600
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 60
    # Where lists are not streamed, a page would be the most memory that is ever needed: tens of KB for an object,
    # and tens of MB for one that somebody has filled.
    settings.watching.chunk_size = _KOPF_PAGE
    # For so long kopf keeps a task and the body of each object that it has seen: of thousands, most of the memory.
    settings.queueing.idle_timeout = _KOPF_IDLE_SECONDS
    settings.persistence.diffbase_storage = NoDiff()
    settings.persistence.finalizer = _FINALIZER


def registry_for(config: Config, lease: Lease | None) -> kopf.OperatorRegistry:
    """Return the kopf handlers: they start and stop the operator, and tell it of each change of an IngestionJob."""
    registry = kopf.OperatorRegistry()
    holder: list[Operator] = []
    events = metrics.WATCH_EVENTS.labels(kind=names.KIND)

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        _configure(settings)
        port = int(os.environ.get("INGESTION_HEALTH_PORT", _HEALTH_PORT))
        client = await LeaderClient.connect()
        if lease is not None:
            client.leadership = Leadership(client=await KubeClient.connect(pool_size=2), lease=lease)
        operator = Operator(client=client, config=config, leadership=client.leadership, health_port=port)
        await operator.start()
        holder.append(operator)
        log.info("started")

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        # kopf may wait for ever for what it stops, such as a watch that is being opened.
        timer = threading.Timer(_END_SECONDS, leave, ["what was to be stopped goes on"])
        timer.daemon = True
        timer.start()
        for operator in holder:
            await operator.stop()

    @kopf.on.login(registry=registry)
    async def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.AiohttpSession | None:
        # After the login kopf looks once which resources there are, and would never hear of one that comes later.
        await holder[0].discover()
        settings.watching.initial_streaming = await holder[0].streams_lists()
        return log_in(settings, passes_over=passes_over)

    def passes_over(body: JsonObject) -> bool:
        passed = holder[0].intake.passes_over(body)
        if passed:
            events.inc()
        return passed

    @kopf.on.event(*_INGESTION_JOBS, registry=registry)
    async def ingestion_job_changed(body: kopf.Body, type: str | None, **_: Any) -> None:
        events.inc()
        if type == "DELETED":
            holder[0].intake.on_job_deleted(body)
        else:
            holder[0].intake.on_job_seen(body)

    return registry


def main() -> None:
    """Run until told to stop."""
    logs.configure()
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        config = Config.load()
        lease = Lease.from_env(env=os.environ)
    except ConfigError as error:
        log.error("%s", error)
        raise SystemExit(2) from error
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    # In a loop that is given to it, kopf leaves watches that are half closed alone; asyncio complains of them.
    loop = uvloop.new_event_loop()
    kopf.run(registry=registry_for(config, lease), clusterwide=True, standalone=True, loop=loop)
    loop.close()


if __name__ == "__main__":
    main()
