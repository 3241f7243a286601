"""Clusters whose certificates Python 3.13 and later refuse by default: many, Amazon's among them."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import kopf
import pytest
import yaml
from ingestion_crds.kube import ApiError, KubeClient
from ingestion_operator.login import log_in
from local_cluster.control_plane import ControlPlane
from local_cluster.pki import Authority


@pytest.fixture(autouse=True)
def _strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have contexts made as Python makes them from 3.13 on."""
    made = ssl.create_default_context

    def strict(*args: object, **kwargs: object) -> ssl.SSLContext:
        context = made(*args, **kwargs)  # type: ignore[arg-type]
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)


async def test_certificates_without_key_identifiers_are_trusted(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await KubeClient.connect(kubeconfig=str(control_plane.kubeconfig)) as kube:
        assert (await kube.request("GET", "/version"))["major"] == "1"
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    connection = log_in(kopf.OperatorSettings(), passes_over=lambda _: False)
    assert connection is not None
    async with connection.aiohttp_session as session, session.get(f"{connection.server}/version") as answer:
        assert answer.status == 200


async def test_certificates_of_another_authority_are_not(control_plane: ControlPlane, tmp_path: Path) -> None:
    other = Authority(folder=tmp_path).certificate_file
    kubeconfig = changed(control_plane, tmp_path, {"certificate-authority": str(other)})
    async with await KubeClient.connect(kubeconfig=kubeconfig) as kube:
        with pytest.raises(ApiError, match="CERTIFICATE_VERIFY_FAILED"):
            await kube.request("GET", "/version")


@pytest.mark.parametrize(("name", "trusted"), [("kubernetes.default.svc", True), ("elsewhere.example", False)])
async def test_the_certificate_is_asked_for_by_the_name_that_the_kubeconfig_says(
    control_plane: ControlPlane, tmp_path: Path, *, name: str, trusted: bool
) -> None:
    kubeconfig = changed(control_plane, tmp_path, {"tls-server-name": name})
    async with await KubeClient.connect(kubeconfig=kubeconfig) as kube:
        refused = contextlib.nullcontext() if trusted else pytest.raises(ApiError, match="CERTIFICATE_VERIFY_FAILED")
        with refused:
            await kube.request("GET", "/version")


def changed(control_plane: ControlPlane, folder: Path, cluster: Mapping[str, str]) -> str:
    """Write the control plane's kubeconfig with other words of its cluster; return its path."""
    settings = yaml.safe_load(control_plane.kubeconfig.read_text())
    for item in settings["clusters"]:
        item["cluster"] |= cluster
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(settings))
    return str(kubeconfig)


async def test_python_by_itself_refuses_them(control_plane: ControlPlane) -> None:
    context = ssl.create_default_context(cafile=str(control_plane.authority))
    with pytest.raises(aiohttp.ClientConnectorCertificateError, match="Missing Authority Key Identifier"):
        await _status(control_plane, context)


async def _status(control_plane: ControlPlane, context: ssl.SSLContext) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{control_plane.url}/version", ssl=context) as answer:
        return answer.status
