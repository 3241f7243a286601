"""The operator, which lists all jobs every second and not every two minutes."""

from __future__ import annotations

from ingestion_operator import main

if __name__ == "__main__":
    main._RESYNC_SECONDS = 1.0  # type: ignore[misc]
    main.main()
