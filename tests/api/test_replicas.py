"""Two API replicas as processes: they agree, and a rolling restart loses no request."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from local_cluster import ports
from local_cluster.process import spawn
from support.builders import KNOWLEDGE_BASE
from support.campaign import record

from .conftest import Api

pytestmark = pytest.mark.controlplane

PREFIX = "/v1/knowledge-base"
PATIENCE_SECONDS = 120.0


@dataclass(kw_only=True)
class Replica:
    """One API process on a port that it keeps over restarts."""

    url: str
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as out:
            command = [sys.executable, "-m", "ingestion_api.main"]
            self.process = spawn(command, env=self.environment, stdout=out, stderr=subprocess.STDOUT)

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(60)

    async def ready(self, client: httpx.AsyncClient) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if (await client.get(f"{self.url}/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, self.log.read_text()
            await asyncio.sleep(0.1)


@contextmanager
def replicas(api: Api, folder: Path, *, count: int = 2) -> Iterator[list[Replica]]:
    with ExitStack() as stack:
        found = []
        for port in ports.free(count=count):
            environment = {
                **os.environ,
                "KUBECONFIG": str(api.kubeconfig),
                "INGESTION_CONFIG": str(folder / "config.yaml"),
                "POD_NAMESPACE": api.system,
                "INGESTION_API_HOST": "127.0.0.1",
                "INGESTION_API_PORT": str(port),
            }
            environment.pop("KUBERNETES_SERVICE_HOST", None)
            replica = Replica(url=f"http://127.0.0.1:{port}", environment=environment, log=folder / f"{port}.log")
            replica.start()
            stack.callback(replica.stop)
            found.append(replica)
        yield found


def new_client(api: Api) -> httpx.AsyncClient:
    return httpx.AsyncClient(headers={"x-api-key": api.key}, timeout=60, trust_env=False)


async def test_no_replica_shows_the_state_before_a_retry(api: Api, tmp_path: Path) -> None:
    """Invariant 4, with the 202 from one replica and the GET from another."""
    with replicas(api, tmp_path) as (first, second):
        async with new_client(api) as client:
            for replica in (first, second):
                await replica.ready(client)
            for number in range(8):
                job_id = await api.failed(f"job-{number}")
                path = f"{PREFIX}/ingestion-jobs/{job_id}"
                accepting, other = (first, second) if number % 2 else (second, first)
                headers = {"idempotency-key": f"key-{number}"}
                # The other's index may still have to hear of a job that kubectl has just made.
                await _known(client, other.url + path)
                retried = await client.post(f"{accepting.url}{path}/retry", headers=headers)
                assert retried.status_code == 202, retried.text
                assert (await client.get(other.url + path)).json()["status"] == "queued"
                # The operator takes it up and it fails again: the same key, sent to the other, is still the same retry.
                await api.set_status(f"job-{number}", phase="failed", observedRetryGeneration=1)
                again = await client.post(f"{other.url}{path}/retry", headers=headers)
                assert again.status_code == 202
                assert (await api.live(f"job-{number}"))["spec"]["retryGeneration"] == 1


async def test_concurrent_retries_over_two_replicas_make_one_generation(api: Api, tmp_path: Path) -> None:
    """Invariant 4."""
    with replicas(api, tmp_path) as pair:
        async with new_client(api) as client:
            for replica in pair:
                await replica.ready(client)
            job_id = await api.failed()
            path = f"{PREFIX}/ingestion-jobs/{job_id}"
            for replica in pair:
                await _known(client, replica.url + path)
            answers = await asyncio.gather(
                *(
                    client.post(
                        f"{pair[number % 2].url}{path}/retry",
                        headers={"idempotency-key": f"key-{number % 10}"} if number % 3 else {},
                    )
                    for number in range(60)
                )
            )
            assert {answer.status_code for answer in answers} == {202}
            assert (await api.live())["spec"]["retryGeneration"] == 1


async def _known(client: httpx.AsyncClient, url: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (await client.get(url)).status_code == 404:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@dataclass(kw_only=True)
class Load:
    """Clients that send one request after another, to a replica in turn; what fails is sent once more, to the other.

    A Service sends to replicas that are ready; these clients do not even know which are.
    """

    client: httpx.AsyncClient
    urls: list[str]
    done: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    stopping: bool = False
    _turn: Iterator[int] = field(default_factory=itertools.count)

    async def run(self, job_id: str) -> None:
        for number in itertools.count():
            if self.stopping:
                return
            match number % 4:
                case 0:
                    path = f"{PREFIX}/ingestion-jobs/{job_id}"
                    await self._send("progress", "GET", path, {200})
                case 1:
                    path = f"{PREFIX}/knowledge-bases/{KNOWLEDGE_BASE}/ingestion-jobs"
                    await self._send("list", "GET", path, {200})
                case 2:
                    path = f"{PREFIX}/ingestion-jobs/{job_id}/retry"
                    await self._send("retry", "POST", path, {202}, headers={"idempotency-key": "one"})
                case 3:
                    path = f"{PREFIX}/knowledge-bases/{uuid.uuid4()}/ingest"
                    await self._send("ingest", "POST", path, {202}, upload=True)

    async def _send(
        self,
        what: str,
        method: str,
        path: str,
        wanted: set[int],
        *,
        headers: dict[str, str] | None = None,
        upload: bool = False,
    ) -> None:
        turn = next(self._turn)
        said = ""
        for attempt in range(2):
            url = self.urls[(turn + attempt) % len(self.urls)] + path
            headers = {**(headers or {}), **({"content-type": "multipart/form-data; boundary=b"} if upload else {})}
            try:
                answer = await self.client.request(
                    method, url, headers=headers, content=slow_form() if upload else None
                )
            except httpx.TransportError as error:
                said = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code in wanted:
                    self.done[what] += 1
                    self.again[what] += attempt
                    return
                said = f"{answer.status_code} {answer.text}"
                if answer.status_code != 503:
                    break
        self.failed.append(f"{what}: {said}")


async def slow_form() -> AsyncIterator[bytes]:
    """Send a form over half a second, so that some are always under way."""
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.md"\r\nContent-Type: text/markdown\r\n\r\n'
    for _ in range(5):
        await asyncio.sleep(0.1)
        yield b"text " * 200
    yield b"\r\n--b--\r\n"


async def test_a_rolling_restart_under_load_loses_no_request(api: Api, tmp_path: Path) -> None:
    job_id = await api.failed()
    with replicas(api, tmp_path) as pair:
        async with new_client(api) as client, new_client(api) as probes:
            for replica in pair:
                await replica.ready(probes)
                await _known(probes, f"{replica.url}{PREFIX}/ingestion-jobs/{job_id}")
            load = Load(client=client, urls=[replica.url for replica in pair])
            async with asyncio.TaskGroup() as group:
                for _ in range(6):
                    group.create_task(load.run(job_id))
                for replica in pair * 2:
                    before = load.done.total()
                    while load.done.total() < before + 30:
                        await asyncio.sleep(0.05)
                    await asyncio.to_thread(replica.stop)
                    replica.start()
                    await replica.ready(probes)
                load.stopping = True
    print(f"answered {dict(load.done)}, of which at the second try {dict(load.again)}")
    assert not load.failed, load.failed[:5]
    assert all(load.done[what] > 0 for what in ("progress", "list", "retry", "ingest"))
    assert (await api.live())["spec"]["retryGeneration"] == 1
    record("API replica restarted under load", injected=4, survived=4, invariants=[4])
