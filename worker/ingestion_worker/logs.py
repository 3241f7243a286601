"""Structured log lines on stdout: one JSON object each, with the attempt it belongs to, never a secret."""

from __future__ import annotations

import datetime
import json
import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Final

LOGGER: Final = logging.getLogger("ingestion_worker")
# Credentials in URLs and Authorization values, should a library put one into an error text.
_SECRETS: Final = re.compile(r"""(?i)(bearer\s+)[^\s"']+|(://[^/\s:@]*:)[^\s@/]+(?=@)""")


def redact(text: str) -> str:
    """Return the text without passwords in URLs and without bearer tokens."""
    return _SECRETS.sub(lambda found: f"{found[1] or found[2]}***", text)


class JsonFormatter(logging.Formatter):
    """Format a record as one JSON object, with the context's fields first."""

    def __init__(self, *, context: Mapping[str, Any]) -> None:
        super().__init__()
        self._context = dict(context)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        moment = datetime.datetime.fromtimestamp(record.created, tz=datetime.UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": redact(record.getMessage()),
            **self._context,
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line.update(fields)
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(*, context: Mapping[str, Any]) -> None:
    """Send this package's log lines to stdout as JSON, each with `context` (job uid, generation, stage, segment)."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(context=context))
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def info(message: str, **fields: Any) -> None:
    """Log one line with fields."""
    LOGGER.info(message, extra={"fields": fields})


def warning(message: str, **fields: Any) -> None:
    """Log one line with fields, for what a person should look at although work goes on."""
    LOGGER.warning(message, extra={"fields": fields})
