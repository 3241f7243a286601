"""Counts the product's requests as the API server sees them: its audit log, one line for each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from local_cluster.control_plane import APISERVER

from ingestion_bench.stand import API_USER, OPERATOR_USER, Plane

_SILENT_SECONDS: Final = 1.0
_POLICY: Final = f"""\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  users: ["{OPERATOR_USER}", "{API_USER}"]
- level: None
"""


def audited(*, nodes: int, flags: Mapping[str, Sequence[str]] | None = None) -> Plane:
    """Return a control plane that keeps an audit log of the product's requests.

    Args:
        nodes: fake nodes.
        flags: of components other than the API server.
    """
    audit = ["--audit-policy-file={folder}/audit-policy.yaml", "--audit-log-path={folder}/audit.log"]
    return Plane(nodes=nodes, files={"audit-policy.yaml": _POLICY}, flags={**(flags or {}), APISERVER: audit})


class Audit:
    """Reads the audit log on from where it was read last.

    Args:
        folder: the stand's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "audit.log"
        self._at = 0

    def read(self) -> list[str]:
        """Return the requests since the last call, each as verb and resource: `patch ingestionjobs/status`.

        Watches are not among them, nor what looks for the API's parts.
        """
        if not self._path.exists():
            return []
        with self._path.open("rb") as log:
            log.seek(self._at)
            lines = log.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._at += len(whole)
        return [request for line in whole.splitlines() if (request := _request(json.loads(line))) is not None]

    async def read_until_silent(self) -> list[str]:
        """Return the same once the product has sent nothing more for a second."""
        found: list[str] = []
        while True:
            await asyncio.sleep(_SILENT_SECONDS)
            more = self.read()
            if not more:
                return found
            found += more


def without_events(requests: Iterable[str]) -> list[str]:
    """Return the requests that are counted of a retry: Events are for people, and as many as there is to tell."""
    return [request for request in requests if request.split()[1] != "events"]


def writes(requests: Iterable[str]) -> list[str]:
    """Return the requests that change something, Events among them."""
    return [request for request in requests if request.split()[0] not in ("get", "list")]


def _request(entry: dict[str, object]) -> str | None:
    reference = entry.get("objectRef")
    if not isinstance(reference, dict) or entry["verb"] == "watch":
        return None
    resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
    return f"{entry['verb']} {resource}"
