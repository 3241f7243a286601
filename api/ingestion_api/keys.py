"""`ingestion-keys`: mint, list and revoke API keys, with the caller's own access to the cluster."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import re
import sys
from collections.abc import Sequence
from typing import Final

from ingestion_crds.config import ConfigError
from ingestion_crds.constants import API_KEYS_SECRET
from ingestion_crds.job import format_time
from ingestion_crds.kube import MERGE_PATCH, ApiError, KubeClient, core_path

from ingestion_api.auth import ID_PATTERN, NAMESPACE_PATTERN, KeyEntry, decode_entries, encode_entry, hash_key, new_key
from ingestion_api.kube_secrets import read_secret

DEFAULT_SECRET_NAMESPACE: Final = "ingestion-system"  # noqa: S105 - a namespace


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(arguments=sys.argv[1:]))


def run(*, arguments: Sequence[str]) -> int:
    """Run one command; return the exit code: 0 done, 1 the cluster or the key said no, 2 wrong arguments."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "mint" and options.print_patch:
            return _print_patch(options)
        return asyncio.run(_in_cluster(options))
    except (ApiError, ConfigError, OSError) as error:
        return _fail(str(error))


def _parser() -> argparse.ArgumentParser:
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--secret-namespace",
        type=_namespace,
        default=DEFAULT_SECRET_NAMESPACE,
        help=f"namespace of the Secret {API_KEYS_SECRET}, where the API runs (default: %(default)s)",
    )
    where.add_argument("--kubeconfig", help="a kubeconfig file (default: KUBECONFIG, or ~/.kube/config)")
    parser = argparse.ArgumentParser(prog="ingestion-keys", description="API keys of the ingestion API.")
    commands = parser.add_subparsers(dest="command", required=True)
    mint = commands.add_parser("mint", parents=[where], help="make a key and print it, once")
    mint.add_argument("--namespace", type=_namespace, required=True, help="the tenant's namespace that the key is for")
    mint.add_argument("--name", type=_name, default="", help="whose key it is, for `list`; at most 128 characters")
    mint.add_argument(
        "--print-patch",
        action="store_true",
        help="touch no cluster: print a merge patch of the Secret on stdout and the key on stderr",
    )
    commands.add_parser("list", parents=[where], help="list the keys: id, namespace, time, name")
    revoke = commands.add_parser("revoke", parents=[where], help="delete a key; it stops within seconds")
    revoke.add_argument("id", type=_id, help="the key's id: the part between ik_ and the next underscore")
    return parser


def _print_patch(options: argparse.Namespace) -> int:
    key_id, key, entry = _mint(options)
    # One goes through a pipe to kubectl, the other to the person: two streams keep them apart.
    sys.stdout.write(json.dumps({"data": {key_id: encode_entry(entry)}}) + "\n")
    sys.stderr.write(key + "\n")
    return 0


async def _in_cluster(options: argparse.Namespace) -> int:
    async with await KubeClient.connect(kubeconfig=options.kubeconfig) as kube:
        if options.command == "mint":
            key_id, key, entry = _mint(options)
            await _store(kube, options.secret_namespace, {key_id: encode_entry(entry)})
            sys.stdout.write(key + "\n")
            return 0
        values = await read_secret(kube, namespace=options.secret_namespace, name=API_KEYS_SECRET) or {}
        if options.command == "list":
            for key_id, entry in sorted(decode_entries(values).items(), key=lambda item: item[1].created):
                sys.stdout.write(f"{key_id}\t{entry.namespace}\t{format_time(entry.created)}\t{entry.name}\n")
            return 0
        if options.id not in values:
            return _fail(f"no key {options.id!r} in {options.secret_namespace}/{API_KEYS_SECRET}")
        path = core_path("secrets", options.secret_namespace, API_KEYS_SECRET)
        await kube.request("PATCH", path, body={"data": {options.id: None}}, content_type=MERGE_PATCH)
        return 0


def _mint(options: argparse.Namespace) -> tuple[str, str, KeyEntry]:
    key_id, key = new_key()
    now = datetime.datetime.now(tz=datetime.UTC)
    return key_id, key, KeyEntry(hash=hash_key(key), namespace=options.namespace, name=options.name, created=now)


async def _store(kube: KubeClient, namespace: str, data: dict[str, str]) -> None:
    """Add entries to the Secret, which is made if it is not there; a merge patch leaves the others alone."""
    path = core_path("secrets", namespace, API_KEYS_SECRET)
    try:
        await kube.request("PATCH", path, body={"data": data}, content_type=MERGE_PATCH)
    except ApiError as error:
        if not error.not_found:
            raise
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": API_KEYS_SECRET}, "data": data}
        try:
            await kube.request("POST", core_path("secrets", namespace), body=body)
        except ApiError as made_meanwhile:
            if not made_meanwhile.already_exists:
                raise
            await kube.request("PATCH", path, body={"data": data}, content_type=MERGE_PATCH)


def _fail(message: str) -> int:
    sys.stderr.write(f"ingestion-keys: {message}\n")
    return 1


def _namespace(text: str) -> str:
    if not re.match(NAMESPACE_PATTERN, text):
        raise argparse.ArgumentTypeError(f"{text!r} is no namespace: lower-case letters, digits and dashes, at most 63")
    return text


def _name(text: str) -> str:
    if len(text) > 128 or not text.isprintable():
        raise argparse.ArgumentTypeError("a name has at most 128 printable characters")
    return text


def _id(text: str) -> str:
    if not re.fullmatch(ID_PATTERN, text):
        raise argparse.ArgumentTypeError("an id has 4 to 32 lower-case letters and digits; give the id, not the key")
    return text


if __name__ == "__main__":
    main()
