"""What a served request costs before it runs: equal to what one that ran reports; and `madtp flops`."""

import json
from functools import cache

import numpy as np
import pytest

from madtp_core.cli import main
from madtp_core.config import TASKS
from madtp_core.errors import ConfigError
from madtp_core.flops import decoder_macs, greedy_passes, memory_macs, text_encoder_macs
from madtp_core.paper import BERT_BASE, dense_trace, paper_rows
from madtp_core.pruning import TEXT, VISION
from madtp_core.served import RequestShape, ServedCost, reference_model, request_shape, served_cost
from madtp_core.tasks.base import PrunedModel
from madtp_core.tasks.vqa import BlipVqa, VqaQuery


@cache
def model_of(task: str) -> PrunedModel:
    return reference_model(task)


def dense_cost(task: str, **lengths: int) -> ServedCost:
    return served_cost(model_of(task), request_shape(task, **lengths), {})


@pytest.mark.parametrize(
    ("task", "images"),
    [("vqa", 92.107), ("caption", 55.539), ("retrieval", 55.539), ("reasoning", 111.078), ("clip", 191.105)],
)
def test_the_images_are_those_of_the_paper(task: str, images: float) -> None:
    assert dense_cost(task).image_macs / 1e9 == pytest.approx(images, abs=5e-4)


def test_a_served_statement_is_the_papers_row() -> None:
    assert dense_cost("reasoning").macs == paper_rows()[0].macs


def test_a_served_question_is_one_of_the_papers() -> None:
    text = text_encoder_macs(BERT_BASE, dense_trace(13, 12), 901)
    answer = decoder_macs(BERT_BASE, greedy_passes(5), 14)
    cost = dense_cost("vqa")
    assert cost.macs - cost.image_macs == text + answer
    assert cost.flops == 2 * cost.macs


def test_fifty_texts_read_one_projected_image() -> None:
    one, fifty = dense_cost("retrieval"), dense_cost("retrieval", candidates=50)
    memory = memory_macs(BERT_BASE, 577)
    each = one.macs - one.image_macs - memory - 768 * 256  # the image's own projection is there once, too
    assert fifty.macs == one.macs + 49 * each


@pytest.mark.parametrize("prune_temperature", [0.0, 8.0])
def test_a_request_costs_what_one_that_ran_reports(vqa_checkpoint, prune_temperature: float) -> None:
    model = BlipVqa(vqa_checkpoint)
    pixels = np.random.default_rng(0).standard_normal((3, 64, 64), dtype=np.float32)
    query = VqaQuery(pixels, "how many red circles are there?", max_new_tokens=1)
    (answer,) = model.predict([query], prune_temperature=prune_temperature)
    traces = answer.spent.traces
    kept = {branch: traces[branch][0].kept for branch in (VISION, TEXT) if prune_temperature}
    assert all(min(counts) < traces[branch][0].dense for branch, counts in kept.items())
    shape = RequestShape(text_tokens=traces[TEXT][0].dense + 1, steps=1)
    assert served_cost(model, shape, kept).flops == answer.spent.cost.flops
    assert served_cost(model, shape, {}).flops == answer.spent.cost.dense_flops


def test_a_keep_rate_is_a_share_of_what_enters() -> None:
    model, shape = model_of("caption"), request_shape("caption")
    counts = [round(576 * 0.9 ** (block + 1)) for block in range(12)]
    by_rate = served_cost(model, shape, {VISION: 0.9})
    assert by_rate == served_cost(model, shape, {VISION: counts})
    assert by_rate.macs < dense_cost("caption").macs


def test_scoring_is_paid_where_a_branch_is_pruned() -> None:
    model, shape = model_of("caption"), request_shape("caption")
    scored = served_cost(model, shape, {VISION: 1.0}).macs - dense_cost("caption").macs
    assert scored == 12 * (576 * 768 * 100 + 576 * 100)


@pytest.mark.parametrize("kept", [0.0, 1.5, (576,) * 11, (576,) * 11 + (0,)])
def test_counts_that_are_none_are_refused(kept) -> None:
    with pytest.raises(ConfigError, match=r"kept counts|keep rate"):
        served_cost(model_of("caption"), request_shape("caption"), {VISION: kept})


@pytest.mark.parametrize("lengths", [{"text_tokens": 1}, {"steps": 0}, {"candidates": 2}, {"candidates": 0}])
def test_lengths_that_are_none_are_refused(lengths: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        request_shape("vqa", **lengths)


# --- The command


def test_the_command_prints_the_papers_totals_and_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops"]) == 0
    printed = capsys.readouterr().out
    assert [
        total for total in ("132.54", "65.72", "186.12", "153.24", "395.70") if total not in printed
    ] == []
    assert [task for task in TASKS if f"\n{task}, " not in printed] == []


def test_the_command_gives_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "--task", "vqa", "--vision-kept", "0.9", "--text-tokens", "20", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    (request,) = figures["requests"]
    assert figures["paper"] == [] and request["text_tokens"] == 20 and request["kept"] == {"vision": 0.9}
    assert request["flops_ratio"] == request["spent"]["macs"] / request["dense"]["macs"] < 1


def test_the_command_reads_a_checkpoint(vqa_checkpoint, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    model = BlipVqa(vqa_checkpoint)
    model.save_pretrained(tmp_path / "tiny")
    capsys.readouterr()
    assert main(["flops", "--checkpoint", str(tmp_path / "tiny"), "--vision-kept", "20,8", "--json"]) == 0
    (request,) = json.loads(capsys.readouterr().out)["requests"]
    cost = served_cost(model, request_shape("vqa"), {VISION: (20, 8)})
    assert request["spent"]["macs"] == cost.macs and request["model"] == "tiny"


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "--task", "caption", "--vision-kept", "400,300"]) == 2
    assert "need 12 kept counts" in capsys.readouterr().err
