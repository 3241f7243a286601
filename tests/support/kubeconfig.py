"""A kubeconfig for a server that plays the API server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def kubeconfig(folder: Path, url: str, *, user: Any = None, **cluster: Any) -> str:
    """Write one for an API server without TLS; return its path.

    Args:
        folder: where to.
        url: the API server.
        user: its credentials; none if there are none.
        cluster: further fields of the cluster, such as `proxy-url`.
    """
    path = folder / "kubeconfig"
    named = {
        "clusters": [{"name": "c", "cluster": {"server": url, **cluster}}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(named))
    return str(path)
