"""An OpenAI-compatible embedding server that refuses some texts until it is told otherwise.

It runs in the worker's image, with that image's real model. `POST /admin/break` and `POST /admin/mend` switch it; it
starts broken. The pattern of refused texts is in FLAKY_PATTERN; a body of `mend` is one refused text to take back.
"""

import json
import os
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from ingestion_crds.constants import BUILTIN_DIMENSIONS, BUILTIN_MODEL, BUILTIN_PROVIDER
from ingestion_worker.attempt import EmbeddingSpec
from ingestion_worker.embedding import make_embedder

PORT: Final = 8080
PATTERN: Final = re.compile(os.environ.get("FLAKY_PATTERN", "(?!)"))
EMBEDDER: Final = make_embedder(
    spec=EmbeddingSpec(provider=BUILTIN_PROVIDER, model=BUILTIN_MODEL, dimensions=BUILTIN_DIMENSIONS)
)


class Server(ThreadingHTTPServer):
    """The server, whether it is broken, and what it takes all the same."""

    broken = True
    taken_back: frozenset[str] = frozenset()
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    """Answers /v1/embeddings, /admin/break, /admin/mend and /healthz."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Say how the server is."""
        self._answer(200, {"broken": self.server.broken})

    def do_POST(self) -> None:
        """Embed, break or mend."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/admin/mend" and body:
            self.server.taken_back |= {body.decode()}
            self._answer(200, {"takenBack": len(self.server.taken_back)})
        elif self.path in ("/admin/break", "/admin/mend"):
            self.server.broken = self.path == "/admin/break"
            self._answer(200, {"broken": self.server.broken})
        elif self.path == "/v1/embeddings":
            self._embed(json.loads(body)["input"])
        else:
            self._answer(404, {"error": {"message": f"no such path: {self.path}"}})

    def _embed(self, texts: list[str]) -> None:
        found = (match[0] for text in texts for match in PATTERN.finditer(text))
        refused = next((match for match in found if match not in self.server.taken_back), None)
        if self.server.broken and refused:
            self._answer(400, {"error": {"message": f"content rejected: {refused!r} is not allowed"}})
            return
        rows = EMBEDDER.embed(texts).tolist()
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
        self._answer(200, {"object": "list", "data": data, "model": BUILTIN_MODEL})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log refusals only; probes and thousands of batches would bury them."""
        if str(code) != "200":
            super().log_request(code, size)


if __name__ == "__main__":
    EMBEDDER.embed(["warm"])
    Server(("0.0.0.0", PORT), Handler).serve_forever()
