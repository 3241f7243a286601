"""Plain requests to the API server of a bare control plane: readiness, and creating the fake nodes."""

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


class Client:
    """An administrator's connection to the API server at `url`, without retries."""

    def __init__(self, *, url: str, authority: Path, certificate: Path, key: Path) -> None:
        self._url = url
        tls = ssl.create_default_context(cafile=str(authority))
        tls.verify_flags &= ~ssl.VERIFY_X509_STRICT  # see pki.py
        tls.load_cert_chain(certificate, key)
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
        )

    def request(self, *, method: str, path: str, body: object = None) -> Any:
        """Send `body` as JSON and return the decoded answer (text where it is no JSON).

        Raises urllib.error.HTTPError for answers from 400 on and OSError when the server does not answer in 10 s.
        """
        request = urllib.request.Request(  # noqa: S310
            self._url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Accept": "application/json"},
        )
        with self._opener.open(request, timeout=10) as answer:
            text = answer.read().decode()
        try:
            return json.loads(text)
        except ValueError:
            return text

    def answers(self, *, path: str) -> bool:
        """Whether a GET of `path` succeeds now."""
        try:
            self.request(method="GET", path=path)
        except OSError:
            return False
        return True


def healthy(*, url: str) -> bool:
    """Whether a component's own health address answers with success; its certificate is not looked at."""
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unverified)
    )
    try:
        with opener.open(url, timeout=2):
            return True
    except OSError:
        return False
