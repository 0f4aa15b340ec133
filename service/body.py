"""Reads a request's body, JSON or multipart, into one set of validated fields."""

from __future__ import annotations

from collections.abc import Sequence
from email.message import Message
from typing import Any, TypeVar, get_args, get_origin

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import ApiError
from service.schemas import IMAGE_FIELDS, MAX_ITEMS

Fields = TypeVar("Fields", bound=BaseModel)
_MAX_NAME_LENGTH = 64
# Every value of a JSON body but one costs a comma. A body has room for millions, and pydantic, with it
# the event loop, would be busy for minutes.
_MAX_COMMAS = 20_000
_CODES = {
    "json_invalid": "malformed_json",
    "missing": "missing_field",
    "missing_field": "missing_field",
    "extra_forbidden": "unknown_field",
    "conflicting_fields": "conflicting_fields",
}


async def read_fields(request: Request, schema: type[Fields], *, max_bytes: int) -> Fields:
    """Reads and validates the body; in multipart, a field that is a list is a repeated part.

    Both forms meet the same schema: JSON strictly (a number is a number), multipart with its texts converted.
    Raises ApiError.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError("unsupported_content_encoding")
    try:
        if content_type == "application/json":
            body = await request.body()
            if body.count(b",") > _MAX_COMMAS:
                raise ApiError("invalid_value", "The body holds too many values.")
            return schema.model_validate_json(body, strict=True)
        if content_type == "multipart/form-data":
            return schema.model_validate(await _read_form(request, schema, max_bytes))
    except ValidationError as error:
        raise field_error(error.errors(include_url=False, include_input=False)) from error
    raise ApiError("unsupported_content_type")


def field_error(problems: Sequence[Any]) -> ApiError:
    """The ApiError of pydantic's first problem; values are never repeated, names only in part."""
    problem = problems[0]
    code = _CODES.get(problem["type"], "invalid_value")
    if code == "malformed_json":
        return ApiError(code, f"The body is not valid JSON: {problem['ctx']['error']}.")
    field, *inner = problem["loc"] or (problem.get("ctx", {}).get("param", ""),)
    places = [str(place) for place in inner if isinstance(place, int)]  # pydantic names a union's members too
    param = ".".join([str(field)[:_MAX_NAME_LENGTH], *places]) or None
    return ApiError(code, f"{problem['msg']}.", param=param)


async def _read_form(request: Request, schema: type[BaseModel], max_bytes: int) -> dict[str, Any]:
    _check_charset(request)
    parser = _FormParser(
        request.headers, request.stream(), max_files=MAX_ITEMS, max_fields=MAX_ITEMS, max_part_size=max_bytes
    )
    parser.spool_max_size = max_bytes  # stays in memory: the container's disk is read-only
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ApiError("malformed_multipart", error.message) from error
    if not parser.is_whole:
        raise ApiError("malformed_multipart", "The closing boundary is missing.")
    lists = [name for name, field in schema.model_fields.items() if _is_list(field.annotation)]
    fields: dict[str, Any] = {}
    for name, part in form.multi_items():
        value = await _part_value(name, part)
        if name in lists:
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise ApiError("duplicate_field", param=name[:_MAX_NAME_LENGTH])
        elif value != "" or name not in schema.model_fields or schema.model_fields[name].is_required():
            fields[name] = value  # an empty optional part is what a web form sends for "not filled in"
    return fields


class _FormParser(MultiPartParser):
    """Knows whether the closing boundary came: what is cut off before it would be left out without a word."""

    is_whole = False

    def on_end(self) -> None:
        self.is_whole = True


def _check_charset(request: Request) -> None:
    """Raises ApiError unless texts are UTF-8: of Python's codecs some fail, and some take hours."""
    header = Message()
    header["content-type"] = request.headers["content-type"]
    if str(header.get_param("charset", "utf-8")).lower() not in ("utf-8", "utf8", "us-ascii"):
        raise ApiError("unsupported_content_type", "The texts of a form are UTF-8.")


def _is_list(annotation: Any) -> bool:
    """Whether a field is a list, or one that may be left out."""
    return get_origin(annotation) is list or any(map(_is_list, get_args(annotation)))


async def _part_value(name: str, part: str | UploadFile) -> str | bytes:
    if isinstance(part, str):
        return part
    if name not in IMAGE_FIELDS:
        raise ApiError(
            "invalid_value", "This field is text; it cannot be a file.", param=name[:_MAX_NAME_LENGTH]
        )
    content = await part.read()
    await part.close()
    return content
