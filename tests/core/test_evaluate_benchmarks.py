"""`madtp evaluate` on miniatures of benchmarks: official figures, submissions, ranked answers, galleries."""

import json
from functools import partial

import numpy as np
import pytest

from madtp_core.cli import main
from madtp_core.evaluate import Evaluation, evaluate
from madtp_core.evaluate.gallery import _mean_recalls
from madtp_core.evaluate.recall import recall_at
from madtp_core.evaluate.samples import Sample
from madtp_core.evaluate.scores import recall_outcomes
from tests.core.benchmark_files import (
    BLIP_VQA_TEST,
    KARPATHY_TEST,
    NLVR,
    OFFICIAL_ANNOTATIONS,
    OFFICIAL_QUESTIONS,
    pictures_of,
    write_json,
    write_pictures,
)
from tests.core.tiny_models import IMAGE_SIZE, tiny_model

TASKS = ("vqa", "caption", "retrieval", "reasoning")


@pytest.fixture(scope="module")
def folder(vqa_checkpoint, tmp_path_factory):
    """Stored models by task, the pictures, and each benchmark's files."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for task in TASKS:
        tiny_model(task, vqa_checkpoint).save_pretrained(folder / task)
    official = "val2014/COCO_val2014_000000262148.jpg"
    write_pictures(folder / "images", *pictures_of(BLIP_VQA_TEST, KARPATHY_TEST, NLVR), official)
    contents = {
        "questions": OFFICIAL_QUESTIONS, "annotations": OFFICIAL_ANNOTATIONS, "vqa_test": BLIP_VQA_TEST,
        "coco_test": KARPATHY_TEST, "nlvr_dev": NLVR,
        "answer_list": ["2", "3", "down", "at table", "red", "large red star"],
    }  # fmt: skip
    for name, content in contents.items():
        write_json(folder / f"{name}.json", content)
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Run the command on a task's model; the figures, or None where it failed."""
    monkeypatch.setattr("madtp_core.evaluate.captions.shutil.which", lambda name: None)

    def run(task, data, *options):
        kind, _, names = data.partition(":")
        files = ",".join(str(folder / f"{name}.json") for name in names.split(","))
        given = [
            "--data",
            f"{kind}:{files}",
            "--images",
            folder / "images",
            "--out",
            tmp_path / "f.json",
            *options,
        ]
        status = main(["evaluate", str(folder / task), *map(str, given)])
        return json.loads((tmp_path / "f.json").read_text()) if status == 0 else None

    return run


# Questions


def test_questions_are_judged_by_type_and_handed_in(run, tmp_path):
    figures = run("vqa", "vqav2:questions,annotations", "--submission", tmp_path / "s.json")
    assert figures["data"] == "vqav2:questions.json,annotations.json"
    types = ("all", "question_type/how many", "question_type/none of the above", "answer_type/number")
    assert {f"accuracy/{name}" for name in types} <= set(figures)
    handed_in = json.loads((tmp_path / "s.json").read_text())
    assert [entry["question_id"] for entry in handed_in] == [262148000, 262148002]
    assert all(set(entry) == {"question_id", "answer"} for entry in handed_in)


def test_ranked_answers_are_of_the_list(run, folder, tmp_path):
    options = ("--answers", folder / "answer_list.json", "--k-test", 2, "--submission", tmp_path / "s.json")
    figures = run("vqa", "vqav2:questions,annotations", *options)
    answers = json.loads((folder / "answer_list.json").read_text())
    handed_in = json.loads((tmp_path / "s.json").read_text())
    assert all(entry["answer"] in answers for entry in handed_in)
    more = run("vqa", "vqav2:questions,annotations", *options[:2], "--k-test", 4)
    assert more["dense_gmacs/mean"] > figures["dense_gmacs/mean"]


def test_ten_annotators_give_the_official_accuracy(run, folder, tmp_path):
    """Whoever says 3 where two of ten do is right by 0.6, and down by 1 where nine do."""
    write_json(folder / "three.json", ["3"])
    figures = run("vqa", "vqav2:questions,annotations", "--answers", folder / "three.json")
    assert figures["accuracy/question_type/how many"] == figures["accuracy/answer_type/number"]
    assert figures["accuracy/answer_type/number"] == pytest.approx(0.6)
    assert figures["accuracy/all"] == pytest.approx(0.3) and figures["accuracy/answer_type/other"] == 0.0


def test_questions_without_truth_are_handed_in_too(run, tmp_path):
    figures = run("vqa", "vqav2:vqa_test", "--submission", tmp_path / "s.json")
    assert not any(name.startswith("accuracy") for name in figures) and figures["samples"] == 1
    (entry,) = json.loads((tmp_path / "s.json").read_text())
    assert entry["question_id"] == 262144000 and isinstance(entry["answer"], str)


# Captions, statements, galleries


def test_captions_are_scored_and_handed_in(run, tmp_path):
    options = ("--field", "num_beams=2", "--field", "prompt=a ", "--field", "min_new_tokens=3")
    figures = run("caption", "coco:coco_test", *options, "--submission", tmp_path / "s.json")
    assert {"cider/all", "bleu_1", "bleu_4"} <= set(figures) and "no java" in figures["notes"]["ptb"]
    handed_in = json.loads((tmp_path / "s.json").read_text())
    assert [entry["image_id"] for entry in handed_in] == [391895, 60623]
    assert all(set(entry) == {"image_id", "caption"} for entry in handed_in)


def test_statements_are_right_or_wrong(run, capsys):
    figures = run("reasoning", "nlvr2:nlvr_dev", "--prune-temperature", 1)
    assert figures["accuracy/all"] in (0.0, 0.5, 1.0) and figures["flops_ratio"] < 1
    assert run("reasoning", "nlvr2:nlvr_dev", "--submission", "s.json") is None
    assert "submission is for vqa or caption" in capsys.readouterr().err


def test_a_benchmarks_pictures_and_captions_are_a_gallery(run):
    figures = run("retrieval", "coco:coco_test", "--rerank", 2)
    assert figures["gallery_images"] == 2 and figures["gallery_texts"] == 10
    ways = ("image_to_text", "text_to_image")
    assert {f"r_mean/{way}" for way in ways} | {"r_mean", "gmacs/mean", "token_density/match"} <= set(figures)
    assert figures["recall_at_5/text_to_image"] == 1.0  # of two images


def test_only_so_many_are_asked(run):
    assert run("vqa", "vqav2:questions,annotations", "--samples", 1)["samples"] == 1


def test_a_run_is_taken_up_from_its_records(run, tmp_path, capsys):
    asked = partial(run, "vqa", "vqav2:questions,annotations", "--records", tmp_path / "r.jsonl")
    first = asked()
    assert asked() is None and "resume it" in capsys.readouterr().err
    assert asked("--resume") == first
    assert asked("--resume", "--prune-temperature", 1) is None
    assert run("vqa", "vqav2:questions,annotations", "--resume") is None


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("caption", ("--answers", "list.json"), "for questions"),
        ("caption", ("--field", "prompt"), "NAME=VALUE"),
        ("retrieval", ("--submission", "s.json"), "submission is for"),
        ("retrieval", ("--field", "rerank=2"), "no requests"),
    ],
)
def test_options_of_another_task_are_refused(run, capsys, task, options, message):
    assert run(task, "coco:coco_test", *options) is None
    assert message in capsys.readouterr().err


# Figures


def test_recalls_are_those_of_the_original():
    """itm_eval of train_retrieval.py, by hand: three images, two captions each."""
    found = np.array(
        [[0.1, 0.9, 0.5, 0.2, 0.3, 0.0], [0.9, 0.8, 0.1, 0.7, 0.6, 0.5], [0.9, 0.8, 0.7, 0.75, 0.0, 0.1]]
    )
    own = np.repeat(np.eye(3, dtype=bool), 2, axis=1)
    to_text = [[recall_at(k, *row) for k in (1, 5, 10)] for row in zip(found, own, strict=True)]
    to_image = [[recall_at(k, *row) for k in (1, 5, 10)] for row in zip(found.T, own.T, strict=True)]
    groups = (("image_to_text",),) * 3 + (("text_to_image",),) * 6
    figures = _mean_recalls(Evaluation("recall_at_1", recall_outcomes(to_text + to_image), groups, ()))
    assert figures["r_mean/image_to_text"] == pytest.approx((1 / 3 + 1 + 1) / 3)  # own captions at 1, 3 and 5
    assert figures["r_mean/text_to_image"] == pytest.approx((1 / 6 + 1 + 1) / 3)  # the second caption alone
    assert figures["r_mean"] == pytest.approx((7 / 9 + 13 / 18) / 2)


def test_multiply_adds_and_densities_are_those_of_the_requests(vqa_checkpoint):
    model = tiny_model("vqa", vqa_checkpoint)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8) for _ in range(5)]
    questions = ["how many circles are there?", "is there a large red star above the small one?"] * 3
    samples = [Sample((one,), {"question": asked}) for one, asked in zip(pictures, questions, strict=False)]
    result = evaluate(model, samples, batch_size=2, prune_temperature=1.0)
    figures = result.figures()
    spent = sorted(outlay.flops / 2e9 for outlay in result.outlays)
    assert figures["gmacs/mean"] == pytest.approx(np.mean(spent)) and figures["gmacs/p50"] == pytest.approx(
        spent[2]
    )
    assert spent[3] < figures["gmacs/p95"] <= spent[4]
    dense = sum(outlay.dense_flops for outlay in result.outlays) / 2e9
    assert figures["dense_gmacs/mean"] == pytest.approx(dense / 5)
    for branch in ("vision", "text"):
        counts = [outlay.tokens[branch] for outlay in result.outlays]
        density = sum(one.kept for one in counts) / sum(one.dense for one in counts)
        assert figures[f"token_density/{branch}"] == pytest.approx(density) and density < 1
