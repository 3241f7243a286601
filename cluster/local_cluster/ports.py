"""Free TCP ports on the loopback address that stay free across a restart."""

import random
import socket
from pathlib import Path

LOWEST = 10_000
ATTEMPTS = 1000


def free(*, count: int) -> list[int]:
    """Choose `count` different free ports below the range the kernel gives to outgoing connections.

    Inside that range a client's own connection could take the port of a component that is being restarted.
    """
    chosen: list[int] = []
    highest = _first_ephemeral() - 1
    for _ in range(ATTEMPTS):
        if len(chosen) == count:
            return chosen
        port = random.randint(LOWEST, highest)  # noqa: S311
        if port not in chosen and _is_free(port):
            chosen.append(port)
    raise OSError(f"no {count} free ports on 127.0.0.1 between {LOWEST} and {highest}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _first_ephemeral() -> int:
    setting = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(setting.read_text().split()[0]) if setting.exists() else 32768
    return first if first > LOWEST + ATTEMPTS else 32768
