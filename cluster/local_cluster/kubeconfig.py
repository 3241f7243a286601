"""Kubeconfig files with everything embedded (JSON, which every YAML reader takes)."""

import base64
import json
from pathlib import Path


def write(*, file: Path, url: str, authority: Path, certificate: Path, key: Path) -> None:
    """Write a kubeconfig for the API server at `url` to `file`, from the PEM files of its CA and of a client."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "local", "cluster": {"server": url, "certificate-authority-data": _encoded(authority)}}],
        "users": [
            {
                "name": "local",
                "user": {"client-certificate-data": _encoded(certificate), "client-key-data": _encoded(key)},
            }
        ],
        "contexts": [{"name": "local", "context": {"cluster": "local", "user": "local", "namespace": "default"}}],
        "current-context": "local",
    }
    file.touch(mode=0o600)
    file.write_text(json.dumps(content, indent=1) + "\n")


def _encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
