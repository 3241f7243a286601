"""Budgets that are counts: requests of a retry, bytes of a job. What takes how long is measured in `bench/`."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from faults.proxy import Answer, Call, Forward, refuse
from faults.rig import Api, Run, api_of, running
from faults.scenarios import SEGMENTS, script
from ingestion_bench import many
from ingestion_bench.cases.requests import EACH_SECOND, TO_COMPLETED_AT_MOST, TO_UID_AT_MOST
from ingestion_bench.cases.size import LARGE, LARGE_BYTES, LARGEST, LARGEST_BYTES, stored_bytes
from ingestion_bench.failed import scattered
from ingestion_bench.past import Past
from ingestion_bench.record import record
from ingestion_bench.stand import Stand
from ingestion_crds import JsonObject
from ingestion_crds.kube import KubeClient
from local_cluster.control_plane import ControlPlane

pytestmark = pytest.mark.controlplane


class Milestones:
    """Notes how many requests API and operator had sent when the operator recorded something of a retry.

    Args:
        run: its proxy is told to note it.
        api: the other sender.
    """

    def __init__(self, run: Run, api: Api) -> None:
        self._proxies = (run.proxy, api.proxy)
        self.at: dict[str, tuple[float, Counter[str]]] = {}
        run.proxy.add(lambda call: str(call) == "patch ingestionjobs/status", self._note, times=None)

    def requests(self) -> Counter[str]:
        """Return the requests so far, without watches and Events."""
        seen = sum((proxy.seen for proxy in self._proxies), Counter())
        return Counter({what: n for what, n in seen.items() if not what.startswith("watch") and "events" not in what})

    def reach(self, milestone: str) -> None:
        self.at.setdefault(milestone, (time.monotonic(), self.requests()))

    async def _note(self, call: Call, forward: Forward) -> Answer:
        answer = await forward()
        if answer.status == 200:
            status: JsonObject = answer.json["status"]
            attempt = status["attempts"][-1]
            if attempt["generation"] == 1 and any("uid" in job for job in attempt["jobs"]):
                self.reach("recorded")
            if status["phase"] == "completed":
                self.reach("completed")
        return answer


@pytest.mark.parametrize(("segments", "bad"), [(4, 2), (60, 25), (400, 25)])
async def test_a_retry_takes_the_same_few_requests_whatever_its_size(
    control_plane: ControlPlane, kube: KubeClient, tmp_path: Path, segments: int, bad: int
) -> None:
    async with running(control_plane=control_plane, kube=kube, folder=tmp_path) as run, api_of(run) as api:
        run.kubelet.script = script(segments=segments, bad=frozenset(scattered(count=bad, of=segments)))
        job_id = str((await run.create(parallelism=100))["metadata"]["uid"])
        await run.settled("partial_failure")
        await api.known(job_id)
        await run.patch({"parallelism": 5})
        await run.at_rest()

        milestones = Milestones(run, api)
        milestones.reach("asked")
        assert (await api.retry(job_id)).status_code == 202
        await run.settled("completed", generation=1)
        # The cluster shows what the operator wrote a moment before the proxy has the answer.
        await run.wait(lambda: "completed" in milestones.at)
        assert sum(run.pods_run()[SEGMENTS, 1, segment] for segment in range(segments)) == bad

        (_, before), (begun, recorded), (ended, completed) = (
            milestones.at[milestone] for milestone in ("asked", "recorded", "completed")
        )
        first, rest = recorded - before, completed - recorded
        assert first.total() <= TO_UID_AT_MOST, first
        # Once in a while, and not for this retry: the API reads its keys, the operator lists all jobs.
        assert first - Counter({"get secrets": 1, "list ingestionjobs": 1}) == {
            "get ingestionjobs": 1,  # by the API: the operator begins from what the watch has shown
            "patch ingestionjobs": 1,
            "patch ingestionjobs/status": 2,
            "create configmaps": 1,
            "create jobs": 1,
        }
        assert rest.total() <= TO_COMPLETED_AT_MOST + EACH_SECOND * (ended - begun), rest


@pytest.mark.parametrize(("past", "most"), [(LARGE, LARGE_BYTES), (LARGEST, LARGEST_BYTES)])
async def test_a_job_of_many_segments_stays_small(
    control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path, past: Past, most: int
) -> None:
    stand = Stand(control_plane=control_plane, kube=kube, folder=tmp_path, namespace=namespace)
    size = await stored_bytes(stand, past)
    assert most / 10 < size <= most


async def test_the_storms_baseline_sends_what_the_operator_sends(
    control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    stand = Stand(control_plane=control_plane, kube=kube, folder=tmp_path, namespace=namespace)
    (job,) = await many.store(stand, count=1, pasts=[Past(segments=50, failed=scattered(count=3, of=50))])
    script = await record(stand, job)
    sent = [f"{request['method']} {request['path'].rpartition('/')[2]}" for request in script.requests]
    last = job.status.attempts[-1].jobs[-1].name
    assert sent == [
        *("PATCH status", "POST configmaps", "POST jobs", "PATCH status"),
        *(f"DELETE {last}", f"DELETE {last}"),  # the ConfigMap and the Job of the last attempt
        "POST events",  # which the operator sends in the background
    ]


async def test_no_answer_holds_all_jobs_at_once(control_plane: ControlPlane, kube: KubeClient, tmp_path: Path) -> None:
    """At a start too, where kopf lists them: an answer costs up to 24 times its length in memory."""
    page, count = 5, 50
    sizes: list[int] = []

    async def note(call: Call, forward: Forward) -> Answer:
        answer = await forward()
        if answer.status == 200:
            sizes.append(len(answer.json["items"]))
        return answer

    async with running(control_plane=control_plane, kube=kube, folder=tmp_path) as run:
        for number in range(count):
            await run.create(f"job-{number}", suspend=True)
        run.proxy.add(lambda call: str(call) == "list ingestionjobs", note, times=None)
        run.proxy.add(lambda call: str(call) == "watch ingestionjobs", refuse(422))  # lists are not streamed
        run.operator.kill()
        await run.wait(lambda: sum(sizes) >= count)
        assert max(sizes) == page
