"""The baseline of a list: an app of the API's stack with one route, whose answer is in memory."""

from __future__ import annotations

import os
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response


def main() -> None:
    """Serve the bytes of a file."""
    content = Path(os.environ["BENCH_CONTENT"]).read_bytes()
    app = FastAPI()

    @app.get("/")
    async def answer() -> Response:
        return Response(content, media_type="application/json")

    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
