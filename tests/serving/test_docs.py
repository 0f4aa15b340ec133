"""The generated docs work when tried, and the written ones say what the code does."""

import base64
import re
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from service.errors import ERRORS
from service.schemas import EXAMPLE_IMAGE

DOCS = Path(__file__).parents[2] / "docs" / "api.md"


def _request_body(client: TestClient) -> Any:
    paths = client.get("/openapi.json").json()["paths"]
    return paths["/v1/vqa"]["post"]["requestBody"]["content"]


def test_the_docs_page_is_there(client: TestClient) -> None:
    response = client.get("/docs")
    assert response.status_code == 200
    assert "swagger" in response.text


def test_every_json_example_works_as_it_stands(client: TestClient) -> None:
    examples = _request_body(client)["application/json"]["examples"]
    assert set(examples) == {"generate", "rank"}
    for example in examples.values():
        assert client.post("/v1/vqa", json=example["value"]).status_code == 200


def test_the_form_has_examples_that_work_and_a_file_to_choose(client: TestClient) -> None:
    form = _request_body(client)["multipart/form-data"]
    properties = form["schema"]["properties"]
    assert properties["image"]["format"] == "binary"
    assert form["encoding"]["candidates"] == {"style": "form", "explode": True}
    values = {name: field["example"] for name, field in properties.items() if "example" in field}
    assert set(values) == {"question", "candidates"}
    response = client.post("/v1/vqa", data=values, files={"image": base64.b64decode(EXAMPLE_IMAGE)})
    assert response.status_code == 200


def test_both_forms_have_the_same_fields(client: TestClient) -> None:
    content = _request_body(client)
    fields = [set(form["schema"]["properties"]) for form in content.values()]
    assert fields[0] == fields[1] == {"image", "question", "candidates", "num_beams", "model", "report"}


def test_no_route_documents_the_frameworks_own_error_shape(client: TestClient) -> None:
    assert "HTTPValidationError" not in client.get("/openapi.json").text


def test_the_table_of_codes_is_the_one_in_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \| `(\w+)` \|", DOCS.read_text("utf-8"), re.MULTILINE)
    assert rows == [(code, str(kind.status), kind.type) for code, kind in ERRORS.items()]


def test_the_docs_name_every_route(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    documented = re.findall(r"^\| `(?:GET|POST) (/[\w/.]*)` \|", DOCS.read_text("utf-8"), re.MULTILINE)
    assert set(documented) == {*paths, "/docs", "/openapi.json"}
