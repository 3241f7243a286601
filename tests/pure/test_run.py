"""What `make test` says of the three times that it runs pytest, and when it does not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "run"
# In the place of uv: pytest ends with the next exit code, and all else well.
UV = """#!/usr/bin/env bash
[[ $* == *pytest* ]] || exit 0
read -r code <codes
sed -i 1d codes
exit "$code"
"""


def program(file: Path, script: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(script)
    file.chmod(0o755)


def run(
    checkout: Path, *arguments: str, codes: str = "000", curl: str = "curl 8.5.0"
) -> subprocess.CompletedProcess[str]:
    """Run it where pytest ends with these codes, and curl is of that version."""
    program(checkout / ".make" / "uv" / "bin" / "uv", UV)
    program(checkout / "bin" / "curl", f'#!/bin/sh\necho "{curl} (x86_64-pc-linux-gnu)"\necho more\n')
    (checkout / "codes").write_text("\n".join(codes) + "\n")
    (checkout / "tests").mkdir()
    shutil.copy(RUN, checkout / "tests")
    env = {**os.environ, "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}"}
    command = [checkout / "tests" / "run", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "codes", "outcomes", "code"),
    [
        ([], "000", ["passed", "passed", "passed"], 0),
        ([], "015", ["passed", "FAILED", "FAILED"], 1),
        (["-k", "word"], "505", ["none", "passed", "none"], 0),
        (["-k", "word"], "515", ["none", "FAILED", "none"], 1),
        (["-k", "word"], "555", ["none", "none", "none"], 1),
    ],
)
def test_with_arguments_not_every_run_has_to_find_a_test(
    tmp_path: Path, arguments: list[str], codes: str, outcomes: list[str], code: int
) -> None:
    ran = run(tmp_path, *arguments, codes=codes)
    assert re.findall(r"^ +\d+ s  (\w+)", ran.stdout, re.MULTILINE)[2:] == outcomes
    assert ran.returncode == code


@pytest.mark.parametrize("curl", ["curl 7.81.0", "sh: curl: command not found"])
def test_a_curl_that_is_too_old_for_the_pages_is_told_before_anything_is_built(tmp_path: Path, curl: str) -> None:
    ran = run(tmp_path, curl=curl)
    assert (ran.returncode, "7.88" in ran.stdout, "==" in ran.stdout) == (1, True, False)


def test_some_tests_need_no_curl(tmp_path: Path) -> None:
    assert run(tmp_path, "-k", "word", curl="curl 7.81.0").returncode == 0
