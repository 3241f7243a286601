"""The baseline of a list: the API with one more route, whose answer is in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from fastapi import Response
from ingestion_api.app import create_app
from ingestion_api.auth import Caller
from ingestion_api.main import serve
from ingestion_api.options import options_from_environment
from ingestion_crds import logs
from ingestion_crds.config import Config

PATH: Final = "/v1/knowledge-base/from-memory"


def main() -> None:
    """Serve the bytes of a file."""
    logs.configure()
    content = Path(os.environ["BENCH_CONTENT"]).read_bytes()
    options = options_from_environment()
    app = create_app(options, Config.load())

    @app.get(PATH)
    async def answer(caller: Caller) -> Response:
        return Response(content, media_type="application/json")

    serve(app, options)


if __name__ == "__main__":
    main()
