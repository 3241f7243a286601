"""The error responses that the operations declare."""

from __future__ import annotations

from typing import Any, Final

from ingestion_api.problems import ErrorResponse

Responses = dict[int | str, dict[str, Any]]

BAD_REQUEST: Final[Responses] = {400: {"model": ErrorResponse, "description": "Bad request"}}
UNAUTHORIZED: Final[Responses] = {401: {"model": ErrorResponse, "description": "Authentication required"}}
NOT_FOUND: Final[Responses] = {404: {"model": ErrorResponse, "description": "Resource not found"}}
BODY_REFUSED: Final[Responses] = {
    408: {"model": ErrorResponse, "description": "Body too slow"},
    413: {"model": ErrorResponse, "description": "Too large"},
    415: {"model": ErrorResponse, "description": "Unsupported media type"},
}
BUSY: Final[Responses] = {429: {"model": ErrorResponse, "description": "Too many at the same time, or over a quota"}}
UNAVAILABLE: Final[Responses] = {503: {"model": ErrorResponse, "description": "Unavailable"}}
