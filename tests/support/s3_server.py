"""A real S3 server: versitygw over a folder."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ingestion_worker.store import StoreConfig
from local_cluster import binaries


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
    binary = binaries.path(name="versitygw")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    access, secret = "test-access", secrets.token_hex(16)
    process = subprocess.Popen(
        [binary, "--port", f"127.0.0.1:{port}", "--quiet", "posix", str(folder)],
        env={**os.environ, "ROOT_ACCESS_KEY": access, "ROOT_SECRET_KEY": secret},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                probe.settimeout(0.2)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield S3Server(endpoint=f"http://127.0.0.1:{port}", folder=folder, access=access, secret=secret)
    finally:
        process.terminate()
        process.wait(timeout=10)
