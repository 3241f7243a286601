"""A kind cluster of the tests' own, with the chart installed once; INGESTION_TEST_CLUSTER names one to use and keep."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ingestion_demo import provider
from ingestion_demo.rest import TERMINAL, Rest
from local_cluster import install
from local_cluster.kind import Kind

SYSTEM, RELEASE = "ingestion-system", "ingestion"
TENANTS = ("e2e-a", "e2e-b")


@dataclass(kw_only=True)
class Installation:
    """The installed product and ways to reach it."""

    kubeconfig: Path
    rest: dict[str, Rest]
    keys: dict[str, str]
    url: str
    store_url: str
    switch: provider.Switch

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl."""
        return install.kubectl(self.kubeconfig, *arguments, stdin=stdin)

    def get(self, kind: str, name: str = "", *, namespace: str = TENANTS[0], selector: str = "") -> Any:
        """Return objects as JSON."""
        more = [name] if name else []
        more += ["--selector", selector] if selector else []
        return json.loads(self.kubectl("get", kind, *more, "--namespace", namespace, "--output", "json"))

    def until(self, name: str, wish: Callable[[dict[str, Any]], bool], *, seconds: float = 240) -> dict[str, Any]:
        """Wait for an IngestionJob to be as wished."""
        deadline = time.monotonic() + seconds
        while True:
            job: dict[str, Any] = self.get("ingestionjob", name)
            if wish(job):
                return job
            if time.monotonic() > deadline:
                story = install.explain(kubeconfig=self.kubeconfig, namespace=TENANTS[0])
                raise AssertionError(f"{json.dumps(job['status'], indent=1)}\n{story}")
            time.sleep(0.2)

    def ended(self, name: str, phase: str, *, generation: int = 0) -> dict[str, Any]:
        """Wait for the end of an attempt, which must be in this phase."""

        def wish(job: dict[str, Any]) -> bool:
            status = job.get("status", {})
            return status.get("observedRetryGeneration") == generation and status["phase"] in TERMINAL

        job = self.until(name, wish)
        assert job["status"]["phase"] == phase, json.dumps(job["status"], indent=1)
        return job

    def upload(
        self, text: str, *, file: str = "notes.md", content_type: str = "text/markdown", **options: Any
    ) -> tuple[str, str]:
        """Upload a document to a knowledge base of its own; return job id and knowledge base."""
        knowledge_base = str(uuid.uuid4())
        path = Path(os.environ["PYTEST_TMP"]) / file
        path.write_text(text)
        chosen = {
            "segmentBackoffLimit": 0,
            "pipeline": {"embedding": {"provider": provider.NAME, "model": "m", "dimensions": 256}},
            **options,
        }
        form = {"title": file, "options": json.dumps(chosen)}
        job_id = self.rest[TENANTS[0]].upload(
            knowledge_base=knowledge_base, file=path, content_type=content_type, options=form
        )
        return job_id, knowledge_base


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Cluster, images, chart, keys: everything that a user has after the quick start."""
    os.environ["PYTEST_TMP"] = str(tmp_path_factory.mktemp("documents"))
    given = os.environ.get("INGESTION_TEST_CLUSTER")
    cluster = Kind(name=given or "ingestion-test")
    cluster.up()
    try:
        names = install.build_images()
        install.load_images(cluster=cluster, names=names)
        install.prepare_store_volume(cluster=cluster, namespace=SYSTEM, release=RELEASE)
        values = {
            "tenants": [{"namespace": name, "bucket": name, "createNamespace": True} for name in TENANTS],
            "embeddingProviders": [{"name": provider.NAME, "url": provider.URL}],
        }
        where = {"kubeconfig": cluster.kubeconfig, "namespace": SYSTEM}
        install.helm_install(**where, release=RELEASE, values=values)
        if given:
            install.restart(**where, release=RELEASE, components=["operator", "api"])
        provider.deploy(kubeconfig=cluster.kubeconfig, image=install.image_name("worker"), pattern="REFUSE-ME")
        keys = {name: install.mint_key(**where, tenant=name, name="e2e") for name in TENANTS}
        with (
            contextlib.ExitStack() as ends,
            install.port_forward(**where, service=f"{RELEASE}-api", port=8000) as url,
            install.port_forward(**where, service=f"{RELEASE}-store", port=7070) as store_url,
            provider.switch(kubeconfig=cluster.kubeconfig) as switch,
        ):
            time.sleep(1.5)  # a new key is read at most once a second
            rest = {name: Rest(url=url, key=key) for name, key in keys.items()}
            for client in rest.values():
                ends.callback(client.close)
            yield Installation(
                kubeconfig=cluster.kubeconfig,
                rest=rest,
                keys=keys,
                url=url,
                store_url=store_url,
                switch=switch,
            )
    finally:
        if not given:
            cluster.down()
