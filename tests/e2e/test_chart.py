"""Claims about the chart, on what Helm renders; the cluster's own answer is in test_users.py."""

from __future__ import annotations

import base64
import inspect
import ipaddress
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from ingestion_api.options import Options
from ingestion_crds import constants as names
from ingestion_crds.config import Config
from ingestion_crds.constants import Reason
from ingestion_crds.job import Resources
from ingestion_crds.kube import KubeClient
from ingestion_operator.actions import AnswerAnnotation, Event
from ingestion_operator.batch_cluster import BatchCluster
from ingestion_operator.cluster import KubeCluster
from local_cluster import binaries, install, versions
from local_cluster.commands import run
from local_cluster.errors import LocalClusterError
from support.builders import ANNOTATIONS, LABELS, LABELS_OF_JOBS, worker_pod

pytestmark = pytest.mark.e2e

VALUES: dict[str, Any] = {
    "tenants": [{"namespace": "a", "bucket": "bucket-a", "createNamespace": True}, {"namespace": "b", "bucket": "bbb"}],
    "embeddingProviders": [{"name": "keyed", "url": "https://embed.example/v1", "apiKey": "secret"}],
    "api": {"replicas": 2},
}
DIGEST = f"sha256:{'0' * 64}"
CREDENTIALS = {"accessKeyId": "me", "secretAccessKey": "mine-alone"}
ACCOUNTS = "/api/v1/namespaces/s/secrets/i-store-accounts"
RBAC = "rbac.authorization.k8s.io/v1"
CLUSTER_ROLES = f"/apis/{RBAC}/clusterroles"
HELMS = ("helm", "helm-v3")
KINDS = {
    "v1": ["ConfigMap", "Namespace", "PersistentVolumeClaim", "Secret", "Service", "ServiceAccount"],
    "apps/v1": ["Deployment"],
    "batch/v1": ["Job"],
    "networking.k8s.io/v1": ["Ingress", "NetworkPolicy"],
    "policy/v1": ["PodDisruptionBudget"],
    RBAC: ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"],
}
"""What the chart is made of."""


def render(
    values: dict[str, Any],
    *,
    folder: Path,
    release: str = "i",
    namespace: str = "s",
    found: dict[str, Any] | None = None,
    chart: Path = install.CHART,
    helm: str = HELMS[0],
) -> list[dict[str, Any]]:
    """Render the chart, as for a cluster where it looks up what is `found`, by path; without, nothing is looked up."""
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    where: list[str | Path] = ["--namespace", namespace, "--kube-version", versions.KUBERNETES, "--values", file]
    command: list[str | Path] = [binaries.path(name=helm), "template", release, chart, *where]
    if found is None:
        text = run(command)
    else:
        # As an upgrade: what is found is the release's own.
        command += ["--dry-run=server", "--is-upgrade", "--disable-openapi-validation"]
        with api_server(found) as url:
            text = run([*command, "--kube-apiserver", url], env={"KUBECACHEDIR": str(folder / "cache")})
    return [document for document in yaml.safe_load_all(text) if document]


@contextmanager
def api_server(found: dict[str, Any]) -> Iterator[str]:
    """Serve objects by their path, and what Helm asks for to find a kind's path; yields the URL."""
    groups = [
        {"name": version.removesuffix("/v1"), "versions": [each], "preferredVersion": each}
        for version in KINDS
        if "/" in version
        for each in [{"groupVersion": version, "version": "v1"}]
    ]
    answers: dict[str, Any] = {
        "/version": {"gitVersion": versions.KUBERNETES},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
    }
    for version, kinds in KINDS.items():
        resources = [
            {"name": f"{kind.lower()}s", "kind": kind, "namespaced": not kind.startswith(("Cluster", "Namespace"))}
            for kind in kinds
        ]
        answers[f"/{'apis' if '/' in version else 'api'}/{version}"] = {
            "kind": "APIResourceList",
            "groupVersion": version,
            "resources": [{**each, "verbs": ["get"]} for each in resources],
        }
    answers |= {CLUSTER_ROLES: {"apiVersion": RBAC, "kind": "ClusterRoleList", "items": []}, **found}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            answer = answers.get(self.path.split("?")[0], missing)
            self.send_response(404 if answer is missing else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every pod, and template of one, by kind and name."""
    found = {f"{each['kind']}/{each['metadata']['name']}": each for each in documents}
    templates = {name: each["spec"]["template"] for name, each in found.items() if "template" in each.get("spec", {})}
    return templates | {name: each for name, each in found.items() if each["kind"] == "Pod"}


def pod_specs(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The spec of every pod, and template of one, by kind and name."""
    return {name: pod["spec"] for name, pod in pods(documents).items()}


def config_of(documents: list[dict[str, Any]]) -> Config:
    """Return what operator and API make of their configuration."""
    (text,) = [each["data"]["config.yaml"] for each in documents if "config.yaml" in (each.get("data") or {})]
    return Config.model_validate(yaml.safe_load(text))


def egress(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return where worker pods may go, which is the same for each tenant."""
    policies = [each for each in documents if each["kind"] == "NetworkPolicy"]
    first, *others = [each["spec"]["egress"] for each in policies if each["metadata"]["name"] == "ingestion-worker"]
    assert all(each == first for each in others)
    return list(first)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"tenant": []}, "tenant"),
        ({"tenants": [{"namespace": "a"}]}, "bucket"),
        ({"tenants": [{"namespace": "A", "bucket": "aaa"}]}, "namespace"),
        (
            {"tenants": [{"namespace": "a", "bucket": "aaa"}, {"namespace": "a", "bucket": "bbb"}]},
            "tenants[1].namespace",
        ),
        ({"tenants": [{"namespace": "a", "bucket": "aaa"}, {"namespace": "b", "bucket": "aaa"}]}, "tenants[1].bucket"),
        ({"tenants": [{"namespace": "s", "bucket": "aaa"}]}, "tenants[0].namespace"),
        (
            {"tenants": [{"namespace": "a", "bucket": "aaa"}], "store": {"embedded": {"enabled": False}}},
            "existingSecret",
        ),
        (
            {
                "tenants": [
                    {"namespace": name, "bucket": f"bucket-{name}", "credentials": CREDENTIALS} for name in ("a", "b")
                ]
            },
            "tenants[1].credentials.accessKeyId",
        ),
        ({"tenants": [{"namespace": "a", "bucket": "10.0.0.1"}]}, "/tenants/0/bucket"),
        (
            {"tenants": [{"namespace": "a", "bucket": "aaa", "credentials": {**CREDENTIALS, "accessKeyId": "-a"}}]},
            "/tenants/0/credentials/accessKeyId",
        ),
        (
            {"tenants": [{"namespace": "a", "bucket": "aaa", "credentials": {**CREDENTIALS, "accessKeyId": "root"}}]},
            "tenants[0].credentials.accessKeyId",
        ),
        ({"embeddingProviders": [{"name": "builtin", "url": "http://x"}]}, "embeddingProviders"),
        ({"embeddingProviders": [{"name": "x", "url": "ftp://x"}]}, "url"),
        ({"embeddingProviders": [{"name": "x", "url": "https://x.example/v1 "}]}, "/embeddingProviders/0/url"),
        (
            {"embeddingProviders": [{"name": "x", "url": "https://x.example?api-version=1"}]},
            "/embeddingProviders/0/url",
        ),
        ({"store": {"external": {"endpoint": "http://s3.example.com "}}}, "/store/external/endpoint"),
        ({"store": {"external": {"endpoint": "http://s3.example.com\n"}}}, "/store/external/endpoint"),
        ({"images": {"api": {"repository": f"x@{DIGEST}"}}}, "repository"),
        ({"images": {"api": {"repository": "registry:5000/x:1"}}}, "repository"),
        ({"images": {"api": {"tag": f"@{DIGEST}"}}}, "tag"),
        ({"images": {"worker": {"digest": "sha256:1"}}}, "digest"),
        ({"sources": {"deny": ["10.0.0.1"]}}, "/sources/deny/0"),
        ({"sources": {"deny": ["0.0.0.0/0"]}}, "/sources/deny/0"),
        ({"worker": {"allowedImages": ["team/worker:[12]"]}}, "allowedImages"),
        ({"worker": {"tolerations": [{"operator": "Sometimes"}]}}, "/worker/tolerations/0/operator"),
        ({"operator": {"tolerations": [{"effect": "NoStart"}]}}, "/operator/tolerations/0/effect"),
        ({"api": {"tolerations": [{"keys": "pool"}]}}, "keys"),
        ({"store": {"embedded": {"tolerations": [{"key": None}]}}}, "/store/embedded/tolerations/0/key"),
        ({"api": {"affinity": {"podAffinities": {}}}}, "/api/affinity"),
        ({"worker": {"priorityClassName": "Not a name"}}, "/worker/priorityClassName"),
        ({"worker": {"podLabels": {"team": True}}}, "/worker/podLabels/team"),
        ({"operator": {"podLabels": {"cost center": "1"}}}, "cost center"),
        ({"store": {"embedded": {"podLabels": {"team": "of two words"}}}}, "/store/embedded/podLabels/team"),
        ({"operator": {"podAnnotations": {"n": 1}}}, "/operator/podAnnotations/n"),
        *[
            ({"worker": {given: {key: "x"}}}, f"'{key}'")
            for given in ("podLabels", "podAnnotations")
            for key in ("bad key!", f"{'d' * 254}/n", f"d/{'n' * 64}", "n" * 64, "d/", "/n", "a/b/c")
        ],
        ({"worker": {"podLabels": {"Example.com/team": "x"}}}, "'Example.com/team'"),
        *[
            ({"worker": {"podLabels": {key: "x"}}}, f"/worker/podLabels/{key.replace('/', '~1')}")
            for key in LABELS_OF_JOBS
        ],
        ({"api": {"serviceAccountAnnotations": {"n": 1}}}, "/api/serviceAccountAnnotations/n"),
        ({"api": {"ingress": {"enabled": True, "host": "x.example"}}}, "api.ingress.tlsSecret"),
        ({"api": {"ingress": {"enabled": True, "host": "x", "tlsSecret": "y", "tlsElsewhere": True}}}, "tlsElsewhere"),
        ({"api": {"ingress": {"enabled": True, "tlsSecret": "tls"}}}, "api.ingress.host"),
        ({"api": {"ingress": {"enabled": True, "tlsElsewhere": True}}}, "api.ingress.host"),
        ({"api": {"ingress": {"host": "https://x.example"}}}, "/api/ingress/host"),
        ({"caCertificates": "-----BEGIN CERTIFICATE-----\n" * 1000}, "/caCertificates"),
        ({"store": {"embedded": {"existingSecret": "a: b"}}}, "/store/embedded/existingSecret"),
        ({"store": {"embedded": {"persistence": {"existingClaim": "a: b"}}}}, "/persistence/existingClaim"),
        ({"store": {"embedded": {"persistence": {"size": ""}}}}, "/store/embedded/persistence/size"),
        ({"api": {"temporaryStorage": "2Gi, x: y"}}, "/api/temporaryStorage"),
        ({"api": {"temporaryStorage": ""}}, "/api/temporaryStorage"),
        ({"api": {"resources": {"limits": {"memory": "1 Gi"}}}}, "/api/resources/limits/memory"),
        ({"operator": {"resources": {"requests": {"memory": "-1Gi"}}}}, "/operator/resources/requests/memory"),
        ({"worker": {"resources": {"limits": {"memory": "1gb"}}}}, "/worker/resources/limits/memory"),
        ({"worker": {"resources": {"requests": {"cpu": -1}}}}, "/worker/resources/requests/cpu"),
        ({"worker": {"resources": {"requests": {"memory": "2Gi"}}}}, "worker.resources.requests.memory"),
        ({"worker": {"resources": {"limits": {"cpu": "99m"}}}}, "worker.resources.requests.cpu"),
        ({"api": {"logLevel": "debug"}}, "/api/logLevel"),
        ({"api": {"replicas": 0}}, "replicas"),
        ({"operator": {"replicas": 0}}, "replicas"),
    ],
)
def test_a_wrong_value_is_refused_by_name(values: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(LocalClusterError) as caught:
        render(values, folder=tmp_path)
    assert named in str(caught.value)


@pytest.mark.parametrize("key", ["a/b", "a+b", "tëam"])
def test_a_key_id_is_one_that_the_embedded_store_takes(key: str, tmp_path: Path) -> None:
    """Of the first it would refuse each request, and of the second know no account; another store may do otherwise."""
    tenant = {"namespace": "a", "bucket": "aaa", "credentials": {**CREDENTIALS, "accessKeyId": key}}
    with pytest.raises(LocalClusterError, match=re.escape("tenants[0].credentials.accessKeyId")):
        render({"tenants": [tenant]}, folder=tmp_path)
    documents = render({"tenants": [tenant], "store": {"embedded": {"enabled": False}}}, folder=tmp_path)
    assert credentials(documents) == {"a": f"{key} mine-alone"}


def test_every_pod_keeps_to_the_restricted_level(tmp_path: Path) -> None:
    pods = pod_specs(render(VALUES, folder=tmp_path))
    assert len(pods) == 7
    for name, spec in pods.items():
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name


def test_no_role_lists_secrets_or_may_do_everything(tmp_path: Path) -> None:
    roles = [each for each in render(VALUES, folder=tmp_path) if each["kind"] in ("Role", "ClusterRole")]
    rules = [(role, rule) for role in roles for rule in role["rules"]]
    assert rules
    for role, rule in rules:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        if "secrets" in rule["resources"]:
            assert role["kind"] == "Role"
            assert rule["verbs"] == ["get"]
            assert rule["resourceNames"]


def test_who_may_edit_or_view_a_namespace_may_do_so_with_its_jobs(tmp_path: Path) -> None:
    """By the cluster's own roles, which take up those that are labelled so."""
    roles = {each["metadata"]["name"]: each for each in render({}, folder=tmp_path) if each["kind"] == "ClusterRole"}
    reads = {"get", "list", "watch"}
    writes = {"create", "update", "patch", "delete", "deletecollection"}
    for name, targets, verbs in (("i-edit", {"edit", "admin"}, reads | writes), ("i-view", {"view"}, reads)):
        labels = roles[name]["metadata"]["labels"]
        assert {f"rbac.authorization.k8s.io/aggregate-to-{each}" for each in targets} == {
            label for label, value in labels.items() if "aggregate" in label and value == "true"
        }
        (rule,) = roles[name]["rules"]
        assert (rule["apiGroups"], rule["resources"]) == (
            ["ingestion-operator.io"],
            ["ingestionjobs", "ingestionbatches"],
        )
        assert set(rule["verbs"]) == verbs


async def test_the_operator_may_do_what_it_asks_for_and_nothing_else(tmp_path: Path) -> None:
    """Every request it knows is made here, and read as the API server does; what it watches is not among them."""
    asked: set[tuple[str, str]] = set()

    class Client:
        async def request(self, method: str, path: str, **_: Any) -> dict[str, Any]:
            named = re.fullmatch(r"/apis?/.*?v1\w*(?:/namespaces/[^/]+)?/(\w+)(/n)?(/status)?", path)
            assert named, path
            resource, name, part = named.groups(default="")
            verbs = {"GET": "get", "PATCH": "patch"} if name else {"GET": "list", "DELETE": "deletecollection"}
            asked.add((resource + part, {"POST": "create", "DELETE": "delete", **verbs}[method]))
            return {"items": [], "metadata": {}, "kind": "Table"}

    client = cast(KubeClient, Client())
    body = {"metadata": {"namespace": "a", "name": "n", "uid": "u", "resourceVersion": "1"}}
    about = {"namespace": "a", "name": "n", "uid": "u", "job_uid": "u", "child_uid": "u", "batch_uid": "u"}
    about |= {"raw": body, "body": body}
    change = {"resource_version": "1", "spec": {}, "annotations": {}, "patch": {}, "keep": ()}
    change |= {"action": AnswerAnnotation(token="t", operations=())}
    read = {"failed_only": True, "since": None, "take": lambda _: None, "fields": "", "following": "", "parts": 1}
    given = about | change | read
    jobs, batches = KubeCluster(client), BatchCluster(client)
    methods = [
        each
        for requests in (jobs, jobs.ingestion_jobs, batches, batches.batches)
        for each in inspect.getmembers(requests, inspect.ismethod)
    ]
    for name, method in methods:
        if not name.startswith("_"):
            made = method(**{each: given[each] for each in inspect.signature(method).parameters})
            if inspect.isasyncgen(made):
                assert [item async for item in made] == []
            else:
                await made
    jobs.events.tell(body, (Event(reason=Reason.QUEUED, message=""),), now=datetime.now(UTC))
    await jobs.events.flush()
    roles = [each for each in render(VALUES, folder=tmp_path) if each["kind"] in ("Role", "ClusterRole")]
    rules = [rule for role in roles if role["metadata"]["name"] == "i-operator" for rule in role["rules"]]
    granted = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    watched = {(resource, "watch") for resource in ("ingestionjobs", "ingestionbatches", "jobs")}
    # What the API server's admission asks of who makes an object that its owner is not to be deleted before.
    implied = {("ingestionbatches/finalizers", "update")}
    assert {each for each in granted if each[0] != "leases"} == asked | watched | implied


def test_the_api_may_read_make_and_retry_jobs_and_batches_and_nothing_else(tmp_path: Path) -> None:
    """And make and retry them in tenants' namespaces alone."""
    roles = [each for each in render(VALUES, folder=tmp_path) if each["kind"] in ("Role", "ClusterRole")]
    granted = {
        (role["metadata"].get("namespace"), resource, verb)
        for role in roles
        if role["metadata"]["name"] == "i-api"
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if resource != "secrets"
    }
    kinds = ("ingestionjobs", "ingestionbatches")
    assert granted == {(None, kind, verb) for kind in kinds for verb in ("get", "list", "watch")} | {
        (namespace, kind, verb) for namespace in ("a", "b") for kind in kinds for verb in ("create", "patch")
    }


def test_the_operator_finds_the_jobs_of_a_namespace_that_is_no_tenant_any_more(tmp_path: Path) -> None:
    """Or it could not say what has become of them."""
    roles = {each["metadata"]["name"]: each for each in render({}, folder=tmp_path) if each["kind"] == "ClusterRole"}
    verbs = {resource: rule["verbs"] for rule in roles["i-operator"]["rules"] for resource in rule["resources"]}
    assert verbs["jobs"] == ["get", "list", "watch"]
    assert {"get", "patch"} <= set(verbs["ingestionjobs"])


def test_authorities_of_ones_own_reach_the_api_and_all_worker_pods(tmp_path: Path) -> None:
    pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    documents = render({**VALUES, "caCertificates": pem}, folder=tmp_path)
    maps = [each for each in documents if each["kind"] == "ConfigMap" and each["metadata"]["name"] == "ingestion-ca"]
    assert {each["metadata"]["namespace"] for each in maps} == {"s", "a", "b"}
    assert all(each["data"] == {names.CA_FILE.rpartition("/")[2]: pem} for each in maps)
    api = pod_specs(documents)["Deployment/i-api"]
    pod = worker_pod(config_of(documents))
    for spec in (api, pod):
        (container,) = spec["containers"]
        assert {"name": names.ENV_CA_FILE, "value": names.CA_FILE} in container["env"]
        assert {"name": "ca", "mountPath": names.CA_DIR, "readOnly": True} in container["volumeMounts"]
        assert {"name": "ca", "configMap": {"name": "ingestion-ca"}} in spec["volumes"]
    assert "ca" not in json.dumps(worker_pod(config_of(render(VALUES, folder=tmp_path)))["volumes"]).split('"')


def test_operator_api_and_workers_log_what_they_are_told_to(tmp_path: Path) -> None:
    levels = {"operator": "error", "api": "warning", "worker": "error"}
    documents = render({**VALUES, **{part: {"logLevel": level} for part, level in levels.items()}}, folder=tmp_path)
    made = {part: pod_specs(documents)[f"Deployment/i-{part}"] for part in ("operator", "api")}
    made["worker"] = worker_pod(config_of(documents))
    for part, pod in made.items():
        assert {"name": names.ENV_LOG_LEVEL, "value": levels[part]} in pod["containers"][0]["env"], part


def test_names_and_quantities_may_look_like_numbers(tmp_path: Path) -> None:
    documents = render(
        {
            "tenants": [{"namespace": "2024", "bucket": "bucket", "createNamespace": True}],
            "worker": {"resources": {"requests": {"cpu": 0.5, "memory": "1Gi"}, "limits": {"cpu": 2}}},
            "store": {"embedded": {"existingSecret": "2024", "persistence": {"existingClaim": "1e3"}}},
            "api": {"temporaryStorage": "2e9"},
        },
        folder=tmp_path,
    )
    for each in documents:
        names = [each["metadata"]["name"], each["metadata"].get("namespace", "")]
        assert all(isinstance(name, str) for name in names), names
    pods = pod_specs(documents)
    store = pods["Deployment/i-store"]
    assert store["containers"][0]["envFrom"] == [{"secretRef": {"name": "2024"}}]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "1e3"}} in store["volumes"]
    [setup] = [spec for name, spec in pods.items() if name.startswith("Job/")]
    references = [each["valueFrom"]["secretKeyRef"] for each in setup["containers"][0]["env"] if "valueFrom" in each]
    assert [each["name"] for each in references] == ["2024", "2024"]
    assert {"name": "tmp", "emptyDir": {"sizeLimit": "2e9"}} in pods["Deployment/i-api"]["volumes"]
    config = config_of(documents)
    assert config.worker_resources.requests == {"cpu": "0.5", "memory": "1Gi"}
    assert config.worker_resources.limits == {"cpu": 2, "memory": "1Gi"}  # what is not given is the chart's
    assert config.tenant("2024") is not None


@pytest.mark.parametrize(
    ("wanted", "limit"),
    [("100m", "0.1"), ("1024Mi", "1Gi"), ("1G", "1Gi"), (1, "1e0"), (1073741824, "1Gi"), ("5", "5000m"), (".5", 1)],
)
def test_requests_may_be_as_large_as_limits(wanted: str | float, limit: str | float, tmp_path: Path) -> None:
    resources = {"requests": {"cpu": None, "memory": wanted}, "limits": {"memory": limit}}
    config = config_of(render({"worker": {"resources": resources}}, folder=tmp_path))
    assert list(config.worker_resources.requests) == ["memory"]


def test_a_release_and_its_namespace_may_be_called_by_a_number(tmp_path: Path) -> None:
    for each in render(VALUES, folder=tmp_path, release="123", namespace="456"):
        numbers = [value for value in scalars(each) if value in (123, 456)]
        assert not numbers, each


def test_a_release_with_a_dot_makes_no_name_that_a_service_may_not_have(tmp_path: Path) -> None:
    documents = render(VALUES, folder=tmp_path, release="my.release")
    services = [each["metadata"]["name"] for each in documents if each["kind"] == "Service"]
    assert services == ["my-release-api", "my-release-store"]
    assert "http://my-release-store.s.svc:7070" in json.dumps(documents)


@pytest.mark.parametrize("version", ["0.1.0+build.5", f"0.1.0-{'x' * 37}.{'y' * 20}"])
def test_every_version_of_the_chart_makes_labels(version: str, tmp_path: Path) -> None:
    """One with build metadata, and a long one."""
    chart = tmp_path / "chart"
    shutil.copytree(install.CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(json.dumps({**about, "version": version}))
    labels = {each["metadata"]["labels"]["helm.sh/chart"] for each in render(VALUES, folder=tmp_path, chart=chart)}
    assert labels == {f"ingestion-operator-{version}"[:62].replace("+", "_")}


def test_another_chart_may_have_this_one_on_a_condition(tmp_path: Path) -> None:
    parent, name = tmp_path / "parent", install.CHART.name
    shutil.copytree(install.CHART, parent / "charts" / name)
    version = yaml.safe_load((install.CHART / "Chart.yaml").read_text())["version"]
    dependency = {"name": name, "version": version, "condition": f"{name}.enabled"}
    about = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]}
    (parent / "Chart.yaml").write_text(json.dumps(about))

    def rendered(enabled: bool) -> set[str]:
        documents = render({name: {**VALUES, "enabled": enabled}}, folder=tmp_path, chart=parent)
        return {f"{each['kind']}/{each['metadata']['name']}" for each in documents}

    assert "Deployment/i-operator" in rendered(True)
    assert rendered(False) == set()


def test_a_digest_wins_over_a_tag(tmp_path: Path) -> None:
    parts = ("operator", "api", "worker", "store")
    images = {name: {"repository": f"registry:5000/{name}", "tag": "1.2", "digest": DIGEST} for name in parts}
    images["api"]["digest"] = ""
    documents = render({**VALUES, "images": images}, folder=tmp_path)
    used = {each["image"] for spec in pod_specs(documents).values() for each in spec["containers"]}
    pinned = {f"registry:5000/{name}@{DIGEST}" for name in ("operator", "worker", "store")}
    assert used == pinned | {"registry:5000/api:1.2"}
    assert config_of(documents).worker_image == f"registry:5000/worker@{DIGEST}"


def test_a_list_or_map_that_is_null_is_empty(tmp_path: Path) -> None:
    """Helm takes the key of a null away, so that the schema has nothing to say."""
    empty = dict.fromkeys(("resources", "nodeSelector", "tolerations", "podLabels"))
    bare = {**empty, "podAnnotations": None}
    values = {
        **dict.fromkeys(("tenants", "embeddingProviders")),
        **{"images": {"pullSecrets": None}, "sources": {"allow": None}, "networkPolicy": {"workerEgress": None}},
        **{"worker": bare, "operator": empty, "api": empty, "store": {"embedded": bare}},
    }
    documents = render({**VALUES, **values}, folder=tmp_path)
    config = config_of(documents)
    assert config.worker_resources == Resources()
    lists = (config.worker_tolerations, config.source_allow, config.tenants)
    maps = (config.worker_node_selector, config.worker_pod_labels, config.worker_pod_annotations)
    assert (lists, maps) == (([],) * 3, ({},) * 3)
    for name in ("operator", "api", "store"):
        assert pod_specs(documents)[f"Deployment/i-{name}"]["containers"][0]["resources"] == {}


@pytest.mark.parametrize("embedded", [True, False])
def test_what_is_empty_may_be_null(embedded: bool, tmp_path: Path) -> None:
    """Every value that is "" or false by default: it is as if nothing were said of it."""

    def nulls(defaults: dict[str, Any]) -> dict[str, Any]:
        return {
            key: nulls(value) if isinstance(value, dict) else None
            for key, value in defaults.items()
            if isinstance(value, dict) or value in ("", False)
        }

    tenant = {"namespace": "a", "bucket": "aaa"} | ({} if embedded else {"existingSecret": "mine"})
    given = {"tenants": [tenant], "store": {"embedded": {"enabled": embedded}}}
    values = nulls(yaml.safe_load((install.CHART / "values.yaml").read_text()))
    assert values["store"]["external"] == {"endpoint": None}
    values["store"]["embedded"]["enabled"] = embedded
    found = installed(a="aaa")
    documents = render(given | values | {"tenants": [tenant]}, folder=tmp_path, found=found)
    assert documents == render(given, folder=tmp_path, found=found)


@pytest.mark.parametrize(
    "path",
    [
        *("images.worker", "images.worker.repository", "images.worker.pullPolicy", "images.api.pullPolicy"),
        *("images", "sources", "sources.maxBytes", "worker", "operator", "operator.replicas", "api"),
        *("operator.logLevel", "api.logLevel", "worker.logLevel"),
        *("operator.podAnnotations", "api.podAnnotations"),  # by their defaults Prometheus finds the pods
        *("api.service.port", "api.temporaryStorage", "store", "store.region", "store.embedded.persistence.enabled"),
        *("store.embedded.persistence.size", "networkPolicy.enabled"),
    ],
)
def test_another_value_that_is_null_is_missed_by_name(path: str, tmp_path: Path) -> None:
    *above, name = path.split(".")
    values: dict[str, Any] = {name: None}
    for each in reversed(above):
        values = {each: values}
    with pytest.raises(LocalClusterError, match=f"at '/?{'/'.join(above)}'.*{name}"):
        render(values, folder=tmp_path)


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        ("registry.example.com/team/worker:1", True),
        ("registry.example.com/team/deep/worker@sha256:1", True),
        ("ingestion-worker:0.1.0", True),  # the chart's own
        ("ingestion-worker:0.1.1", False),
        ("mirror/registry.example.com/team/worker:1", False),
        ("registry.example.com/TEAM/worker:1", False),
    ],
)
def test_a_job_may_name_the_images_that_are_allowed(image: str, allowed: bool, tmp_path: Path) -> None:
    config = config_of(render({"worker": {"allowedImages": ["registry.example.com/team/*"]}}, folder=tmp_path))
    assert config.allows_image(image) is allowed
    assert config_of(render({}, folder=tmp_path)).allows_image(image)


def test_worker_pods_pull_with_the_secrets_that_the_others_do(tmp_path: Path) -> None:
    """By their account: a job made by REST has no template that could name any."""
    documents = render({**VALUES, "images": {"pullSecrets": ["registry"]}}, folder=tmp_path)
    accounts = [each for each in documents if each["metadata"]["name"] == "ingestion-worker"]
    accounts = [each for each in accounts if each["kind"] == "ServiceAccount"]
    assert [each["imagePullSecrets"] for each in accounts] == [[{"name": "registry"}]] * 2
    assert all(spec["imagePullSecrets"] == [{"name": "registry"}] for spec in pod_specs(documents).values())


def test_every_pod_can_be_placed(tmp_path: Path) -> None:
    """On clusters whose nodes all have a taint, too."""
    place = {
        "nodeSelector": {"pool": "ingestion"},
        "tolerations": [{"key": "pool", "operator": "Exists"}],
        "priorityClassName": "important",
    }
    spread = {**place, "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}}
    values = {"operator": spread, "api": spread, "store": {"embedded": spread}, "worker": place}
    documents = render({**VALUES, **values}, folder=tmp_path)
    for name, spec in pod_specs(documents).items():
        wanted = place if spec.get("serviceAccountName") == names.WORKER_SERVICE_ACCOUNT else spread
        assert {key: spec.get(key) for key in wanted} == wanted, name
    pod = worker_pod(config_of(documents))
    assert {key: pod.get(key) for key in place} == place


def test_every_pod_has_the_labels_and_annotations_that_it_is_given(tmp_path: Path) -> None:
    """As policies, meshes and bills ask for them; what the chart itself sets stays."""
    labels = {**LABELS, "app.kubernetes.io/name": "mine"}
    annotations = {**ANNOTATIONS, "helm.sh/hook": "mine", f"{names.GROUP}/config-digest": "mine"}
    given = {"podLabels": labels, "podAnnotations": annotations}

    def metadata(values: dict[str, Any]) -> dict[str, dict[str, dict[str, str]]]:
        """Without what differs from one rendering to the next: digests of secrets that are made."""
        return {
            re.sub("-setup-.*", "-setup", name): {
                key: {each: re.sub("^[0-9a-f]{64}$", "digest", text) for each, text in pod["metadata"][key].items()}
                for key in ("labels", "annotations")
            }
            for name, pod in pods(render({**VALUES, **values}, folder=tmp_path)).items()
        }

    own = metadata({})
    parts = {"operator": given, "api": given, "store": {"embedded": given}, "worker": given}
    assert metadata(parts) == {
        name: {"labels": labels | each["labels"], "annotations": annotations | each["annotations"]}
        for name, each in own.items()
    }
    config = config_of(render({**VALUES, **parts}, folder=tmp_path))
    assert (config.worker_pod_labels, config.worker_pod_annotations) == (labels, annotations)


def test_every_account_has_the_annotations_that_it_is_given(tmp_path: Path) -> None:
    parts = ("operator", "api", "worker")
    values = {part: {"serviceAccountAnnotations": {"of": part}} for part in parts}
    documents = render({**VALUES, **values}, folder=tmp_path)
    made = [each["metadata"] for each in documents if each["kind"] == "ServiceAccount"]
    assert {each["name"].rpartition("-")[2]: each["annotations"] for each in made} == {
        part: {"of": part} for part in parts
    }


def test_prometheus_is_told_of_pods_that_serve_metrics_unless_it_is_not_to_be(tmp_path: Path) -> None:
    def scraped(**values: Any) -> dict[str, str]:
        made = pods(render({**VALUES, **values}, folder=tmp_path)).items()
        annotations = {name: pod["metadata"].get("annotations") or {} for name, pod in made}
        on = {name: each for name, each in annotations.items() if each.get("prometheus.io/scrape") == "true"}
        return {name: each["prometheus.io/port"] for name, each in on.items()}

    assert scraped() == {"Deployment/i-operator": "8080", "Deployment/i-api": "8000"}
    off = {"podAnnotations": {"prometheus.io/scrape": "false"}}
    without = {"podAnnotations": dict.fromkeys(("prometheus.io/scrape", "prometheus.io/port"))}
    assert scraped(operator=off, api=without) == {}


def test_the_cluster_autoscaler_may_take_nodes_whose_pods_lose_nothing(tmp_path: Path) -> None:
    """An emptyDir that no annotation names keeps it from that."""
    key = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
    documents = render({**VALUES, "store": {"embedded": {"persistence": {"enabled": False}}}}, folder=tmp_path)
    made = {each["metadata"]["name"]: each["spec"]["template"] for each in documents if each["kind"] == "Deployment"}
    named = {name: pod["metadata"]["annotations"].get(key) for name, pod in made.items()}
    local = {
        name: ",".join(volume["name"] for volume in pod["spec"]["volumes"] if "emptyDir" in volume)
        for name, pod in made.items()
    }
    assert named == {**local, "i-store": None}


def test_every_pod_has_the_resources_that_it_is_given(tmp_path: Path) -> None:
    """Where a quota or a LimitRange wants some, a pod without them is refused."""
    given = {"resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}}}
    values = {"operator": given, "api": given, "store": {"embedded": given}, "worker": given}
    documents = render({**VALUES, **values}, folder=tmp_path)
    for name, spec in pod_specs(documents).items():
        assert [container["resources"] for container in spec["containers"]] == [given["resources"]], name


@pytest.mark.parametrize("pem", ["", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"])
def test_a_tenant_s_store_is_tried_as_its_worker_pods_use_it(pem: str, tmp_path: Path) -> None:
    """By a pod that their NetworkPolicy holds for too."""
    tenant = {"namespace": "team-a", "bucket": "team-a"}
    documents = render({"tenants": [tenant], "caCertificates": pem}, folder=tmp_path)
    config, made = config_of(documents), pods(documents)["Pod/i-test-team-a"]
    pod, trial = worker_pod(config), made["spec"]
    assert made["metadata"]["namespace"] == "team-a"
    assert names.LABEL_JOB_UID in made["metadata"]["labels"]
    of_the_pod = ("restartPolicy", "serviceAccountName", "automountServiceAccountToken", "enableServiceLinks")
    assert {key: trial[key] for key in of_the_pod} == {key: pod[key] for key in of_the_pod}
    (ours,), (theirs,) = trial["containers"], pod["containers"]
    for key in ("image", "imagePullPolicy", "resources", "securityContext"):
        assert ours[key] == theirs[key]
    needless = {names.ENV_LOG_LEVEL, names.ENV_MAX_SOURCE_BYTES, names.ENV_SOURCE_DENY, "HOME"}
    needless |= {names.ENV_ATTEMPT_FILE, names.ENV_JOB_UID, names.ENV_GENERATION, names.ENV_STAGE, names.ENV_MAP_DIGEST}
    assert ours["env"] == [each for each in theirs["env"] if each["name"] not in needless]
    assert [each for each in theirs["volumeMounts"] if each["name"] == "ca"] == ours["volumeMounts"][:-1]
    assert [each for each in pod["volumes"] if each["name"] == "ca"] == trial["volumes"][:-1]


def test_a_store_of_ones_own_is_tried_with_the_tenant_s_secret(tmp_path: Path) -> None:
    tenants = [{"namespace": "a", "bucket": "aaa", "existingSecret": "mine"}]
    documents = render({"tenants": tenants, "store": {"embedded": {"enabled": False}}}, folder=tmp_path)
    (container,) = pod_specs(documents)["Pod/i-test-a"]["containers"]
    env = {each["name"]: each for each in container["env"]}
    assert "AWS_ENDPOINT_URL" not in env  # AWS S3
    keys = {"AWS_ACCESS_KEY_ID": {}, "AWS_SECRET_ACCESS_KEY": {}, "AWS_SESSION_TOKEN": {"optional": True}}
    assert {name: each["valueFrom"]["secretKeyRef"] for name, each in env.items() if "valueFrom" in each} == {
        key: {"name": "mine", "key": key} | more for key, more in keys.items()
    }


def test_worker_pods_reach_every_usual_resolver(tmp_path: Path) -> None:
    reached = {
        (json.dumps(peer), port["port"], port["protocol"])
        for rule in egress(render(VALUES, folder=tmp_path))
        for peer in rule["to"]
        for port in rule.get("ports", [])
    }
    for namespace, port in (("kube-system", 53), ("openshift-dns", 5353)):
        peer = json.dumps({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}})
        assert {(peer, port, "UDP"), (peer, port, "TCP")} <= reached
    (peer,) = {peer for peer, port, _ in reached if port == 53 and "ipBlock" in peer}
    assert {(port, protocol) for other, port, protocol in reached if other == peer} == {(53, "UDP"), (53, "TCP")}
    of_nodes = ipaddress.ip_network(json.loads(peer)["ipBlock"]["cidr"])
    # NodeLocal DNSCache, and as Kubespray has it; AKS's LocalDNS; GKE's Cloud DNS
    for resolver in ("169.254.20.10", "169.254.25.10", "169.254.10.11", "169.254.169.254"):
        assert ipaddress.ip_address(resolver) in of_nodes


def test_worker_pods_reach_the_addresses_that_are_allowed(tmp_path: Path) -> None:
    """A host's name is for the worker alone: a NetworkPolicy does not know any."""
    allow = ["10.1.0.0/16", "10.2.3.4", "fd00::1", "fd01::/64", "files.example.internal", "e2e-01.liar.svc", "3-x"]
    documents = render({**VALUES, "sources": {"allow": allow}}, folder=tmp_path)
    blocks = [peer["ipBlock"]["cidr"] for rule in egress(documents) if "ports" not in rule for peer in rule["to"]]
    assert blocks == ["10.1.0.0/16", "10.2.3.4/32", "fd00::1/128", "fd01::/64"]
    assert config_of(documents).source_allow == allow


@pytest.mark.parametrize(
    "allow",
    [
        *("example.com/docs", "https://example.com", "example.com:8080", "*.example.com", "-x", "[::1]"),
        *("10.1.2", "10.1.2.256", "10.0.0.0/33", "fd00::/129"),
    ],
)
def test_what_is_no_host_address_or_network_is_not_allowed(allow: str, tmp_path: Path) -> None:
    with pytest.raises(LocalClusterError, match="/sources/allow/0"):
        render({"sources": {"allow": [allow]}}, folder=tmp_path)


def test_worker_pods_do_not_reach_what_is_denied(tmp_path: Path) -> None:
    """By its family; that of Azure's platform, which every machine there reaches, unless somebody takes it out."""
    values = {**VALUES, "sources": {"deny": ["11.0.0.0/8", "2001:db8:1::/48", "10.0.0.0/8"]}}
    documents = render(values, folder=tmp_path)
    four, six = public(documents)
    assert {"11.0.0.0/8", "10.0.0.0/8", "192.168.0.0/16"} <= set(four)
    assert len(set(four)) == len(four)
    assert {"2001:db8:1::/48", "fc00::/7", "64:ff9b::/96"} <= set(six)
    assert all(ipaddress.ip_network(each).version == 4 for each in four)
    assert all(ipaddress.ip_network(each).version == 6 for each in six)
    assert config_of(documents).source_deny == values["sources"]["deny"]
    unchanged = render(VALUES, folder=tmp_path)
    assert config_of(unchanged).source_deny == ["168.63.129.16/32"]
    assert "168.63.129.16/32" in public(unchanged)[0]
    nothing = render({**VALUES, "sources": {"deny": None}}, folder=tmp_path)
    assert config_of(nothing).source_deny == []
    assert "168.63.129.16/32" not in public(nothing)[0]


def public(documents: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Return what worker pods may not reach of all IPv4 and of all IPv6 addresses."""
    blocks = [peer["ipBlock"] for rule in egress(documents) for peer in rule["to"] if "ipBlock" in peer]
    found = {block["cidr"]: block["except"] for block in blocks if "except" in block}
    return found["0.0.0.0/0"], found["::/0"]


def test_the_operator_reaches_one_lease_and_no_other(tmp_path: Path) -> None:
    documents = render(VALUES, folder=tmp_path)
    rules = [
        (role["metadata"]["namespace"], rule["verbs"], rule.get("resourceNames"))
        for role in documents
        if role["kind"] in ("Role", "ClusterRole")
        for rule in role["rules"]
        if "leases" in rule["resources"]
    ]
    assert rules == [("s", ["get", "update", "patch"], ["i-operator"]), ("s", ["create"], None)]
    (container,) = pod_specs(documents)["Deployment/i-operator"]["containers"]
    assert {"name": "INGESTION_LEASE_NAME", "value": "i-operator"} in container["env"]
    assert {"POD_NAMESPACE", "POD_NAME"} <= {each["name"] for each in container["env"]}
    bindings = [each for each in documents if each["kind"] == "RoleBinding"]
    assert ("i-operator", "s") in {(each["roleRef"]["name"], each["metadata"]["namespace"]) for each in bindings}


@pytest.mark.parametrize("component", ["operator", "api"])
def test_a_rolling_update_starts_the_new_before_it_ends_the_old(component: str, tmp_path: Path) -> None:
    documents = {f"{each['kind']}/{each['metadata']['name']}": each for each in render(VALUES, folder=tmp_path)}
    spec = documents[f"Deployment/i-{component}"]["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/readyz"
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    budget = documents[f"PodDisruptionBudget/i-{component}"]["spec"]
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert budget["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_the_api_outlives_its_grace(tmp_path: Path) -> None:
    """The kubelet must not kill it while it still may answer: 5 s of preStop and 25 s of requests under way."""
    pod = pod_specs(render(VALUES, folder=tmp_path))["Deployment/i-api"]
    listens_on = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > listens_on + Options(namespace="system").shutdown_seconds


def test_an_ingress_leads_to_what_asks_for_a_key_and_nowhere_else(tmp_path: Path) -> None:
    """And with TLS; without the value there is none."""
    ingress = {"enabled": True, "host": "x.example", "tlsSecret": "tls"}
    values = {**VALUES, "api": {"ingress": ingress, "service": {"port": 80, "annotations": {"lb": "internal"}}}}
    documents = {f"{each['kind']}/{each['metadata']['name']}": each for each in render(values, folder=tmp_path)}
    spec = documents["Ingress/i-api"]["spec"]
    assert spec["tls"] == [{"hosts": ["x.example"], "secretName": "tls"}]
    (rule,) = spec["rules"]
    (path,) = rule["http"]["paths"]
    assert (rule["host"], path["path"], path["pathType"]) == ("x.example", "/v1", "Prefix")
    elsewhere = {"ingress": {"enabled": True, "host": "x.example", "tlsElsewhere": True}}
    (without,) = [each for each in render({"api": elsewhere}, folder=tmp_path) if each["kind"] == "Ingress"]
    assert without["spec"] == {key: value for key, value in spec.items() if key != "tls"}
    service = documents["Service/i-api"]
    assert service["metadata"]["annotations"] == {"lb": "internal"}
    assert path["backend"]["service"]["port"]["name"] in [port["name"] for port in service["spec"]["ports"]]
    for off in ({}, {"api": {"ingress": None}}):
        assert not [each for each in render({**VALUES, **off}, folder=tmp_path) if each["kind"] == "Ingress"]


@pytest.mark.parametrize(("kind", "warned"), [("ClusterIP", False), ("NodePort", True), ("LoadBalancer", True)])
def test_who_installs_is_warned_of_plain_http(kind: str, warned: bool, tmp_path: Path) -> None:
    """By the chart's notes, which are rendered for an installation alone, and here as a template."""
    chart = tmp_path / "chart"
    shutil.copytree(install.CHART, chart)
    text = (chart / "templates" / "NOTES.txt").read_text()
    (chart / "templates" / "notes.yaml").write_text(
        f'{{{{ define "notes" }}}}{text}{{{{ end }}}}notes: {{{{ include "notes" . | quote }}}}'
    )
    documents = render({**VALUES, "api": {"service": {"type": kind}}}, folder=tmp_path, chart=chart)
    [notes] = [each["notes"] for each in documents if "notes" in each]
    assert "Mint an API key" in notes
    assert (f"WARNING: api.service.type is {kind}" in notes) is warned


def test_a_budget_of_one_replica_would_block_a_drain(tmp_path: Path) -> None:
    values = {**VALUES, "api": {"replicas": 1}, "operator": {"replicas": 1}}
    assert not [each for each in render(values, folder=tmp_path) if each["kind"] == "PodDisruptionBudget"]


def test_a_budget_stays_where_an_autoscaler_says_how_many_replicas_there_are(tmp_path: Path) -> None:
    documents = render({**VALUES, "api": {"replicas": None}}, folder=tmp_path)
    budgets = [each["metadata"]["name"] for each in documents if each["kind"] == "PodDisruptionBudget"]
    assert budgets == ["i-api", "i-operator"]
    [deployment] = [each for each in documents if (each["kind"], each["metadata"]["name"]) == ("Deployment", "i-api")]
    assert "replicas" not in deployment["spec"]


def test_the_api_keys_are_never_written_by_the_chart(tmp_path: Path) -> None:
    (keys,) = [each for each in render(VALUES, folder=tmp_path) if each["metadata"]["name"] == "ingestion-api-keys"]
    assert keys["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert "data" not in keys
    assert "stringData" not in keys


def test_the_store_gets_the_credentials_that_the_tenants_have(tmp_path: Path) -> None:
    documents = render(VALUES, folder=tmp_path)
    buckets = {tenant["namespace"]: tenant["bucket"] for tenant in VALUES["tenants"]}
    given = credentials(documents)
    assert set(given) == set(buckets)
    assert accounts(documents) == {name: f"{buckets[name]} {account}\n" for name, account in given.items()}


def test_the_store_is_not_set_up_for_tenants_that_are_gone(tmp_path: Path) -> None:
    """Helm leaves what it does not know in a Secret: the bucket of a tenant that is gone may be another's now."""
    known = {"a": "bucket-a key-a secret-a\n", "gone": "bbb key-gone secret-gone\n"}
    documents = render(VALUES, folder=tmp_path, found={ACCOUNTS: secret("i-store-accounts", known)})
    (volume,) = [
        volume["secret"]
        for name, spec in pod_specs(documents).items()
        if name.startswith("Job/i-store-setup-")
        for volume in spec["volumes"]
    ]
    assert volume["secretName"] == "i-store-accounts"
    assert volume["items"] == [{"key": name, "path": name} for name in ("a", "b")]


def test_the_set_up_job_outlives_who_waits_for_it(tmp_path: Path) -> None:
    """Helm fails when it waits for a Job that is gone; once it goes, no rollback comes upon it any more."""
    documents = render(VALUES, folder=tmp_path)
    [setup] = [each["spec"] for each in documents if each["kind"] == "Job"]
    assert setup["ttlSecondsAfterFinished"] >= 10 * int(install.TIMEOUT.removesuffix("s"))


def test_what_helm_keeps_argo_cd_keeps_too(tmp_path: Path) -> None:
    """Of a tenant that is taken out Argo CD would else prune the namespace, with all its jobs."""
    kept: dict[str, set[str]] = {}
    for document in render(VALUES, folder=tmp_path):
        annotations = document["metadata"].get("annotations", {})
        if annotations.get("helm.sh/resource-policy") == "keep":
            kept.setdefault(document["kind"], set()).add(document["metadata"]["name"])
            assert annotations["argocd.argoproj.io/sync-options"] == "Prune=false,Delete=false"
    assert kept == {
        "Namespace": {"a"},
        "PersistentVolumeClaim": {"i-store"},
        "Secret": {"ingestion-api-keys", "ingestion-store", "i-store-accounts", "i-store-root"},
    }
    for plural in ("ingestionjobs", "ingestionbatches"):
        crd = yaml.safe_load((install.CHART / "crds" / f"{plural}.yaml").read_text())
        assert crd["metadata"]["annotations"]["argocd.argoproj.io/sync-options"] == "Prune=false,Delete=false"


def test_a_tenant_keeps_its_credentials_with_its_bucket_and_no_other(tmp_path: Path) -> None:
    """What was made before is taken up again; of a tenant with another bucket, and of a broken one, it is made anew."""
    known = {"a": "bucket-a key-a secret-a\n", "b": "other key-b secret-b\n", "c": "ccc key-c\n"}
    found = {ACCOUNTS: secret("i-store-accounts", known)}
    values = {**VALUES, "tenants": [*VALUES["tenants"], {"namespace": "c", "bucket": "ccc"}]}
    documents = render(values, folder=tmp_path, found=found)
    given = credentials(documents)
    assert given["a"] == "key-a secret-a"
    assert "key-b" not in given["b"]
    assert "key-c" not in given["c"]
    assert accounts(documents) == {
        name: f"{bucket} {given[name]}\n" for name, bucket in (("a", "bucket-a"), ("b", "bbb"), ("c", "ccc"))
    }


@pytest.mark.parametrize("own", ["", "my-root"])
def test_the_store_starts_anew_with_another_root_secret(own: str, tmp_path: Path) -> None:
    """It reads it when it starts, and the set-up Job could not get in with one that was restored or made anew."""
    values = {**VALUES, "store": {"embedded": {"existingSecret": own}}}
    name = own or "i-store-root"

    def template(*key: str) -> dict[str, Any]:
        data = dict(zip(("ROOT_ACCESS_KEY_ID", "ROOT_SECRET_ACCESS_KEY"), key, strict=False))
        found = {f"/api/v1/namespaces/s/secrets/{name}": secret(name, data)} if data else {}
        documents = {each["metadata"]["name"]: each for each in render(values, folder=tmp_path, found=found)}
        if data and not own:
            assert documents[name]["data"] == secret(name, data)["data"]
        return cast(dict[str, Any], documents["i-store"]["spec"]["template"])

    assert template("root", "old") == template("root", "old")
    assert template("root", "old") != template("root", "new")
    assert template("root", "old") != template("other", "old")
    assert template("root", "old") != template()


def test_what_a_tenant_can_write_is_never_looked_up(tmp_path: Path) -> None:
    """A tenant could else name another's account in its own Secret, and have the store take that one's key for its."""
    forged = secret("ingestion-store", {"AWS_ACCESS_KEY_ID": "key-b", "AWS_SECRET_ACCESS_KEY": "forged-by-a"})
    documents = render(VALUES, folder=tmp_path, found={"/api/v1/namespaces/a/secrets/ingestion-store": forged})
    assert "forged-by-a" not in json.dumps([credentials(documents), accounts(documents)])
    text = "".join(path.read_text() for path in (install.CHART / "templates").rglob("*") if path.is_file())
    lookups = [words.split()[:2] for words in re.findall(r"\blookup\b \S+ (.*)", text)]
    assert lookups
    for kind, namespace in lookups:
        assert namespace.endswith(".Release.Namespace") or kind == '"ClusterRole"', (kind, namespace)


def test_a_second_release_is_refused(tmp_path: Path) -> None:
    def role(name: str, **labels: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "labels": labels}}

    chart, instance = "helm.sh/chart", "app.kubernetes.io/instance"
    own = {f"i-{name}": {chart: "ingestion-operator-0.0.9", instance: "i"} for name in ("operator", "api")}
    others = {"view": {}, "x": {chart: "ingestion-operator-extras-1.0.0", instance: "x"}}
    roles = [role(name, **labels) for name, labels in {**own, **others}.items()]
    body = {"apiVersion": RBAC, "kind": "ClusterRoleList"}
    assert render(VALUES, folder=tmp_path, found={CLUSTER_ROLES: {**body, "items": roles}})
    roles.append(role("second-operator", **{chart: "ingestion-operator-0.2.0-rc.1", instance: "second"}))
    with pytest.raises(LocalClusterError, match="second"):
        render(VALUES, folder=tmp_path, found={CLUSTER_ROLES: {**body, "items": roles}})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "caCertificates": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
            "api": {"replicas": None, "resources": None, "ingress": {"enabled": True, "host": "x", "tlsSecret": "tls"}},
            "operator": {"podAnnotations": {"prometheus.io/port": None}, "tolerations": [{"operator": "Exists"}]},
            "sources": {"allow": ["10.2.3.4"], "deny": None, "maxBytes": 1e9},
            "worker": {"resources": {"requests": {"cpu": 0.5}, "limits": {"cpu": 2}}},
        },
        {
            "tenants": [{"namespace": "a", "bucket": "aaa", "existingSecret": "mine"}],
            "store": {"embedded": {"enabled": False}, "external": {"endpoint": None}},
        },
    ],
)
def test_helm_3_renders_what_helm_4_does(more: dict[str, Any], tmp_path: Path) -> None:
    found = installed(a="bucket-a", b="bbb")
    documents = render({**VALUES, **more}, folder=tmp_path, found=found)
    assert documents == render({**VALUES, **more}, folder=tmp_path, found=found, helm="helm-v3")


@pytest.mark.parametrize(
    ("values", "named"),
    [({"tenant": []}, "tenant"), ({"tenants": [{"namespace": "s", "bucket": "aaa"}]}, r"tenants\[0\].namespace")],
)
def test_helm_3_refuses_what_helm_4_does(values: dict[str, Any], named: str, tmp_path: Path) -> None:
    """By the schema, and by the templates."""
    for helm in HELMS:
        with pytest.raises(LocalClusterError, match=named):
            render(values, folder=tmp_path, helm=helm)


def test_the_install_page_says_with_which_helms_the_chart_was_tried() -> None:
    page = (install.REPOSITORY / "docs" / "install.md").read_text()
    assert f"(tried with {versions.HELM.removeprefix('v')} and {versions.HELM_3.removeprefix('v')})" in page


@pytest.mark.parametrize("helm", HELMS)
def test_helm_lint_has_nothing_to_say(helm: str) -> None:
    assert "0 chart(s) failed" in run([binaries.path(name=helm), "lint", "--strict", install.CHART])


def _decode(text: str) -> str:
    return base64.b64decode(text).decode()


def scalars(node: Any) -> Iterator[Any]:
    """Yield every value of a document, however deep."""
    if isinstance(node, dict | list):
        for each in node.values() if isinstance(node, dict) else node:
            yield from scalars(each)
    else:
        yield node


def secret(name: str, data: dict[str, str]) -> dict[str, Any]:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": encoded}


def installed(**buckets: str) -> dict[str, Any]:
    """Return the Secrets that an installation has made, by path, with the tenants' buckets: none is made anew then."""
    of_tenants = {name: f"{bucket} key-{name} secret-{name}\n" for name, bucket in buckets.items()}
    root = secret("i-store-root", {"ROOT_ACCESS_KEY_ID": "root", "ROOT_SECRET_ACCESS_KEY": "made"})
    return {ACCOUNTS: secret("i-store-accounts", of_tenants), "/api/v1/namespaces/s/secrets/i-store-root": root}


def accounts(documents: list[dict[str, Any]]) -> dict[str, str]:
    """Return what the store is told of each tenant."""
    (found,) = [each for each in documents if each["metadata"]["name"] == "i-store-accounts"]
    return {name: _decode(value) for name, value in found["data"].items()}


def credentials(documents: list[dict[str, Any]]) -> dict[str, str]:
    """Return the key id and the secret that each tenant's own Secret holds."""
    found = [each for each in documents if each["kind"] == "Secret" and each["metadata"]["name"] == "ingestion-store"]
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    return {each["metadata"]["namespace"]: " ".join(_decode(each["data"][name]) for name in names) for each in found}
