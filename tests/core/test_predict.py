"""`madtp predict`: every request gets one record, a bad one harms no other, and a stopped run goes on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from madtp_core.checkpoint import Checkpoint, save_checkpoint
from madtp_core.cli import main
from madtp_core.errors import ConfigError
from madtp_core.predict import answer_requests, answered_keys, read_requests
from madtp_core.tasks.plain import plain_task
from madtp_core.tasks.vqa import BlipVqa

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def model(vqa_checkpoint: Checkpoint) -> BlipVqa:
    return BlipVqa(vqa_checkpoint)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three pictures and a file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(3):
        levels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8)
        Image.fromarray(levels).save(folder / f"{seed}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def run(model: BlipVqa) -> Run:
    """The records of a file or a folder, in batches of two."""

    def answered(source: Path, **shared: Any) -> list[dict[str, Any]]:
        batches = answer_requests(
            model,
            plain_task("vqa"),
            read_requests(source, shared),
            batch_size=2,
            prune_temperature=lambda queries: 0.0,
            keep_mode="max_keep",
        )
        return [record for batch in batches for record in batch]

    return answered


def _lines(folder: Path, *lines: object) -> Path:
    file = folder / "requests.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return file


def test_every_picture_of_a_folder_is_answered(run: Run, pictures: Path) -> None:
    records = run(pictures, question="how many stars are there?")
    assert [record["id"] for record in records] == ["0.png", "1.png", "2.png"]
    assert all(set(record) == {"id", "answer", "score", "ranked", "cost"} for record in records)
    assert all(record["cost"]["flops_ratio"] == 1 for record in records)


def test_lines_have_their_own_fields_and_ids(run: Run, pictures: Path) -> None:
    file = _lines(
        pictures,
        {"id": "a", "image": "0.png", "question": "how many stars?", "candidates": ["one", "two"]},
        "",
        {"image": "1.png"},
    )
    named, numbered = run(file, question="is it red?")
    assert (named["id"], {entry["candidate"] for entry in named["ranked"]}) == ("a", {"one", "two"})
    assert (numbered["id"], numbered["ranked"]) == ("3", None)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ({"image": "0.png"}, "'question' is missing"),
        ({"image": "none.png", "question": "a"}, "cannot be read"),
        ({"image": "notes.txt", "question": "a"}, "cannot be read"),
        ({"image": 3, "question": "a"}, "must be paths"),
        ({"question": "a"}, "cannot be read"),
        ({"image": "0.png", "question": "a " * 50}, "tokens"),
        ({"image": "0.png", "question": 7}, ""),
        ({"id": "good", "image": "0.png", "question": "a"}, "its id was given before"),
    ],
)
def test_a_bad_line_becomes_an_error_and_harms_no_other(
    run: Run, pictures: Path, line: object, told: str
) -> None:
    good = {"id": "good", "image": "1.png", "question": "is it red?"}
    first, bad = run(_lines(pictures, good, line))
    assert "answer" in first
    assert set(bad) == {"id", "error"}
    assert told in bad["error"]["message"]


def test_a_picture_is_turned_as_its_exif_says(run: Run, pictures: Path) -> None:
    upright = Image.open(pictures / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it a quarter to see it upright
    upright.transpose(Image.Transpose.ROTATE_90).save(pictures / "turned.png", exif=exif)
    file = _lines(pictures, *({"image": name, "question": "a red star"} for name in ("0.png", "turned.png")))
    first, turned = run(file)
    assert first["score"] == pytest.approx(turned["score"], abs=1e-6)


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no requests"):
        read_requests(tmp_path, {})
    with pytest.raises(ConfigError, match="neither a folder nor a file"):
        read_requests(tmp_path / "none.jsonl", {})


def test_a_record_that_was_cut_off_is_asked_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"id": "a"}\n{"id": "b", "ans')
    assert answered_keys(out) == {"a"}
    assert out.read_text() == '{"id": "a"}\n'


def test_a_file_of_other_lines_is_never_written_to(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"name": "a"}\n')
    with pytest.raises(ConfigError, match="not a file of records"):
        answered_keys(out)


def test_the_command_answers_prunes_and_goes_on(
    vqa_checkpoint: Checkpoint, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(replace(vqa_checkpoint, calibration=None), tmp_path / "checkpoint")
    out = tmp_path / "out.jsonl"
    command = [
        *("predict", str(pictures), "--checkpoint", str(tmp_path / "checkpoint"), "--out", str(out)),
        *("--field", "question=is it red?", "--field", "num_beams=2", "--prune-temperature", "1"),
    ]
    assert main(command) == 0
    first = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(first) == 3
    assert all(record["cost"]["flops_ratio"] < 1 for record in first)
    Image.new("RGB", (9, 9)).save(pictures / "3.png")
    assert main(command) == 0
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [f"{n}.png" for n in range(4)]
    assert "1 answered now, 0 of them with an error; 4 in all" in capsys.readouterr().out


def test_a_task_that_the_checkpoint_is_not_for(
    vqa_checkpoint: Checkpoint, pictures: Path, tmp_path: Path
) -> None:
    save_checkpoint(vqa_checkpoint, tmp_path / "checkpoint")
    command = [
        "predict",
        str(pictures),
        "--checkpoint",
        str(tmp_path / "checkpoint"),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*command, "--task", "embeddings"]) == 2
