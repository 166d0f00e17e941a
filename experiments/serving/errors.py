"""Errors as OpenAI's API words them."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from experiments.serving.engine import Cancelled, Full, Leaving, TooLate
from o3jax.errors import UserError
from o3jax.files import refused
from o3jax.printing import shortened
from o3jax.video.files import MissingFileError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What a request is refused with.

    Args:
        code: a word for programs.
        param: the field that is wrong.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """Returns the JSON of the response."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        message = shortened(self.message, 600)
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Returns the response."""
        return JSONResponse(self.body(), self.status, self.headers)


def as_api_error(error: Exception) -> ApiError:
    """Returns what an exception of a request is told as; one that nobody foresaw is 500 without its words."""
    again = {"Retry-After": "5"}
    if isinstance(error, ApiError):
        return error
    if isinstance(error, MissingFileError):
        return ApiError(404, str(error), "not_found")
    if isinstance(error, UserError):
        return ApiError(422, str(error), "unusable_input")
    if isinstance(error, Full):
        return ApiError(429, "too many requests wait: try again later", "queue_full", headers=again)
    if isinstance(error, Leaving):
        return ApiError(503, "the server is about to end: try again later", "shutting_down", headers=again)
    if isinstance(error, TooLate):
        return ApiError(503, "the request took longer than the server allows", "timeout", headers=again)
    if isinstance(error, Cancelled):
        return ApiError(499, "the request was cancelled", "cancelled")
    if sentence := refused(error):  # a full or read-only disk
        return ApiError(503, sentence, "disk")
    return ApiError(500, "the server failed at this request; its log says why", "internal_error")
