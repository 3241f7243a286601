"""Errors as clients see them: one shape, a code and a sentence, never a stack trace."""

from __future__ import annotations

import json
import logging
import math
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ingestion_crds.kube import ApiError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

LOG: Final = logging.getLogger(__name__)
RETRY_AFTER_SECONDS: Final = 2
_QUOTA_SECONDS: Final = 60
# Each 401 has to have one (RFC 9110, 15.5.2): without, some clients report a broken connection and try again.
_CHALLENGE: Final = 'APIKey header="x-api-key", Bearer realm="ingestion"'
# A wrong value is echoed in a 422; of a long one, the beginning is enough.
_ECHO_CHARACTERS: Final = 200
# A body of 64 KiB can be wrong in thousands of places.
_TOLD_ERRORS: Final = 20
_LOGGED_CHARACTERS: Final = 1000


class ErrorResponse(BaseModel):
    """What every error of this API looks like."""

    model_config = ConfigDict(json_schema_extra={"description": "An error: a code for programs and a text for people."})

    error: str
    message: str


class ErrorJson(JSONResponse):
    """JSON that can always be sent: errors echo what came in, which may be half a character."""

    def render(self, content: Any) -> bytes:
        """Return the body in UTF-8, with a question mark for what UTF-8 has no bytes for."""
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode(errors="replace")


class ProblemError(Exception):
    """A request that is refused, or cannot be served.

    Args:
        status: HTTP status.
        error: code for programs, snake case.
        message: for people: what is wrong and what is allowed.
        retry_after: seconds after which a repeat makes sense; sent as Retry-After.
    """

    def __init__(self, *, status: int, error: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.message = message
        self.retry_after = retry_after

    def response(self) -> JSONResponse:
        """Return the answer."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            headers["WWW-Authenticate"] = _CHALLENGE
        return ErrorJson({"error": self.error, "message": self.message}, status_code=self.status, headers=headers)


def bad_request(message: str, *, error: str = "bad_request") -> ProblemError:
    """400: the request cannot be right as it is."""
    return ProblemError(status=400, error=error, message=message)


def unauthorized(message: str) -> ProblemError:
    """401: nobody who is known."""
    return ProblemError(status=401, error="unauthorized", message=message)


def not_found(message: str) -> ProblemError:
    """404: not there, or another tenant's."""
    return ProblemError(status=404, error="not_found", message=message)


def too_large(message: str) -> ProblemError:
    """413: over a size limit."""
    return ProblemError(status=413, error="too_large", message=message)


def unsupported_type(accepted: str) -> ProblemError:
    """415: the body is of another type than the one that is read."""
    return ProblemError(status=415, error="unsupported_media_type", message=f"content-type: send {accepted}")


def busy(message: str) -> ProblemError:
    """429: as many as allowed are under way."""
    return ProblemError(status=429, error="busy", message=message, retry_after=RETRY_AFTER_SECONDS)


def quota_used_up(message: str) -> ProblemError:
    """429: until a time to live ends, or somebody makes room. An upload is sent whole each time that it is tried."""
    return ProblemError(status=429, error="busy", message=message, retry_after=_QUOTA_SECONDS)


def unavailable(message: str) -> ProblemError:
    """503: something behind the API does not answer; a repeat may succeed."""
    return ProblemError(status=503, error="unavailable", message=message, retry_after=RETRY_AFTER_SECONDS)


def out_of_order(message: str) -> ProblemError:
    """503: something behind the API is not as it has to be; a repeat helps only once somebody has seen to it."""
    return ProblemError(status=503, error="unavailable", message=message)


def still_listing() -> ProblemError:
    """503: which jobs there are is not known yet."""
    return unavailable("the jobs are still being listed; try again")


def from_api_error(error: ApiError) -> ProblemError:
    """Return what an API server's error means to a client; its text stays in the log, as it may name internals."""
    # 404 is a proxy's: where an object may be missing, that is taken in.
    if error.status in {0, 404, 429} or error.status >= 500:
        return unavailable("the cluster's API server does not answer; try again")
    if error.status in (401, 403):
        return out_of_order("the cluster refused this API's own access; its administrator has to look")
    return ProblemError(status=500, error="internal", message="the cluster refused the request")


def install(app: FastAPI) -> None:
    """Register the handlers that turn exceptions into answers."""

    @app.exception_handler(ProblemError)
    async def problem(request: Request, error: ProblemError) -> JSONResponse:
        if isinstance(error.__cause__, ApiError) and error.status >= 500:
            _log(request, error.__cause__)
        return error.response()

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        request.state.api_error = f"{error.status} {error.reason}"
        _log(request, error)
        return from_api_error(error).response()

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_")
        body = {"error": code, "message": str(error.detail or phrase)}
        headers = dict(error.headers or {})
        if headers.get("Allow") == "GET":
            headers["Allow"] = "GET, HEAD"
        return ErrorJson(body, status_code=error.status_code, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return ErrorJson({"detail": [_shortened(item) for item in error.errors()[:_TOLD_ERRORS]]}, status_code=422)


def _log(request: Request, error: ApiError) -> None:
    text = str(error)[:_LOGGED_CHARACTERS]
    LOG.warning("the API server: %s", text, extra={"request_id": request.state.request_id})


def _shortened(item: dict[str, Any]) -> dict[str, Any]:
    item = {key: value for key, value in item.items() if key != "url"}
    echo = item.get("input")
    # NaN and Infinity are numbers to Python's parser, and none to JSON.
    if not (echo is None or isinstance(echo, int) or (isinstance(echo, float) and math.isfinite(echo))):
        text = echo if isinstance(echo, str) else str(echo)
        item["input"] = text if len(text) <= _ECHO_CHARACTERS else text[:_ECHO_CHARACTERS] + "…"
    if "ctx" in item:
        item["ctx"] = {key: str(value) for key, value in item["ctx"].items()}
    encoded: dict[str, Any] = jsonable_encoder(item)
    return encoded
