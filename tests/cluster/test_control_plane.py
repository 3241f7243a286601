"""What is claimed of the bare control plane: it comes up, plays Jobs, survives crashes and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from local_cluster import binaries, install, paths, versions
from local_cluster.client import Client
from local_cluster.control_plane import APISERVER, COMPONENTS, ETCD, KWOK, ControlPlane
from local_cluster.errors import LocalClusterError

pytestmark = pytest.mark.controlplane

SECONDS = 120.0
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
JOBS = "/apis/batch/v1/namespaces/default/jobs"
INDEX = "batch.kubernetes.io/job-completion-index"


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane with kwok, whose etcd writes durably."""
    with ControlPlane(kwok=True, nodes=2, fsync=True) as running:
        yield running


def until(wish: Callable[[], bool], *, what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not wish():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


def write(client: Client, *, name: str) -> None:
    """Write one object; an API server that is coming back may still refuse."""

    def written() -> bool:
        try:
            client.request(method="POST", path=CONFIG_MAPS, body={"metadata": {"name": name}})
        except urllib.error.HTTPError as error:
            return error.code == 409  # an earlier try got through without its answer
        except OSError:
            return False
        return True

    until(written, what=f"write {name}")


def config_maps(client: Client) -> set[str]:
    return {item["metadata"]["name"] for item in client.request(method="GET", path=CONFIG_MAPS)["items"]}


def run_job(client: Client, *, annotations: dict[str, str], spec: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run an Indexed Job of four pods with annotations for kwok until it has ended, and return it."""
    body = {
        "metadata": {"name": f"job-{uuid.uuid4().hex[:8]}"},
        "spec": {
            "completionMode": "Indexed",
            "completions": 4,
            "parallelism": 4,
            "backoffLimitPerIndex": 0,
            "template": {
                "metadata": {"annotations": annotations},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "none"}]},
            },
            **(spec or {}),
        },
    }
    path = f"{JOBS}/{client.request(method='POST', path=JOBS, body=body)['metadata']['name']}"
    until(lambda: ended(client.request(method="GET", path=path)), what=f"the Job's end at {path}")
    job: dict[str, Any] = client.request(method="GET", path=path)
    return job


def ended(job: dict[str, Any]) -> bool:
    return any(one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in conditions(job))


def conditions(job: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = job.get("status", {}).get("conditions", [])
    return found


def terminated(client: Client, job: dict[str, Any]) -> dict[int, tuple[int, str]]:
    """Exit code and message of the pod of each index of a Job."""
    selector = f"batch.kubernetes.io/controller-uid={job['metadata']['uid']}"
    pods = client.request(method="GET", path=f"/api/v1/namespaces/default/pods?labelSelector={selector}")["items"]
    found = {}
    for pod in pods:
        state = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        found[int(pod["metadata"]["annotations"][INDEX])] = (state["exitCode"], state.get("message", ""))
    return found


def refuses(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname, parts.port)) != 0


def processes_of(folder: Path) -> list[str]:
    """The command lines that name a control plane's folder, which each of its processes does."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if str(folder) in line:
            found.append(line)
    return found


def test_it_answers_to_kubectl_with_the_pinned_version(plane: ControlPlane) -> None:
    version = json.loads(install.kubectl(plane.kubeconfig, "version", "--output", "json"))
    assert version["serverVersion"]["gitVersion"] == versions.KUBERNETES
    ready = install.kubectl(plane.kubeconfig, "wait", "--for=condition=Ready", "node", "--all", f"--timeout={SECONDS}s")
    assert ready.count("condition met") == 2


def test_two_at_once_do_not_disturb_each_other(plane: ControlPlane) -> None:
    write(plane.client, name="mine")
    with ControlPlane() as other:
        assert other.url != plane.url
        assert other.folder != plane.folder
        write(other.client, name="theirs")
        assert "mine" not in config_maps(other.client)
        assert "theirs" not in config_maps(plane.client)
        theirs = other.url
    assert refuses(theirs)
    assert "mine" in config_maps(plane.client)


def test_kwok_completes_an_indexed_job(plane: ControlPlane) -> None:
    job = run_job(plane.client, annotations={})
    assert job["status"]["completedIndexes"] == "0-3"
    assert terminated(plane.client, job) == dict.fromkeys(range(4), (0, ""))


def test_kwok_fails_the_named_indexes_with_code_and_message(plane: ControlPlane) -> None:
    annotations = {"fake-pod/failing-indexes": "1,3", "fake-pod/exit-code": "66", "fake-pod/message": '{"code": "X"}'}
    job = run_job(plane.client, annotations=annotations)
    assert (job["status"]["completedIndexes"], job["status"]["failedIndexes"]) == ("0,2", "1,3")
    bad, good = (66, '{"code": "X"}'), (0, "")
    assert terminated(plane.client, job) == {0: good, 1: bad, 2: good, 3: bad}


def test_kwok_fails_named_indexes_with_1_where_no_code_is_given(plane: ControlPlane) -> None:
    job = run_job(plane.client, annotations={"fake-pod/failing-indexes": "2"})
    assert terminated(plane.client, job)[2] == (1, "")
    assert job["status"]["failedIndexes"] == "2"


def test_kwok_runs_pods_as_long_as_the_delay_says(plane: ControlPlane) -> None:
    job = run_job(plane.client, annotations={"fake-pod/delay": "1h"}, spec={"activeDeadlineSeconds": 1})
    assert [one["reason"] for one in conditions(job) if one["type"] == "Failed"] == ["DeadlineExceeded"]
    assert "completedIndexes" not in job["status"]


def test_kwok_lets_a_pod_hang_until_it_is_deleted(plane: ControlPlane) -> None:
    job = run_job(plane.client, annotations={"fake-pod/hang": "true"}, spec={"activeDeadlineSeconds": 1})
    assert [one["reason"] for one in conditions(job) if one["type"] == "Failed"] == ["DeadlineExceeded"]


@pytest.mark.parametrize("component", [ETCD, APISERVER])
def test_what_was_written_survives_a_crash(plane: ControlPlane, component: str) -> None:
    name = f"before-{component}"
    write(plane.client, name=name)
    pid = plane.pid(component)
    plane.kill_component(component)
    assert plane.pid(component) is None
    if component == APISERVER:
        assert refuses(plane.url)
    plane.start_component(component)
    assert plane.pid(component) not in (None, pid)
    until(lambda: plane.client.answers(path="/readyz"), what="the API server is ready again")
    assert name in config_maps(plane.client)
    write(plane.client, name=f"after-{component}")
    assert run_job(plane.client, annotations={})["status"]["completedIndexes"] == "0-3"


def test_kwok_goes_on_after_a_restart(plane: ControlPlane) -> None:
    plane.kill_component(KWOK)
    plane.start_component(KWOK)
    assert run_job(plane.client, annotations={})["status"]["completedIndexes"] == "0-3"


@pytest.mark.parametrize(
    "command", [["local_cluster", "load", "images.tar"], ["local_cluster", "prepare"], ["ingestion_demo"]]
)
def test_images_are_not_built_for_a_cluster_that_cannot_have_them(plane: ControlPlane, command: list[str]) -> None:
    env = {**os.environ, "CLUSTER": "current", "KUBECONFIG": str(plane.kubeconfig)}
    done = subprocess.run(
        [sys.executable, "-m", *command], env=env, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 1
    assert f"{plane.kubeconfig} (context local) names no kind cluster of one node on this machine" in done.stderr
    assert "Push them to a registry" in done.stderr


def test_a_component_that_cannot_start_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    plane = ControlPlane(folder=tmp_path, extra_flags={"scheduler": ["--no-such-flag"]})
    with pytest.raises(LocalClusterError, match=r"(?s)scheduler is not running.*unknown flag: --no-such-flag"):
        plane.start()
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


def test_flags_of_an_unknown_component_are_refused() -> None:
    with pytest.raises(LocalClusterError, match="no such component: apisrever"):
        ControlPlane(extra_flags={"apisrever": []})


RAISES = "raise SystemExit('the block raises')"
WAITS = "signal.pause()"
SCRIPT = """
import signal
from pathlib import Path
from local_cluster.control_plane import ControlPlane
with ControlPlane(folder=Path({folder!r})) as plane:
    print(plane.url, flush=True)
    {last}
"""


@pytest.mark.parametrize(
    ("last", "end"),
    [(RAISES, None), (WAITS, signal.SIGTERM), (WAITS, signal.SIGKILL)],
    ids=["raises", "SIGTERM", "SIGKILL"],
)
def test_nothing_is_left_however_the_program_ends(tmp_path: Path, last: str, end: signal.Signals | None) -> None:
    folder, home = tmp_path / "planes", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    binaries.ensure(names=[*binaries.CONTROL_PLANE])
    env = {**os.environ, "HOME": str(home), "TMPDIR": str(home), "INGESTION_CACHE": str(paths.cache())}
    script = SCRIPT.format(folder=str(folder), last=last)
    with subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        url = program.stdout.readline().strip()
        assert url
        if end is not None:
            assert len(processes_of(folder)) >= len(COMPONENTS) - 1
            program.send_signal(end)
    until(lambda: not processes_of(folder), what="its processes end")
    until(lambda: refuses(url), what="its port is free")  # a process loses its command line before its sockets
    assert list(folder.iterdir()) == []
    assert list(home.iterdir()) == []


def test_the_command_ends_by_sigterm_without_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "local_cluster", "control-plane"]
    env = {**os.environ, "TMPDIR": str(tmp_path), "INGESTION_CACHE": str(paths.cache())}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        said = program.stdout.readline()
        assert said.startswith(f"export KUBECONFIG={tmp_path}/")
        program.send_signal(signal.SIGTERM)
        try:
            assert program.wait(timeout=SECONDS) == 0
        finally:
            program.kill()
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []
