"""A kubeconfig for a server that plays the API server."""

from __future__ import annotations

from pathlib import Path

import yaml


def kubeconfig(folder: Path, url: str) -> str:
    """Write one for an API server without TLS; return its path."""
    path = folder / "kubeconfig"
    named = {
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(named))
    return str(path)
