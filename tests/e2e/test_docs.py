"""The pages are true: every command of every page is run as a reader would run it, on a real cluster.

A page's ```console blocks run in order in one bash, where `$ ` begins a command and other lines are what it prints.
`…` stands for what differs from run to run; a variable whose value holds it is for the reader, here the test, to fill
in. The only other changes: `team-a` is the test's own tenant, local ports are free ones, and `make` and `docker` only
say what they would do.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from ingestion_demo import provider
from ingestion_demo.rest import Rest
from local_cluster import binaries, install, ports
from local_cluster.commands import run
from local_cluster.errors import LocalClusterError
from support.builders import KNOWLEDGE_BASE
from support.worker_builders import pdf

from .conftest import CLUSTER, RELEASE, SYSTEM, VALUES, Tenant
from .test_chart import config_of, egress, render
from .test_users import SEGMENTED, document, new_word

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]

T = TypeVar("T")
REPOSITORY = install.REPOSITORY
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEREDOC = re.compile(r"<<EOF\n.*?^EOF$", re.MULTILINE | re.DOTALL)
STARTS = re.compile(r"^\$ ", re.MULTILINE)
SERVICE_PORTS = ("8000", "7070")
FORWARD = " &"
FORWARDS = """ > forward.log 2>&1 &
until grep -qs 'Forwarding from' forward.log; do kill -0 $! || { cat forward.log; exit 1; }; sleep 0.2; done"""
CURLRC = "fail-with-body\nsilent\nshow-error\nnoproxy = 127.0.0.1\n"
EXTERNAL = "external-store"
HANDBOOK = ["A linear system is solved with the backslash operator.", "Water boils at 100 degrees."]
WALKED = {
    *("README.md", "docs/install.md", "docs/upgrade.md", "docs/uninstall.md", "docs/api-keys.md"),
    *("docs/give-a-file.md", "docs/failed-segment-log.md", "docs/rest-api.md"),
}
# What is run there takes long, and is make's.
MADE = {"docs/performance.md", "docs/reliability.md"}


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of a block, and what the page says that it prints."""

    text: str
    prints: str

    def check(self, output: str) -> None:
        """Assert that each line that the page shows is in the output, in order; spaces count as one."""
        said = _spaced(output)
        for line in filter(None, map(_spaced, self.prints.splitlines())):
            found = re.search(".*?".join(re.escape(part.strip()) for part in line.split("…")), said)
            assert found, f"{self.text}\nshould print: {line}\nprinted:\n{output}"
            said = said[found.end() :]


def blocks(page: str, language: str) -> list[str]:
    """Return a page's fenced blocks of a language."""
    found = FENCE.findall((REPOSITORY / page).read_text())
    return [text for kind, text in found if kind == language]


def named(page: str) -> dict[str, Any]:
    """Return what a page's YAML blocks hold, by the name that the first line of each gives it."""
    return {text.partition("\n")[0].removeprefix("# "): yaml.safe_load(text) for text in blocks(page, "yaml")}


def commands(block: str) -> list[Command]:
    """Split a block at the lines that begin with `$ `; a here-document belongs to its command."""
    parts = [part.strip("\n") for part in STARTS.split(block) if part.strip()]
    return [_command(part) for part in parts]


def _command(part: str) -> Command:
    heredoc = HEREDOC.search(part)
    if heredoc:
        return Command(text=part[: heredoc.end()], prints=part[heredoc.end() :])
    text, _, prints = part.partition("\n")
    return Command(text=text, prints=prints)


def _spaced(text: str) -> str:
    return " ".join(text.split())


class Page:
    """A page on its way: each `run` runs its next console block in the same bash.

    Args:
        name: the page.
        namespace: the tenant's, and the name of its bucket: stands for `team-a`.
        folder: the working directory, with everything that a checkout has.
    """

    def __init__(self, *, name: str, namespace: str, folder: Path) -> None:
        self._blocks = blocks(name, "console")
        self._namespace = namespace
        self._ports = dict(zip(SERVICE_PORTS, map(str, ports.free(count=len(SERVICE_PORTS))), strict=True))
        self.folder = folder
        for entry in [*REPOSITORY.glob("[!.]*"), REPOSITORY / ".venv"]:
            (folder / entry.name).symlink_to(entry)
        (folder / ".curlrc").write_text(CURLRC)
        programs = binaries.ensure(names=["kubectl", "helm"])
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "KUBECONFIG": str(CLUSTER.kubeconfig),
            "CLUSTER_NAME": CLUSTER.name,
            "CURL_HOME": str(folder),
        }
        self._shell = subprocess.Popen(
            ["bash", "-euo", "pipefail"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env={**os.environ, **environment},
            start_new_session=True,  # so that its port-forwards can be ended with it
        )

    @property
    def url(self) -> str:
        """Where the page's port-forward of the API is."""
        return f"http://127.0.0.1:{self._ports['8000']}"

    def run(self, **variables: str) -> list[str]:
        """Run the next block and return what each command prints, which is as the page says.

        Args:
            variables: values of those that the page leaves open with `…`.
        """
        return [self._run(command, variables) for command in commands(self._blocks.pop(0))]

    def close(self) -> None:
        """End bash and what it left running."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGTERM)
        self._shell.communicate(timeout=60)

    @property
    def done(self) -> bool:
        """Whether every block was run."""
        return not self._blocks

    def _run(self, command: Command, variables: dict[str, str]) -> str:
        text, end = self._ours(command.text, variables), f"end-{uuid.uuid4()}"
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        # A command must not read on in the script, which is bash's input too.
        self._shell.stdin.write(f"{{ {text}\n}} </dev/null\nprintf '\\n{end}\\n'\n")
        self._shell.stdin.flush()
        output = ""
        for line in self._shell.stdout:
            if line.strip() == end:
                Command(text=text, prints=self._ours(command.prints, variables)).check(output)
                return output
            output += line
        raise AssertionError(f"{text}\nfailed:\n{output}")

    def _ours(self, text: str, variables: dict[str, str]) -> str:
        for name, value in variables.items():
            text = re.sub(rf"\b{name}=\S*…\S*", f"{name}={value}", text)
        text = text.replace("team-a", self._namespace)
        for service, local in self._ports.items():
            text = text.replace(f"127.0.0.1:{service}", f"127.0.0.1:{local}")
            text = re.sub(rf"(port-forward svc/\S+) {service}\b", rf"\1 {local}:{service}", text)
        text = re.sub(r"^make ", "make --dry-run ", text)
        text = re.sub(r"\bdocker (build|push)\b", r"echo docker \1", text)
        return text.removesuffix(FORWARD) + FORWARDS if text.endswith(FORWARD) else text


@contextlib.contextmanager
def walk(name: str, *, namespace: str, folder: Path) -> Iterator[Page]:
    """Run a page from its first block to its last."""
    page = Page(name=name, namespace=namespace, folder=folder)
    try:
        yield page
        assert page.done, f"{name} has blocks that the test does not run"
    finally:
        page.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a working directory with the files that the pages speak of."""
    made = tmp_path / "checkout"
    made.mkdir()
    (made / "handbook.pdf").write_bytes(pdf(pages=HANDBOOK))
    (made / "notes.md").write_text("# Notes\n\nHarmless.\n")
    write_values(made)
    return made


def write_values(folder: Path, **more: Any) -> None:
    """Write my-values.yaml: those of the test's installation, and more."""
    (folder / "my-values.yaml").write_text(json.dumps({**VALUES, **install.local_values(), **more}))


@pytest.fixture
def newcomer(tenant: Tenant) -> Tenant:
    """Return a tenant without the pages' job and document, which a run before may have left on a kept cluster."""
    tenant.kubectl("delete", "ingestionjob", "handbook", "--ignore-not-found")
    tenant.store().delete(key="handbook.pdf")
    return tenant


def mint(tenant: Tenant) -> str:
    """Return a new key of the tenant."""
    where = {"kubeconfig": tenant.installation.kubeconfig, "namespace": SYSTEM}
    return install.mint_key(**where, tenant=tenant.namespace, name="docs")


def wait_for_key(page: Page, key: str) -> None:
    """Return when the replica behind the page's port-forward knows the key."""
    rest = Rest(url=page.url, key=key)
    try:
        rest.wait_for_key()
    finally:
        rest.close()


def failed_in_part(tenant: Tenant) -> tuple[str, str]:
    """Return a job that has failed in part, and the word that its provider refuses."""
    word = new_word()
    text = document(bad={1, 4}, word=word)
    name, _ = tenant.upload(text, file="parts.txt", content_type="text/plain", **SEGMENTED)
    tenant.ended(name, "partial_failure")
    return name, word


def schema(part: str) -> dict[str, Any]:
    """Return the schema of `spec` or `status`."""
    crd = yaml.safe_load((REPOSITORY / "crds" / "ingestionjobs.yaml").read_text())
    [version] = crd["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"][part]
    return found


def objects(node: dict[str, Any], *, path: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each object of a schema as its path for `kubectl explain`, and its fields."""
    properties = node.get("properties") or node.get("items", {}).get("properties", {})
    if properties:
        yield path, list(properties)
    for name, field in properties.items():
        yield from objects(field, path=f"{path}.{name}")


def helm(*arguments: str | Path, user: str = "") -> str:
    """Run Helm in the release's namespace, as an administrator or as somebody else."""
    where: list[str | Path] = ["--kubeconfig", CLUSTER.kubeconfig, "--namespace", SYSTEM]
    where += ["--kube-as-user", user] if user else []
    return run([binaries.path(name="helm"), *arguments, *where])


def granted(documents: list[dict[str, Any]]) -> set[tuple[str, str, str, str]]:
    """Return who may do what where, of rendered roles: account, place, resource, verb."""
    places = {None: "cluster", "s": "release"}
    return {
        (
            role["metadata"]["name"].removeprefix("i-"),
            places.get(role["metadata"].get("namespace"), "tenant"),
            what,
            verb,
        )
        for role in documents
        if role["kind"] in ("Role", "ClusterRole")
        for rule in role["rules"]
        for what in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_install_page_s_build_arguments_are_there() -> None:
    """And nothing is installed past the index that one of them names, as `uv sync` would."""
    files = [(REPOSITORY / "images" / name).read_text() for name in ("Dockerfile", "store.Dockerfile")]
    said = re.findall(r"--build-arg (\w+)=", (REPOSITORY / "docs" / "install.md").read_text())
    assert set(said) <= set(re.findall(r"^ARG (\w+)", "\n".join(files), re.MULTILINE))
    assert "PIP_INDEX_URL" in said
    assert not re.findall(r"^RUN .*\buv sync\b", files[0], re.MULTILINE)


def test_the_install_page_says_who_may_do_what(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "install.md").read_text()
    rows = re.findall(r"^\| (operator|API|edit|view) \| (\w+) \| (\S+) \| ([a-z, ]+) \|", text, re.MULTILINE)
    said = {(who.lower(), where, what, verb) for who, where, what, may in rows for verb in may.split(", ")}
    assert said == granted(render(named("docs/install.md")["my-values.yaml"], folder=tmp_path))


def test_the_install_page_s_external_store(tmp_path: Path) -> None:
    page = named("docs/install.md")
    rendered = render({**page["my-values.yaml"], **page["external-store.yaml"]}, folder=tmp_path)
    [config] = [each["data"]["config.yaml"] for each in rendered if each["metadata"]["name"] == "i-config"]
    assert yaml.safe_load(config)["store"] == {"endpoint": "https://s3.example.com", "region": "eu-central-1"}
    assert not [each for each in rendered if each["metadata"]["name"].startswith("i-store")]


def test_the_install_page_s_ingress(tmp_path: Path) -> None:
    mine, ingress = (named("docs/install.md")[name] for name in ("my-values.yaml", "ingress.yaml"))
    [made] = [each for each in render({**mine, **ingress}, folder=tmp_path) if each["kind"] == "Ingress"]
    wanted = ingress["api"]["ingress"]
    assert made["metadata"]["annotations"] == wanted["annotations"]
    assert made["spec"]["ingressClassName"] == wanted["className"]
    assert made["spec"]["tls"] == [{"hosts": [wanted["host"]], "secretName": wanted["tlsSecret"]}]


def test_the_install_page_s_provider_in_the_cluster(tmp_path: Path) -> None:
    """At the port that its URL names, which is its pods' too."""
    values = named("docs/install.md")["provider-in-the-cluster.yaml"]
    rendered = render({**VALUES, **values}, folder=tmp_path)
    [rule] = values["networkPolicy"]["workerEgress"]
    assert rule in egress(rendered)
    [chosen] = values["embeddingProviders"]
    url = urlsplit(chosen["url"])
    [[label, namespace]] = rule["to"][0]["namespaceSelector"]["matchLabels"].items()
    assert (label, url.port) == ("kubernetes.io/metadata.name", rule["ports"][0]["port"])
    assert str(url.hostname).split(".")[1] == namespace


def test_the_install_page_s_values_for_a_machine_of_ones_own(tmp_path: Path) -> None:
    values = named("docs/install.md")["my-values.yaml, on your machine"]
    rendered = render(values, folder=tmp_path)
    assert [tenant.namespace for tenant in config_of(rendered).tenants] == ["team-a"]


def test_every_page_with_commands_is_walked() -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    names = {str(page.relative_to(REPOSITORY)) for page in pages}
    commanding = {name for name in names if blocks(name, "console")}
    commanding -= MADE
    assert commanding == WALKED, "a page with commands needs a test that walks it, and its name in WALKED"


@pytest.mark.parametrize("page", sorted(MADE))
def test_a_page_for_developers_has_commands_that_make_knows(page: str) -> None:
    for command in [command.text for block in blocks(page, "console") for command in commands(block)]:
        words = shlex.split(command, comments=True)
        assert words[0] == "make"
        run(["make", "--dry-run", *words[1:]], cwd=REPOSITORY)


def test_every_link_between_the_pages_leads_somewhere() -> None:
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]:
        text = page.read_text()
        for target in re.findall(r"\]\(([^)#\s]*)(?:#[^)]*)?\)", text):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page}: {target}"


def test_every_field_has_a_description() -> None:
    def bare(node: dict[str, Any], path: str) -> Iterator[str]:
        if not node.get("description"):
            yield path
        for name, field in node.get("properties", {}).items():
            yield from bare(field, f"{path}.{name}")
        for name, field in node.get("items", {}).get("properties", {}).items():
            yield from bare(field, f"{path}[].{name}")

    assert not list(bare(schema("spec"), "spec"))
    assert not list(bare(schema("status"), "status"))


def test_readme(newcomer: Tenant, folder: Path) -> None:
    with walk("README.md", namespace=newcomer.namespace, folder=folder) as page:
        demo, tests = page.run()
        assert "ingestion_demo" in demo
        assert "tests/run" in tests
        page.run()
        _, jobs, explained = page.run()
        assert "handbook" in jobs
        assert "retryGeneration" in explained
        for path, fields in objects(schema("spec"), path="ij.spec"):
            said = newcomer.kubectl("explain", path)
            assert "<no description>" not in said
            assert all(re.search(rf"^  {field}\t", said, re.MULTILINE) for field in fields), path
        [failure] = newcomer.ended("handbook", "failed")["status"]["failures"]
        assert failure["code"] == "SourceNotFound"
        newcomer.store().put(key="handbook.pdf", data=(folder / "handbook.pdf").read_bytes())
        page.run()
        newcomer.ended("handbook", "completed", generation=1)
        key, (job, word) = mint(newcomer), failed_in_part(newcomer)
        page.run(KEY=key)
        wait_for_key(page, key)
        newcomer.installation.switch.mend(word)
        found = page.run(JOB=job)[-1]
        assert "backslash" in found
        newcomer.ended(job, "completed", generation=1)
        _, tested, *_ = page.run()
        assert " passed" in tested


def test_give_a_file(newcomer: Tenant, folder: Path) -> None:
    with walk("docs/give-a-file.md", namespace=newcomer.namespace, folder=folder) as page:
        page.run()
        page.run()
        assert newcomer.store().get(key="handbook.pdf") == (folder / "handbook.pdf").read_bytes()
        page.run()
        assert newcomer.rest.search(knowledge_base=KNOWLEDGE_BASE, query="linear system")
        page.run()
        assert not newcomer.rest.search(knowledge_base=KNOWLEDGE_BASE, query="linear system")


def test_failed_segment_log(newcomer: Tenant, folder: Path) -> None:
    """The page's job is called `handbook`."""
    uri = newcomer.put("parts.txt", document(bad={1, 4}, word=new_word()).encode())
    pipeline = {"embedding": {"provider": provider.NAME, "model": "m", "dimensions": 256}}
    newcomer.apply("handbook", uri=uri, pipeline=pipeline, **SEGMENTED)
    failed = newcomer.ended("handbook", "partial_failure")["status"]["segments"]["failedCount"]
    with walk("docs/failed-segment-log.md", namespace=newcomer.namespace, folder=folder) as page:
        *_, failures = page.run()
        assert failures.count("content rejected") == failed
        _, pods, logs = page.run()
        assert pods.count("Error") == failed
        assert logs.count("content rejected") >= failed
        page.run()


def test_api_keys(tenant: Tenant, folder: Path) -> None:
    with walk("docs/api-keys.md", namespace=tenant.namespace, folder=folder) as page:
        minted, _, listed = page.run()
        [key] = re.findall(r"^ik_\S+", minted, re.MULTILINE)
        rest = Rest(url=tenant.installation.url, key=key)
        rest.wait_for_key()
        key_id = key.split("_")[1]
        assert key_id in listed
        page.run(ID=key_id)
        _until_refused(rest)
        page.run()


def _until_refused(rest: Rest) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            rest.job(str(uuid.uuid4()))
        except LocalClusterError as error:
            if " 401 " in str(error):
                break
        assert time.monotonic() < deadline
        time.sleep(0.5)
    rest.close()


def test_rest_api(tenant: Tenant, folder: Path) -> None:
    key, (job, word) = mint(tenant), failed_in_part(tenant)
    with walk("docs/rest-api.md", namespace=tenant.namespace, folder=folder) as page:
        page.run(KEY=key)
        wait_for_key(page, key)
        [answer] = page.run()
        tenant.ended(json.loads(answer)["ingestion_job_id"], "completed")
        [several] = page.run()
        assert tenant.rest.ended(json.loads(several)["ingestion_job_id"])["completed"] == 2
        tenant.installation.switch.mend(word)
        page.run(JOB=job)
        tenant.ended(job, "completed", generation=1)
        shown, documents, listed = page.run()
        assert json.loads(shown)["status"] == "completed"
        assert [item["status"] for item in json.loads(documents)["items"]] == ["completed"]
        assert json.loads(several)["ingestion_job_id"] in listed
        assert json.loads(answer)["ingestion_job_id"] in listed
        [found] = page.run()
        assert "backslash" in found


@pytest.mark.alone
def test_upgrade(tenant: Tenant, folder: Path) -> None:
    """Operator and API are replaced while segments run; nothing runs twice, and the keys still work."""
    text = document(bad=set(), segments=20)
    job, _ = tenant.upload(text, file="parts.txt", content_type="text/plain", parallelism=1, **SEGMENTED)
    tenant.until(job, lambda body: body.get("status", {}).get("segments", {}).get("completedCount", 0) > 0)
    requests = {"resources": {"requests": {"cpu": "40m", "memory": "128Mi"}}}
    write_values(folder, operator=requests, api=requests)
    credentials = tenant.get("secret", "ingestion-store")["data"]
    with walk("docs/upgrade.md", namespace=tenant.namespace, folder=folder) as page:
        page.run()
        assert tenant.rest.job(job)["status"] in ("processing", "completed")
        page.run()
    status = tenant.ended(job, "completed")["status"]
    [attempt] = status["attempts"]
    assert attempt["completed"] == status["segments"]["total"]
    assert tenant.get("secret", "ingestion-store")["data"] == credentials


@pytest.mark.alone
def test_install(tenant: Tenant, folder: Path) -> None:
    """The same release again; what makes images says what it would do."""
    with walk("docs/install.md", namespace=tenant.namespace, folder=folder) as page:
        said = "".join(page.run())
        assert set(re.findall(r"--target (\S+)", said)) <= set(dockerfile_stages())
        pushed = set(re.findall(r"docker push (\S+)", said))
        assert set(re.findall(r"--tag (\S+)", said)) == pushed
        rendered = json.dumps(render(named("docs/install.md")["my-values.yaml"], folder=folder))
        assert set(re.findall(r"registry\.example\.com/[\w./-]+:[\w.]+", rendered)) == pushed
        page.run()
        page.run()
        page.run()
    job, _ = upload_in_the_end(tenant)
    tenant.ended(job, "completed")


def dockerfile_stages() -> list[str]:
    text = (REPOSITORY / "images" / "Dockerfile").read_text()
    return re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE)


@pytest.fixture
def restored(tenant: Tenant) -> Iterator[None]:
    """Leave the installation as the other tests expect it, whatever the test did with it."""
    yield
    install_again()


def install_again() -> None:
    """Install as at the beginning of the run."""
    where = {"namespace": SYSTEM, "release": RELEASE}
    install.prepare_store_volume(cluster=CLUSTER, **where)
    install.helm_install(kubeconfig=CLUSTER.kubeconfig, **where, values=VALUES)


@pytest.fixture
def installer(tenant: Tenant) -> Iterator[str]:
    """Give the rights of the install page's installer.yaml to a user and return the user's name."""
    role = named("docs/install.md")["installer.yaml"]
    name = role["metadata"]["name"]
    group = {"apiGroup": "rbac.authorization.k8s.io"}
    binding = {
        "apiVersion": role["apiVersion"],
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {**group, "kind": "ClusterRole", "name": name},
        "subjects": [{**group, "kind": "User", "name": name}],
    }
    objects = json.dumps({"apiVersion": "v1", "kind": "List", "items": [role, binding]})
    tenant.installation.kubectl("apply", "--filename", "-", stdin=objects)
    yield name
    tenant.installation.kubectl("delete", "--filename", "-", stdin=objects)


@pytest.mark.alone
@pytest.mark.usefixtures("restored")
def test_uninstall_and_install_again(tenant: Tenant, installer: str, folder: Path) -> None:
    """Documents, jobs and keys stay; then all goes, and the least privileged installer begins anew."""
    kubectl = tenant.installation.kubectl
    upgrade = ["upgrade", "--install", RELEASE, install.CHART, "--values", folder / "my-values.yaml"]
    upgrade += ["--create-namespace", "--wait", "--wait-for-jobs", "--timeout", install.TIMEOUT]
    done, knowledge_base = tenant.upload("# Title\n\nHarmless.\n")
    tenant.ended(done, "completed")
    job, word = failed_in_part(tenant)
    with walk("docs/uninstall.md", namespace=tenant.namespace, folder=folder) as page:
        page.run()
        assert kubectl("get", "deployments,services,jobs", "--namespace", SYSTEM, "--output", "name") == ""
        assert tenant.get("ingestionjob", job)["status"]["phase"] == "partial_failure"

        helm(*upgrade, user=installer)
        tenant.rest.wait_for_key()
        assert in_the_end(lambda: tenant.rest.search(knowledge_base=knowledge_base, query="harmless"))
        tenant.installation.switch.mend(word)
        tenant.rest.retry(job)
        tenant.ended(job, "completed", generation=1)

        helm("uninstall", RELEASE, "--wait", user=installer)
        page.run()
    left = kubectl("get", "customresourcedefinitions,namespaces,clusterroles,clusterrolebindings", "--output", "name")
    names = {name.split("/")[1] for name in left.split()}
    roles = {f"{RELEASE}-{name}" for name in ("operator", "api", "edit", "view")}
    crds = {f"{plural}.ingestion-operator.io" for plural in ("ingestionjobs", "ingestionbatches")}
    gone = crds | {SYSTEM, tenant.namespace} | roles
    assert not names & gone

    install.prepare_store_volume(cluster=CLUSTER, namespace=SYSTEM, release=RELEASE)
    helm(*upgrade, user=installer)
    tried = f"name={RELEASE}-test,name={RELEASE}-test-{tenant.namespace}"  # all tenants are tried by the install page
    helm("test", RELEASE, "--filter", tried, user=installer)
    tenant.wait_for_store()
    tenant.apply("again", uri=tenant.put("notes.md", b"# Title\n\nHarmless.\n"))
    tenant.ended("again", "completed")


@pytest.mark.alone
@pytest.mark.usefixtures("restored")
def test_an_external_store(tenant: Tenant) -> None:
    """The page's values, with the address of a store that is not the chart's."""
    values = named("docs/install.md")["external-store.yaml"]
    [chosen] = values["tenants"]
    chosen |= {"namespace": tenant.namespace, "bucket": "elsewhere"}
    values["store"]["external"]["endpoint"] = f"http://{EXTERNAL}.{provider.NAMESPACE}.svc:7070"
    tenant.installation.kubectl("apply", "--filename", "-", stdin=json.dumps(external_store(chosen, values["store"])))
    tenant.installation.kubectl("rollout", "status", f"deployment/{EXTERNAL}", "--namespace", provider.NAMESPACE)
    where = {"kubeconfig": CLUSTER.kubeconfig, "namespace": SYSTEM}
    install.helm_install(**where, release=RELEASE, values={**VALUES, **values})
    job, knowledge_base = upload_in_the_end(tenant)
    tenant.ended(job, "completed")
    assert tenant.rest.search(knowledge_base=knowledge_base, query="harmless")
    tenant.installation.kubectl("delete", f"deployment/{EXTERNAL}", "--namespace", provider.NAMESPACE)


def in_the_end(call: Callable[[], T]) -> T:
    """Call the API until it answers, once the port-forward has left a replica that ends and may not read Secrets."""
    deadline = time.monotonic() + 240
    while True:
        try:
            return call()
        except (LocalClusterError, httpx.TransportError) as error:
            if time.monotonic() > deadline:
                raise AssertionError("the API does not answer as it has to") from error
            time.sleep(1)


def upload_in_the_end(tenant: Tenant) -> tuple[str, str]:
    """Upload as soon as a replica takes it."""
    return in_the_end(lambda: tenant.upload("# Title\n\nHarmless.\n"))


def external_store(tenant: dict[str, str], store: dict[str, Any]) -> dict[str, Any]:
    """Return an S3 server with the tenant's bucket, and the Secret that the tenant's values name."""
    root = {"ROOT_ACCESS_KEY_ID": "external", "ROOT_SECRET_ACCESS_KEY": "external-secret"}
    script = f"mkdir /tmp/{tenant['bucket']} && exec versitygw --port :7070 --region {store['region']} posix /tmp"
    labels = {"app.kubernetes.io/name": EXTERNAL}
    container = {
        "name": "store",
        "image": install.image_name("store"),
        "command": ["sh", "-c", script],
        "env": [{"name": name, "value": value} for name, value in root.items()],
        "readinessProbe": {"tcpSocket": {"port": 7070}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {"automountServiceAccountToken": False, "securityContext": security, "containers": [container]}
    metadata = {"name": EXTERNAL, "namespace": provider.NAMESPACE}
    template = {"metadata": {"labels": labels}, "spec": pod}
    keys = dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), root.values(), strict=True))
    secret = {"name": tenant["existingSecret"], "namespace": tenant["namespace"]}
    items = [
        {"apiVersion": "v1", "kind": "Secret", "metadata": secret, "stringData": keys},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": labels, "ports": [{"port": 7070}]},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        },
    ]
    return {"apiVersion": "v1", "kind": "List", "items": items}
