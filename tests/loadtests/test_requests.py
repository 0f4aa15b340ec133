"""Prepared requests: the service reads them as meant, labels are true, mixes are kept, a seed fixes all."""

import base64
import io
import json
from collections import Counter
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

import pytest
from PIL import Image

from loadtests.grading import is_right
from loadtests.requests import PreparedRequest, prepare_requests
from loadtests.scenario import Scenario
from madtp_core.data.shapes import captions, sample_scene
from madtp_core.data.shapes.captions import NUMBER_WORDS

TASKS = ["vqa", "caption", "reasoning", "retrieval", "embeddings"]


def _scenario(**changes: Any) -> Scenario:
    arrivals = {"kind": "poisson", "rate": 1.0, "duration_s": 10.0}
    return Scenario.model_validate(
        {"name": "some", "description": "A test.", "arrivals": arrivals, "distinct_requests": 12} | changes
    )


def _parts(request: PreparedRequest) -> list[tuple[str, str | None, bytes]]:
    """Read a multipart body with another implementation: names, file names and contents."""
    message = BytesParser(policy=HTTP).parsebytes(
        f"Content-Type: {request.content_type}\r\n\r\n".encode() + request.body
    )
    return [
        (
            part.get_param("name", header="content-disposition"),
            part.get_filename(),
            part.get_payload(decode=True),
        )
        for part in message.iter_parts()
    ]


def _picture(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def test_the_same_scenario_gives_the_same_bytes_and_another_seed_others() -> None:
    first, again, other = (prepare_requests(_scenario(seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert [request.body for request in first] != [request.body for request in other]


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("vqa", ["image", "question"]),
        ("caption", ["image"]),
        ("reasoning", ["images", "images", "statement"]),
        ("retrieval", ["image", *["texts"] * 5]),
        ("embeddings", ["images", "texts"]),
    ],
)
def test_every_task_sends_its_fields_in_both_encodings(task: str, names: list[str]) -> None:
    (form,) = prepare_requests(_scenario(tasks={task: 1}, texts=5, distinct_requests=1))
    parts = _parts(form)
    assert [name for name, _, _ in parts] == names
    files = [content for _, file_name, content in parts if file_name]
    assert all(_picture(content).size == (96, 96) for content in files)
    (body,) = prepare_requests(_scenario(tasks={task: 1}, texts=5, distinct_requests=1, encoding="json"))
    fields = json.loads(body.body)
    assert set(fields) == set(names)
    for name in set(names):
        in_form = [content for part, _, content in parts if part == name]
        in_json = fields[name] if name in ("images", "texts") else [fields[name]]
        is_picture = name.startswith("image")
        assert [base64.b64decode(text) if is_picture else text.encode() for text in in_json] == in_form


def test_sizes_and_formats_are_what_was_asked_for() -> None:
    images = {"sizes": {"64x48": 1, "320x240": 1}, "formats": {"png": 1, "jpeg": 1, "webp": 1}}
    requests = prepare_requests(_scenario(images=images, distinct_requests=20))
    pictures = [_picture(_parts(request)[0][2]) for request in requests]
    assert {picture.size for picture in pictures} == {(64, 48), (320, 240)}
    assert {picture.format for picture in pictures} == {"PNG", "JPEG", "WEBP"}


def test_the_difficulty_mix_is_kept() -> None:
    requests = prepare_requests(_scenario(difficulty={"easy": 90, "hard": 10}, distinct_requests=100))
    counts = Counter(request.band for request in requests)
    assert set(counts) == {"easy", "hard"}
    assert counts["hard"] == pytest.approx(10, abs=8)


@pytest.mark.parametrize(
    ("band", "counts"), [("easy", range(1, 5)), ("middle", range(5, 9)), ("hard", range(9, 13))]
)
def test_scenes_are_as_difficult_as_their_band_says(band: str, counts: range) -> None:
    requests = prepare_requests(_scenario(tasks={"caption": 1}, difficulty={band: 1}, distinct_requests=6))
    words = {request.label[0].split()[0] for request in requests}  # "seven objects on a plain background"
    assert words <= {NUMBER_WORDS[count] for count in counts}


def test_model_quality_and_target_are_sent_only_when_asked_for() -> None:
    (plain,) = prepare_requests(_scenario(distinct_requests=1, encoding="json"))
    assert set(json.loads(plain.body)) == {"image", "question"}
    changes: dict[str, Any] = {"models": {"vqa": "mine"}, "distinct_requests": 1, "encoding": "json"}
    (asked,) = prepare_requests(_scenario(quality={"fast": 1}, **changes))
    assert json.loads(asked.body).items() >= {"model": "mine", "quality": "fast"}.items()
    (targeted,) = prepare_requests(_scenario(flops_target=0.25, **changes))
    assert json.loads(targeted.body)["flops_target"] == 0.25


def test_of_the_ranked_texts_the_scenes_own_is_right_and_none_is_there_twice() -> None:
    own = [text for index in range(100) for text in captions(sample_scene(0, "test", index))]
    shown: list[bytes] = []
    requests = prepare_requests(_scenario(tasks={"retrieval": 1}, texts=6))
    assert len({request.label for request in requests}) > 2
    for request in requests:
        texts = [content for name, _, content in _parts(request) if name == "texts"]
        assert len(set(texts)) == len(texts) == 6
        assert request.label in range(6)
        assert texts[request.label].decode() == own[5 * len(shown) + 3]
        shown += texts  # a request takes as many scenes as texts, its own first


def test_replies_are_graded_by_task() -> None:
    assert is_right("vqa", "red", {"answer": "red"}) is True
    assert is_right("vqa", "red", {"answer": "Red"}) is False
    assert is_right("reasoning", False, {"answer": False}) is True
    assert is_right("caption", ("a star", "stars"), {"caption": "stars"}) is True
    assert is_right("caption", ("a star",), {"caption": "a circle"}) is False
    assert is_right("embeddings", None, {"embeddings": []}) is None


def test_the_text_ranked_first_must_be_the_right_one() -> None:
    ranked = [{"index": 4, "rank": 2}, {"index": 2, "rank": 1}]
    assert is_right("retrieval", 2, {"ranked": ranked}) is True
    assert is_right("retrieval", 4, {"ranked": ranked}) is False
