"""Steps of the images' Dockerfile, run in a folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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
