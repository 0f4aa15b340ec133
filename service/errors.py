"""The one table of error codes and the one shape in which every error leaves the service."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ErrorKind:
    """What a code always means: HTTP status, `type`, the outcome it counts as, default message."""

    status: int
    type: str
    outcome: str
    message: str


_BAD, _LARGE, _BUSY, _DOWN = "invalid_request", "too_large", "overloaded", "unavailable"

# docs/api.md shows this table; a test holds the two equal.
ERRORS: Mapping[str, ErrorKind] = {
    "malformed_json": ErrorKind(400, _BAD, "invalid", "The body is not valid JSON."),
    "malformed_multipart": ErrorKind(400, _BAD, "invalid", "The body is not valid multipart/form-data."),
    "bad_request": ErrorKind(400, _BAD, "invalid", "The request cannot be read."),
    "missing_field": ErrorKind(422, _BAD, "invalid", "A required field is missing."),
    "unknown_field": ErrorKind(422, _BAD, "invalid", "There is no such field."),
    "duplicate_field": ErrorKind(422, _BAD, "invalid", "The field is given more than once."),
    "conflicting_fields": ErrorKind(422, _BAD, "invalid", "Two fields exclude each other."),
    "invalid_value": ErrorKind(422, _BAD, "invalid", "The value is not allowed."),
    "invalid_base64": ErrorKind(
        422, _BAD, "invalid", "The text is neither base64 nor a data: URL with base64."
    ),
    "image_url_not_allowed": ErrorKind(
        422,
        _BAD,
        "invalid",
        "This server does not fetch that URL; send the image as a file, base64 or a data: URL.",
    ),
    "image_url_failed": ErrorKind(422, _BAD, "invalid", "The image's URL could not be fetched."),
    "empty_image": ErrorKind(422, _BAD, "invalid", "The image has no bytes."),
    "image_too_small": ErrorKind(422, _BAD, "invalid", "The image must be at least 3 x 3 pixels."),
    "invalid_image": ErrorKind(422, _BAD, "invalid", "The image is truncated or damaged."),
    "rejected_by_model": ErrorKind(422, _BAD, "invalid", "The model cannot take this request."),
    "unauthorized": ErrorKind(
        401, "authentication", "invalid", "Send a valid key: Authorization: Bearer <key>."
    ),
    "route_not_found": ErrorKind(404, "not_found", "invalid", "There is no such route."),
    "model_not_found": ErrorKind(404, "not_found", "invalid", "There is no such model."),
    "task_not_served": ErrorKind(404, "not_found", "invalid", "No model here serves this task."),
    "method_not_allowed": ErrorKind(405, _BAD, "invalid", "The route does not have this method."),
    "unsupported_content_type": ErrorKind(
        415, _BAD, "invalid", "Send multipart/form-data or application/json."
    ),
    "unsupported_content_encoding": ErrorKind(415, _BAD, "invalid", "Send the body without compression."),
    "unsupported_image": ErrorKind(415, _BAD, "invalid", "The bytes are not an image of a supported format."),
    "body_too_large": ErrorKind(413, _LARGE, "invalid", "The body is too large."),
    "image_too_large": ErrorKind(413, _LARGE, "invalid", "The image has too many bytes."),
    "image_too_many_pixels": ErrorKind(413, _LARGE, "invalid", "The image has too many pixels."),
    "overloaded": ErrorKind(429, _BUSY, "shed", "Too many requests are waiting; try again later."),
    "client_closed_request": ErrorKind(499, _BAD, "cancelled", "The client went away."),
    "internal": ErrorKind(500, "internal", "error", "The server failed on this request."),
    "not_ready": ErrorKind(503, _DOWN, "unavailable", "The server is starting."),
    "draining": ErrorKind(503, _DOWN, "unavailable", "The server is shutting down."),
    "engine_failed": ErrorKind(503, _DOWN, "unavailable", "The model's engine does not work."),
    "deadline_exceeded": ErrorKind(504, "timeout", "deadline", "The request was not answered in time."),
}


class ApiError(Exception):
    """An error with a code of the table; its message is written for the client and names no path or address.

    `param` is the field at fault; `headers` are added to the answer. What only the log may say travels as
    `__cause__`. Raises KeyError on a code outside the table: our bug.
    """

    def __init__(
        self,
        code: str,
        message: str | None = None,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.code = code
        self.kind = ERRORS[code]
        self.message = message or self.kind.message
        self.param = param
        self.headers = dict(headers or {})
        super().__init__(f"{code}: {self.message}")

    def body(self, request_id: str) -> dict[str, Any]:
        """The JSON of the answer: `{"error": {type, code, message, param, request_id}}`."""
        return {
            "error": {
                "type": self.kind.type,
                "code": self.code,
                "message": self.message,
                "param": self.param,
                "request_id": request_id,
            }
        }
