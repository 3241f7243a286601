"""The embedded store, with the options that the chart gives it: it tells its tenants apart, and keeps what it took."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import socket
import struct
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from ingestion_worker.store import Store, StoreConfig
from local_cluster import binaries
from support.machine import needs_mounts
from support.s3_server import free_address, started

CHART = Path(__file__).parents[2] / "charts" / "ingestion-operator" / "templates" / "store.yaml"
TENANTS = 24
ROUNDS = 3
REGION = "us-east-1"


class Embedded:
    """The store as the chart starts it.

    Args:
        folder: its volume.
        options: more of them, for what it keeps there.
    """

    def __init__(self, folder: Path, *, options: str = "") -> None:
        self._program = str(binaries.path(name="versitygw"))
        self._address = free_address()
        command = _command(folder=folder, program=self._program, address=self._address)
        self._command = ["sh", "-c", command.replace(" posix ", f" posix {options} ")]
        self._secret = secrets.token_hex(20)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self._address.split(":")
        return host, int(port)

    def started(self, **environment: str) -> AbstractContextManager[None]:
        """Run it while the block runs, with more of an environment."""
        root = {"ROOT_ACCESS_KEY_ID": "root", "ROOT_SECRET_ACCESS_KEY": self._secret, "REGION": REGION}
        return started(self._command, address=self._address, environment=root | environment)

    @property
    def _as_root(self) -> dict[str, str]:
        where = {"ADMIN_ENDPOINT_URL": f"http://{self._address}", "ADMIN_REGION": REGION}
        return where | {"ADMIN_ACCESS_KEY_ID": "root", "ADMIN_SECRET_ACCESS_KEY": self._secret}

    def admin(self, *arguments: str) -> None:
        """Call its admin command, as the chart's set-up Job does."""
        subprocess.run([self._program, "admin", *arguments], env=self._as_root, check=True, capture_output=True)

    def set_up(self, accounts: Path) -> subprocess.CompletedProcess[str]:
        """Run the chart's set-up Job with the accounts of a folder."""
        script = _set_up().replace("/etc/accounts", str(accounts)).replace("versitygw", self._program)
        command = ["sh", "-euc", script]
        return subprocess.run(command, env=self._as_root, check=False, capture_output=True, text=True, timeout=60)

    def tenant(self, name: str, *, secret: str) -> StoreConfig:
        """How the tenant whose account and bucket have this name gets in."""
        endpoint = f"http://{self._address}"
        return StoreConfig(
            url=f"s3://{name}", endpoint=endpoint, region=REGION, access_key_id=name, secret_access_key=secret
        )


def test_every_tenant_gets_in_whatever_was_set_up_before(tmp_path: Path) -> None:
    """As the chart's set-up Job does after each upgrade: every account and every bucket's owner is written again."""
    store = Embedded(tmp_path / "data")
    accounts = {f"team-{number:02}": secrets.token_hex(20) for number in range(TENANTS)}
    with store.started():
        for name, secret in accounts.items():
            store.admin("create-user", "--access", name, "--secret", secret, "--role", "user")
            store.admin("create-bucket", "--bucket", name, "--owner", name)
    with store.started():
        for _ in range(ROUNDS):
            for name, secret in accounts.items():
                store.admin("update-user", "--access", name, "--secret", secret)
                store.admin("change-bucket-owner", "--bucket", name, "--owner", name)
            for name, secret in accounts.items():
                Store(config=store.tenant(name, secret=secret)).put(key="mine", data=name.encode())


def test_a_tenant_that_the_store_refuses_keeps_no_other_from_its_bucket(tmp_path: Path) -> None:
    """In the set-up Job, which fails and names it; and which gives all that they lack when it is run again."""
    store = Embedded(tmp_path / "data")
    names, secret = ("team-a", "10.0.0.1", "team-c"), secrets.token_hex(20)  # the second is no name of a bucket
    accounts = tmp_path / "accounts"
    accounts.mkdir()
    with store.started():
        for _ in range(2):
            for name in names:
                (accounts / name).write_text(f"{name} {name} {secret}\n")
            done = store.set_up(accounts)
            assert done.returncode == 1
            assert "bucket 10.0.0.1 is NOT ready" in done.stderr
            assert done.stdout == "bucket team-a is ready\nbucket team-c is ready\n"
            for name in ("team-a", "team-c"):
                Store(config=store.tenant(name, secret=secret)).put(key="mine", data=name.encode())
            secret = secrets.token_hex(20)
        (accounts / "10.0.0.1").unlink()
        assert store.set_up(accounts).returncode == 0


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[None]:
    """Mount a disk whose content is a file."""
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def cut_power(folder: Path) -> None:
    """End a mounted disk at once: what is not on it by now never will be."""
    shutdown, without_flush = 0x8004587D, 2  # EXT4_IOC_SHUTDOWN and EXT4_GOING_FLAGS_NOLOGFLUSH
    where = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(where, shutdown, struct.pack("I", without_flush))
    finally:
        os.close(where)


@needs_mounts
@pytest.mark.parametrize("options", ["", "--disableotmp"], ids=["unnamed files", "temporary files"])
@pytest.mark.parametrize("last", ["nothing", "put", "create", "file"])
def test_what_was_acknowledged_is_there_after_a_power_cut(tmp_path: Path, last: str, options: str) -> None:
    """Objects had their full length, and held zeros."""
    image, disk, data = tmp_path / "image", tmp_path / "disk", os.urandom(1000)
    with image.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    disk.mkdir()
    store = Embedded(disk, options=options)
    tenant = Store(config=store.tenant("team-a", secret="its-own"))
    with mounted(image, disk), store.started():
        store.admin("create-user", "--access", "team-a", "--secret", "its-own", "--role", "user")
        store.admin("create-bucket", "--bucket", "team-a", "--owner", "team-a")
        if last == "put":
            tenant.put(key="kb/a/b", data=data)
        if last == "create":
            assert tenant.create(key="kb/a/b", data=data)
        if last == "file":
            data *= 9000  # goes up in parts
            (tmp_path / "file").write_bytes(data)
            tenant.put_file(key="kb/a/b", path=tmp_path / "file")
        cut_power(disk)
    with mounted(image, disk), store.started():
        if last == "nothing":
            tenant.put(key="kb/a/b", data=data)
        assert tenant.get(key="kb/a/b") == data
        assert [entry.key for entry in tenant.list(prefix="kb")] == ["kb/a/b"]


@dataclass(frozen=True)
class Attack:
    """A request that a tenant signs with its own key, at its own bucket, and that means the neighbour's."""

    name: str
    method: str
    path: str
    query: str
    answer: int
    body: bytes = b""


def _upload(name: str, method: str, *, there: str, part: str = "") -> Attack:
    return Attack(
        name, method, "/team-a/mine", f"{part}uploadId={quote(there, safe='')}", 404, b"planted" if part else b""
    )


def _delete(name: str, *, key: str) -> Attack:
    body = f"<Delete><Object><Key>{key}</Key></Object></Delete>".encode()
    return Attack(name, "POST", "/team-a", "delete=", 200, body)


ATTACKS = [
    _delete("delete an object", key="../team-b/kb/1"),
    _delete("delete the accounts", key="../../accounts/users.json"),
    _upload("abort a folder away", "DELETE", there="../../../../team-b/kb"),
    _upload("abort all buckets away", "DELETE", there="../../../../../buckets"),
    _upload("put a part there", "PUT", there="../../../../team-b", part="partNumber=7&"),
    _upload("list what is there", "GET", there="../../../../team-b/kb"),
    _upload("complete what is there", "POST", there="../../../../team-b/kb"),
]


SELECT = b"""<SelectObjectContentRequest><Expression>x</Expression><ExpressionType>SQL</ExpressionType>
<RequestProgress></RequestProgress></SelectObjectContentRequest>"""
SPACES = b" " * (3 << 20)


@pytest.mark.parametrize(
    ("method", "path", "query", "body", "wanted"),
    [
        ("POST", "/team-a/mine", "select=&select-type=2", SELECT, 200),  # it ended the process
        ("POST", "/team-a", "delete=", b"<Delete><Object><Key>other</Key></Object></Delete>" + SPACES, 400),
        ("PUT", "/team-a/mine", "tagging=", b"<Tagging><TagSet></TagSet></Tagging>" + SPACES, 400),
    ],
)
def test_no_tenant_takes_the_store_from_the_others(
    tmp_path: Path, method: str, path: str, query: str, body: bytes, wanted: int
) -> None:
    """What is no object was read into memory whole, however large."""
    store = Embedded(tmp_path / "data")
    secret = secrets.token_hex(20)
    with store.started():
        store.admin("create-user", "--access", "team-a", "--secret", secret, "--role", "user")
        store.admin("create-bucket", "--bucket", "team-a", "--owner", "team-a")
        config = store.tenant("team-a", secret=secret)
        own = Store(config=config)
        own.put(key="mine", data=SPACES)
        assert _signed(config)(method, path, query, body).status_code == wanted
        assert own.get(key="mine") == SPACES


@pytest.mark.parametrize(("method", "path"), [("POST", "/nosuchbucket"), ("PUT", "/healthz")])
def test_a_form_of_a_stranger_is_not_kept(tmp_path: Path, method: str, path: str) -> None:
    """Without a key: forms were kept before anything was looked at, in memory or in files of /tmp."""
    store = Embedded(tmp_path / "data")
    kept = tmp_path / "tmp"
    kept.mkdir()
    head = f"{method} {path} HTTP/1.1\r\nHost: s\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    part = '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    with (
        store.started(TMPDIR=str(kept)),
        socket.create_connection(store.address, timeout=20) as connection,
    ):
        connection.sendall(f"{head}Content-Length: {100 << 20}\r\n\r\n{part}".encode())
        with suppress(OSError):  # it may be hung up on
            for _ in range(16):
                connection.sendall(SPACES)
        assert not list(kept.iterdir())


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_no_tenant_gets_at_anything_outside_of_its_bucket(tmp_path: Path, attack: Attack) -> None:
    """versitygw 1.8.0 takes keys of a request's body, and ids of uploads, for paths unseen: cluster/go/versitygw."""
    store = Embedded(tmp_path / "data")
    secret = {name: secrets.token_hex(20) for name in ("team-a", "team-b")}
    with store.started():
        for name, value in secret.items():
            store.admin("create-user", "--access", name, "--secret", value, "--role", "user")
            store.admin("create-bucket", "--bucket", name, "--owner", name)
        neighbour = Store(config=store.tenant("team-b", secret=secret["team-b"]))
        for key in ("kb/1", "kb/2"):
            neighbour.put(key=key, data=b"theirs")
        send = _signed(store.tenant("team-a", secret=secret["team-a"]))
        assert send("POST", "/team-a/mine", "uploads=").status_code == 200  # where ids of uploads are looked for
        before = _files(tmp_path)
        answer = send(attack.method, attack.path, attack.query, attack.body)
        assert _files(tmp_path) == before
        assert answer.status_code == attack.answer
        assert b"<Error>" in answer.content
        assert neighbour.get(key="kb/1") == b"theirs"
        own = Store(config=store.tenant("team-a", secret=secret["team-a"]))
        own.put(key="kb/1", data=b"mine")
        assert send("POST", "/team-a", "delete=", _delete("its own", key="kb/1").body).status_code == 200
        assert not list(own.list(prefix="kb")), "what is its own it may delete so"


def _files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _signed(config: StoreConfig) -> Callable[..., httpx.Response]:
    """Return what sends a request as AWS Signature Version 4 has it: no S3 client sends those of these tests."""
    host = (config.endpoint or "").removeprefix("http://")

    def send(method: str, path: str, query: str, body: bytes = b"") -> httpx.Response:
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(body).hexdigest()
        headers = {
            "content-md5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode(),
            "host": host,
            "x-amz-content-sha256": digest,
            "x-amz-date": moment,
        }
        names = ";".join(headers)
        lines = [method, path, query, *(f"{name}:{headers[name]}" for name in headers), "", names, digest]
        scope = f"{moment[:8]}/{REGION}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256("\n".join(lines).encode()).hexdigest()])
        key = f"AWS4{config.secret_access_key}".encode()
        for part in (*scope.split("/"), text):
            key = hmac.digest(key, part.encode(), "sha256")
        credential = f"Credential={config.access_key_id}/{scope}, SignedHeaders={names}"
        headers["authorization"] = f"AWS4-HMAC-SHA256 {credential}, Signature={key.hex()}"
        return httpx.request(method, f"{config.endpoint}{path}?{query}", content=body, headers=headers, trust_env=False)

    return send


def _command(*, folder: Path, program: str, address: str) -> str:
    """Return the chart's command for the store, with other places."""
    found = re.search(
        r"mkdir -p /data/\S+ /data/\S+ &&\s+exec versitygw .*? posix /data/buckets", CHART.read_text(), re.S
    )
    assert found
    command = " ".join(found[0].split())
    return command.replace("/data/", f"{folder}/").replace("versitygw", program, 1).replace(":7070", address)


def _set_up() -> str:
    """Return the script of the chart's set-up Job."""
    found = re.search(r"^ +- \|\n( +tries=0\n.*?)^ +env:$", CHART.read_text(), re.S | re.M)
    assert found
    return textwrap.dedent(found[1])
