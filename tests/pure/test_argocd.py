"""What the health check for Argo CD says of an IngestionJob, run by Lua 5.1, as Argo CD's own is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ingestion_crds.job import Spec, version_id_of
from lupa.lua51 import LuaRuntime

REPOSITORY = Path(__file__).parents[2]
SCRIPT = (REPOSITORY / "charts" / "ingestion-operator" / "argocd-health.lua").read_text()


def health(obj: dict[str, Any]) -> tuple[str, str]:
    lua = LuaRuntime()
    lua.globals().obj = lua.table_from(obj, recursive=True)
    found = lua.execute(SCRIPT)
    return found.status, found.message


def job(*, suspend: bool = False, observed: int | None = 2, **conditions: str) -> dict[str, Any]:
    """Return a job of generation 2; each condition's message is its name."""
    status: dict[str, Any] = {
        "conditions": [{"type": kind, "status": value, "message": kind} for kind, value in conditions.items()]
    }
    if observed is not None:
        status["observedGeneration"] = observed
    return {"metadata": {"generation": 2}, "spec": {"suspend": suspend}, "status": status}


WAITING = ("Progressing", "Waiting for the operator")


@pytest.mark.parametrize(
    ("obj", "wanted"),
    [
        ({"metadata": {"generation": 1}, "spec": {}}, WAITING),
        ({"metadata": {"generation": 1}, "spec": {}, "status": {"observedGeneration": 1}}, WAITING),
        (job(Ready="Unknown", Stalled="False"), ("Progressing", "Ready")),
        (job(Ready="True", Stalled="False"), ("Healthy", "Ready")),
        (job(Ready="True", observed=None), ("Healthy", "Ready")),
        (job(Ready="False", Stalled="True"), ("Degraded", "Stalled")),
        (job(Stalled="True", Ready="False"), ("Degraded", "Stalled")),
        # What is said of an earlier spec counts no more.
        (job(Ready="True", observed=1), WAITING),
        (job(Stalled="True", observed=1), WAITING),
        (job(Ready="Unknown", Stalled="False", suspend=True), ("Suspended", "Ready")),
        (job(Ready="True", suspend=True), ("Healthy", "Ready")),
        (job(Stalled="True", suspend=True), ("Degraded", "Stalled")),
    ],
)
def test_the_health_of_a_job(obj: dict[str, Any], wanted: tuple[str, str]) -> None:
    assert health(obj) == wanted


def test_the_install_page_warns_of_what_git_holds_and_the_operator_deletes() -> None:
    """Made again by self-heal, each time it would ingest its document as a new version."""
    _, _, section = (REPOSITORY / "docs" / "install.md").read_text().partition("\n## With Argo CD\n")
    field = Spec.model_fields["ttl_seconds_after_finished"].alias
    assert f"is to be without `{field}`" in section.partition("\n## ")[0]
    assert version_id_of("made") != version_id_of("made again")
