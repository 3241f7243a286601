"""What this machine has and allows, and the few things that are installed on it."""

import os
import re
import resource
import shutil
from collections.abc import Iterable
from pathlib import Path

from local_cluster.commands import run, search_path
from local_cluster.errors import LocalClusterError
from local_cluster.progress import say, timed

PACKAGE_OF = {
    "podman": "podman",
    "netavark": "netavark",
    "aardvark-dns": "aardvark-dns",
    "crun": "crun",
    "runc": "runc",
    "conntrack": "conntrack",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
    "nft": "nftables",
    "git": "git",
}
"""Programs and the Debian packages they come in."""

PODMAN_PROGRAMS = ("podman", "netavark", "aardvark-dns", "crun", "runc", "iptables", "nft", "conntrack")
CEILING = 1_048_576
"""The limit of open files and processes that container engines ask for by themselves."""


def require(*, programs: Iterable[str]) -> None:
    """Make sure that `programs` (keys of PACKAGE_OF) are here, installing Debian packages when root on Debian.

    Raises LocalClusterError that names the missing packages where nothing may be installed.
    """
    missing = sorted({PACKAGE_OF[program] for program in programs if not _has(program)})
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        why = "this is no Debian" if os.geteuid() == 0 else "only root can install them"
        raise LocalClusterError(f"these packages are missing, and {why}: {' '.join(missing)}")
    say(f"installing Debian packages: {' '.join(missing)}")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with timed("apt-get"):
        run(["apt-get", "update", "-qq"], env=quiet)
        install = ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *missing]
        run(install, env=quiet, to_its_end=True)  # a package that is half configured is in everybody's way


def require_root(*, what: str) -> None:
    """Raise LocalClusterError unless this process is root."""
    if os.geteuid() != 0:
        raise LocalClusterError(f"{what} needs root")


def only_unified_cgroups() -> bool:
    """Whether the machine has cgroup v2 alone (a hybrid or v1 machine needs runc and a lenient kubelet)."""
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


def hard_limit(kind: int) -> int:
    """This process's hard limit of `kind` (resource.RLIMIT_...), at most what container engines ask for.

    A process without CAP_SYS_RESOURCE cannot raise limits, and containers that ask for more do not start.
    """
    limit = resource.getrlimit(kind)[1]
    return CEILING if limit == resource.RLIM_INFINITY else min(limit, CEILING)


def mount_points() -> list[Path]:
    """Where file systems are mounted, as often as they are.

    Source: https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html (the fifth field; some bytes are in octal).
    """
    fields = [line.split(b" ")[4] for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n") if line]
    octal = re.compile(rb"\\([0-7]{3})")
    return [Path(os.fsdecode(octal.sub(lambda found: bytes([int(found[1], 8)]), field))) for field in fields]


def _has(program: str) -> bool:
    return shutil.which(program, path=f"{search_path()}:/usr/lib/podman:/usr/libexec/podman") is not None
