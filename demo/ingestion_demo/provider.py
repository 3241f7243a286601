"""Put the flaky embedding provider into the cluster and switch it."""

import json
from collections.abc import Iterator
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
    """Run the provider, refusing texts that match `pattern`; returns when it answers.

    Raises LocalClusterError with the pod's story when it does not come up.
    """
    manifest = {"apiVersion": "v1", "kind": "List", "items": _objects(image=image, pattern=pattern)}
    install.kubectl(
        kubeconfig, "apply", "--server-side", "--force-conflicts", "--filename", "-", stdin=json.dumps(manifest)
    )
    try:
        install.kubectl(
            kubeconfig, "rollout", "status", f"deployment/{NAME}", "--namespace", NAMESPACE, "--timeout=180s"
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

    def mend(self) -> None:
        """Refuse nothing from now on."""
        self._post("mend")

    def _post(self, what: str) -> None:
        httpx.post(f"{self._url}/admin/{what}", timeout=10, trust_env=False).raise_for_status()


@contextmanager
def switch(*, kubeconfig: Path) -> Iterator[Switch]:
    """Reach the provider's admin paths while the block runs."""
    with install.port_forward(kubeconfig=kubeconfig, namespace=NAMESPACE, service=NAME, port=8080) as url:
        yield Switch(url=url)


def _objects(*, image: str, pattern: str) -> list[dict[str, Any]]:
    labels = {"app.kubernetes.io/name": NAME}
    container = {
        "name": NAME,
        "image": image,
        "command": ["python", "/srv/flaky_provider.py"],
        "env": [{"name": "FLAKY_PATTERN", "value": pattern}],
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
        "volumes": [{"name": "script", "configMap": {"name": NAME}}],
    }
    namespaced = {"namespace": NAMESPACE, "name": NAME, "labels": labels}
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": namespaced, "data": {SCRIPT.name: SCRIPT.read_text()}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": namespaced,
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": namespaced,
            "spec": {"selector": labels, "ports": [{"name": "http", "port": 8080, "targetPort": "http"}]},
        },
    ]
