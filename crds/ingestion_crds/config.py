"""The installation's configuration: what the chart writes and operator and API read.

One YAML file, mounted from a ConfigMap; secrets are only named in it. The path is in INGESTION_CONFIG.
"""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final, Self

import yaml
from pydantic import Field, ValidationError, field_validator

from ingestion_crds.constants import BUILTIN_PROVIDER, ENV_CONFIG, MAX_SOURCE_BYTES, STORE_SECRET
from ingestion_crds.job import Model, Resources, Toleration
from ingestion_crds.logs import LogLevel

DEFAULT_CONFIG: Final = "/etc/ingestion-operator/config.yaml"


class ConfigError(ValueError):
    """The configuration of a process is missing or wrong; the message names the file, field or variable."""


class Tenant(Model):
    """A namespace that may ingest, and its bucket."""

    namespace: str = Field(min_length=1, max_length=63)
    bucket: str = Field(min_length=1, max_length=63)
    store_secret: str = STORE_SECRET


class Store(Model):
    """The S3-compatible store that holds every tenant's bucket."""

    endpoint: str | None = None
    region: str = "us-east-1"


class EmbeddingProvider(Model):
    """An OpenAI-compatible endpoint that jobs may name.

    Args (fields):
        name: what `spec.pipeline.embedding.provider` says.
        url: base URL; `/embeddings` is appended.
        secret_name: a Secret with the key `apiKey`, of the same name in every tenant's namespace and the API's.
    """

    name: str
    url: str
    secret_name: str | None = None

    @field_validator("name")
    @classmethod
    def _not_builtin(cls, name: str) -> str:
        if name == BUILTIN_PROVIDER:
            raise ValueError(f"{BUILTIN_PROVIDER!r} is the embedder inside the worker; choose another name")
        return name


class Config(Model):
    """The whole file. An empty list or map is none, unless it says otherwise.

    Args (fields):
        worker_image, worker_image_pull_policy: of worker pods, where a job names no image; the policy always.
        worker_resources, worker_node_selector, worker_tolerations, worker_priority_class_name: of worker pods, where a
            job's template has none.
        worker_pod_labels, worker_pod_annotations: of worker pods, beside the operator's own, which nothing replaces.
        worker_log_level: what is less severe, worker pods do not log.
        worker_allowed_images: patterns (`*`) of the images that a job may name besides `worker_image`; empty for all.
        source_allow: hosts, addresses and networks that http(s) sources may be on although they are not public.
        source_deny: networks that count as not public besides those that are private by their numbers.
        store: where all buckets are.
        tenants: the namespaces that may ingest; in any other one nothing is done.
        embedding_providers: what jobs may name besides the built-in embedder.
        max_source_bytes: the largest document, uploaded or read.
        ca_config_map: beside each tenant's pods, with certificate authorities to trust (`ca.crt`); None for none.
    """

    worker_image: str = Field(min_length=1)
    worker_image_pull_policy: str = "IfNotPresent"
    worker_resources: Resources = Field(default_factory=Resources)
    worker_node_selector: dict[str, str] = Field(default_factory=dict)
    worker_tolerations: list[Toleration] = Field(default_factory=list)
    worker_priority_class_name: str = ""
    worker_pod_labels: dict[str, str] = Field(default_factory=dict)
    worker_pod_annotations: dict[str, str] = Field(default_factory=dict)
    worker_log_level: LogLevel = "info"
    worker_allowed_images: list[str] = Field(default_factory=list)
    source_allow: list[str] = Field(default_factory=list)
    source_deny: list[str] = Field(default_factory=list)
    store: Store = Field(default_factory=Store)
    tenants: list[Tenant] = Field(default_factory=list)
    embedding_providers: list[EmbeddingProvider] = Field(default_factory=list)
    max_source_bytes: int = Field(MAX_SOURCE_BYTES, ge=1)
    ca_config_map: str | None = None

    @field_validator("source_deny")
    @classmethod
    def _networks(cls, networks: list[str]) -> list[str]:
        for network in networks:
            ip_network(network, strict=False)  # found here: a worker could only fail over a wrong one
        return networks

    @classmethod
    def load(cls) -> Self:
        """Read the file that INGESTION_CONFIG names.

        Raises:
            ConfigError: when it is missing or wrong, naming each field.
        """
        place = Path(os.environ.get(ENV_CONFIG, DEFAULT_CONFIG))
        try:
            data: Any = yaml.safe_load(place.read_text())
            return cls.model_validate(data)
        except OSError as error:
            raise ConfigError(f"{place}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{place}: not YAML: {error}") from error
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise ConfigError(f"{place}: {wrong}") from error

    def tenant(self, namespace: str) -> Tenant | None:
        """Return the tenant of a namespace, or None where the chart knows none."""
        return next((tenant for tenant in self.tenants if tenant.namespace == namespace), None)

    def allows_image(self, image: str) -> bool:
        """Return whether a job may name this worker image.

        It may always name the chart's own, and another where a pattern matches that or there are no patterns.
        """
        patterns = self.worker_allowed_images
        return not patterns or image == self.worker_image or any(fnmatchcase(image, pattern) for pattern in patterns)

    def provider(self, name: str) -> EmbeddingProvider | None:
        """Return the named embedding provider, or None where the chart knows none."""
        return next((provider for provider in self.embedding_providers if provider.name == name), None)
