"""What container engines leave on a machine: list it, and remove what podman leaves after its last container."""

import contextlib
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from local_cluster import host
from local_cluster.commands import run, succeeds
from local_cluster.engine import Engine

TABLES = ("nat", "filter")
CHAIN_PREFIX = "NETAVARK"
CGROUPS = Path("/sys/fs/cgroup")
NETWORK_NAMESPACES = Path("/run/netns")
PODMAN_HELPERS = ("conmon", "aardvark-dns")
HELPERS = (*PODMAN_HELPERS, "docker-proxy")
"""Programs that container engines keep running beside a container."""
HELPERS_END_SECONDS = 60.0
OF_ENGINES = re.compile("containers|docker|podman|libpod|netavark|netns|veth|br-", re.IGNORECASE)
"""Some of it is in the name of each mount, interface, firewall rule or chain that a container engine makes."""


def inventory(*, engine: Engine) -> frozenset[str]:
    """Everything on this machine that a cluster could leave behind, one line each; to be compared before and after.

    Containers, networks and volumes of the engine, mounts, network interfaces, firewall rules and chains, the cgroups
    of containers, and the engine's helper processes. Raises LocalClusterError when the engine does not answer.
    """
    # The engine comes first: podman's very first call makes mounts of its own, which stay.
    return frozenset([*_objects(engine), *_mounts(), *_interfaces(), *_firewall(), *_cgroups(), *_helpers()])


def left(*, before: frozenset[str], after: frozenset[str], of: str) -> frozenset[str]:
    """What the cluster `of` left, of all that came between two inventories.

    A machine is used meanwhile: mounts, interfaces and firewall rules that no engine makes are somebody else's. When
    other containers came or went, only what names the cluster can be told from theirs.
    """
    came = after - before
    if any(line.startswith("container ") and of not in line for line in before ^ after):
        return frozenset(line for line in came if of in line)
    machines = ("mount ", "interface ", "iptables ", "ip6tables ")
    return frozenset(line for line in came if not line.startswith(machines) or OF_ENGINES.search(line))


def _objects(engine: Engine) -> Iterator[str]:
    yield from (f"container {name}" for name in _containers(engine))
    for kind, command in (
        ("network", ["network", "ls", "--format", "{{.Name}}"]),
        ("volume", ["volume", "ls", "--quiet"]),
    ):
        yield from (f"{kind} {name}" for name in engine.run(*command, timeout=60).split())


def _containers(engine: Engine) -> list[str]:
    # Those of image builds, which use the same firewall chains, are external to podman.
    builds = ["--external"] if engine.name == "podman" else []
    return engine.run("ps", "--all", *builds, "--format", "{{.Names}}", timeout=60).split()


def _mounts() -> Iterator[str]:
    yield from (f"mount {point}" for point in host.mount_points())


def _interfaces() -> Iterator[str]:
    yield from (f"interface {found.name}" for found in Path("/sys/class/net").iterdir())


def _firewall() -> Iterator[str]:
    for command in ("iptables", "ip6tables"):
        for table in TABLES:
            rules = _rules(command=command, table=table)
            yield from (f"{command} {table} {rule}" for rule in rules if not rule.startswith("-P"))


def _cgroups() -> Iterator[str]:
    for name in ("libpod*", "docker*"):
        yield from (f"cgroup {found}" for depth in ("*", "*/*", "*/*/*") for found in CGROUPS.glob(f"{depth}/{name}"))


def _helpers(*, names: tuple[str, ...] = HELPERS, of: str = "") -> Iterator[str]:
    """Yield helper processes; with `of`, those alone that name this container in their arguments."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (folder / "comm").read_text().strip()
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            ended = not any(arguments)  # it waits for its parent to notice
            if name in names and not ended and (not of or of.encode() in arguments):
                yield f"process {name} {folder.name}"


def thaw() -> None:
    """Let frozen processes within nodes go on, so that they can be killed.

    runc freezes a container while it changes its cgroup. With cgroups of version 1, a node that is stopped just then
    cannot end: a frozen process does not die. A node that somebody paused is left as it is.
    """
    for state in (CGROUPS / "freezer").glob("**/libpod_parent/libpod-*/*/**/freezer.state"):
        with contextlib.suppress(OSError):
            state.write_text("THAWED")


def remove(*, engine: Engine, container: str) -> None:
    """Remove what podman leaves when `container` is gone: nothing is left when this returns.

    Its helper processes end by themselves, which is waited for. Netavark's firewall chains, empty cgroups and the empty
    mount for network namespaces are removed unless podman still has containers of somebody.
    """
    if engine.name != "podman":
        return
    thaw()
    _wait_for_helpers(of=container if _containers(engine) else "")
    if _containers(engine):  # asked again: waiting took time
        return
    for command in ("iptables", "ip6tables"):
        for table in TABLES:
            _remove_chains(command=command, table=table)
    for folder in sorted(CGROUPS.glob("**/libpod_parent"), key=lambda found: len(found.parts), reverse=True):
        _remove_empty(folder)
    # Path.is_mount does not see that a directory is bound to itself, which is how podman and `ip netns` mount it. They
    # make it again when they need it.
    if f"mount {NETWORK_NAMESPACES}" in _mounts() and not any(NETWORK_NAMESPACES.iterdir()):
        succeeds(["umount", str(NETWORK_NAMESPACES)])


def _wait_for_helpers(*, of: str) -> None:
    # conmon ends after podman has answered, and the last conmon's network takes aardvark-dns with it.
    deadline = time.monotonic() + HELPERS_END_SECONDS
    while any(_helpers(names=PODMAN_HELPERS, of=of)) and time.monotonic() < deadline:
        time.sleep(0.1)


def _rules(*, command: str, table: str) -> list[str]:
    listing = [command, "-w", "-t", table, "-S"]
    return run(listing).splitlines() if succeeds(listing) else []


def _remove_chains(*, command: str, table: str) -> None:
    rules = _rules(command=command, table=table)
    for rule in rules:
        words = shlex.split(rule)  # comments are quoted, and have spaces
        if words[0] == "-A" and CHAIN_PREFIX in rule:
            succeeds([command, "-w", "-t", table, "-D", *words[1:]])
    chains = [rule.split()[1] for rule in rules if rule.startswith(f"-N {CHAIN_PREFIX}")]
    for chain in chains:
        succeeds([command, "-w", "-t", table, "-F", chain])
    for chain in chains:
        succeeds([command, "-w", "-t", table, "-X", chain])


def _remove_empty(folder: Path) -> None:
    # rmdir of a cgroup that still has processes fails, which is what is wanted.
    for inner in sorted(folder.rglob("*/"), key=lambda found: len(found.parts), reverse=True):
        if inner.is_dir():
            with contextlib.suppress(OSError):
                inner.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()
