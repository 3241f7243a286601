"""The table of error codes."""

from __future__ import annotations

from typing import get_args

from ingestion_crds.constants import PERMANENT_EXIT_CODES
from ingestion_crds.errors import ERROR_CODES, Code


def test_the_type_of_the_codes_has_those_of_the_table() -> None:
    assert get_args(Code) == tuple(ERROR_CODES)


def test_each_permanent_code_has_an_exit_code_of_its_own() -> None:
    permanent = [row.exit_code for row in ERROR_CODES.values() if row.exit_code in PERMANENT_EXIT_CODES]
    assert len(set(permanent)) == len(permanent) > 0
