"""Debian root filesystems out of debootstrap."""

import os
from collections.abc import Sequence
from pathlib import Path

from local_cluster import host, versions
from local_cluster.commands import run

UNUSED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man")


def bootstrap(*, folder: Path, packages: Sequence[str]) -> None:
    """Make a minimal Debian with `packages` in `folder`. Needs root; raises LocalClusterError on failure."""
    host.require_root(what="debootstrap")
    host.require(programs=["debootstrap"])
    mirror = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
    run(["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", versions.DEBIAN, folder, mirror])


def pack(*, folder: Path, file: Path) -> None:
    """Write the root filesystem in `folder`, without caches and manuals, as a tar to `file`, atomically."""
    for unused in UNUSED:
        run(["find", folder / unused, "-mindepth", "1", "-delete"])
    scratch = file.with_suffix(f".{os.getpid()}")
    run(["tar", "--directory", folder, "--numeric-owner", "--one-file-system", "-cf", scratch, "."])
    scratch.replace(file)
