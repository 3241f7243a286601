"""The lines of operator, API and worker about one job name it alike, so that they can be put side by side."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from pathlib import Path

import pytest
from api.conftest import Api
from ingestion_crds import logs
from ingestion_crds.constants import ENV_ATTEMPT_FILE, ENV_STORE_URL
from ingestion_crds.kube import child_path, core_path
from ingestion_worker.main import run_container
from support.operator_process import operator, write_config

pytestmark = pytest.mark.controlplane


def jobs_named(text: str) -> set[str]:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
    return {line["job"] for line in lines if "job" in line}


async def test_lines_of_all_three_name_a_job_alike(
    api: Api,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = {f"{api.namespace}/handbook"}
    log, lines = tmp_path / "operator.log", io.StringIO()
    api_log = logging.StreamHandler(lines)
    api_log.setFormatter(logs.JsonFormatter(context={}))
    with caplog.at_level(logging.INFO, "ingestion_api"):
        logging.getLogger("ingestion_api").addHandler(api_log)
        job_id = await api.failed()
        for answer in (await api.get(job_id), await api.retry(job_id)):
            assert answer.is_success
            assert jobs_named(lines.getvalue()) == name
        logging.getLogger("ingestion_api").removeHandler(api_log)

    config = write_config(tmp_path, tenants=[api.namespace])
    with operator(kubeconfig=api.kubeconfig, config=config, log=log):
        async with asyncio.timeout(60):
            while not (made := (await api.kube.request("GET", child_path(api.namespace)))["items"]):
                await asyncio.sleep(0.05)
            while not name <= jobs_named(log.read_text()):  # it tells of other tests' jobs as well
                await asyncio.sleep(0.05)

    (pod,) = (job["spec"]["template"]["spec"] for job in made)
    (volume,) = (volume for volume in pod["volumes"] if "configMap" in volume)
    path = core_path("configmaps", api.namespace, volume["configMap"]["name"])
    attempt = tmp_path / "attempt.json"
    attempt.write_text((await api.kube.request("GET", path))["data"]["attempt.json"])
    env = {item["name"]: item.get("value", "") for item in pod["containers"][0]["env"]}
    env |= {ENV_ATTEMPT_FILE: str(attempt), ENV_STORE_URL: f"file://{api.store}"}
    env |= {"INGESTION_TERMINATION_LOG": str(tmp_path / "termination")}
    capsys.readouterr()
    monkeypatch.setattr(logging.getLogger("ingestion_worker"), "handlers", [])  # for this stdout alone
    run_container(command=pod["containers"][0]["args"][0], env=env)
    assert jobs_named(capsys.readouterr().out) == name
