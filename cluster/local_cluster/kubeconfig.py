"""Kubeconfig files (JSON, which every YAML reader takes)."""

import json
from pathlib import Path


def write(*, file: Path, url: str, authority: Path, certificate: Path, key: Path) -> None:
    """Write a kubeconfig for the API server at `url` to `file`.

    It names the PEM files of the CA and of a client. Embedded, they would be written to temporary files by every
    client in Python, and be left there by each that is killed.
    """
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "local", "cluster": {"server": url, "certificate-authority": str(authority)}}],
        "users": [{"name": "local", "user": {"client-certificate": str(certificate), "client-key": str(key)}}],
        "contexts": [{"name": "local", "context": {"cluster": "local", "user": "local", "namespace": "default"}}],
        "current-context": "local",
    }
    file.touch(mode=0o600)
    file.write_text(json.dumps(content, indent=1) + "\n")
