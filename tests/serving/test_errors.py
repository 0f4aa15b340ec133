"""Every error that HTTP can show: its status, its code, its one shape."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.errors import ERRORS
from tests.serving.conftest import Serve, encode, wait_until
from tests.serving.fakes import FakeModel

JSON = {"content-type": "application/json"}


def check(response: Any, code: str, param: str | None = None) -> dict[str, Any]:
    """The one shape; gives the error for further looks."""
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"type", "code", "message", "param", "request_id"}
    assert (error["code"], error["param"]) == (code, param)
    assert response.status_code == ERRORS[code].status
    assert error["type"] == ERRORS[code].type
    assert error["request_id"] == response.headers["x-request-id"]
    assert error["message"]
    return error


def _without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"question": 3}, "invalid_value", "question"),
        ({"question": None}, "invalid_value", "question"),
        ({"question": ""}, "invalid_value", "question"),
        ({"question": "  \n "}, "invalid_value", "question"),
        ({"question": "x" * 1001}, "invalid_value", "question"),
        ({"candidates": "red"}, "invalid_value", "candidates"),
        ({"candidates": []}, "invalid_value", "candidates"),
        ({"candidates": ["red", ""]}, "invalid_value", "candidates.1"),
        ({"candidates": ["red", 7]}, "invalid_value", "candidates.1"),
        ({"candidates": ["x"] * 65}, "invalid_value", "candidates"),
        ({"num_beams": 0}, "invalid_value", "num_beams"),
        ({"num_beams": 17}, "invalid_value", "num_beams"),
        ({"num_beams": "2"}, "invalid_value", "num_beams"),
        ({"num_beams": 2.5}, "invalid_value", "num_beams"),
        ({"num_beams": True}, "invalid_value", "num_beams"),
        ({"model": "other"}, "model_not_found", "model"),
        ({"model": 1}, "invalid_value", "model"),
        ({"report": "all"}, "invalid_value", "report"),
        ({"temperature": 1}, "unknown_field", "temperature"),
        ({"image": 5}, "invalid_value", "image"),
        ({"image": "???"}, "invalid_base64", "image"),
        ({"image": "https://example.com/a.png"}, "image_url_not_allowed", "image"),
        ({"image": ""}, "empty_image", "image"),
        ({"image": base64.b64encode(b"<svg/>").decode()}, "unsupported_image", "image"),
        ({"question": "refuse it"}, "rejected_by_model", None),
        ({"question": "break it"}, "internal", None),
    ],
)
def test_json_values(
    client: TestClient, question: dict[str, Any], change: dict[str, Any], code: str, param: str | None
) -> None:
    check(client.post("/v1/vqa", json=question | change), code, param)


@pytest.mark.parametrize("name", ["image", "question"])
def test_missing_fields(client: TestClient, question: dict[str, Any], png: bytes, name: str) -> None:
    check(client.post("/v1/vqa", json=_without(question, name)), "missing_field", name)
    parts = {"question": (None, "is it red?"), "image": ("a.png", png)}
    check(client.post("/v1/vqa", files=_without(parts, name)), "missing_field", name)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ([("num_beams", (None, "two"))], "invalid_value", "num_beams"),
        ([("num_beams", (None, "99"))], "invalid_value", "num_beams"),
        ([("candidates", (None, ""))], "invalid_value", "candidates.0"),
        ([("other", (None, "1"))], "unknown_field", "other"),
        ([("question", (None, "again?"))], "duplicate_field", "question"),
        ([("image", ("b.png", b"again"))], "duplicate_field", "image"),
        ([("model", ("a.txt", b"fake"))], "invalid_value", "model"),
        ([("model", (None, "other"))], "model_not_found", "model"),
        ([("report", (None, "all"))], "invalid_value", "report"),
    ],
)
def test_multipart_values(client: TestClient, png: bytes, change: Any, code: str, param: str) -> None:
    parts = [("image", ("a.png", png)), ("question", (None, "is it red?")), *change]
    check(client.post("/v1/vqa", files=parts), code, param)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"nothing",
        b'{"question": "a" "image": 1}',
        b'{"question": "\xff"}',
        b'{"question": "\\ud800"}',
        b"[" * 5000,
    ],
)
def test_malformed_json(client: TestClient, content: bytes) -> None:
    check(client.post("/v1/vqa", content=content, headers=JSON), "malformed_json")


@pytest.mark.parametrize("content", [b"[]", b"null", b'"text"', b"3"])
def test_json_that_is_no_object(client: TestClient, content: bytes) -> None:
    check(client.post("/v1/vqa", content=content, headers=JSON), "invalid_value")


def test_a_body_of_very_many_values_is_refused_before_any_is_looked_at(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.schemas.RequestFields.model_validate_json", lambda *_, **__: 1 / 0)
    content = b'{"candidates": [1' + b",1" * 30_000 + b"]}"
    check(client.post("/v1/vqa", content=content, headers=JSON), "invalid_value")


def test_a_list_is_not_read_beyond_its_bound(client: TestClient, question: dict[str, Any]) -> None:
    error = check(
        client.post("/v1/vqa", json=question | {"candidates": [1] * 5000}), "invalid_value", "candidates"
    )
    assert "1000 items" in error["message"]  # not that of the first item, so none was


def test_a_form_without_its_closing_boundary_is_not_taken_for_a_shorter_one(
    client: TestClient, png: bytes
) -> None:
    request = client.build_request(
        "POST", "/v1/vqa", data={"question": "is it?", "quality": "exact"}, files={"image": png}
    )
    content = request.read()
    headers = {"content-type": request.headers["content-type"]}
    assert client.post("/v1/vqa", content=content, headers=headers).status_code == 200
    for cut in (4, len(png) + 20):
        check(client.post("/v1/vqa", content=content[:-cut], headers=headers), "malformed_multipart")


@pytest.mark.parametrize("charset", ["punycode", "undefined", "utf-16", "rot13", "no-such", '"'])
def test_forms_in_other_charsets(client: TestClient, charset: str) -> None:
    """Python's punycode takes time that grows with the text's square, and `undefined` raises."""
    body = b'--x\r\nContent-Disposition: form-data; name="question"\r\n\r\na\r\n--x--\r\n'
    headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    check(client.post("/v1/vqa", content=body, headers=headers), "unsupported_content_type")
    headers = {"content-type": "multipart/form-data; boundary=x; charset=UTF-8"}
    check(client.post("/v1/vqa", content=body, headers=headers), "missing_field", "image")


def test_a_url_that_is_too_long(client: TestClient) -> None:
    check(client.post("/v1/vqa?" + "a=1&" * 3000), "bad_request")
    check(client.get("/" + "a" * 9000), "bad_request")


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=x"])
def test_malformed_multipart(client: TestClient, content_type: str) -> None:
    response = client.post("/v1/vqa", content=b"not a part", headers={"content-type": content_type})
    check(response, "malformed_multipart")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "image/png", ""])
def test_content_types(client: TestClient, content_type: str) -> None:
    headers = {"content-type": content_type}
    check(client.post("/v1/vqa", content=b"question=a", headers=headers), "unsupported_content_type")


def test_a_compressed_body(client: TestClient, question: dict[str, Any]) -> None:
    response = client.post("/v1/vqa", json=question, headers={"content-encoding": "gzip"})
    check(response, "unsupported_content_encoding")


def test_query_parameters(client: TestClient, question: dict[str, Any]) -> None:
    check(client.post("/v1/vqa?report=all", json=question), "invalid_value", "report")
    check(client.post("/v1/vqa?reprot=full", json=question), "unknown_field", "reprot")
    both = client.post("/v1/vqa?report=full", json=question | {"report": "none"})
    check(both, "duplicate_field", "report")


def test_routes_and_methods(client: TestClient) -> None:
    check(client.get("/v1/nothing"), "route_not_found")
    check(client.post("/v1/vqa/", json={}), "route_not_found")
    response = client.get("/v1/vqa")
    check(response, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("picture", "code"),
    [
        (Image.new("RGB", (2, 9)), "image_too_small"),
        (Image.new("RGB", (200, 51)), "image_too_many_pixels"),
    ],
)
def test_picture_sizes(serve: Serve, question: dict[str, Any], picture: Image.Image, code: str) -> None:
    client = serve(max_image_pixels=10_000)
    text = base64.b64encode(encode(picture, "PNG")).decode()
    check(client.post("/v1/vqa", json=question | {"image": text}), code, "image")


def test_picture_bytes_in_both_forms(serve: Serve, png: bytes, question: dict[str, Any]) -> None:
    client = serve(max_image_bytes=len(png) - 1)
    check(client.post("/v1/vqa", json=question), "image_too_large", "image")
    response = client.post("/v1/vqa", data={"question": "is it?"}, files={"image": png})
    check(response, "image_too_large", "image")


def test_a_truncated_picture(client: TestClient, png: bytes, question: dict[str, Any]) -> None:
    text = base64.b64encode(png[:-30]).decode()
    check(client.post("/v1/vqa", json=question | {"image": text}), "invalid_image", "image")


def test_errors_never_show_paths_or_what_the_exception_said(
    client: TestClient, question: dict[str, Any]
) -> None:
    text = client.post("/v1/vqa", json=question | {"question": "break it"}).text
    assert "secret" not in text
    assert "Traceback" not in text


def test_a_bug_in_a_route_has_the_same_shape(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.routes.build_reply", lambda *_: 1 / 0)
    response = client.post("/v1/vqa", json={"image": _red(), "question": "is it red?"})
    check(response, "internal")


def _red() -> str:
    return base64.b64encode(encode(Image.new("RGB", (8, 8), "red"), "PNG")).decode()


def test_overload_is_answered_at_once_with_retry_after_and_decodes_nothing(
    serve: Serve, model: FakeModel, question: dict[str, Any]
) -> None:
    client = serve(max_queue=1)
    with ThreadPoolExecutor(1) as threads, model.held():
        first = threads.submit(client.post, "/v1/vqa", json=question)
        assert model.has_begun.wait(10)
        response = client.post("/v1/vqa", json=question)
        check(response, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
        check(client.post("/v1/vqa?report=what", content=b"{"), "overloaded")  # nobody looks at either
    assert first.result(10).status_code == 200
    metrics = client.get("/metrics").text
    assert 'madtp_images_decoded_total{model="fake"} 1.0' in metrics
    assert 'madtp_shed_total{model="fake",reason="overloaded",task="vqa"} 2.0' in metrics
    assert client.post("/v1/vqa", json=question).status_code == 200


def _inside(client: TestClient) -> dict[str, int]:
    engines = client.app.state.runtime.fleet.engines  # type: ignore[attr-defined]
    return {name: engine.admission.inside for name, engine in engines.items()}


def test_a_model_that_is_full_does_not_turn_away_who_names_another(
    serve: Serve, question: dict[str, Any]
) -> None:
    full, free = FakeModel(), FakeModel()
    client = serve({"full": full, "free": free}, max_queue=1)
    with ThreadPoolExecutor(1) as threads, full.held():
        first = threads.submit(client.post, "/v1/vqa", json=question)
        assert full.has_begun.wait(10)
        assert client.post("/v1/vqa", json=question | {"model": "free"}).status_code == 200
        for fields in (question, question | {"model": "full"}):
            check(client.post("/v1/vqa", json=fields), "overloaded")
        assert _inside(client) == {"full": 1, "free": 0}
    assert first.result(10).status_code == 200
    assert _inside(client) == {"full": 0, "free": 0}


def test_whoever_names_a_model_that_cannot_serve_leaves_no_place_taken(
    serve: Serve, question: dict[str, Any]
) -> None:
    bad = FakeModel()
    client = serve({"good": FakeModel(), "bad": bad}, max_queue=2)
    check(client.post("/v1/vqa", json=question | {"question": "kill it", "model": "bad"}), "engine_failed")
    for _ in range(3):
        check(client.post("/v1/vqa", json=question | {"model": "bad"}), "engine_failed")
        check(client.post("/v1/vqa", json=question | {"model": "none"}), "model_not_found", "model")
    assert _inside(client) == {"good": 0, "bad": 0}
    assert client.post("/v1/vqa", json=question).status_code == 200
    shed = 'madtp_shed_total{model="bad",reason="engine_failed",task="vqa"} 4.0'
    assert shed in client.get("/metrics").text


def test_a_default_model_that_cannot_serve_is_not_replaced_by_another_unasked(
    serve: Serve, question: dict[str, Any]
) -> None:
    client = serve({"bad": FakeModel(), "good": FakeModel()})
    check(client.post("/v1/vqa", json=question | {"question": "kill it"}), "engine_failed")
    check(client.post("/v1/vqa", json=question), "engine_failed")
    assert client.post("/v1/vqa", json=question | {"model": "good"}).status_code == 200


def test_what_is_larger_than_what_is_left_is_turned_away_before_it_is_decoded(
    serve: Serve, model: FakeModel, question: dict[str, Any]
) -> None:
    client = serve(max_queue_tokens=40)  # a picture has 16, and nothing is known yet of what pruning leaves
    long = question | {"question": "is " * 50 + "it?"}
    with ThreadPoolExecutor(1) as threads, model.held():
        first = threads.submit(client.post, "/v1/vqa", json=question)
        assert model.has_begun.wait(10)
        check(client.post("/v1/vqa", json=long), "overloaded")
    assert first.result(10).status_code == 200
    assert 'madtp_images_decoded_total{model="fake"} 1.0' in client.get("/metrics").text
    assert client.post("/v1/vqa", json=long).status_code == 200  # alone it may take all


def test_a_request_that_takes_too_long(serve: Serve, model: FakeModel, question: dict[str, Any]) -> None:
    client = serve(request_deadline_s=0.05)
    with model.held():
        check(client.post("/v1/vqa", json=question), "deadline_exceeded")
    assert client.app.state.runtime.fleet.inside == 0  # type: ignore[attr-defined]


def test_a_dead_engine_answers_who_waits_and_is_not_ready(
    client: TestClient, model: FakeModel, question: dict[str, Any]
) -> None:
    check(client.post("/v1/vqa", json=question | {"question": "kill it"}), "engine_failed")
    check(client.get("/readyz"), "engine_failed")
    check(client.post("/v1/vqa", json=question), "engine_failed")
    wait_until(lambda: client.app.state.runtime.has_failed)  # type: ignore[attr-defined]


def test_a_draining_server_finishes_what_is_inside_and_takes_nothing_new(
    client: TestClient, model: FakeModel, question: dict[str, Any]
) -> None:
    with ThreadPoolExecutor(1) as threads, model.held():
        inside = threads.submit(client.post, "/v1/vqa", json=question)
        assert model.has_begun.wait(10)
        client.app.state.runtime.begin_drain()  # type: ignore[attr-defined]
        check(client.get("/readyz"), "draining")
        check(client.post("/v1/vqa", json=question), "draining")
    assert inside.result(10).status_code == 200


def test_values_are_never_repeated(client: TestClient, question: dict[str, Any]) -> None:
    marker = "never-say-this"
    for change in ({"num_beams": marker}, {"report": marker}, {"model": marker}, {"image": marker}):
        text = client.post("/v1/vqa", json=question | change).text
        assert marker not in text, json.dumps(change)
