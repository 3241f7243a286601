"""The embedded store tells its tenants apart, with the options that the chart gives it."""

from __future__ import annotations

import re
import secrets
import subprocess
from pathlib import Path

from ingestion_worker.store import Store, StoreConfig
from local_cluster import binaries
from support.s3_server import free_address, started

CHART = Path(__file__).parents[2] / "charts" / "ingestion-operator" / "templates" / "store.yaml"
TENANTS = 24
ROUNDS = 3


def test_every_tenant_gets_in_whatever_was_set_up_before(tmp_path: Path) -> None:
    """As the chart's set-up Job does after each upgrade: every account and every bucket's owner is written again."""
    program = str(binaries.path(name="versitygw"))
    address = free_address()
    root = {"ROOT_ACCESS_KEY_ID": "root", "ROOT_SECRET_ACCESS_KEY": secrets.token_hex(20), "REGION": "us-east-1"}
    admin = {
        "ADMIN_ENDPOINT_URL": f"http://{address}",
        "ADMIN_REGION": "us-east-1",
        "ADMIN_ACCESS_KEY_ID": "root",
        "ADMIN_SECRET_ACCESS_KEY": root["ROOT_SECRET_ACCESS_KEY"],
    }

    def run(*arguments: str) -> None:
        subprocess.run([program, "admin", *arguments], env=admin, check=True, capture_output=True)

    command = ["sh", "-c", _command(folder=tmp_path / "data", program=program, address=address)]
    accounts = {f"team-{number:02}": secrets.token_hex(20) for number in range(TENANTS)}
    with started(command, address=address, environment=root):
        for name, secret in accounts.items():
            run("create-user", "--access", name, "--secret", secret, "--role", "user")
            run("create-bucket", "--bucket", name, "--owner", name)
    with started(command, address=address, environment=root):
        for _ in range(ROUNDS):
            for name, secret in accounts.items():
                run("update-user", "--access", name, "--secret", secret)
                run("change-bucket-owner", "--bucket", name, "--owner", name)
            for name, secret in accounts.items():
                config = StoreConfig(
                    url=f"s3://{name}",
                    endpoint=f"http://{address}",
                    region="us-east-1",
                    access_key_id=name,
                    secret_access_key=secret,
                )
                Store(config=config).put(key="mine", data=name.encode())


def _command(*, folder: Path, program: str, address: str) -> str:
    """Return the chart's command for the store, with other places."""
    found = re.search(
        r"mkdir -p /data/\S+ /data/\S+ &&\s+exec versitygw .*? posix /data/buckets", CHART.read_text(), re.S
    )
    assert found
    command = " ".join(found[0].split())
    return command.replace("/data/", f"{folder}/").replace("versitygw", program, 1).replace(":7070", address)
