"""What is logged: by the same variable in operator, API and worker."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
from ingestion_crds import logs
from ingestion_crds.constants import ENV_LOG_LEVEL


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, ["info", "warning", "error"]),
        ({ENV_LOG_LEVEL: "info"}, ["info", "warning", "error"]),
        ({ENV_LOG_LEVEL: "warning"}, ["warning", "error"]),
        ({ENV_LOG_LEVEL: "error"}, ["error"]),
    ],
)
def test_what_is_less_severe_is_left_out(
    env: dict[str, str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by a logger that has a level of its own, as the operator gives kopf's."""
    logs.configure(env=env, logger="ingestion_test")
    own = logging.getLogger("ingestion_test.own")
    own.setLevel(logging.INFO)
    for logger in (logging.getLogger("ingestion_test"), own):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logger.log(level, "something")
        assert [json.loads(line)["level"] for line in capsys.readouterr().out.splitlines()] == said


@pytest.mark.parametrize("module", ["ingestion_operator.main", "ingestion_api.main", "ingestion_worker.main"])
def test_each_of_the_three_asks_for_the_level(module: str) -> None:
    env = {**os.environ, ENV_LOG_LEVEL: "debug"}
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "INGESTION_LOG_LEVEL: 'debug' is none of info, warning, error" in done.stderr
