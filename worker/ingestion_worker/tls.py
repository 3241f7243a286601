"""How servers are verified: by the system's certificates (SSL_CERT_FILE is honoured), else by certifi's."""

from __future__ import annotations

import os
import ssl
import tempfile
from pathlib import Path


def tls_context() -> ssl.SSLContext:
    """Return a verifying client context."""
    context = ssl.create_default_context()
    if not context.get_ca_certs():
        context.load_verify_locations(_certifi())
    return context


def trust(*, authorities: Path) -> None:
    """Trust certificate authorities besides the others, for the rest of this process.

    Whatever verifies a server here reads SSL_CERT_FILE, the S3 client too, and trusts nothing but what is in it.

    Args:
        authorities: a PEM file (INGESTION_CA_FILE).

    Raises:
        OSError: it cannot be read, or the temporary folder not be written to.
    """
    others = Path(ssl.get_default_verify_paths().cafile or _certifi())
    with tempfile.NamedTemporaryFile("wb", suffix=".pem", delete=False) as file:
        file.write(others.read_bytes() + b"\n" + authorities.read_bytes())
    os.environ["SSL_CERT_FILE"] = file.name


def _certifi() -> str:
    import certifi

    return certifi.where()
