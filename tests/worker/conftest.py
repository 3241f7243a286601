"""Fixtures: a store in a folder and, where its binary is to be had, a real S3 server."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ingestion_worker.store import Store, StoreConfig
from local_cluster import binaries
from support.worker_builders import Worker


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


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    binary = binaries.path(name="versitygw")
    folder = tmp_path_factory.mktemp("s3")
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


@pytest.fixture(params=["folder", "s3"])
def store_config(request: pytest.FixtureRequest, tmp_path: Path) -> StoreConfig:
    """A fresh bucket, once in a folder and once on a real S3 server."""
    if request.param == "folder":
        return StoreConfig(url=f"file://{tmp_path}/team-a")
    server: S3Server = request.getfixturevalue("s3_server")
    return server.config(bucket=f"team-{secrets.token_hex(6)}")


@pytest.fixture
def any_store(store_config: StoreConfig) -> Store:
    return Store(config=store_config)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(config=StoreConfig(url=f"file://{tmp_path}/team-a"))


@pytest.fixture
def worker(store: Store, tmp_path: Path) -> Worker:
    return Worker(store=store, folder=tmp_path / "scratch")


@pytest.fixture
def worker_on(tmp_path: Path) -> Callable[[Store], Worker]:
    return lambda store: Worker(store=store, folder=tmp_path / "scratch")
