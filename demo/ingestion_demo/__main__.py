"""`python -m ingestion_demo`: a cluster, the product in it, failures, retries, and a question answered."""

import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ingestion_crds import constants as names
from local_cluster import binaries, install, process
from local_cluster.errors import LocalClusterError
from local_cluster.kind import Kind, target, wanted_name

from ingestion_demo import documents, provider, view
from ingestion_demo.pods import PodWatch
from ingestion_demo.rest import Rest, finished

NAMESPACE: Final = "ingestion-system"
RELEASE: Final = "ingestion"
TENANTS: Final = ("team-a", "team-b")
VALUES: Final[dict[str, Any]] = {
    "tenants": [{"namespace": tenant, "bucket": tenant, "createNamespace": True} for tenant in TENANTS],
    "embeddingProviders": [{"name": provider.NAME, "url": provider.URL}],
    "networkPolicy": {
        # The provider is inside the cluster, where workers may go nowhere else.
        "workerEgress": [
            {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": provider.NAMESPACE}}}]}
        ]
    },
}
OPTIONS: Final = {"pipeline": {"embedding": {"provider": provider.NAME}}, "parallelism": 8}
JOB_SECONDS: Final = 900.0


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything the chapters play with."""

    kubeconfig: Path
    api: str
    switch: provider.Switch
    story: view.Story

    def tenant(self, namespace: str) -> Rest:
        """A REST client with a fresh key of a tenant."""
        key = install.mint_key(kubeconfig=self.kubeconfig, namespace=NAMESPACE, tenant=namespace, name="demo")
        rest = Rest(url=self.api, key=key)
        rest.wait_for_key()
        return rest

    def resource(self, namespace: str, job_id: str) -> dict[str, Any]:
        """The IngestionJob behind a job id: REST names it by the id."""
        text = install.kubectl(
            self.kubeconfig, "get", "ingestionjob", job_id, "--namespace", namespace, "--output", "json"
        )
        body: dict[str, Any] = json.loads(text)
        return body


def main() -> int:
    """Play everything; returns the exit code."""
    process.interrupt_when_ended()
    story = view.Story()
    try:
        cluster = target(name=wanted_name())
    except LocalClusterError as error:
        print(f"The demo cannot begin: {error}", file=sys.stderr)
        return 1
    try:
        with _scene(cluster=cluster, story=story) as scene:
            _long_document(scene)
            _by_annotation(scene)
            _single_pass(scene)
    except (LocalClusterError, _UnexpectedError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        if cluster.kubeconfig.exists():
            for namespace in (NAMESPACE, provider.NAMESPACE, *TENANTS):
                print(install.explain(kubeconfig=cluster.kubeconfig, namespace=namespace), file=sys.stderr)
        return 1
    view.title("What happened")
    print(story.table())
    _further(cluster)
    return 0


class _UnexpectedError(Exception):
    """Something was not as the demo says it is."""


def _expect(given: object, wanted: object, what: str) -> None:
    if given != wanted:
        raise _UnexpectedError(f"{what}: expected {wanted!r}, got {given!r}")


@contextmanager
def _scene(*, cluster: Kind, story: view.Story) -> Iterator[Scene]:
    with story.step("cluster", f"kind, one node, {cluster.name}"):
        kubeconfig = cluster.up()
    with story.step("images built") as said:
        names = install.build_images()
        said.append(", ".join(name.rpartition("/")[2] for name in names))
    with story.step("images loaded") as said:
        said.append(f"{len(install.load_images(cluster=cluster, names=names))} new")
    with story.step("chart installed", f"release {RELEASE}, tenants {' and '.join(TENANTS)}"):
        install.prepare_store_volume(cluster=cluster, namespace=NAMESPACE, release=RELEASE)
        install.helm_install(kubeconfig=kubeconfig, namespace=NAMESPACE, release=RELEASE, values=VALUES)
    with story.step("embedding provider deployed", "refuses some texts until it is mended"):
        provider.deploy(kubeconfig=kubeconfig, image=install.image_name("worker"), pattern=documents.PATTERN)
    with ExitStack() as stack:
        api = stack.enter_context(
            install.port_forward(kubeconfig=kubeconfig, namespace=NAMESPACE, service=f"{RELEASE}-api", port=8000)
        )
        switch = stack.enter_context(provider.switch(kubeconfig=kubeconfig))
        yield Scene(kubeconfig=kubeconfig, api=api, switch=switch, story=story)


def _long_document(scene: Scene) -> None:
    namespace, package = TENANTS[0], "octave-doc"
    scene.switch.break_()
    rest, knowledge_base = scene.tenant(namespace), str(uuid.uuid4())
    with PodWatch(kubeconfig=scene.kubeconfig, namespace=namespace) as pods:
        with scene.story.step("a long PDF uploaded") as said:
            file = documents.manual(package)
            job_id = _upload(rest, knowledge_base, file, "application/pdf", mode="Segmented")
            said.append(f"{file.name}, {file.stat().st_size / 1e6:.1f} MB, job {job_id}")
            view.line(said[0])
        with scene.story.step("first run") as said:
            job = _follow(rest, job_id, generation=0)
            _expect(job["status"], "partial_failure", "status after the first run")
            total, failed = job["segment_count"], job["segment_count"] - job["processed_segments"]
            said.append(f"partial_failure: {failed} of {total} segments, {_codes(job)}")
            for failure in job["failures"][:3]:
                view.line(f"segment {failure['segment']}: {failure['code']}: {failure['message']}")
        scene.switch.mend()
        with scene.story.step("POST …/retry after the provider was mended") as said:
            rest.retry(job_id)
            job = _follow(rest, job_id, generation=1)
            _expect(job["status"], "completed", "status after the retry")
            job_uid = scene.resource(namespace, job_id)["metadata"]["uid"]
            count = _count_pods(pods, job_uid, names.Stage.SEGMENTS, 1, wanted=failed)
            said.append(f"completed; {count} pods ran for {failed} failed segments, {total - failed} were left alone")
            view.line(said[0])
    _ask(scene, rest, knowledge_base, documents.QUESTIONS[package])


def _by_annotation(scene: Scene) -> None:
    namespace, package = TENANTS[1], "debian-reference-en"
    scene.switch.break_()
    rest, knowledge_base = scene.tenant(namespace), str(uuid.uuid4())
    with PodWatch(kubeconfig=scene.kubeconfig, namespace=namespace) as pods:
        with scene.story.step("a second document, of another tenant") as said:
            job_id = _upload(rest, knowledge_base, documents.manual(package), "application/pdf", mode="Segmented")
            job = _follow(rest, job_id, generation=0)
            _expect(job["status"], "partial_failure", "status after the first run")
            failed = job["segment_count"] - job["processed_segments"]
            said.append(f"partial_failure: {failed} of {job['segment_count']} segments, {_codes(job)}")
        scene.switch.mend()
        with scene.story.step("kubectl annotate …retry-requested-at") as said:
            token = f"{names.ANNOTATION_RETRY_REQUESTED}={time.time_ns()}"
            arguments = ["annotate", f"ij/{job_id}", token, "--overwrite", "--namespace", namespace]
            view.line(f"kubectl {' '.join(arguments)}")
            install.kubectl(scene.kubeconfig, *arguments)
            job = _follow(rest, job_id, generation=1)
            _expect(job["status"], "completed", "status after the retry")
            job_uid = scene.resource(namespace, job_id)["metadata"]["uid"]
            count = _count_pods(pods, job_uid, names.Stage.SEGMENTS, 1, wanted=failed)
            said.append(f"completed; {count} pods ran for {failed} failed segments")
            view.line(said[0])
    _ask(scene, rest, knowledge_base, documents.QUESTIONS[package])


def _single_pass(scene: Scene) -> None:
    namespace = TENANTS[0]
    scene.switch.break_()
    rest, knowledge_base = scene.tenant(namespace), str(uuid.uuid4())
    with (
        tempfile.TemporaryDirectory() as folder,
        PodWatch(kubeconfig=scene.kubeconfig, namespace=namespace) as pods,
    ):
        with scene.story.step("a short note, done in a single pass") as said:
            job_id = _upload(rest, knowledge_base, documents.note(Path(folder)), "text/plain", mode="Auto")
            job = _follow(rest, job_id, generation=0)
            _expect(job["status"], "failed", "status after the first run")
            job_uid = scene.resource(namespace, job_id)["metadata"]["uid"]
            said.append(f"failed: {_codes(job)}")
        scene.switch.mend()
        with scene.story.step("its retry starts over") as said:
            rest.retry(job_id)
            reset = rest.job(job_id)
            state = reset["version"]["state"] if reset["version"] else "none"
            view.line(
                f"right after the 202: {reset['status']}, version {state}, {reset['processed_segments']} segments"
            )
            if reset["status"] == "queued":
                _expect(state, "pending", "version's state right after the retry")
            _expect((reset["processed_segments"], reset["failures"]), (0, []), "counts right after the retry")
            job = _follow(rest, job_id, generation=1)
            _expect(job["status"], "completed", "status after the retry")
            _count_pods(pods, job_uid, names.Stage.PREPARE, 1, wanted=1)
            first = pods.uids(job_uid=job_uid, stage=names.Stage.PREPARE, generation=0)
            second = pods.uids(job_uid=job_uid, stage=names.Stage.PREPARE, generation=1)
            _expect(first & second, set(), "pods that both attempts have in common")
            said.append(
                f"version {state}, counts zero, then a new pod: {min(first)[:8]} → {min(second)[:8]}; completed"
            )
            view.line(said[0])


def _upload(rest: Rest, knowledge_base: str, file: Path, content_type: str, *, mode: str) -> str:
    options = {"title": file.stem, "mode": mode, "options": json.dumps(OPTIONS)}
    return rest.upload(knowledge_base=knowledge_base, file=file, content_type=content_type, options=options)


def _follow(rest: Rest, job_id: str, *, generation: int) -> dict[str, Any]:
    progress = view.Progress()
    try:
        return rest.follow(job_id, show=progress.show, until=finished(generation), seconds=JOB_SECONDS)
    finally:
        progress.end()


def _count_pods(pods: PodWatch, job_uid: str, stage: str, generation: int, *, wanted: int) -> int:
    # The watch may be a moment behind the job's status.
    for _ in range(10):
        count = len(pods.uids(job_uid=job_uid, stage=stage, generation=generation))
        if count >= wanted:
            break
        time.sleep(0.5)
    _expect(count, wanted, f"pods of generation {generation}")
    return count


def _ask(scene: Scene, rest: Rest, knowledge_base: str, question: str) -> None:
    with scene.story.step(f"asked: {question}") as said:
        results = rest.search(knowledge_base=knowledge_base, query=question)
        if not results:
            raise _UnexpectedError("the search found nothing")
        for result in results:
            text = " ".join(result["content"].split())
            view.line(f"{result['score']:.2f}  page {result.get('page')}: {text[:140]}…")
        said.append(f"best answer on page {results[0].get('page')}")


def _codes(job: dict[str, Any]) -> str:
    return ", ".join(f"{code} {count}" for code, count in job["failure_summary"].items())


def _further(cluster: Kind) -> None:
    ours = f"CLUSTER_NAME={cluster.name} make cluster-down   # deletes the cluster and everything in it"
    given = "docs/uninstall.md says how to take the product out of your cluster again"
    view.title("Look further")
    for command in (
        f"export KUBECONFIG={cluster.kubeconfig} PATH={binaries.path(name='kubectl').parent}:$PATH",
        "kubectl get ingestionjobs --all-namespaces",
        f"kubectl --namespace {TENANTS[0]} get pods,jobs",
        f"kubectl --namespace {NAMESPACE} logs --selector app.kubernetes.io/component=operator --prefix",
        f"kubectl --namespace {NAMESPACE} port-forward service/{RELEASE}-api 8000   # then docs/rest-api.md",
        given if cluster.given else ours,
    ):
        view.line(command)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.SubprocessError as error:
        sys.exit(f"The demo failed: {error}")
