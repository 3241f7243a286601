"""What users and the cluster see: resource models, names, index sets and error codes.

Everything here is pure data and functions; only `ingestion_crds.kube` talks to a cluster.
"""

from __future__ import annotations

from typing import Any

JsonObject = dict[str, Any]
