"""Log lines of operator, API and worker: JSON, one object each, on stdout, never with a secret.

What a call gives as `extra` becomes fields of its line; `job` is namespace/name in all three.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from ingestion_crds.constants import ENV_LOG_LEVEL

# Nothing of ours is less severe; what libraries say then has not been looked through for secrets.
LogLevel = Literal["info", "warning", "error"]
# Credentials in URLs and Authorization values, should a library put one into an error text.
_SECRETS: Final = re.compile(r"""(?i)(bearer\s+)[^\s"']+|(://[^/\s:@]*:)[^\s@/]+(?=@)""")
# What every record has: the rest was given as `extra`.
_RECORD: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime"})


def redact(text: str) -> str:
    """Return the text without passwords in URLs and without bearer tokens."""
    return _SECRETS.sub(lambda found: f"{found[1] or found[2]}***", text)


class JsonFormatter(logging.Formatter):
    """Format a record as one JSON object.

    Args:
        context: fields of every line.
    """

    def __init__(self, *, context: Mapping[str, Any]) -> None:
        super().__init__()
        self._context = dict(context)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        moment = datetime.datetime.fromtimestamp(record.created, tz=datetime.UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
            **self._context,
        }
        # What libraries give is for formatters of their own: kopf gives its settings, uvicorn a text in colours.
        if record.name.startswith("ingestion_"):
            given = {name: value for name, value in vars(record).items() if name not in _RECORD}
            line |= {name: redact(value) if isinstance(value, str) else value for name, value in given.items()}
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(*, env: Mapping[str, str] = os.environ, logger: str | None = None, **context: Any) -> None:
    """Write what a logger is given to stdout, each line with the fields of `context`.

    Args:
        env: the process's environment; what is less severe than INGESTION_LOG_LEVEL says is not written.
        logger: its name; None for all, those of libraries too.
        context: fields of every line.

    Raises:
        ValueError: when there is no such level.
    """
    chosen, levels = env.get(ENV_LOG_LEVEL, "info"), get_args(LogLevel)
    if chosen not in levels:
        raise ValueError(f"{ENV_LOG_LEVEL}: {chosen!r} is none of {', '.join(levels)}")
    level = chosen.upper()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(context=context))
    handler.setLevel(level)  # of loggers that have a level of their own, too
    target = logging.getLogger(logger)
    target.handlers[:] = [handler]
    target.setLevel(level)
