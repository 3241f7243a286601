"""The commands of `python -m local_cluster`; answers go to stdout, progress to stderr."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence

from local_cluster import binaries
from local_cluster.errors import LocalClusterError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, 1 with a message on stderr for what the machine lacks."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except LocalClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local_cluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("bin", help="build programs into the cache; print the folder they are in")
    command.add_argument("names", nargs="+", metavar="NAME", help=f"of {', '.join(sorted(binaries.BINARIES))}")
    command.set_defaults(run=_bin)

    command = commands.add_parser("control-plane", help="run a bare control plane until Ctrl-C")
    command.add_argument("--kwok", action="store_true", help="let kwok play nodes and pods")
    command.add_argument("--nodes", type=int, default=3, help="fake nodes with --kwok (default 3)")
    command.add_argument("--fsync", action="store_true", help="durable etcd writes")
    command.set_defaults(run=_control_plane)
    return parser


def _bin(options: argparse.Namespace) -> None:
    print(binaries.ensure(names=options.names))


def _control_plane(options: argparse.Namespace) -> None:
    from local_cluster.control_plane import ControlPlane  # needs cryptography; the other commands do not

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        contextlib.suppress(KeyboardInterrupt),
        ControlPlane(kwok=options.kwok, nodes=options.nodes, fsync=options.fsync) as plane,
    ):
        print(f"export KUBECONFIG={plane.kubeconfig}", flush=True)
        print("Ctrl-C ends it", file=sys.stderr, flush=True)
        signal.pause()
