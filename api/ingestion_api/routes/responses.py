"""The error responses that the operations declare."""

from __future__ import annotations

from typing import Any, Final

from ingestion_api.problems import ErrorResponse

Responses = dict[int | str, dict[str, Any]]

BAD_REQUEST: Final[Responses] = {400: {"model": ErrorResponse, "description": "Bad request"}}
UNAUTHORIZED: Final[Responses] = {401: {"model": ErrorResponse, "description": "Authentication required"}}
NOT_FOUND: Final[Responses] = {404: {"model": ErrorResponse, "description": "Resource not found"}}
