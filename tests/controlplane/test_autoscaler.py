"""The autoscaler of docs/operate.md, and an upgrade that leaves to it how many replicas there are."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.test_chart import render
from ingestion_crds.kube import KubeClient

pytestmark = pytest.mark.controlplane

OPERATE = Path(__file__).parents[2] / "docs" / "operate.md"
STRATEGIC = "application/strategic-merge-patch+json"


def autoscaler(namespace: str) -> dict[str, Any]:
    """Return the page's, in a namespace, with a least number that the chart does not know."""
    [text] = re.findall(r"^```yaml\n# autoscaler.yaml\n(.*?)^```$", OPERATE.read_text(), re.MULTILINE | re.DOTALL)
    body: dict[str, Any] = yaml.safe_load(text)
    body["metadata"]["namespace"] = namespace
    body["spec"]["minReplicas"] += 1
    return body


async def test_an_upgrade_leaves_to_an_autoscaler_how_many_replicas_there_are(
    kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    documents = render({"api": {"replicas": None}}, folder=tmp_path, release="ingestion", namespace=namespace)
    [deployment] = [
        each for each in documents if (each["kind"], each["metadata"]["name"]) == ("Deployment", "ingestion-api")
    ]
    body = autoscaler(namespace)
    strict = {"fieldValidation": "Strict"}
    apps, scalers = (f"/apis/{group}/namespaces/{namespace}" for group in ("apps/v1", body["apiVersion"]))
    before = {**deployment, "spec": {**deployment["spec"], "replicas": 2}}
    await kube.request("POST", f"{apps}/deployments", body=before, query=strict)
    await kube.request("POST", f"{scalers}/horizontalpodautoscalers", body=body, query=strict)
    path = f"{apps}/deployments/ingestion-api"
    # What Helm makes of a field that its last manifest had and this one has not.
    taken = await kube.request("PATCH", path, body={"spec": {"replicas": None}}, content_type=STRATEGIC)
    assert taken["spec"]["replicas"] == 1
    async with asyncio.timeout(120):
        while (await kube.request("GET", path))["spec"]["replicas"] != body["spec"]["minReplicas"]:
            await asyncio.sleep(0.5)
    deployment["spec"]["template"]["metadata"]["annotations"]["upgraded"] = "yes"
    after = await kube.request("PATCH", path, body=deployment, content_type=STRATEGIC)
    assert after["spec"]["template"]["metadata"]["annotations"]["upgraded"] == "yes"
    assert after["spec"]["replicas"] == body["spec"]["minReplicas"]
