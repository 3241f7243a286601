"""Servers whose certificates an authority of the user's own has signed."""

from __future__ import annotations

import secrets
import ssl
from pathlib import Path

import pytest
from ingestion_worker.outcome import WorkerError
from ingestion_worker.store import Store, StoreConfig
from ingestion_worker.tls import tls_context, trust
from local_cluster import binaries
from local_cluster.pki import Authority
from support.s3_server import free_address, started


def test_a_store_is_reached_whose_authority_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The S3 client, and all that verifies by Python's ssl; who was trusted before still is."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    before = len(tls_context().get_ca_certs())
    authority = Authority(folder=tmp_path)
    certificate, key = authority.server(file="store")
    (tmp_path / "buckets" / "team-a").mkdir(parents=True)
    address, secret = free_address(), secrets.token_hex(16)
    tls = ["--cert", str(certificate), "--key", str(key)]
    command = [
        str(binaries.path(name="versitygw")),
        "--port",
        address,
        *tls,
        "--quiet",
        "posix",
        str(tmp_path / "buckets"),
    ]
    with started(command, address=address, environment={"ROOT_ACCESS_KEY": "root", "ROOT_SECRET_KEY": secret}):
        config = StoreConfig(
            url="s3://team-a",
            endpoint=f"https://{address}",
            region="us-east-1",
            access_key_id="root",
            secret_access_key=secret,
            timeout_seconds=10,
            retry_seconds=1,
        )
        with pytest.raises(WorkerError, match="StoreUnavailable"):
            Store(config=config).put(key="a", data=b"one")
        monkeypatch.setenv("SSL_CERT_FILE", ssl.get_default_verify_paths().cafile or "")
        trust(authorities=authority.certificate_file)
        store = Store(config=config)
        store.put(key="a", data=b"one")
        assert store.get(key="a") == b"one"
    assert len(tls_context().get_ca_certs()) == before + 1
