"""What `helm test` says of a tenant's store, on a real one."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from typing import Any

import obstore
import pytest
from ingestion_crds.constants import ENV_STORE_URL
from ingestion_worker.outcome import WorkerError
from ingestion_worker.store import Store, StoreConfig
from ingestion_worker.trial import try_store
from support.s3_server import S3Server


def environment(config: StoreConfig) -> dict[str, str]:
    return {
        ENV_STORE_URL: config.url,
        "AWS_ENDPOINT_URL": config.endpoint or "",
        "AWS_REGION": config.region or "",
        "AWS_ACCESS_KEY_ID": config.access_key_id or "",
        "AWS_SECRET_ACCESS_KEY": config.secret_access_key or "",
    }


@pytest.fixture
def config(s3_server: S3Server) -> StoreConfig:
    return s3_server.config(bucket=f"trial-{secrets.token_hex(6)}")


@pytest.mark.parametrize(
    ("wrong", "code", "said"),
    [
        ({}, None, "the bucket can be listed"),
        ({ENV_STORE_URL: "s3://another"}, "StoreUnavailable", "NoSuchBucket"),
        ({"AWS_ACCESS_KEY_ID": "another"}, "StoreUnavailable", "No user exists with the provided access key"),
        ({"AWS_SECRET_ACCESS_KEY": "another"}, "StoreForbidden", "SignatureDoesNotMatch"),
    ],
)
def test_a_store_is_good_or_what_is_wrong_is_said(
    config: StoreConfig, wrong: dict[str, str], code: str | None, said: str
) -> None:
    env = {**os.environ, **environment(config), **wrong}
    command = [sys.executable, "-m", "ingestion_worker.trial"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    line = json.loads(done.stdout)
    assert (done.returncode, done.stderr, line.get("code")) == (int(code is not None), "", code)
    assert said in line["message"]
    assert left(config) == []


def left(config: StoreConfig) -> list[str]:
    """Return the keys of all that is in the bucket."""
    store = Store(config=config)
    return [item["path"] for page in obstore.list(store._backend) for item in page]


@pytest.mark.parametrize("without", ["list", "put", "get", "delete"])
def test_each_right_that_a_worker_needs_is_tried(
    config: StoreConfig, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise obstore.exceptions.PermissionDeniedError("status code: 403")

    monkeypatch.setattr(obstore, without, refused)
    with pytest.raises(WorkerError) as caught:
        try_store(env=environment(config))
    assert caught.value.code == "StoreForbidden"


def test_a_store_that_writes_over_what_is_there_is_not_good(
    config: StoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = obstore.put

    def heedless(*given: Any, mode: str, **more: Any) -> Any:
        return put(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(obstore, "put", heedless)
        with pytest.raises(WorkerError, match="If-None-Match"):
            try_store(env=environment(config))
    assert left(config) == []
