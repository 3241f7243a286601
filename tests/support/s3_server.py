"""A real S3 server: versitygw over a folder."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ingestion_worker.store import StoreConfig
from local_cluster import binaries, ports
from local_cluster.process import spawn


@dataclass(frozen=True)
class S3Server:
    """A running versitygw: one folder per bucket."""

    endpoint: str
    folder: Path
    access: str
    secret: str

    def config(self, *, bucket: str) -> StoreConfig:
        """Make a bucket and return its configuration."""
        (self.folder / bucket).mkdir(exist_ok=True)
        return StoreConfig(
            url=f"s3://{bucket}",
            endpoint=self.endpoint,
            region="us-east-1",
            access_key_id=self.access,
            secret_access_key=self.secret,
            timeout_seconds=10,
            retry_seconds=2,
        )


@contextmanager
def serving(folder: Path) -> Iterator[S3Server]:
    """Serve a folder on a free port of loopback."""
    address = free_address()
    access, secret = "test-access", secrets.token_hex(16)
    command = [str(binaries.path(name="versitygw")), "--port", address, "--quiet", "posix", str(folder)]
    with started(command, address=address, environment={"ROOT_ACCESS_KEY": access, "ROOT_SECRET_KEY": secret}):
        yield S3Server(endpoint=f"http://{address}", folder=folder, access=access, secret=secret)


def free_address() -> str:
    """Return an address of loopback that nobody listens at, and that stays free while a server is restarted."""
    return f"127.0.0.1:{ports.free(count=1)[0]}"


@contextmanager
def started(command: Sequence[str], *, address: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Run a server; the block begins when it answers at its address.

    Args:
        command: that becomes the server.
        address: host and port that it listens at.
        environment: variables besides the inherited ones.
    """
    host, port = address.split(":")
    process = spawn(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
                assert time.monotonic() < deadline, f"nobody answers at {address}"
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(timeout=10)
