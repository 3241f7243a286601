"""Where worker pods run: what the chart says, unless their job says otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from ingestion_crds.config import Config
from support.builders import worker_pod

CHART = Config.model_validate(
    {
        "workerImage": "worker:test",
        "workerNodeSelector": {"pool": "ingestion"},
        "workerTolerations": [{"key": "pool", "operator": "Exists"}],
    }
)
OF_THE_CHART = {"nodeSelector": {"pool": "ingestion"}, "tolerations": [{"key": "pool", "operator": "Exists"}]}


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
    pod = worker_pod(config, **spec)
    assert {key: pod[key] for key in OF_THE_CHART if key in pod} == place
