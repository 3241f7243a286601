"""Recipes of the pages for other shells and tools than those of the machine that walks the pages."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "give-a-file.md"
# As macOS has it: without a file it reads nothing.
PASTE = """#!/bin/sh
[ "$2" = - ] || { echo 'usage: paste [-s] [-d delimiters] file ...' >&2; exit 1; }
exec /usr/bin/paste "$@"
"""


def take_out(folder: Path, *, listing: str) -> subprocess.CompletedProcess[str]:
    """Run the lines that write `nothing.json`; `listing` is what the store answers."""
    paste = folder / "paste"
    paste.write_text(PASTE)
    paste.chmod(0o755)
    lines = re.findall(r"^\$ ((?:JOBS=|echo ).*)$", PAGE.read_text(), re.MULTILINE)
    assert len(lines) == 2
    script = "\n".join([f"list() {{ echo '{listing}'; }}", *lines])
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", script], cwd=folder, env={"PATH": path}, capture_output=True, text=True, check=False
    )


def test_every_job_of_a_document_that_is_taken_out_is_shut_out(tmp_path: Path) -> None:
    claims = "<Key>kb/k/claims/d/1111-aaaa.json</Key><Key>kb/k/claims/d/2222-bbbb.json</Key>"
    assert take_out(tmp_path, listing=claims).returncode == 0
    entry = json.loads((tmp_path / "nothing.json").read_text())
    assert entry["live"] is None
    assert entry["fences"] == entry["numbers"] == {"1111-aaaa": 2**53 - 1, "2222-bbbb": 2**53 - 1}


@pytest.mark.parametrize("listing", ["", "<Error><Code>AccessDenied</Code></Error>"])
def test_a_list_without_jobs_is_no_reason_to_shut_out_none(tmp_path: Path, listing: str) -> None:
    assert take_out(tmp_path, listing=listing).returncode != 0
    assert not (tmp_path / "nothing.json").exists()


def test_no_command_has_a_comment_behind_it() -> None:
    """An interactive zsh, as of macOS, knows none: each of its words was a URL more for curl, which sent it the key."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    commands = [line for page in pages for line in page.read_text().splitlines() if line.startswith("$ ")]
    assert not [command for command in commands if re.search(r"\s#", command)]
