"""Every task's route with tiny real models: each form of an image, what comes back, who answers."""

import base64
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from madtp_core.checkpoint import Checkpoint, save_checkpoint
from madtp_core.tasks.base import PrunedModel
from madtp_core.tasks.plain import plain_task
from service.forward import in_steps
from service.settings import load_settings
from service.tasks import TASKS
from tests.serving.conftest import Serve, encode, ready_client
from tests.serving.test_errors import check
from tests.serving.tiny import make_calibration

PICTURES = [
    encode(Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 50, 3), np.uint8)), "PNG")
    for seed in range(3)
]
TEXTS = {
    "vqa": {"question": "how many circles are there?"},
    "caption": {"num_beams": 2, "max_new_tokens": 6},
    "reasoning": {"statement": "both images contain a red circle"},
    "retrieval": {"texts": ["two circles", "a red star", "three squares"]},
    "embeddings": {"texts": ["two circles", "a red star"]},
}
IMAGES = {"vqa": 1, "caption": 1, "reasoning": 2, "retrieval": 1, "embeddings": 3}
FORMS = ("base64", "data url", "file", "text part")


@pytest.fixture(scope="module")
def client(tiny_models: Mapping[str, PrunedModel]) -> Iterator[TestClient]:
    """All five models in one process."""
    with ready_client(load_settings(None, warm_up_s=0), tiny_models) as client:
        yield client


def ask(client: TestClient, task: str, form: str = "base64", **changes: Any) -> Any:
    """A good request of a task, its images in one of the forms."""
    fields = TEXTS[task] | changes
    encoded = [base64.b64encode(picture).decode() for picture in PICTURES[: IMAGES[task]]]
    name = "images" if task in ("reasoning", "embeddings") else "image"
    if form in ("base64", "data url"):
        prefix = "data:image/png;base64," if form == "data url" else ""
        images = [prefix + text for text in encoded]
        return client.post(TASKS[task].path, json=fields | {name: images if name == "images" else images[0]})
    if form == "file":
        files = [(name, (f"{index}.png", picture)) for index, picture in enumerate(PICTURES[: IMAGES[task]])]
        return client.post(TASKS[task].path, data=fields, files=files)
    parts = [(name, (None, text)) for text in encoded]
    for key, value in fields.items():
        parts += [(key, (None, str(each))) for each in (value if isinstance(value, list) else [value])]
    return client.post(TASKS[task].path, files=parts)


def _without_report(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "report"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", TASKS)
def test_every_form_of_every_task_gives_the_same_answer(client: TestClient, task: str, form: str) -> None:
    response = ask(client, task, form, quality="exact")
    assert response.status_code == 200, response.text
    assert _without_report(response.json()) == _without_report(ask(client, task, quality="exact").json())


@pytest.mark.parametrize("task", TASKS)
def test_a_report_of_every_task(client: TestClient, task: str) -> None:
    report = ask(client, task, report="full", flops_target=0.6).json()["report"]
    assert (report["flops_target"]["asked"], report["model"]) == (0.6, report["model"])
    assert report["flops"] < report["dense_flops"]
    assert report["difficulty"]["measured"] > 0
    blocks = len(report["vision"]["kept"])
    assert report["vision"]["tokens_in"][0] == IMAGES[task] * 64 or report["model"] == "clip"
    assert blocks == len(report["vision"]["needed"])
    assert (report["text"] is None) == (task == "caption")
    assert ask(client, task, report="none").json()["report"] is None


@pytest.mark.parametrize("task", TASKS)
def test_the_models_that_core_and_service_know_agree(client: TestClient, task: str) -> None:
    served = {entry["name"] for entry in _models(client) if TASKS[task].path in entry["routes"]}
    assert served == set(plain_task(task).models)


def _models(client: TestClient) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = client.get("/v1/models").json()["models"]
    return models


def test_the_default_of_a_task_is_its_first_model(client: TestClient) -> None:
    assert [entry["name"] for entry in _models(client) if entry["is_default"]] == [
        "vqa",
        "caption",
        "retrieval",
        "reasoning",
    ]
    assert ask(client, "retrieval").json()["report"]["model"] == "retrieval"
    assert ask(client, "retrieval", model="clip").json()["report"]["model"] == "clip"


def test_a_model_of_another_task_is_refused(client: TestClient) -> None:
    response = ask(client, "vqa", model="caption")
    error = check(response, "task_not_served", "model")
    assert "/v1/caption" in error["message"]
    assert response.status_code == 404


def test_a_task_that_no_model_serves(serve: Serve) -> None:
    client = serve()
    check(ask(client, "caption"), "task_not_served")
    assert client.app.state.runtime.fleet.inside == 0  # type: ignore[attr-defined]


def test_a_caption(client: TestClient) -> None:
    body = ask(client, "caption").json()
    assert isinstance(body["caption"], str)
    assert body["score"] < 0


def test_a_statement(client: TestClient) -> None:
    body = ask(client, "reasoning").json()
    assert body["answer"] is (body["score"] > 0.5)


@pytest.mark.parametrize("model", ["retrieval", "clip"])
def test_texts_are_ranked_for_an_image(client: TestClient, model: str) -> None:
    ranked = ask(client, "retrieval", model=model).json()["ranked"]
    assert sorted(item["index"] for item in ranked) == [0, 1, 2]
    assert [item["rank"] for item in ranked] == [1, 2, 3]
    assert all(-1 <= item["similarity"] <= 1 for item in ranked)
    assert all((item["match_score"] is None) == (model == "clip") for item in ranked)


@pytest.mark.parametrize("model", ["retrieval", "clip"])
def test_images_are_ranked_for_a_text(client: TestClient, model: str) -> None:
    images = [base64.b64encode(picture).decode() for picture in PICTURES]
    response = client.post(
        "/v1/retrieval/rank", json={"text": "a red star", "images": images, "model": model}
    )
    assert sorted(item["index"] for item in response.json()["ranked"]) == [0, 1, 2]


def test_one_image_against_fifty_texts_is_decoded_and_encoded_once(client: TestClient) -> None:
    before = _decoded(client)
    texts = [f"{number} red stars" for number in range(50)]
    report = ask(client, "retrieval", texts=texts, rerank=2, report="full").json()["report"]
    assert _decoded(client) == before + 1
    assert report["vision"]["tokens_in"][0] == 64  # one image's


def _decoded(client: TestClient) -> float:
    lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith('madtp_images_decoded_total{model="retrieval"}')]
    return float(found[0].split()[-1]) if found else 0.0


@pytest.mark.parametrize("model", ["retrieval", "clip"])
def test_embeddings_are_unit_vectors_whose_product_is_the_similarity(client: TestClient, model: str) -> None:
    body = ask(client, "embeddings", model=model, quality="exact", texts=TEXTS["retrieval"]["texts"]).json()
    assert all(
        math.isclose(np.linalg.norm(vector), 1, abs_tol=1e-5) for vector in body["images"] + body["texts"]
    )
    ranked = ask(client, "retrieval", model=model, quality="exact").json()["ranked"]
    similarities = {item["index"]: item["similarity"] for item in ranked}
    products = np.array(body["texts"]) @ np.array(body["images"][0])
    np.testing.assert_allclose([similarities[index] for index in range(3)], products, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "fields", "code", "param"),
    [
        ("reasoning", {"images": ["x"], "statement": "a"}, "invalid_value", "images"),
        ("reasoning", {"images": ["x", "y", "z"], "statement": "a"}, "invalid_value", "images"),
        ("reasoning", {"images": ["???", "y"], "statement": "a"}, "invalid_base64", "images.0"),
        ("retrieval", {"image": "x"}, "missing_field", "text"),
        ("retrieval", {"texts": ["a"]}, "missing_field", "image"),
        ("retrieval", {"image": "x", "images": ["x"], "texts": ["a"]}, "conflicting_fields", "images"),
        ("retrieval", {"image": "x", "text": "a"}, "conflicting_fields", "text"),
        ("retrieval", {"images": ["x"], "texts": ["a"]}, "conflicting_fields", "texts"),
        ("retrieval", {"images": [], "text": "a"}, "invalid_value", "images"),
        ("retrieval", {"image": "x", "texts": ["a"] * 65}, "invalid_value", "texts"),
        ("retrieval", {"images": ["x"] * 17, "text": "a"}, "invalid_value", "images"),
        ("embeddings", {}, "missing_field", "images"),
        ("embeddings", {"texts": [" "]}, "invalid_value", "texts.0"),
        ("caption", {"image": "x", "max_new_tokens": 101}, "invalid_value", "max_new_tokens"),
        ("caption", {"image": "x", "question": "a"}, "unknown_field", "question"),
    ],
)
def test_bad_fields(client: TestClient, task: str, fields: dict[str, Any], code: str, param: str) -> None:
    check(client.post(TASKS[task].path, json=fields), code, param)


def test_clip_matches_nothing(client: TestClient) -> None:
    check(ask(client, "retrieval", model="clip", rerank=3), "rejected_by_model")


def test_an_image_that_comes_again_is_encoded_once_and_answered_alike(
    vqa_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    save_checkpoint(replace(vqa_checkpoint, calibration=make_calibration()), tmp_path / "vqa")
    settings = load_settings(
        None, models=f"vqa={tmp_path / 'vqa'}", warm_up_s=0, keep_mode="per_instance", image_cache_bytes=10**6
    )
    with ready_client(settings) as client:
        before = _models(client)[0]["image_cache"]
        questions = ["is it red?", "is it red?", "how many stars are there?"]
        replies = [ask(client, "vqa", question=text, flops_target=0.5).json() for text in questions]
        after = _models(client)[0]["image_cache"]
    assert replies[0]["answer"] == replies[1]["answer"]
    assert replies[0]["report"]["flops"] == replies[1]["report"]["flops"]
    hits, misses = (after[name] - before[name] for name in ("hits", "misses"))
    assert hits + misses == len(questions)
    assert hits >= 1


@pytest.mark.parametrize(
    ("temperature", "step"), [(0.0, 0.0), (1.0, 1.0), (1.02, 1.0), (2.05, 2.0), (0.0009, 2**-10.125)]
)
def test_temperatures_in_steps(temperature: float, step: float) -> None:
    assert in_steps(temperature) == pytest.approx(step)


@pytest.mark.parametrize("keep_mode", ["max_keep", "per_instance"])
def test_requests_of_two_tasks_of_one_model_do_not_meet(
    tiny_models: Mapping[str, PrunedModel], keep_mode: str
) -> None:
    settings = load_settings(None, warm_up_s=0, keep_mode=keep_mode)
    with ready_client(settings, {"clip": tiny_models["clip"]}) as client:
        assert ask(client, "retrieval").status_code == ask(client, "embeddings").status_code == 200
