"""One run: a namespace, a proxy, the operator as a process of its own, and pods that end as a script says.

Any number of runs go side by side on one control plane, each with an operator that is shown its own namespace only.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml
from faults.processes import Supervised
from faults.proxy import Call, Proxy
from ingestion_api.auth import KeyEntry, encode_entry, hash_key, new_key
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.kube import MERGE_PATCH, KubeClient, child_path, core_path, ingestion_path
from local_cluster import ports
from local_cluster.control_plane import ControlPlane
from support.builders import ingestion_job
from support.kubelet import Exit, FakeKubelet
from support.namespaces import make_namespace

NAME = "handbook"
_PATIENCE_SECONDS = 240.0
_CONVERGED_SECONDS = 60.0
_AT_REST_SECONDS = 1.5


@dataclass(kw_only=True)
class Run:
    """A namespace with an operator behind a proxy. Users go to the API server itself."""

    kube: KubeClient
    namespace: str
    proxy: Proxy
    operator: Supervised
    kubelet: FakeKubelet
    folder: Path
    kubeconfig: Path
    others: list[Proxy] = field(default_factory=list)
    patience: float = _PATIENCE_SECONDS

    @asynccontextmanager
    async def another_operator(self, **environment: str) -> AsyncIterator[Supervised]:
        """Run one more operator, behind a proxy of its own, that knows nothing of the first."""
        folder = self.folder / f"operator-{len(self.others)}"
        folder.mkdir()
        async with Proxy(kubeconfig=self.kubeconfig, folder=folder, namespace=self.namespace) as proxy:
            self.others.append(proxy)
            async with operator_of(proxy, config=self.folder / "config.yaml", folder=folder, **environment) as process:
                yield process
                process.check()

    @property
    def counts(self) -> dict[str, int]:
        """How many objects the operators created and deleted, by resource.

        A deletion is counted once for each object: one that waits for a finalizer can be asked for again. Events are
        left out: they are for people, are sent after the status that they tell of, and are lost in a crash. So are
        pods, which go with their Job where nobody has had the time to remove them before.
        """
        proxies = [self.proxy, *self.others]
        created = sum((proxy.created for proxy in proxies), Counter())
        gone = set[tuple[str, str]]().union(*(proxy.deleted for proxy in proxies))
        deleted = Counter(resource for resource, _ in gone if resource != "pods")
        return {f"create {what}": count for what, count in created.items() if what != "events"} | {
            f"delete {what}": count for what, count in deleted.items()
        }

    async def create(self, name: str = NAME, **spec: Any) -> JsonObject:
        body = ingestion_job(name=name, namespace=self.namespace, **spec)
        return await self.kube.request("POST", ingestion_path(self.namespace), body=body)

    async def get(self, name: str = NAME) -> JsonObject:
        return await self.kube.request("GET", ingestion_path(self.namespace, name))

    async def patch(self, spec: JsonObject, name: str = NAME) -> JsonObject:
        path = ingestion_path(self.namespace, name)
        return await self.kube.request(
            "PATCH", path, body={"spec": spec}, content_type=MERGE_PATCH, timeout=_PATIENCE_SECONDS
        )

    async def annotate(self, token: str, name: str = NAME) -> None:
        body = {"metadata": {"annotations": {names.ANNOTATION_RETRY_REQUESTED: token}}}
        path = ingestion_path(self.namespace, name)
        await self.kube.request("PATCH", path, body=body, content_type=MERGE_PATCH, timeout=_PATIENCE_SECONDS)

    async def jobs(self) -> list[JsonObject]:
        return list((await self.kube.request("GET", child_path(self.namespace)))["items"])

    async def listed(self, resource: str) -> list[JsonObject]:
        return list((await self.kube.request("GET", core_path(resource, self.namespace)))["items"])

    def check(self) -> None:
        """Raise what went wrong with the operator or the kubelet: nothing would come of waiting."""
        self.operator.check()
        self.kubelet.check()

    async def until(self, wish: Callable[[JsonObject], bool], *, name: str = NAME) -> JsonObject:
        """Wait until the IngestionJob is as wished and return it."""
        deadline = time.monotonic() + self.patience
        while not wish(job := await self.get(name)):
            self.check()
            assert time.monotonic() < deadline, f"still {json.dumps(job.get('status'), indent=1)}\n{self.log_end()}"
            await asyncio.sleep(0.05)
        return job

    async def settled(self, phase: str, *, generation: int = 0, name: str = NAME) -> JsonObject:
        """Wait for a terminal phase of a generation, and until all is done that follows; check which phase it is."""

        def wish(job: JsonObject) -> bool:
            status = job["status"]
            ended = status.get("observedRetryGeneration") == generation and status["phase"] in names.TERMINAL_PHASES
            return ended and "podsToRemove" not in status

        job = await self.until(wish, name=name)
        assert job["status"]["phase"] == phase, f"{json.dumps(job['status'], indent=1)}\n{self.log_end()}"
        return job

    async def wait(self, wish: Callable[[], bool]) -> None:
        """Wait until a wish that is no object's comes true."""
        deadline = time.monotonic() + self.patience
        while not wish():
            self.check()
            assert time.monotonic() < deadline, self.log_end()
            await asyncio.sleep(0.02)

    async def come_true(self, wish: Callable[[], Awaitable[bool]]) -> None:
        """Wait until a wish comes true that takes a request to see."""
        deadline = time.monotonic() + self.patience
        while not await wish():
            self.check()
            assert time.monotonic() < deadline, self.log_end()
            await asyncio.sleep(0.1)

    async def at_rest(self) -> None:
        """Wait until the last event is sent, and check that the operator changes nothing after it: invariant 8."""
        deadline = time.monotonic() + self.patience
        while await self._changes_in_a_while():
            assert time.monotonic() < deadline, f"still writing\n{self.log_end()}"
        while changes := await self._changes_in_a_while():
            # On a busy machine the last event can be that late; what follows has to be silent all the same.
            late = {call.resource for call in changes} == {"events"} and time.monotonic() < deadline
            assert late, f"{changes} although at rest\n{self.log_end()}"

    async def _changes_in_a_while(self) -> list[Call]:
        proxies = [self.proxy, *self.others]
        before = [len(proxy.calls) for proxy in proxies]
        await asyncio.sleep(_AT_REST_SECONDS)
        return [call for proxy, count in zip(proxies, before, strict=True) for call in proxy.calls[count:]]

    def log_end(self) -> str:
        """Return the end of the operator's log, for messages."""
        return self.operator.log.read_text()[-6000:] if self.operator.log.exists() else ""

    def pods_run(self) -> Counter[tuple[str, int, int]]:
        """Return how many pods ran for each stage, generation and segment."""
        return Counter(
            (run.stage, run.generation, run.index if run.segment is None else run.segment) for run in self.kubelet.runs
        )


@asynccontextmanager
async def running(
    *, control_plane: ControlPlane, kube: KubeClient, folder: Path, namespace: str = "", prefix: str = "f"
) -> AsyncIterator[Run]:
    """Run an operator behind a proxy in a namespace of its own, which is deleted at the end."""
    namespace = namespace or await make_namespace(kube, prefix=prefix)
    folder = folder / namespace
    folder.mkdir()
    config = folder / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "workerImage": "worker:test",
                "store": {"endpoint": f"file://{folder}/store"},
                "tenants": [{"namespace": namespace, "bucket": namespace}],
            }
        )
    )
    async with Proxy(kubeconfig=control_plane.kubeconfig, folder=folder, namespace=namespace) as proxy:
        operator = operator_of(proxy, config=config, folder=folder)
        async with operator, FakeKubelet(client=kube, namespace=namespace, script=lambda run: Exit()) as kubelet:
            yield Run(
                kube=kube,
                namespace=namespace,
                proxy=proxy,
                operator=operator,
                kubelet=kubelet,
                folder=folder,
                kubeconfig=control_plane.kubeconfig,
            )
    operator.check()
    # Controllers and the API server do less for a namespace that is gone.
    await kube.request("DELETE", f"/api/v1/namespaces/{namespace}")


def operator_of(proxy: Proxy, *, config: Path, folder: Path, **environment: str) -> Supervised:
    """Return an operator that works through a proxy."""
    variables = {
        "KUBECONFIG": str(proxy.kubeconfig),
        "INGESTION_CONFIG": str(config),
        "INGESTION_HEALTH_PORT": "0",
        **environment,
    }
    return Supervised(module="ingestion_operator.main", environment=variables, log=folder / "operator.log")


# ── the REST API ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(kw_only=True)
class Api:
    """The API as a process of its own, behind a proxy of its own."""

    proxy: Proxy
    process: Supervised
    client: httpx.AsyncClient

    async def retry(self, job_id: str, *, key: str | None = None) -> httpx.Response:
        """POST a retry, again and again while the API does not answer: the client that does not give up."""
        headers = {} if key is None else {"Idempotency-Key": key}
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                response = await self.client.post(f"/v1/knowledge-base/ingestion-jobs/{job_id}/retry", headers=headers)
                if response.status_code < 500:
                    return response
            except httpx.TransportError:
                pass
            self.process.check()
            assert time.monotonic() < deadline, self.process.log.read_text()[-6000:]
            await asyncio.sleep(0.1)

    async def status(self, path: str) -> int:
        """GET a path; return the answer's status, 0 while the API does not serve."""
        self.process.check()
        try:
            return (await self.client.get(path)).status_code
        except httpx.TransportError:
            return 0

    async def answers(self, path: str, status: int) -> bool:
        """GET a path; return whether that is the answer's status."""
        return await self.status(path) == status

    async def known(self, job_id: str) -> None:
        """Wait until the API serves and knows the job."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                if (await self.client.get(f"/v1/knowledge-base/ingestion-jobs/{job_id}")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            self.process.check()
            assert time.monotonic() < deadline, self.process.log.read_text()[-6000:]
            await asyncio.sleep(0.05)


@asynccontextmanager
async def api_of(run: Run) -> AsyncIterator[Api]:
    """Run the REST API for a run's namespace."""
    key_id, key = new_key()
    entry = KeyEntry(hash=hash_key(key), namespace=run.namespace, name="", created=datetime.now(UTC))
    secret = {"metadata": {"name": names.API_KEYS_SECRET}, "data": {key_id: encode_entry(entry)}}
    await run.kube.request("POST", core_path("secrets", run.namespace), body=secret)
    (run.folder / "store").mkdir(exist_ok=True)
    folder = run.folder / f"api-{secrets.token_hex(3)}"
    folder.mkdir()
    (port,) = ports.free(count=1)
    async with Proxy(kubeconfig=run.kubeconfig, folder=folder, namespace=run.namespace) as proxy:
        variables = {
            "KUBECONFIG": str(proxy.kubeconfig),
            "INGESTION_CONFIG": str(run.folder / "config.yaml"),
            "POD_NAMESPACE": run.namespace,
            "INGESTION_API_HOST": "127.0.0.1",
            "INGESTION_API_PORT": str(port),
        }
        process = Supervised(module="ingestion_api.main", environment=variables, log=folder / "api.log")
        client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers={"x-api-key": key}, timeout=_PATIENCE_SECONDS, trust_env=False
        )
        async with process, client:
            yield Api(proxy=proxy, process=process, client=client)


# ── the oracle ────────────────────────────────────────────────────────────────────────────────────────────────

_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?Z")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_DIGEST = re.compile(r"\b[0-9a-f]{32}\b")
_KEY = re.compile(r"\bkey:[0-9a-z]+")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to, without what may differ: times, UIDs, resourceVersions, the namespace's name."""

    objects: JsonObject
    counts: dict[str, int]
    pods_run: Counter[tuple[str, int, int]]

    def at_least(self, other: Outcome) -> Outcome:
        """Return this outcome with counts no higher than another's, where the other ran the same pods.

        Where answers are lost behind the proxy, what was created and deleted is counted too low, and the Job
        controller, which loses answers too, may run a pod twice: then only an excess of the operator is a difference.
        """
        counts = {what: min(count, other.counts.get(what, 0)) for what, count in self.counts.items()}
        same_pods = self.pods_run.keys() == other.pods_run.keys()
        return Outcome(
            objects=self.objects,
            counts={what: count for what, count in counts.items() if count},
            pods_run=other.pods_run if same_pods else self.pods_run,
        )

    def difference(self, other: Outcome) -> str:
        """Return how another outcome differs, line by line."""
        texts = [
            [
                *json.dumps(outcome.objects, indent=1, sort_keys=True).splitlines(),
                *(f"{what}: {count}" for what, count in sorted(outcome.counts.items())),
                *(f"{pod}: {count} pods" for pod, count in sorted(outcome.pods_run.items())),
            ]
            for outcome in (self, other)
        ]
        return "\n".join(difflib.unified_diff(*texts, "expected", "found", lineterm="", n=2))


async def outcome_of(run: Run) -> Outcome:
    """Read what exists in a run's namespace."""
    ours = await run.get()
    jobs, config_maps, pods = await run.jobs(), await run.listed("configmaps"), await run.listed("pods")
    uid = ours["metadata"]["uid"]
    objects: JsonObject = {
        "ingestionJob": {
            "annotations": ours["metadata"].get("annotations", {}),
            "generation": ours["metadata"]["generation"],
            "spec": ours["spec"],
            "status": ours["status"],
        },
        "jobs": sorted((_job(item) for item in jobs), key=_text),
        "configMaps": sorted(
            (_config_map(item) for item in config_maps if item["metadata"]["name"] != "kube-root-ca.crt"), key=_text
        ),
        "pods": sorted((_pod(item) for item in pods), key=_text),
    }
    store = run.folder / "store"
    objects["store"] = sorted(str(file.relative_to(store)) for file in store.rglob("*") if file.is_file())
    text = json.dumps(objects, sort_keys=True)
    for own, common in (
        (str(run.folder), "FOLDER"),
        (run.namespace, "NAMESPACE"),
        (hashlib.sha256(uid.encode()).hexdigest()[:10], "HASH"),
    ):
        text = text.replace(own, common)
    for pattern, common in ((_TIME, "TIME"), (_UUID, "UUID"), (_DIGEST, "DIGEST"), (_KEY, "KEY")):
        text = pattern.sub(common, text)
    return Outcome(objects=json.loads(text), counts=run.counts, pods_run=run.pods_run())


def _text(value: JsonObject) -> str:
    return _UUID.sub("UUID", json.dumps(value, sort_keys=True))


def _job(job: JsonObject) -> JsonObject:
    spec, status = dict(job["spec"]), job.get("status", {})
    # What is left of the attempt's time, in seconds, depends on how long its earlier stages took; 0 is a cancellation.
    spec["activeDeadlineSeconds"] = min(1, spec["activeDeadlineSeconds"])
    return {
        "name": job["metadata"]["name"],
        "labels": job["metadata"]["labels"],
        "annotations": job["metadata"]["annotations"],
        "owners": [(owner["kind"], owner["name"]) for owner in job["metadata"]["ownerReferences"]],
        "spec": spec,
        "status": {key: status.get(key) for key in ("succeeded", "failed", "completedIndexes", "failedIndexes")}
        | {"conditions": sorted((item["type"], item["status"]) for item in status.get("conditions", []))},
    }


def _config_map(item: JsonObject) -> JsonObject:
    return {"name": item["metadata"]["name"], "labels": item["metadata"]["labels"], "data": item["data"]}


def _pod(pod: JsonObject) -> JsonObject:
    labels = {key: value for key, value in pod["metadata"]["labels"].items() if not _UUID.fullmatch(value)}
    return {"labels": labels, "phase": pod["status"]["phase"]}


async def converged(run: Run, expected: Outcome, *, exactly: bool = True) -> None:
    """Check that a run comes to what the reference came to, and stays there without a write: invariants 1–3, 5, 8.

    Controllers of Kubernetes' own finish a little later, so the state is looked at until it is as expected.

    Args:
        run: the run.
        expected: the reference's outcome.
        exactly: False where answers are lost behind the proxy (`Outcome.at_least`).
    """

    async def difference() -> str:
        found = await outcome_of(run)
        return (expected if exactly else expected.at_least(found)).difference(found)

    deadline = time.monotonic() + _CONVERGED_SECONDS
    while differs := await difference():
        if time.monotonic() > deadline:
            raise AssertionError(f"{differs}\n{run.log_end()}")
        await asyncio.sleep(0.1)
    await run.at_rest()
    assert not await difference()


async def settled_outcome(run: Run) -> Outcome:
    """Return what a run without a fault comes to, once that has stayed the same for a while."""
    before = await outcome_of(run)
    while True:
        await asyncio.sleep(2)
        now = await outcome_of(run)
        if now == before:
            return now
        before = now
