"""The generated docs work when tried, and the written ones say what the code does."""

import base64
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.errors import ERRORS
from service.model import Model
from service.settings import load_settings
from service.tasks import TASKS
from service.tasks.base import EXAMPLE_IMAGE, Task
from tests.serving.conftest import ready_client

DOCS = Path(__file__).parents[2] / "docs" / "api.md"


def _request_body(client: TestClient, task: Task) -> Any:
    paths = client.get("/openapi.json").json()["paths"]
    return paths[task.path]["post"]["requestBody"]["content"]


def test_the_docs_page_is_there(client: TestClient) -> None:
    response = client.get("/docs")
    assert response.status_code == 200
    assert "swagger" in response.text


@pytest.fixture(scope="module")
def every_task(tiny_models: Mapping[str, Model]) -> Iterator[TestClient]:
    """A ready app that serves all tasks."""
    with ready_client(load_settings(None, warm_up_s=0), tiny_models) as client:
        yield client


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_json_example_works_as_it_stands(every_task: TestClient, task: Task) -> None:
    examples = _request_body(every_task, task)["application/json"]["examples"]
    assert set(examples) == set(task.examples)
    for example in examples.values():
        assert every_task.post(task.path, json=example["value"]).status_code == 200


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_form_has_examples_that_work_and_files_to_choose(every_task: TestClient, task: Task) -> None:
    form = _request_body(every_task, task)["multipart/form-data"]
    properties = form["schema"]["properties"]
    example = next(iter(task.examples.values()))
    values = {name: field["example"] for name, field in properties.items() if "example" in field}
    assert set(values) == set(example) - {"image", "images"}
    assert all(form["encoding"][name]["explode"] for name, value in values.items() if isinstance(value, list))
    picture = base64.b64decode(EXAMPLE_IMAGE)
    files = [("image", picture)] if "image" in example else [("images", picture)] * len(example["images"])
    assert every_task.post(task.path, data=values, files=files).status_code == 200


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_both_forms_have_the_same_fields(client: TestClient, task: Task) -> None:
    fields = [set(form["schema"]["properties"]) for form in _request_body(client, task).values()]
    assert fields[0] == fields[1] == set(task.fields.model_fields)


def test_in_a_form_an_image_is_a_file_and_several_are_repeated_parts(client: TestClient) -> None:
    properties = _request_body(client, TASKS["retrieval"])["multipart/form-data"]["schema"]["properties"]
    assert properties["image"]["format"] == properties["images"]["items"]["format"] == "binary"


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_docs_list_every_field_of_a_task(task: Task) -> None:
    text = DOCS.read_text("utf-8")
    section = text.split(f"### POST {task.path}\n")[1].split("\n### ")[0]
    common = text.split("### Fields of every task\n")[1].split("\n### ")[0]
    listed = set(re.findall(r"^\| `(\w+)` \|", section + common, re.MULTILINE))
    assert listed == set(task.fields.model_fields)


def test_no_route_documents_the_frameworks_own_error_shape(client: TestClient) -> None:
    assert "HTTPValidationError" not in client.get("/openapi.json").text


def test_the_table_of_codes_is_the_one_in_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \| `(\w+)` \|", DOCS.read_text("utf-8"), re.MULTILINE)
    assert rows == [(code, str(kind.status), kind.type) for code, kind in ERRORS.items()]


def test_the_docs_name_every_route(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    documented = re.findall(r"^\| `(?:GET|POST) (/[\w/.]*)` \|", DOCS.read_text("utf-8"), re.MULTILINE)
    assert set(documented) == {*paths, "/docs", "/openapi.json"}
