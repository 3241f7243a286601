"""What `make test` says of the three times that it runs pytest."""

from __future__ import annotations

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
    uv = tmp_path / ".make" / "uv" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text(UV)
    uv.chmod(0o755)
    (tmp_path / "codes").write_text("\n".join(codes) + "\n")
    (tmp_path / "tests").mkdir()
    shutil.copy(RUN, tmp_path / "tests")
    ran = subprocess.run([tmp_path / "tests" / "run", *arguments], capture_output=True, text=True, check=False)
    assert re.findall(r"^ +\d+ s  (\w+)", ran.stdout, re.MULTILINE)[2:] == outcomes
    assert ran.returncode == code
