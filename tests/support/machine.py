"""What the machine that tests run on has and lets them do."""

from __future__ import annotations

import socket
import subprocess

import pytest


def _may_mount() -> bool:
    """Whether file systems may be mounted here: root in a container mostly may not. It is tried where nobody sees it.

    Source: https://man7.org/linux/man-pages/man1/unshare.1.html (the mounts of such a namespace are private).
    """
    tried = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


needs_mounts = pytest.mark.skipif(not _may_mount(), reason="mounts a disk")


def has_ipv6() -> bool:
    """Whether there is a loopback address of IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
