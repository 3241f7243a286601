"""Fixtures: a store in a folder, and one on a real S3 server."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ingestion_worker.store import Store, StoreConfig
from support.s3_server import S3Server, serving
from support.worker_builders import Worker


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serving(tmp_path_factory.mktemp("s3")) as server:
        yield server


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
