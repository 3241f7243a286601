"""Steps of the images' Dockerfile, run in a folder."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from local_cluster import binaries, install

DOCKERFILE = Path(__file__).parents[2] / "images" / "Dockerfile"


def test_an_image_finds_its_code_whatever_pythonpath_is(tmp_path: Path) -> None:
    """Webhooks set it, and what a pod's spec sets takes the place of what the image does."""
    steps = DOCKERFILE.read_text().replace("\\\n", "")
    [step] = re.findall(r"^RUN (python3 -m venv --without-pip .*)$", steps, re.MULTILINE)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    subprocess.run(["/bin/sh", "-c", step.replace("/opt/", f"{tmp_path}/")], env={"PATH": path}, check=True)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "ingestion_worker.py").touch()
    command = [tmp_path / "venv" / "bin" / "python", "-c", "import ingestion_worker"]
    subprocess.run(command, env={"PYTHONPATH": "/elsewhere"}, cwd="/", check=True)


def test_images_hold_the_licences_of_what_they_are_made_from() -> None:
    """Ours, and versitygw's with what is changed: Apache-2.0, section 4."""
    assert re.search(r"^COPY LICENSE ", DOCKERFILE.read_text(), re.MULTILINE)
    assert "COPY images/versitygw/ " in (DOCKERFILE.parent / "store.Dockerfile").read_text()
    let_in = (DOCKERFILE.parents[1] / ".dockerignore").read_text().splitlines()
    assert {"!LICENSE", "!images/versitygw"} <= set(let_in)
    changes = (DOCKERFILE.parent / "versitygw" / "CHANGES").read_text()
    assert "cluster/go/versitygw" in changes
    assert {file.name for file in (DOCKERFILE.parent / "versitygw").iterdir()} == {"LICENSE", "NOTICE", "CHANGES"}


def test_the_store_s_image_is_another_only_where_it_is_made_from_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(install.engine, "for_images", lambda: SimpleNamespace(name="docker"))

    def named() -> str:
        return install._digest(name="store", base="debian")

    before = named()
    monkeypatch.setattr(binaries, "versions_key", lambda: "another Helm")
    assert named() == before
    monkeypatch.setitem(binaries.BINARIES, "versitygw", replace(binaries.BINARIES["versitygw"], linker="-X other"))
    assert named() != before
