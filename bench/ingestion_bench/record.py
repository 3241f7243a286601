"""What the operator sends for one retry, recorded from itself, and told again for other jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from ingestion_crds import JsonObject
from ingestion_crds.digest import uid_digest
from ingestion_crds.job import IngestionJob
from ingestion_crds.kube import MERGE_PATCH, KubeClient, ingestion_path
from ingestion_operator.cluster import KubeCluster
from ingestion_operator.memory import Memory
from ingestion_operator.pace import Kept
from ingestion_operator.reconcile import Reconciler

from ingestion_bench.bare import retry_patch
from ingestion_bench.stand import Stand


class Recorder(KubeClient):
    """A client that keeps what it sends."""

    sent: list[JsonObject]

    async def request(self, method: str, path: str, **rest: Any) -> JsonObject:
        """As `KubeClient.request`."""
        self.sent.append({"method": method, "path": path, **rest})
        return await super().request(method, path, **rest)


@dataclass(frozen=True, kw_only=True)
class Script:
    """What was sent for one job.

    Args:
        requests: in order, as arguments of `KubeClient.request`.
        job: the job.
        last_job: UID of its last attempt's Job.
    """

    requests: Sequence[JsonObject]
    job: IngestionJob
    last_job: str

    def line(self, job: IngestionJob) -> bytes:
        """Return, as one line, what would be sent for another job with the same past."""
        text = orjson.dumps(self.requests).decode()
        for mine, other in (
            (self.job.metadata.name, job.metadata.name),
            (self.job.metadata.uid, job.metadata.uid),
            (uid_digest(self.job.metadata.uid), uid_digest(job.metadata.uid)),
            (self.last_job, _last_job(job)),
        ):
            text = text.replace(mine, other)
        return text.encode() + b"\n"


async def record(stand: Stand, job: IngestionJob) -> Script:
    """Retry a failed job in this process until its Job's UID is recorded, and return what was sent.

    The job is shown as the operator's watch shows it. No operator may run meanwhile.
    """
    path = ingestion_path(stand.namespace, job.metadata.name)
    live = await stand.get(job.metadata.name)
    raw = await stand.kube.request("PATCH", path, body=retry_patch(live), content_type=MERGE_PATCH)
    async with await Recorder.connect(kubeconfig=str(stand.control_plane.kubeconfig)) as recorder:
        recorder.sent = []
        memory = Memory()
        memory.shown[job.key] = Kept.of(raw, IngestionJob.model_validate(raw))
        cluster = KubeCluster(recorder)
        await Reconciler(cluster=cluster, config=stand.config, memory=memory).reconcile(job.key)
        await cluster.events.flush()
    return Script(requests=recorder.sent, job=job, last_job=_last_job(job))


def _last_job(job: IngestionJob) -> str:
    uid = job.status.attempts[-1].jobs[-1].uid
    assert uid is not None
    return uid
