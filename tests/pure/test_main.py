"""The operator's tasks when something goes wrong that nobody thought of."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest
from aiohttp.test_utils import make_mocked_request
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds import follow as following
from ingestion_crds.config import Config
from ingestion_crds.kube import ApiError, KubeClient, batch_path
from ingestion_operator import main, metrics
from ingestion_operator.main import Operator


class Server:
    """Answers each list with an object that is none."""

    async def request(self, *_: Any, **__: Any) -> JsonObject:
        return {"items": [{}], "metadata": {}}

    async def close(self) -> None:
        pass


def operator_of(server: Any) -> Operator:
    return Operator(client=cast(KubeClient, server), config=Config(worker_image="worker:test"), health_port=0)


async def test_what_ends_a_task_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The process is started anew because of it: by the probe, or as the Lease is given up."""
    operator = operator_of(Server())
    await operator.start()
    await asyncio.wait(operator._watch)
    assert not operator._healthy
    await operator.stop()
    said = [record for record in caplog.records if record.levelname == "ERROR"]
    tasks = {f"the task {name!r} has ended" for name in ("watch Jobs", "watch IngestionBatches")}
    assert {record.getMessage() for record in said} == tasks
    assert {record.exc_info and record.exc_info[0] for record in said} == {KeyError}


@pytest.mark.parametrize("which", ["queue", "batch_queue"])
async def test_what_ends_an_operator_is_seen_in_its_metrics_before(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """A queue that stands still, whichever it is."""
    operator = operator_of(Server())
    getattr(operator, which).add("team-a/handbook")
    waited = time.monotonic() + main._STANDS_STILL_SECONDS
    monkeypatch.setattr(getattr(operator, which), "_clock", lambda: waited)
    await operator._metrics(make_mocked_request("GET", "/metrics"))
    assert (metrics.QUEUE_DEPTH._value.get(), operator._healthy) == (1, False)
    assert metrics.QUEUE_AGE._value.get() >= main._STANDS_STILL_SECONDS - 1


@pytest.mark.parametrize("which", ["queue", "batch_queue"])
async def test_a_backlog_is_no_reason_to_leave_while_it_is_worked_off(
    monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """The next replica would have the same one. But all workers may hang, and then nothing is taken any more."""
    operator, clock = operator_of(Server()), [time.monotonic()]
    queue = getattr(operator, which)
    monkeypatch.setattr(queue, "_clock", lambda: clock[0])
    for number in range(100):
        queue.add(f"team-a/handbook-{number}")
    for _ in range(50):
        clock[0] += main._STANDS_STILL_SECONDS / 10
        queue.done(await queue.get())
        assert operator._healthy
    await operator._metrics(make_mocked_request("GET", "/metrics"))
    assert metrics.QUEUE_AGE._value.get() == pytest.approx(5 * main._STANDS_STILL_SECONDS), "the alert tells of it"
    for _ in range(9):
        await queue.get()
    clock[0] += main._STANDS_STILL_SECONDS + 1
    assert not operator._healthy


@pytest.mark.parametrize("which", ["queue", "batch_queue"])
async def test_an_operator_that_had_nothing_to_do_is_well_when_something_comes(
    monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    operator = operator_of(Server())
    queue = getattr(operator, which)
    later = time.monotonic() + 10 * main._STANDS_STILL_SECONDS
    monkeypatch.setattr(queue, "_clock", lambda: later)
    assert operator._healthy
    queue.add("team-a/handbook")
    assert operator._healthy


class Discovery:
    """Lists its resources, to those whose token it takes."""

    def __init__(self) -> None:
        self.refuses, self.asked = False, 0

    async def request(self, *_: Any, **__: Any) -> JsonObject:
        self.asked += 1
        if self.refuses:
            raise ApiError(status=401, reason="Unauthorized", message="Unauthorized")
        return {"groups": [{"name": names.GROUP}], "resources": [{"name": names.PLURAL}]}


async def test_a_login_waits_for_a_token_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """kopf logs in again at once when its token is refused: without a wait, some hundred times a second."""
    monkeypatch.setattr(main, "_FIRST_DISCOVERY_AGAIN_SECONDS", 0.01)
    server = Discovery()
    operator = operator_of(server)
    await operator.discover()
    server.refuses, server.asked = True, 0
    again = asyncio.create_task(operator.discover())
    await asyncio.sleep(0.1)
    assert not again.done()
    assert 0 < server.asked < 6
    server.refuses = False
    await again


class WithoutBatches:
    """Serves no IngestionBatches: their CRD is not there."""

    def __init__(self) -> None:
        self.limits: list[int] = []

    async def request(self, _: str, path: str, *, query: JsonObject, **__: Any) -> JsonObject:
        if path == batch_path():
            self.limits.append(query["limit"])
            raise ApiError(status=404, reason="Unknown", message="404 page not found")
        return {"items": [], "metadata": {}}

    async def close(self) -> None:
        pass


async def test_jobs_are_listed_as_seldom_and_little_is_said_where_the_crd_of_batches_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(following, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(main, "_RESYNC_SECONDS", 0.01)
    server = WithoutBatches()
    operator = operator_of(server)
    work = [asyncio.create_task(operator._resync()), asyncio.create_task(operator._watch_batches())]
    async with asyncio.timeout(10):
        while len(server.limits) < 6:
            await asyncio.sleep(0.01)
    await operator._end(work)
    await operator.stop()
    assert set(server.limits) == {20}
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if "ingestionbatches" in text] == [
        "the API server does not serve ingestionbatches: apply both CRDs"
    ]
    assert not any("resync failed" in text for text in said)
