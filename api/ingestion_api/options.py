"""What one API process is told from outside: environment variables, all with defaults but the namespace."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from ingestion_crds.config import ConfigError

ENV_NAMESPACE: Final = "POD_NAMESPACE"
SERVICE_ACCOUNT_NAMESPACE: Final = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of one process.

    Args:
        namespace: where the Secret with the API keys is: the API's own namespace. None: found when the API starts.
        config_path: the installation's configuration; None means INGESTION_CONFIG.
        kubeconfig: a kubeconfig's path; None means KUBECONFIG, or the ServiceAccount inside a pod.
        host, port: where to listen; an empty host means every address, of IPv4 and IPv6.
        connections: connections at most; more are answered 503 at once.
        keep_alive_seconds: how long an idle connection stays.
        header_bytes: request line and headers at most.
        shutdown_seconds: how long requests under way may go on after SIGTERM.
        uploads, searches: how many of each run at the same time; more are answered 429.
        search_seconds: how long a search may take.
        stall_seconds: how long a body may send nothing.
        cache_bytes: what is kept in memory for searches, of one tenant; of at most 4 tenants.
    """

    namespace: str | None = None
    config_path: str | None = None
    kubeconfig: str | None = None
    host: str = ""
    port: int = 8000
    connections: int = 512
    keep_alive_seconds: int = 15
    header_bytes: int = 16 * 1024
    shutdown_seconds: int = 25
    uploads: int = 8
    searches: int = 4
    search_seconds: float = 30.0
    stall_seconds: float = 30.0
    cache_bytes: int = 128 * 2**20

    @classmethod
    def from_env(cls, *, env: Mapping[str, str]) -> Self:
        """Read the options from the environment.

        Raises:
            ConfigError: naming the variable and what is allowed.
        """
        return cls(
            namespace=env.get(ENV_NAMESPACE) or None,
            host=env.get("INGESTION_API_HOST", ""),
            port=_number(env, "INGESTION_API_PORT", 8000, int, 0, 65_535),
            connections=_number(env, "INGESTION_API_CONNECTIONS", 512, int, 1, 65_535),
            keep_alive_seconds=_number(env, "INGESTION_API_KEEP_ALIVE_SECONDS", 15, int, 1, 3600),
            header_bytes=_number(env, "INGESTION_API_HEADER_BYTES", 16_384, int, 1024, 1_048_576),
            shutdown_seconds=_number(env, "INGESTION_API_SHUTDOWN_SECONDS", 25, int, 0, 3600),
            uploads=_number(env, "INGESTION_API_UPLOADS", 8, int, 1, 1000),
            searches=_number(env, "INGESTION_API_SEARCHES", 4, int, 1, 1000),
            search_seconds=_number(env, "INGESTION_API_SEARCH_SECONDS", 30.0, float, 0.1, 600),
            stall_seconds=_number(env, "INGESTION_API_STALL_SECONDS", 30.0, float, 0.1, 600),
            cache_bytes=_number(env, "INGESTION_API_SEARCH_CACHE_BYTES", 128 * 2**20, int, 0, 2**40),
        )

    def own_namespace(self) -> str:
        """Return the namespace of the API's pod.

        Raises:
            ConfigError: when neither POD_NAMESPACE nor a ServiceAccount says it.
        """
        if self.namespace:
            return self.namespace
        try:
            return Path(SERVICE_ACCOUNT_NAMESPACE).read_text().strip()
        except OSError as error:
            raise ConfigError(f"{ENV_NAMESPACE}: not set; it names the namespace of the API keys' Secret") from error


def options_from_environment() -> Options:
    """Read the options from this process's environment."""
    return Options.from_env(env=os.environ)


def _number(
    env: Mapping[str, str], name: str, default: Any, kind: Callable[[str], Any], low: float, high: float
) -> Any:
    text = env.get(name)
    if not text:
        return default
    try:
        value = kind(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {text!r} is not a number") from error
    if not low <= value <= high:
        raise ConfigError(f"{name}: {text} is not within {low} to {high}")
    return value
