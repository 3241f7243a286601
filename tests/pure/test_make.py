"""What `make` calls; in the place of uv is a program that says what it was called with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"
GITIGNORE = MAKEFILE.with_name(".gitignore")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile in it and uv installed."""
    shutil.copy(MAKEFILE, tmp_path)
    version = re.findall(r"^UV_VERSION := (\S+)$", MAKEFILE.read_text(), re.MULTILINE)[0]
    uv = tmp_path / ".make" / "uv" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text('#!/bin/sh\necho "CLUSTER=$CLUSTER uv $*"\n')
    uv.chmod(0o755)
    (tmp_path / ".make" / "uv" / version).touch()
    return tmp_path


def make(checkout: Path, *arguments: str, **variables: str) -> str:
    """What a target prints."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "CLUSTER", "MAKEFLAGS")}
    command = ["make", "--no-print-directory", *arguments]  # the tests themselves may be run by make
    return subprocess.run(
        command, cwd=checkout, env={**kept, **variables}, capture_output=True, text=True, check=True
    ).stdout


def test_uv_chooses_a_python_that_fits_unless_one_is_named(checkout: Path) -> None:
    assert "uv sync --frozen" in make(checkout, "venv")
    assert "uv sync --python /usr/bin/python3.12 --frozen" in make(checkout, "venv", "PYTHON=/usr/bin/python3.12")


@pytest.mark.parametrize(("user", "installs"), [("0", True), ("1000", False)])
def test_who_is_not_root_is_told_what_to_install(user: str, installs: bool, checkout: Path) -> None:
    shutil.rmtree(checkout / ".make")
    programs = checkout / "programs"
    programs.mkdir()
    for name, script in {"python3": "exit 1", "id": f"echo {user}", "apt-get": 'echo "apt-get is called: $*"'}.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        make(checkout, "venv", PATH=f"{programs}:{os.environ['PATH']}")
    assert ("apt-get is called: install -yqq python3-venv" in failed.value.stdout) is installs
    assert ("sudo apt-get install python3-venv" in failed.value.stdout) is not installs


def test_clean_removes_each_cache_that_the_tools_of_the_checkout_keep(checkout: Path) -> None:
    caches = [checkout / name for name in re.findall(r"^\.\w+_cache/$", GITIGNORE.read_text(), re.MULTILINE)]
    assert len(caches) >= 4
    for cache in caches:
        (cache / "of-a-version").mkdir(parents=True)
    make(checkout, "clean")
    assert [cache for cache in caches if cache.exists()] == []


def test_clean_takes_our_cluster_down_whatever_cluster_is_used_otherwise(checkout: Path) -> None:
    said = make(checkout, "clean", "CLUSTER=current", KUBECONFIG="/somebody's/config")
    assert said == "CLUSTER=kind uv run --frozen --no-sync python -m local_cluster down\n"
    assert not (checkout / ".make").exists()
