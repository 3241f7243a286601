"""A source server that never keeps its word: GET /missing, /forbidden, /broken, /short/NAME, /hang."""

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

STATUS: Final = {"/missing": 404, "/forbidden": 403, "/broken": 500}
LONGER_THAN_ANYBODY_WAITS: Final = 600.0


class Handler(BaseHTTPRequestHandler):
    """Answers as the path says."""

    def do_GET(self) -> None:
        """Answer, or not."""
        if self.path == "/hang":
            time.sleep(LONGER_THAN_ANYBODY_WAITS)
        if self.path.startswith("/short/"):
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"This is all.")
            return
        self.send_response(STATUS.get(self.path, 200))
        self.send_header("Content-Length", "0")
        self.end_headers()


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
