"""How servers are verified: by the system's certificates (SSL_CERT_FILE is honoured), else by certifi's."""

from __future__ import annotations

import ssl


def tls_context() -> ssl.SSLContext:
    """Return a verifying client context."""
    context = ssl.create_default_context()
    if not context.get_ca_certs():
        import certifi

        context.load_verify_locations(certifi.where())
    return context
