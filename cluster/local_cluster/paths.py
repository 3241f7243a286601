"""Where files are kept: sources in the repository, builds and clusters in the cache."""

import os
from pathlib import Path

CLUSTER_FOLDER = Path(__file__).resolve().parents[1]
GO_MODULES = CLUSTER_FOLDER / "go"
KWOK_STAGES = CLUSTER_FOLDER / "kwok" / "stages.yaml"
NODE_IMAGE_FOLDER = CLUSTER_FOLDER / "node-image"


def cache() -> Path:
    """The cache folder, created: `INGESTION_CACHE`, else `XDG_CACHE_HOME/ingestion-operator`, else ~/.cache."""
    chosen = os.environ.get("INGESTION_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(chosen) if chosen else Path(base) / "ingestion-operator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()
