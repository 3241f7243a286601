"""Debian root filesystems out of debootstrap."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from local_cluster import host
from local_cluster.commands import run, succeeds

UNUSED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/locale", "usr/share/man")


@contextmanager
def building(*, folder: Path, prefix: str) -> Iterator[Path]:
    """Make a folder `root` for a root filesystem in a new one in `folder`, whose name begins with `prefix`.

    What runs left that were killed goes first, so the caller holds a lock.
    """
    for left in folder.glob(f"{prefix}*"):
        _remove(left)
    umask = os.umask(0o022)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
    try:
        (scratch / "root").mkdir()
        yield scratch / "root"
    finally:
        os.umask(umask)
        _remove(scratch)


def _remove(folder: Path) -> None:
    # What is mounted in it may be the machine's own, so it is not emptied but taken away; and once it is private, that
    # is not passed on to where else it is mounted.
    mounted = [point for point in host.mount_points() if point.is_relative_to(folder.resolve())]
    for point in mounted:
        succeeds(["mount", "--make-private", point])
    for point in sorted(mounted, reverse=True):
        succeeds(["umount", "--lazy", point])
    succeeds(["rm", "--recursive", "--force", "--one-file-system", folder])


def bootstrap(*, folder: Path, release: str, packages: Sequence[str]) -> None:
    """Make a minimal Debian of a release with `packages` in `folder`. Needs root; raises LocalClusterError."""
    host.require_root(what="debootstrap")
    host.require(programs=["debootstrap"])
    mirror = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
    run(["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", release, folder, mirror])


def pack(*, folder: Path, file: Path) -> None:
    """Write the root filesystem in `folder`, with licences but no manuals, as a tar to `file`, atomically.

    Until it is whole it lies beside `folder`.
    """
    for unused in UNUSED:
        run(["find", folder / unused, "-mindepth", "1", "-delete"])
    run(["find", folder / "usr" / "share" / "doc", "-type", "f", "!", "-name", "copyright", "-delete"])
    scratch = folder.with_suffix(".tar")
    run(["tar", "--directory", folder, "--numeric-owner", "--one-file-system", "-cf", scratch, "."])
    scratch.replace(file)
