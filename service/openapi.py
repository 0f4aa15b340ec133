"""The OpenAPI description of a task's request body: one schema in two forms, each with working examples."""

from typing import Any

from service.schemas import IMAGE_FIELDS
from service.tasks.base import Task


def request_body(task: Task) -> dict[str, Any]:
    """The request body of a task's route, as JSON and as multipart."""
    schema = task.fields.model_json_schema()
    properties = schema["properties"]
    in_json = {name: _json_property(name, field) for name, field in properties.items()}
    in_form = {name: _form_property(name, field) for name, field in properties.items()}
    form_example = next(iter(task.examples.values()))
    for name, value in form_example.items():
        if name not in IMAGE_FIELDS:
            in_form[name]["example"] = value
    lists = [name for name, field in in_form.items() if field.get("type") == "array"]
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": schema | {"properties": in_form},
                "encoding": {name: {"style": "form", "explode": True} for name in lists},  # repeated parts
            },
            "application/json": {
                "schema": schema | {"properties": in_json},
                "examples": {name: {"value": value} for name, value in task.examples.items()},
            },
        },
    }


def _json_property(name: str, field: dict[str, Any]) -> dict[str, Any]:
    """An image in JSON is a text, whatever else our schema takes."""
    if name not in IMAGE_FIELDS:
        return field
    kept = {key: value for key, value in field.items() if key in ("description", "title")}
    as_text: dict[str, Any] = {"type": "string"}
    if name == "images":
        as_text = {"type": "array", "items": as_text} | _limits(field)
    return kept | as_text


def _form_property(name: str, field: dict[str, Any]) -> dict[str, Any]:
    """What is left out of a form is not sent, so there is no null; an image is a file."""
    plain = {key: value for key, value in field.items() if key not in ("anyOf", "default")}
    if name not in IMAGE_FIELDS:
        kinds = [kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"]
        return plain | (kinds[0] if kinds else {})
    kept = {key: value for key, value in plain.items() if key in ("description", "title")}
    as_file: dict[str, Any] = {"type": "string", "format": "binary"}
    if name == "images":
        as_file = {"type": "array", "items": as_file} | _limits(field)
    return kept | as_file


def _limits(field: dict[str, Any]) -> dict[str, Any]:
    """How many items a list may have."""
    lists = [field, *field.get("anyOf", ())]
    return {key: kind[key] for kind in lists for key in ("minItems", "maxItems") if key in kind}
