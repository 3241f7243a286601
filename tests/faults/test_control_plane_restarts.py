"""API server and etcd are killed and started again while jobs are in the middle of things: all end as without it.

The control plane is one of this file's own, and its etcd writes durably. Each case brings a run to a place of its own
in the scenario; when all are there, the components are killed under them at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from faults.proxy import Answer, Call, Forward, InjectedResetError
from faults.rig import Api, Run
from faults.scenarios import PREPARE, PUBLISH, SEGMENTS, segmented
from faults.stand import FULL, Arrange, Stand, Struck
from local_cluster.control_plane import APISERVER, ETCD, ControlPlane
from support.crd import install_crd
from support.kubelet import PodRun
from support.patience import PatientClient

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(3600)]

INVARIANTS: Final = (1, 2, 3, 4, 5, 8)
DOWN_SECONDS: Final = 1.0
VICTIMS: Final = {
    "API server": (APISERVER,),
    "etcd": (ETCD,),
    "etcd and API server": (ETCD, APISERVER),
}
SAMPLE: Final = ("its segments run", "its retry is acknowledged", "the retry's ConfigMap is made", "it is published")


@pytest.fixture(scope="module")
def durable_plane() -> Iterator[ControlPlane]:
    """A control plane to be killed, whose etcd syncs every write to the disk."""
    with ControlPlane(fsync=True) as plane:
        asyncio.run(install_crd(plane.kubeconfig))
        yield plane


@pytest_asyncio.fixture
async def stand(durable_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Stand]:
    """A stand whose users and kubelets outlast an API server that is away."""
    async with await PatientClient.connect(kubeconfig=str(durable_plane.kubeconfig)) as kube:
        yield Stand(control_plane=durable_plane, kube=kube, folder=tmp_path)


class Outage:
    """Components that are killed once all runs wait for it, and started again after a moment.

    Args:
        plane: whose components.
        victims: which, in the order to start them again.
        runs: how many runs have to be in their places.
    """

    def __init__(self, *, plane: ControlPlane, victims: tuple[str, ...], runs: int) -> None:
        self._plane = plane
        self._victims = victims
        self._missing = runs
        self._strikes: asyncio.Task[None] | None = None
        self.down = asyncio.Event()
        self.over = False

    def wait_for(self) -> None:
        """Say that one more run is in its place."""
        self._missing -= 1
        if not self._missing:
            self._strikes = asyncio.create_task(self._strike())

    async def _strike(self) -> None:
        for victim in self._victims:
            self._plane.kill_component(victim)
        self.down.set()
        await asyncio.sleep(DOWN_SECONDS)
        for victim in self._victims:
            await asyncio.to_thread(self._plane.start_component, victim)
        self.over = True


class Place:
    """Where one run is in the scenario when the outage comes."""

    def __init__(self, outage: Outage) -> None:
        self.outage = outage
        self._reached = False

    @property
    def injected(self) -> int:
        return int(self._reached and self.outage.over)

    def reached(self) -> None:
        """Wait for the outage here; all but the first time it is nothing."""
        if not self._reached:
            self._reached = True
            self.outage.wait_for()


def while_pods_run(stage: str, run: Run, api: Api | None, *, place: Place) -> None:
    """Have the pods of a stage run until the outage is over; of the segments, some end before it."""
    seen: set[str] = set()

    def holds(pod: PodRun) -> bool:
        if place.outage.over or pod.stage != stage or pod.segment == 0:
            return False
        if pod.uid in seen:  # seen a second time: it runs
            place.reached()
        seen.add(pod.uid)
        return True

    run.kubelet.holds = holds


def at_request(
    what: str, run: Run, api: Api | None, *, place: Place, generation: int = 0, of_api: bool = False, sent: bool = False
) -> None:
    """Hold a request until the outage: before it is sent on, or carried out and its answer lost."""
    assert api is not None
    proxy = api.proxy if of_api else run.proxy

    async def act(call: Call, forward: Forward) -> Answer:
        if sent:
            await forward()
        place.reached()
        await place.outage.down.wait()
        if sent:
            raise InjectedResetError
        return await forward()

    def match(call: Call) -> bool:
        retried = any(str(call) == "patch ingestionjobs" for call in api.proxy.committed)
        return str(call) == what and retried == (generation > 0)

    proxy.add(match, act)


PLACES: Final[dict[str, Callable[..., None]]] = {
    "it is prepared": partial(while_pods_run, PREPARE),
    "its segments run": partial(while_pods_run, SEGMENTS),
    "it is published": partial(while_pods_run, PUBLISH),
    "its first result is recorded": partial(at_request, "deletecollection pods", sent=True),
    "its retry is acknowledged": partial(at_request, "patch ingestionjobs", of_api=True, sent=True),
    "its retry begins": partial(at_request, "patch ingestionjobs/status", generation=1),
    "the retry's ConfigMap is made": partial(at_request, "create configmaps", generation=1, sent=True),
    "the retry's Job is made": partial(at_request, "create jobs", generation=1),
}


def put(run: Run, api: Api | None, *, bring: Callable[..., None], outage: Outage) -> Struck:
    """Arrange for a run to be in its place when the outage comes."""
    place = Place(outage)
    bring(run, api, place=place)
    return place


@pytest.mark.parametrize("victims", VICTIMS)
async def test_everything_goes_on_when_the_control_plane_is_back(
    durable_plane: ControlPlane, stand: Stand, victims: str
) -> None:
    """Invariants 1, 2, 3, 4, 5, 8."""
    if not FULL and victims != "etcd and API server":
        pytest.skip("part of `make faults`")
    chosen = list(PLACES) if FULL else SAMPLE
    outage = Outage(plane=durable_plane, victims=VICTIMS[victims], runs=len(chosen))
    cases: dict[str, Arrange] = {
        f"{victims} killed while {where}": partial(put, bring=PLACES[where], outage=outage) for where in chosen
    }
    await stand.survive(
        segmented,
        cases,
        invariants=INVARIANTS,
        fault_of=lambda case: f"{victims} killed with jobs at each stage, and started again",
        exactly=False,
    )
