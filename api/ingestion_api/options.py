"""The options of one API process: where it is and where it listens come from its environment, the bounds are fixed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingestion_crds.config import ConfigError
from ingestion_crds.constants import ENV_POD_NAMESPACE

ENV_HOST: Final = "INGESTION_API_HOST"
ENV_PORT: Final = "INGESTION_API_PORT"
SERVICE_ACCOUNT_NAMESPACE: Final = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of one process.

    Args:
        namespace: the API's own, where the Secrets of the API keys and of the embedding providers are.
        kubeconfig: a kubeconfig's path; None means KUBECONFIG, or the ServiceAccount inside a pod.
        host, port: where to listen; an empty host means every address, of IPv4 and IPv6.
        connections: with so many, requests other than probes are answered 503; twice as many are kept.
        keep_alive_seconds: how long an idle connection stays: longer than most proxies keep one (60 s for ingress-nginx
            and Amazon's, 90 s for Traefik and others in Go), or they send a request into one that is just being
            closed, now and then. Others are on docs/install.md.
        header_bytes: request line and headers at most.
        shutdown_seconds: how long requests under way may go on after SIGTERM.
        uploads, searches: how many of each run at the same time; more are answered 429.
        search_seconds: how long a search may take.
        stall_seconds: how long is waited for the next 64 KiB of an upload.
        cache_bytes: what is kept in memory for searches, of one tenant; of at most 4 tenants.
    """

    namespace: str
    kubeconfig: str | None = None
    host: str = ""
    port: int = 8000
    connections: int = 512
    keep_alive_seconds: int = 100
    header_bytes: int = 16 * 1024
    shutdown_seconds: int = 25
    uploads: int = 8
    searches: int = 4
    search_seconds: float = 30.0
    stall_seconds: float = 30.0
    cache_bytes: int = 128 * 2**20


def options_from_environment() -> Options:
    """Read from this process's environment where it is, and where it listens.

    Raises:
        ConfigError: naming the variable and what is allowed.
    """
    port = os.environ.get(ENV_PORT) or "8000"
    if not (port.isdecimal() and int(port) <= 65_535):
        raise ConfigError(f"{ENV_PORT}: {port!r} is not a number within 0 to 65535")
    return Options(namespace=_own_namespace(), host=os.environ.get(ENV_HOST, ""), port=int(port))


def _own_namespace() -> str:
    """Return the namespace that POD_NAMESPACE names, or else the pod's ServiceAccount."""
    if namespace := os.environ.get(ENV_POD_NAMESPACE):
        return namespace
    try:
        return Path(SERVICE_ACCOUNT_NAMESPACE).read_text().strip()
    except OSError as error:
        raise ConfigError(f"{ENV_POD_NAMESPACE}: not set; it names the namespace of the API keys' Secret") from error
