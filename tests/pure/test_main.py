"""The operator's tasks when something goes wrong that nobody thought of."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from ingestion_crds import JsonObject
from ingestion_crds.config import Config
from ingestion_crds.kube import KubeClient
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
    (said,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert said.getMessage() == "the task 'watch Jobs' has ended"
    assert said.exc_info is not None
    assert said.exc_info[0] is KeyError
