"""The API process: uvicorn with bounds."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from ingestion_crds import logs
from ingestion_crds.config import Config, ConfigError
from ingestion_crds.constants import ENV_CA_FILE
from ingestion_worker.tls import trust

from ingestion_api.app import create_app
from ingestion_api.options import Options, options_from_environment
from ingestion_api.protocol import BoundedHttp


def main() -> None:
    """Serve until told to stop; exit with 2 when the configuration is wrong."""
    logs.configure()
    try:
        options, config = options_from_environment(), Config.load()
        if authorities := os.environ.get(ENV_CA_FILE):
            trust(authorities=Path(authorities))
    except (ConfigError, OSError) as error:
        logging.getLogger("ingestion_api").error("%s", error)
        sys.exit(2)
    serve(create_app(options, config), options)


def serve(app: FastAPI, options: Options) -> None:
    """Serve an app until told to stop.

    Args:
        app: from `create_app`.
        options: of the process.
    """
    uvicorn.run(app, **server_options(options))


def server_options(options: Options) -> dict[str, Any]:
    """Return uvicorn's options.

    Args:
        options: of the process.
    """
    return {
        "host": options.host,
        "port": options.port,
        "limit_concurrency": options.connections,
        # So many are taken in before any is read: of more, a probe's could be the one that makes room for the others.
        "backlog": max(16, options.connections // 2),
        "timeout_keep_alive": options.keep_alive_seconds,
        "timeout_graceful_shutdown": options.shutdown_seconds,
        "h11_max_incomplete_event_size": options.header_bytes,
        "http": BoundedHttp,
        "ws": "none",
        "loop": "asyncio",  # uvloop buys nothing here, whether it is installed or not
        "access_log": False,
        "log_config": None,
        "server_header": False,
    }


if __name__ == "__main__":
    main()
