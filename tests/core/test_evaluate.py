"""Evaluation: every task's samples, scores, ties, galleries, mixes, paired runs, users' files, command."""

import json
from dataclasses import replace
from functools import partial
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from madtp_core.cli import main
from madtp_core.data.shapes import captions, difficulty_band, sample_scene
from madtp_core.errors import ConfigError, UnknownNameError
from madtp_core.evaluate import (
    MEASURES,
    Gallery,
    Sample,
    ShapesSamples,
    compare,
    evaluate,
    evaluate_gallery,
    predict,
    read_manifest,
    read_outcomes,
    shapes_gallery,
    write_outcomes,
)
from madtp_core.evaluate.captions import plain_words
from madtp_core.evaluate.gallery import _matched_first
from madtp_core.evaluate.recall import recall_at
from madtp_core.evaluate.scores import score
from madtp_core.pruning import PER_INSTANCE
from madtp_core.tasks.ranking import Candidate
from tests.core.tiny_models import IMAGE_SIZE, TASKS, tiny_model


@pytest.fixture(scope="module")
def models(vqa_checkpoint):
    return {task: tiny_model(task, vqa_checkpoint) for task in TASKS}


def samples(task, length=6, **options):
    return ShapesSamples(task, "validation", length, image_size=IMAGE_SIZE, **options)


# Samples


@pytest.mark.parametrize("task", TASKS)
def test_samples_are_a_function_of_their_index(task):
    one, other = samples(task)[4], samples(task, 9)[4]
    assert (one.fields, one.truth, one.groups) == (other.fields, other.truth, other.groups)
    assert all(map(np.array_equal, one.pictures, other.pictures))
    assert one.truth is not None and len(one.pictures) == (2 if task == "reasoning" else 1)


def test_ranking_samples_hold_their_own_caption_among_others():
    for row, sample in enumerate(samples("retrieval")):
        own = captions(sample_scene(0, "validation", row))
        assert {sample.texts[index] for index in sample.truth} == set(sample.texts) & set(own)
        assert len(set(sample.texts)) == 8


@pytest.mark.parametrize("task", ["vqa", "reasoning"])
def test_mixes_are_made_of_scenes_of_known_difficulty(task):
    bands = [[sample.groups[-1 if task == "reasoning" else 1] for sample in samples(task, 20, mix=mix)]
             for mix in ("easy", "hard", "mostly_easy")]  # fmt: skip
    assert set(bands[0]) == {"easy"} and set(bands[1]) == {"hard"}
    assert sorted(bands[2]) == ["easy"] * 18 + ["hard"] * 2 and bands[2][-2:] != ["hard", "hard"]


def test_no_scene_comes_twice_in_a_mix():
    numbers = [number for each in samples("reasoning", 20, mix="mostly_easy")._numbers for number in each]
    assert len(set(numbers)) == 40


def test_an_unknown_mix_is_refused():
    with pytest.raises(UnknownNameError, match="mostly_easy"):
        samples("vqa", mix="gentle")[0]


# Scores


@pytest.mark.parametrize(
    ("scores", "right", "at_1", "at_2"),
    [
        ([3, 2, 1, 0], [0], 1.0, 1.0),
        ([3, 2, 1, 0], [1], 0.0, 1.0),
        ([1, 1, 1, 1], [0], 1 / 4, 1 / 2),  # all tie: what guessing gets
        ([1, 1, 1, 1], [0, 1], 1 / 2, 5 / 6),  # 1 - C(2, 2) / C(4, 2)
        ([2, 1, 1, 0], [2], 0.0, 1 / 2),
        ([2, 2, 1, 0], [1, 3], 1 / 2, 1.0),  # the other right one does not matter
        ([1, 2, 3, 4], [], 0.0, 0.0),
    ],
)
def test_recall_breaks_ties_at_random(scores, right, at_1, at_2):
    is_right = np.isin(np.arange(4), right)
    assert recall_at(1, scores, is_right) == pytest.approx(at_1)
    assert recall_at(2, scores, is_right) == pytest.approx(at_2)


def recalls(right, ranked):
    """Recall at 1, 5 and 10 of one ranking."""
    outcomes = score("retrieval", [right], [SimpleNamespace(ranked=ranked)]).outcomes
    return tuple(outcomes[f"recall_at_{k}"][0] for k in (1, 5, 10))


def test_matched_candidates_stand_before_others():
    ranked = (Candidate(2, 0.1, -5.0, 0.0), Candidate(0, 0.9), Candidate(1, 0.9))
    assert recalls([2], ranked) == (1.0, 1.0, 1.0)
    assert recalls([0], ranked) == (0.0, 1.0, 1.0)


def test_captions_are_scored_by_cider_over_the_corpus():
    truths = [("a red star above a circle", "one star"), ("two squares", "two blue squares on a plain one")]
    said = ["A red star, above a circle", "nothing at all"]
    scores = score("caption", truths, [SimpleNamespace(caption=text) for text in said])
    good, bad = scores.outcomes["cider"]
    assert good > 3 and bad == 0.0
    assert 0 < scores.whole["bleu_4"] < 1
    assert plain_words("A red  star, above!") == "a red star above"


def test_without_labels_there_are_no_outcomes(models):
    unlabelled = [replace(sample, truth=None) for sample in samples("vqa")]
    result = evaluate(models["vqa"], unlabelled, prune_temperature=1.0)
    assert result.mean() is None and "accuracy/all" not in result.figures()
    assert 0 < result.flops_ratio() < 1


# Runs


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_evaluated_through_its_own_predict(models, task):
    model, asked = models[task], samples(task)
    done = []
    result = evaluate(
        model, asked, batch_size=4, prune_temperature=1.0, keep_mode=PER_INSTANCE, on_batch=done.append
    )
    answers = predict(model, asked[:], prune_temperature=1.0, keep_mode=PER_INSTANCE)
    costs = [answer.spent.cost for answer in answers]
    assert result.flops_ratio() == sum(c.flops for c in costs) / sum(c.dense_flops for c in costs) < 1
    assert done == [4, 2]
    assert result.mean() == np.mean(result.outcomes[MEASURES[task]])
    assert result.figures()[f"{MEASURES[task]}/all"] == result.mean()
    assert result.keep_efficiency() == pytest.approx(1.0)  # each keeps what it needs
    assert result.token_density() < 1


def test_answers_are_right_or_wrong_and_counted_by_group(models):
    asked = samples("vqa")[:4]
    answers = predict(models["vqa"], asked, prune_temperature=0.0)
    labelled = [replace(sample, truth=answer.answer if row else "else", groups=("odd",) if row % 2 else ())
                for row, (sample, answer) in enumerate(zip(asked, answers, strict=True))]  # fmt: skip
    result = evaluate(models["vqa"], labelled)
    assert result.outcomes["accuracy"] == (0.0, 1.0, 1.0, 1.0)
    assert result.mean() == 0.75 and result.mean("odd") == 1.0
    assert result.flops_ratio() == 1.0


def test_costs_are_summed_by_difficulty(models):
    figures = evaluate(models["vqa"], samples("vqa", 12), batch_size=1, prune_temperature=1.0).figures()
    for cost in ("flops_ratio", "token_density", "keep_efficiency"):
        each = [figures[f"{cost}/{band}"] for band in ("easy", "middle", "hard")]
        assert min(each) <= figures[cost] <= max(each)


# Galleries


def test_a_gallery_has_each_text_once_and_knows_all_it_fits():
    gallery = shapes_gallery("validation", 40, image_size=IMAGE_SIZE)
    said = [captions(sample_scene(0, "validation", row)) for row in range(40)]
    assert len(set(gallery.texts)) == len(gallery.texts) < 200  # some captions fit several scenes
    for column, text in enumerate(gallery.texts):
        assert gallery.right[:, column].tolist() == [text in own for own in said]
    assert gallery.groups[3] == (difficulty_band(sample_scene(0, "validation", 3)),)


@pytest.mark.parametrize("task", ["retrieval", "clip"])
def test_a_gallery_is_searched_as_if_every_pair_were_compared(models, task):
    """With all candidates matched, both stages together rank as one request over the whole gallery does."""
    model, gallery = models[task], shapes_gallery("validation", 5, image_size=IMAGE_SIZE)
    texts = gallery.texts
    result = evaluate_gallery(model, gallery, batch_size=3, rerank=len(texts))
    whole = [Sample((picture,), {"texts": texts}) for picture in gallery.pictures]
    whole += [Sample(tuple(gallery.pictures), {"text": text}) for text in texts]
    right = [*gallery.right, *gallery.right.T]
    for row, answer in enumerate(predict(model, whole, prune_temperature=0.0)):
        expected = recalls(np.flatnonzero(right[row]).tolist(), answer.ranked)
        assert tuple(result.outcomes[f"recall_at_{k}"][row] for k in (1, 5, 10)) == expected
    assert {groups[0] for groups in result.groups} == {"image_to_text", "text_to_image"}
    assert result.whole["gallery_texts"] == len(texts) and result.whole["flops_ratio/index"] == 1.0


def test_only_the_most_similar_are_matched(models):
    gallery = shapes_gallery("validation", 5, image_size=IMAGE_SIZE)
    options = {"rerank": 2, "text_queries": 3, "prune_temperature": 1.0, "batch_size": 4}
    result = evaluate_gallery(models["retrieval"], gallery, **options)
    assert len(result.groups) == 5 + 3
    whole = evaluate_gallery(models["retrieval"], gallery, **(options | {"rerank": 4}))
    for few, more in zip(result.outlays, whole.outlays, strict=True):
        assert few.dense_flops < more.dense_flops


def test_matched_candidates_of_a_gallery_stand_before_all_others():
    ranked = (Candidate(1, 0.8, -3.0, 0.0), Candidate(0, 0.9, -5.0, 0.0))  # the texts 2 and 0 of the gallery
    scores = _matched_first(np.array([0.9, 0.5, 0.8, 0.1]), [0, 2], ranked)
    assert np.argsort(-scores).tolist() == [2, 0, 1, 3]
    tied = tuple(Candidate(row, 0.5, 1.0, 0.7) for row in (0, 1))
    assert len(set(_matched_first(np.array([0.9, 0.5, 0.8, 0.1]), [0, 2], tied)[[0, 2]])) == 1


def test_a_model_that_cannot_tell_scores_what_guessing_does(models):
    """All pictures are the same: an image is found by chance."""
    picture = samples("clip")[0].pictures[0]
    gallery = Gallery([picture] * 4, ("a star", "two circles", "no", "a"), np.eye(4, dtype=bool), ((),) * 4)
    result = evaluate_gallery(models["clip"], gallery)
    assert result.mean("text_to_image") == pytest.approx(0.25)
    assert result.mean("text_to_image", "recall_at_5") == 1.0


# Paired runs


def test_runs_are_compared_sample_by_sample():
    paired = compare([1, 1, 0, 0, 1], [1, 0, 1, 1, 1])
    assert (paired.better, paired.worse, paired.samples) == (2, 1, 5)
    assert paired.difference == pytest.approx(0.2)
    assert paired.margin == pytest.approx(1.96 * np.std([0, -1, 1, 1, 0], ddof=1) / 5**0.5)
    with pytest.raises(ConfigError, match="same samples"):
        compare([1], [1, 0])


def test_outcomes_of_other_samples_are_refused(models, tmp_path):
    result = evaluate(models["vqa"], samples("vqa"))
    write_outcomes(tmp_path / "o.json", result, {"seed": 0})
    kept = read_outcomes(tmp_path / "o.json", {"seed": 0})
    assert tuple(kept["accuracy"]) == result.outcomes["accuracy"] and kept["flops_ratio"] == [1.0] * 6
    with pytest.raises(ConfigError, match="seed"):
        read_outcomes(tmp_path / "o.json", {"seed": 1})


# Users' files


def manifest(folder, *lines):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (70, 50), "red").save(folder / name)
    path = folder / "requests.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_users_requests_are_read(tmp_path, models):
    asked = {"images": ["a.png"], "question": "what color is it?", "truth": "red"}
    read = read_manifest(manifest(tmp_path, asked, asked), "vqa")
    assert read[1].pictures[0].shape == (50, 70, 3) and read[1].truth == "red"
    assert read[1].texts == ("what color is it?",)
    assert evaluate(models["vqa"], read, prune_temperature=1.0).figures()["samples"] == 2


# The command


@pytest.fixture(scope="module")
def stored(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    for task in ("vqa", "retrieval"):
        models[task].save_pretrained(folder / task)
    return folder


def test_the_command_writes_figures_and_compares_runs(stored, tmp_path, capsys):
    run = partial(_run, stored / "vqa", "--samples", "6", "--batch-size", "4")
    assert run("--outcomes", tmp_path / "dense.json") == 0
    out = ("--prune-temperature", "1", "--against", tmp_path / "dense.json", "--out", tmp_path / "f.json")
    assert run(*out) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert list(islice(figures, 5)) == ["checkpoint", "split", "batch_size", "keep_mode", "prune_temperature"]
    assert figures["paired/accuracy"]["samples"] == 6 and figures["paired/flops_ratio"]["worse"] == 6
    assert run("--seed", "1", "--against", tmp_path / "dense.json") == 2
    assert "other samples" in capsys.readouterr().err


def test_the_command_searches_galleries(stored, tmp_path):
    options = ("--gallery", "4", "--rerank", "2", "--text-queries", "3", "--out", tmp_path / "f.json")
    assert _run(stored / "retrieval", *options) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert {f"recall_at_{k}/{way}" for k in (1, 5, 10) for way in ("image_to_text", "text_to_image")} <= set(
        figures
    )
    assert _run(stored / "vqa", "--gallery", "4") == 2


def test_a_ratio_without_a_calibration_is_refused(stored, capsys):
    assert _run(stored / "vqa", "--flops-ratio", "0.5") == 2
    assert "has no calibration" in capsys.readouterr().err


def _run(checkpoint, *options):
    return main(["evaluate", str(checkpoint), *map(str, options)])
