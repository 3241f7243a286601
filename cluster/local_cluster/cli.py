"""The commands of `python -m local_cluster`; answers go to stdout, progress to stderr."""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from local_cluster import binaries, engine, images, install, process
from local_cluster.commands import run
from local_cluster.errors import LocalClusterError
from local_cluster.kind import Kind, image_for, target, wanted_elsewhere, wanted_name
from local_cluster.progress import say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, 1 with a message on stderr for what the machine lacks."""
    options = _parser().parse_args(arguments)
    process.interrupt_when_ended()
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

    for name, function, text in (
        ("up", _up, "create the kind cluster, or start it again; print how to use it"),
        ("down", _down, "delete the kind cluster and all it left on the machine"),
        ("status", _status, "show nodes and pods"),
        ("kubeconfig", _kubeconfig, "print the path of the kubeconfig"),
        ("logs", _logs, "collect the logs of node and pods; print the folder"),
        ("load", _load, "load image archives into the node"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--name", default=wanted_name(), help="the cluster's name")
        command.set_defaults(run=function)
        if name == "load":
            command.add_argument("archives", nargs="+", type=Path, metavar="ARCHIVE")
        if name == "logs":
            command.add_argument("--folder", type=Path, help="where to write them")

    command = commands.add_parser(
        "prepare", help="build our images, load them into the kind cluster, make the store's volume; print Helm values"
    )
    command.add_argument("--name", default=wanted_name(), help="the cluster's name")
    command.add_argument("--namespace", default="ingestion-system", help="where the chart goes (default %(default)s)")
    command.add_argument("--release", default="ingestion", help="the release's name (default %(default)s)")
    command.set_defaults(run=_prepare)

    command = commands.add_parser("base-image", help="print the name of a Python base image, made if necessary")
    command.set_defaults(run=_base_image)

    command = commands.add_parser("node-image", help="print the name of kind's node image, pulled or made if necessary")
    command.set_defaults(run=_node_image)
    return parser


def _up(options: argparse.Namespace) -> None:
    elsewhere = wanted_elsewhere()
    if elsewhere is not None:
        run([binaries.path(name="kubectl"), "--kubeconfig", elsewhere, "get", "--raw", "/readyz"], timeout=30)
        say("using the existing cluster")
    print(f"export KUBECONFIG={elsewhere or Kind(name=options.name).up()}")


def _down(options: argparse.Namespace) -> None:
    if wanted_elsewhere() is not None:
        raise LocalClusterError("CLUSTER or KUBECONFIG names a cluster that is not ours; set CLUSTER=kind to go on")
    Kind(name=options.name).down()


def _status(options: argparse.Namespace) -> None:
    print(Kind(name=options.name).status(), end="")


def _kubeconfig(options: argparse.Namespace) -> None:
    elsewhere = wanted_elsewhere()
    cluster = Kind(name=options.name)
    if elsewhere is None and not cluster.exists():
        raise LocalClusterError(f"there is no kind cluster {options.name}; create it with `up`")
    print(elsewhere or cluster.kubeconfig)


def _logs(options: argparse.Namespace) -> None:
    print(Kind(name=options.name).logs(folder=options.folder))


def _load(options: argparse.Namespace) -> None:
    target(name=options.name).load(archives=options.archives)


def _prepare(options: argparse.Namespace) -> None:
    values = install.prepare(cluster=target(name=options.name), namespace=options.namespace, release=options.release)
    print(json.dumps(values, indent=1))


def _base_image(options: argparse.Namespace) -> None:
    print(images.base_image())


def _node_image(options: argparse.Namespace) -> None:
    print(image_for(chosen=engine.for_kind()))


def _bin(options: argparse.Namespace) -> None:
    print(binaries.ensure(names=options.names))


def _control_plane(options: argparse.Namespace) -> None:
    from local_cluster.control_plane import ControlPlane  # needs cryptography; the other commands do not

    with (
        contextlib.suppress(KeyboardInterrupt),
        ControlPlane(kwok=options.kwok, nodes=options.nodes, fsync=options.fsync) as plane,
    ):
        print(f"export KUBECONFIG={plane.kubeconfig}", flush=True)
        print("Ctrl-C ends it", file=sys.stderr, flush=True)
        process.wait_until_interrupted()
