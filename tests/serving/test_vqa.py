"""POST /v1/vqa when all goes well: both forms of a request, the report, many at once."""

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from madtp_core.images import preprocess_image
from tests.serving.conftest import Serve, encode, wait_until
from tests.serving.fakes import COST, GEOMETRY, TEXT, VISION, FakeModel, solid_picture

SUMMARY_KEYS = {
    "request_id",
    "model",
    "batch_size",
    "keep_mode",
    "prune_temperature",
    "flops_target",
    "difficulty",
    "vision",
    "text",
    "token_density",
    "flops",
    "dense_flops",
    "flops_ratio",
    "flops_reduction",
    "seconds",
}


def _forms(png: bytes) -> dict[str, dict[str, Any]]:
    """The same request in every form: keyword arguments of `client.post`."""
    text = base64.b64encode(png).decode()
    fields = {"question": "is it red?", "candidates": ["yes", "no"], "num_beams": 2, "model": "fake"}
    file = {"image": ("picture.png", png, "image/png")}
    return {
        "json base64": {"json": fields | {"image": text}},
        "json data url": {"json": fields | {"image": f"data:image/png;base64,{text}"}},
        "multipart file": {"data": fields, "files": file},
    }


@pytest.mark.parametrize("form", ["json base64", "json data url", "multipart file"])
def test_every_form_gives_the_same_answer(
    client: TestClient, model: FakeModel, png: bytes, form: str
) -> None:
    response = client.post("/v1/vqa", **_forms(png)[form])
    assert response.status_code == 200
    body = response.json()
    assert (body["answer"], body["score"]) == ("no", -0.5)
    assert body["ranked"] == [{"candidate": "no", "score": -0.5}, {"candidate": "yes", "score": -1.0}]
    (query,) = model.queries
    assert (query.question, query.candidates, query.num_beams) == ("is it red?", ("yes", "no"), 2)
    expected = preprocess_image(Image.fromarray(solid_picture()), GEOMETRY)
    np.testing.assert_array_equal(query.pixel_values, expected)


def test_an_image_may_be_a_text_part(client: TestClient, png: bytes) -> None:
    boundary = "limit"
    parts = {"image": base64.b64encode(png).decode(), "question": "is it red?"}
    body = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in parts.items()
    )
    response = client.post(
        "/v1/vqa",
        content=f"{body}--{boundary}--\r\n",
        headers={"content-type": f"multipart/form-data; boundary={boundary}"},
    )
    assert (response.status_code, response.json()["answer"]) == (200, "red?")


def test_without_candidates_nothing_is_ranked(client: TestClient, question: dict[str, Any]) -> None:
    body = client.post("/v1/vqa", json=question).json()
    assert (body["answer"], body["ranked"]) == ("red?", None)


def test_empty_optional_parts_are_what_a_web_form_leaves_out(client: TestClient, png: bytes) -> None:
    fields = {"question": "is it red?", "num_beams": "", "model": "", "report": ""}
    assert client.post("/v1/vqa", data=fields, files={"image": png}).status_code == 200


def test_the_summary_report(client: TestClient, question: dict[str, Any]) -> None:
    response = client.post("/v1/vqa", json=question, headers={"x-request-id": "mine-1"})
    report = response.json()["report"]
    assert set(report) == SUMMARY_KEYS
    seconds = report.pop("seconds")
    assert set(seconds) == {"queue", "decode", "preprocess", "inference", "postprocess"}
    assert min(seconds.values()) >= 0
    assert report == {
        "request_id": "mine-1",
        "model": "fake",
        "batch_size": 1,
        "keep_mode": "max_keep",
        "prune_temperature": 1.5,
        "flops_target": {"asked": 0.5, "served": 0.5, "reason": None},
        "difficulty": {"predicted": None, "measured": 0.4},
        "vision": {"token_density": VISION.token_density},
        "text": {"token_density": TEXT.token_density},
        "token_density": (12 + 9) / (2 * 16 + 2 * 6),
        "flops": COST.flops,
        "dense_flops": COST.dense_flops,
        "flops_ratio": 0.6,
        "flops_reduction": pytest.approx(0.4),
    }


def test_who_is_alone_is_predicted_while_it_runs_and_learned_from(
    serve: Serve, question: dict[str, Any]
) -> None:
    client = serve({"slow": FakeModel(delay_s=0.2)})
    reports = [client.post("/v1/vqa", json=question).json()["report"] for _ in range(2)]
    assert [report["difficulty"]["predicted"] for report in reports] == [None, pytest.approx(0.4)]


def test_the_full_report_adds_the_lists(client: TestClient, question: dict[str, Any]) -> None:
    report = client.post("/v1/vqa?report=full", json=question).json()["report"]
    assert set(report) == SUMMARY_KEYS
    assert report["vision"] == {
        "tokens_in": [16, 9],
        "needed": [8, 3],
        "kept": [8, 4],
        "token_density": VISION.token_density,
    }
    assert report["text"]["kept"] == [6, 3]


@pytest.mark.parametrize("place", ["query", "field"])
def test_no_report(client: TestClient, question: dict[str, Any], place: str) -> None:
    path = "/v1/vqa?report=none" if place == "query" else "/v1/vqa"
    extra = {"report": "none"} if place == "field" else {}
    assert client.post(path, json=question | extra).json()["report"] is None


def test_where_nothing_is_pruned_nothing_is_difficult(serve: Serve, question: dict[str, Any]) -> None:
    client = serve({"dense": FakeModel(is_pruned=False)})
    report = client.post("/v1/vqa", json=question).json()["report"]
    assert report["difficulty"] == {"predicted": None, "measured": None}
    assert report["prune_temperature"] == 0.0


def test_the_default_model_is_the_first_and_another_can_be_named(
    serve: Serve, question: dict[str, Any]
) -> None:
    first, second = FakeModel(), FakeModel()
    client = serve({"first": first, "second": second})
    named = [
        client.post("/v1/vqa", json=question | extra).json()["report"]["model"]
        for extra in ({}, {"model": "second"})
    ]
    assert named == ["first", "second"]
    assert (len(first.batches), len(second.batches)) == (1, 1)


def test_many_at_once_with_one_broken_image_among_them(
    client: TestClient, model: FakeModel, question: dict[str, Any]
) -> None:
    requests = [question | {"question": f"is number {number}"} for number in range(60)]
    requests[17]["image"] = base64.b64encode(encode(Image.new("RGB", (40, 40)), "PNG")[:60]).decode()
    with ThreadPoolExecutor(16) as threads:
        responses = list(threads.map(lambda request: client.post("/v1/vqa", json=request), requests))
    codes = [response.status_code for response in responses]
    assert codes == [200] * 17 + [422] + [200] * 42
    answers = [response.json().get("answer") for response in responses]
    assert answers == [str(number) if number != 17 else None for number in range(60)]
    assert sum(len(batch) for batch in model.batches) == 59


def test_requests_that_wait_together_run_together(
    client: TestClient, model: FakeModel, question: dict[str, Any]
) -> None:
    def ask(_: int) -> Any:
        return client.post("/v1/vqa", json=question).json()["report"]["batch_size"]

    engine = client.app.state.runtime.fleet.engines["fake"]  # type: ignore[attr-defined]
    with ThreadPoolExecutor(9) as threads, model.held():
        first = threads.submit(ask, 0)
        assert model.has_begun.wait(10)
        others = [threads.submit(ask, number) for number in range(8)]
        wait_until(lambda: engine.depth() == 8)
        model.release()
        assert first.result(10) == 1
        assert [other.result(10) for other in others] == [8] * 8


def test_the_models_route_tells_names_and_limits(serve: Serve) -> None:
    client = serve({"first": FakeModel(), "second": FakeModel()}, max_candidates=7)
    listed = client.get("/v1/models").json()["models"]
    assert [(entry["name"], entry["is_default"]) for entry in listed] == [("first", True), ("second", False)]
    assert listed[0]["limits"]["max_candidates"] == 7
    assert (listed[0]["task"], listed[0]["routes"]) == ("vqa", ["/v1/vqa"])
    assert listed[0]["description"] == FakeModel().describe()


def test_the_models_route_tells_the_accuracy_of_every_quality(serve: Serve) -> None:
    (entry,) = serve(flops_target=0.6, flops_floor=0.3).get("/v1/models").json()["models"]
    assert entry["quality"] == {
        "exact": {"flops_target": 1.0, "accuracy": 1.0},
        "balanced": {"flops_target": 0.6, "accuracy": 0.8},
        "fast": {"flops_target": 0.3, "accuracy": 0.65},
    }
