"""The baseline of jobs at rest: kopf as it comes, told to watch what our operator watches, and to do nothing.

Both kinds, as any operator of this product has to hear of its Jobs too. The one thing that it does is to leave a mark
for each event, so that it can be seen from outside how far it is.
"""

from __future__ import annotations

import os
from typing import Any

import kopf
from ingestion_crds import constants as names


def registry() -> kopf.OperatorRegistry:
    """Return the handlers."""
    found = kopf.OperatorRegistry()
    seen = open(os.environ["BENCH_SEEN"], "ab", buffering=0)  # noqa: SIM115 - as long as the process lives

    @kopf.on.startup(registry=found)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True
        selector = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"
        settings.watching.label_selectors["batch", "v1", "jobs"] = selector

    @kopf.on.login(registry=found)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=found)
    @kopf.on.event("batch", "v1", "jobs", registry=found)
    async def nothing(**_: Any) -> None:
        seen.write(b".")

    return found


if __name__ == "__main__":
    kopf.run(registry=registry(), clusterwide=True, standalone=True)
