"""The operator as its users run it: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml
from local_cluster.process import spawn


def write_config(folder: Path, *, tenants: list[str], providers: list[str] | None = None) -> Path:
    """Write a configuration for tenants of the given namespaces."""
    path = folder / "config.yaml"
    config = {
        "workerImage": "worker:test",
        "store": {"endpoint": "http://store.invalid:7070"},
        "tenants": [{"namespace": name, "bucket": name} for name in tenants],
        "embeddingProviders": [{"name": name, "url": "http://embed.invalid/v1"} for name in providers or []],
    }
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def operator(
    *,
    kubeconfig: Path,
    config: Path,
    log: Path,
    module: str = "ingestion_operator.main",
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the operator until the block ends; its log goes to a file.

    Args:
        kubeconfig: who it is to the API server.
        config: the installation's configuration.
        log: the file that its output is appended to.
        module: what is run; tests have one that can be made ill.
        environment: further variables, such as those that name a Lease.
    """
    env = {**os.environ, "KUBECONFIG": str(kubeconfig), "INGESTION_CONFIG": str(config), "INGESTION_HEALTH_PORT": "0"}
    env.pop("KUBERNETES_SERVICE_HOST", None)
    env["PYTHONPATH"] = str(Path(__file__).parent.parent)
    env |= environment or {}
    with log.open("ab") as out:
        process = spawn([sys.executable, "-m", module], env=env, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
