"""Remove what podman leaves on the machine after its last container is gone."""

import contextlib
from pathlib import Path

from local_cluster.commands import run, succeeds
from local_cluster.engine import Engine

TABLES = ("nat", "filter")
CHAIN_PREFIX = "NETAVARK"
CGROUPS = Path("/sys/fs/cgroup")


def remove(*, engine: Engine) -> None:
    """Remove netavark's firewall chains and empty cgroups, unless podman still runs containers for somebody."""
    if engine.name != "podman" or engine.run("ps", "--all", "--quiet", timeout=60).strip():
        return
    for command in ("iptables", "ip6tables"):
        for table in TABLES:
            _remove_chains(command=command, table=table)
    for folder in sorted(CGROUPS.glob("**/libpod_parent"), key=lambda found: len(found.parts), reverse=True):
        _remove_empty(folder)


def _remove_chains(*, command: str, table: str) -> None:
    if not succeeds([command, "-w", "-t", table, "-S"]):
        return
    rules = run([command, "-w", "-t", table, "-S"]).splitlines()
    for rule in rules:
        words = rule.split()
        if words[0] == "-A" and CHAIN_PREFIX in rule:
            succeeds([command, "-w", "-t", table, "-D", *_unquoted(words[1:])])
    chains = [rule.split()[1] for rule in rules if rule.startswith(f"-N {CHAIN_PREFIX}")]
    for chain in chains:
        succeeds([command, "-w", "-t", table, "-F", chain])
    for chain in chains:
        succeeds([command, "-w", "-t", table, "-X", chain])


def _unquoted(words: list[str]) -> list[str]:
    return [word.strip('"') for word in words]


def _remove_empty(folder: Path) -> None:
    # rmdir of a cgroup that still has processes fails, which is what is wanted.
    for inner in sorted(folder.rglob("*/"), key=lambda found: len(found.parts), reverse=True):
        if inner.is_dir():
            with contextlib.suppress(OSError):
                inner.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()
