"""The kubelet that tests play: what it outlasts, and that nobody waits for one that has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from ingestion_crds import constants as names
from ingestion_crds.kube import ApiError, KubeClient
from support.kubelet import Exit, FakeKubelet

WAIT_SECONDS = 30.0


class Server(KubeClient):
    """An API server with one pod and its ConfigMap. The first request of each kind is answered with an error.

    Args:
        status: the error's.
    """

    def __init__(self, status: int) -> None:
        self._status = status
        self.refused: set[str] = set()
        self.pod: Any = {
            "metadata": {
                "name": "pod",
                "uid": "uid",
                "labels": {
                    names.LABEL_STAGE: names.Stage.PREPARE,
                    names.LABEL_GENERATION: "0",
                    names.LABEL_COMPLETION_INDEX: "0",
                },
                "annotations": {names.ANNOTATION_JOB_NAME: "handbook"},
            },
            "spec": {
                "volumes": [{"configMap": {"name": "attempt"}}],
                "containers": [{"args": ["prepare"], "image": "worker:test", "env": []}],
            },
            "status": {"phase": "Pending"},
        }

    async def request(self, method: str, path: str, *, body: Any = None, **_: Any) -> Any:
        kind = f"{method} {path.rpartition('/')[2]}"
        if kind not in self.refused:
            self.refused.add(kind)
            raise ApiError(status=self._status, reason="", message="")
        if kind == "PATCH status":
            self.pod["status"] |= body["status"]
        return {"GET pods": {"items": [self.pod]}, "GET attempt": {"data": {names.ATTEMPT_KEY: "{}"}}}.get(kind, {})


@pytest.mark.parametrize("status", [0, 429, 500, 504])
async def test_what_is_not_answered_is_asked_again(status: int) -> None:
    server = Server(status)
    async with played(server) as kubelet:
        while server.pod["status"]["phase"] != "Succeeded":
            kubelet.check()
            await asyncio.sleep(0.01)
    assert server.refused == {"GET pods", "GET attempt", "PATCH status"}
    assert [run.uid for run in kubelet.runs] == ["uid"]


async def test_who_waits_sees_at_once_what_ended_it() -> None:
    begun = time.monotonic()
    with pytest.raises(ApiError, match="403"):
        await waited_for(Server(403))
    assert time.monotonic() - begun < WAIT_SECONDS


async def waited_for(server: Server) -> None:
    async with played(server) as kubelet:
        while True:
            kubelet.check()
            await asyncio.sleep(0.01)


@asynccontextmanager
async def played(server: Server) -> AsyncIterator[FakeKubelet]:
    kubelet = FakeKubelet(client=server, namespace="team-a", script=lambda run: Exit())
    async with kubelet, asyncio.timeout(WAIT_SECONDS):
        yield kubelet
