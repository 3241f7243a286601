"""Put servers made of one script into the cluster, the flaky embedding provider above all, and switch that."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
from local_cluster import install
from local_cluster.errors import LocalClusterError

NAMESPACE: Final = "ingestion-demo"
NAME: Final = "flaky"
URL: Final = f"http://{NAME}.{NAMESPACE}.svc:8080/v1"
SCRIPT: Final = Path(__file__).with_name("flaky_provider.py")


def deploy(*, kubeconfig: Path, image: str, pattern: str) -> None:
    """Run the provider; returns when it answers.

    Args:
        kubeconfig: of the cluster.
        image: the worker's.
        pattern: texts that it refuses, a regular expression.

    Raises:
        LocalClusterError: it does not come up; with the pod's story.
    """
    serve(kubeconfig=kubeconfig, image=image, name=NAME, script=SCRIPT, env={"FLAKY_PATTERN": pattern})


def serve(*, kubeconfig: Path, image: str, name: str, script: Path, env: Mapping[str, str]) -> None:
    """Run a script that listens on port 8080 and answers /healthz, behind a Service.

    Args:
        kubeconfig: of the cluster.
        image: what it runs in, the worker's.
        name: of the Service, and of all else that is made.
        script: a file of Python.
        env: its environment.

    Raises:
        LocalClusterError: it does not come up; with the pod's story.
    """
    items = _objects(image=image, name=name, script=script, env=env)
    manifest = {"apiVersion": "v1", "kind": "List", "items": items}
    install.kubectl(
        kubeconfig, "apply", "--server-side", "--force-conflicts", "--filename", "-", stdin=json.dumps(manifest)
    )
    try:
        install.kubectl(
            kubeconfig, "rollout", "status", f"deployment/{name}", "--namespace", NAMESPACE, "--timeout=180s"
        )
    except LocalClusterError as error:
        story = install.explain(kubeconfig=kubeconfig, namespace=NAMESPACE)
        raise LocalClusterError(f"{error}\n{story}") from error


class Switch:
    """Breaks and mends the provider."""

    def __init__(self, *, url: str) -> None:
        self._url = url

    def break_(self) -> None:
        """Refuse matching texts from now on."""
        self._post("break")

    def mend(self, text: str = "") -> None:
        """Refuse nothing from now on, or, given a text, everything but that."""
        self._post("mend", text)

    def _post(self, what: str, text: str = "") -> None:
        httpx.post(f"{self._url}/admin/{what}", content=text, timeout=10, trust_env=False).raise_for_status()


@contextmanager
def switch(*, kubeconfig: Path) -> Iterator[Switch]:
    """Reach the provider's admin paths while the block runs."""
    with install.port_forward(kubeconfig=kubeconfig, namespace=NAMESPACE, service=NAME, port=8080) as url:
        yield Switch(url=url)


def _objects(*, image: str, name: str, script: Path, env: Mapping[str, str]) -> list[dict[str, Any]]:
    labels = {"app.kubernetes.io/name": name}
    content = script.read_text()
    # Another script is another pod: a running one would go on with what it has loaded.
    annotations = {"ingestion-demo/script": hashlib.sha256(content.encode()).hexdigest()}
    container = {
        "name": name,
        "image": image,
        "command": ["python", f"/srv/{script.name}"],
        "env": [{"name": variable, "value": value} for variable, value in env.items()],
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "script", "mountPath": "/srv", "readOnly": True}],
    }
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "script", "configMap": {"name": name}}],
    }
    namespaced = {"namespace": NAMESPACE, "name": name, "labels": labels}
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": namespaced, "data": {script.name: content}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": namespaced,
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": namespaced,
            "spec": {"selector": labels, "ports": [{"name": "http", "port": 8080, "targetPort": "http"}]},
        },
    ]
