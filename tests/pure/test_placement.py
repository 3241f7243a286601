"""Where worker pods run: what the chart says, unless their job says otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from ingestion_crds.config import Config, Tenant
from ingestion_crds.constants import Stage
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import IngestionJob
from ingestion_operator.children import Dispatch, build_job
from support.builders import ingestion_job

TENANT = Tenant(namespace="team-a", bucket="team-a")
CHART = Config.model_validate(
    {
        "workerImage": "worker:test",
        "workerNodeSelector": {"pool": "ingestion"},
        "workerTolerations": [{"key": "pool", "operator": "Exists"}],
    }
)
OF_THE_CHART = {"nodeSelector": {"pool": "ingestion"}, "tolerations": [{"key": "pool", "operator": "Exists"}]}


def placed(config: Config, **spec: Any) -> dict[str, Any]:
    """Return what a worker pod says of its place."""
    body = ingestion_job(**spec)
    body["metadata"] |= {"uid": "u-1", "creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "1"}
    dispatch = Dispatch(
        job=IngestionJob.model_validate(body),
        stage=Stage.PREPARE,
        generation=0,
        segments=IndexSet(),
        deadline_seconds=60,
        config=config,
        tenant=TENANT,
        provider=None,
    )
    pod = build_job(dispatch)["spec"]["template"]["spec"]
    return {key: pod[key] for key in OF_THE_CHART if key in pod}


@pytest.mark.parametrize(
    ("config", "spec", "place"),
    [
        (Config(worker_image="worker:test"), {}, {}),
        (CHART, {}, OF_THE_CHART),
        (CHART, {"template": {"image": "mine"}}, OF_THE_CHART),
        (
            CHART,
            {"template": {"nodeSelector": {"pool": "gpu"}}},
            {"nodeSelector": {"pool": "gpu"}, "tolerations": OF_THE_CHART["tolerations"]},
        ),
    ],
)
def test_worker_pods_go_where_the_chart_says_unless_their_job_says_otherwise(
    config: Config, spec: dict[str, Any], place: dict[str, Any]
) -> None:
    assert placed(config, **spec) == place
