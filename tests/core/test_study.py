"""The study of difficulty: cheap features, rank correlations, orders of batching, its files, its command."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from madtp_core.cli import main
from madtp_core.difficulty import (
    IMAGE_FEATURES,
    REQUEST_FEATURES,
    TEXT_FEATURES,
    image_features,
    joined_features,
    request_features,
    text_features,
)
from madtp_core.errors import ConfigError
from madtp_core.evaluate import ShapesSamples, predict
from madtp_core.pruning import MAX_KEEP, TEXT, VISION
from madtp_core.rank_correlation import ranks, spearman
from madtp_core.study import Observation, observe, read_study, study_difficulty, write_report
from madtp_core.study.batches import (
    needed_over_kept,
    needed_over_kept_regrouped,
    regrouped,
    sorted_batches,
)
from madtp_core.study.predictors import correlation, held_out
from tests.core.tiny_models import IMAGE_SIZE, TASKS, tiny_model

# Features


def named(names, values):
    return SimpleNamespace(**dict(zip(names, values, strict=True)))


def picture(height=96, width=96, squares=0, noise=0):
    """Grey, with red squares of 12 pixels and noise of so many levels."""
    rng = np.random.default_rng(0)
    rgb = np.full((height, width, 3), 128) + rng.integers(-noise, noise + 1, (height, width, 1))
    for number in range(squares):
        top, left = 4 + number // 4 * 24, 4 + number % 4 * 24
        rgb[top : top + 12, left : left + 12] = (220, 20, 20)
    return rgb.astype(np.uint8)


def test_more_to_see_raises_what_tells_of_it():
    empty, few, many = (named(IMAGE_FEATURES, image_features(picture(squares=n))) for n in (0, 2, 12))
    for name in set(IMAGE_FEATURES) - {"gradient_median"}:
        assert getattr(empty, name) < getattr(few, name) < getattr(many, name), name
    noisy = named(IMAGE_FEATURES, image_features(picture(noise=20)))
    assert noisy.gradient_median > 0 == many.gradient_median
    assert noisy.colour_variance == pytest.approx(0, abs=1e-6) and many.colour_variance > 0.01
    assert noisy.png_bytes > many.png_bytes


def test_a_larger_picture_of_the_same_scene_looks_alike():
    small = Image.fromarray(picture(squares=8))
    large = np.asarray(small.resize((96 * 20, 96 * 20), Image.Resampling.NEAREST))
    one, other = (named(IMAGE_FEATURES, image_features(rgb)) for rgb in (np.asarray(small), large))
    for name in ("contrast", "colour_variance"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=0.35), name


@pytest.mark.parametrize("size", [(2, 2), (3, 4000), (4000, 3), (1500, 2000)])
def test_pictures_of_any_size_have_figures(size):
    figures = image_features(np.full((*size, 3), 7, np.uint8))
    assert np.isfinite(figures).all() and len(figures) == len(IMAGE_FEATURES)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("how many red stars are there?", {"asks_count"}),
        ("What is the number of circles?", {"asks_count", "asks_what"}),
        ("is the  star left of a circle?", {"asks_yes_no", "relates"}),
        ("are there more dots than squares?", {"asks_yes_no", "compares"}),
        ("two circles, one star and a cross", set()),
        ("", set()),
    ],
)
def test_texts_are_told_apart_by_what_they_ask(text, told):
    figures = named(TEXT_FEATURES, text_features(text))
    kinds = set(TEXT_FEATURES) - {"words", "letters_per_word", "commas"}
    assert {name for name in kinds if getattr(figures, name)} == told
    assert figures.words == len(text.split()) and figures.commas == text.count(",")


def test_a_requests_figures_are_means_and_numbers():
    images, texts = [picture(squares=2), picture(squares=9)], ["a star", "is it left of that?", "no"]
    whole = named(REQUEST_FEATURES, request_features(images, texts))
    one, other = (image_features(rgb)[3] for rgb in images)
    assert whole.colour_variance == pytest.approx((one + other) / 2)
    assert whole.log_colour_variance == pytest.approx(np.log([one + 1e-3, other + 1e-3]).mean())
    assert whole.words == pytest.approx(8 / 3)
    assert np.expm1([whole.log_images, whole.log_texts]) == pytest.approx([2, 3])
    alone = named(REQUEST_FEATURES, joined_features([image_features(images[0])], []))
    assert alone.words == 0 == alone.log_texts


# Predictors


def test_equal_values_share_a_rank():
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0, 2.5, 1]
    assert spearman(np.array([1.0, 2, 3]), np.array([1.0, 8, 27])) == 1.0
    assert spearman(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == -1.0
    assert spearman(np.array([1.0, 1, 1]), np.array([3.0, 2, 1])) == 0.0
    x, y = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 4, 3, 5])
    assert spearman(x, y) == pytest.approx(1 - 6 * 4 / (5 * 24))


def test_a_prediction_knows_nothing_of_the_request_it_is_for():
    rng = np.random.default_rng(0)
    noise, need = rng.standard_normal((60, 40)), rng.standard_normal(60)
    assert abs(spearman(held_out(noise, need), need)) < 0.3  # a fit to all 60 would reach 0.8
    figures = np.column_stack([need * 2 + 1, np.ones(60)])  # one that varies not at all
    assert spearman(held_out(figures, need), need) > 0.99


def test_the_interval_holds_the_correlation():
    rng = np.random.default_rng(0)
    need = rng.standard_normal(300)
    found = correlation(need + rng.standard_normal(300), need)
    assert found.low < found.spearman < found.high and found.high - found.low < 0.2


# Batches


def request(*needs, dense=10, text=()):
    sequences = {VISION: ((dense, needs),), **({TEXT: ((5, text),)} if text else {})}
    return Observation(np.zeros(len(REQUEST_FEATURES)), sum(needs) / dense / len(needs), sequences)


def test_a_batch_keeps_what_its_neediest_needs_in_every_block():
    pair = [request(2, 6, text=(1, 1)), request(4, 4, text=(3, 1))]
    assert needed_over_kept(pair, [[0, 1]]) == (2 + 6 + 4 + 4 + 1 + 1 + 3 + 1) / (2 * (4 + 6) + 2 * (3 + 1))
    assert needed_over_kept(pair, [[0], [1]]) == 1.0
    short = [request(8, 8), request(3, 3, dense=4)]
    assert needed_over_kept(short, [[0, 1]]) == (16 + 6) / (16 + 8)  # none keeps more than it has


def test_requests_are_sorted_within_their_window():
    key = np.arange(64)[::-1] / 64.0
    batches = sorted_batches(range(64), key, 4)
    assert batches[0] == [31, 30, 29, 28] and batches[8] == [63, 62, 61, 60]  # windows of 8 batches
    assert sorted_batches(range(64), None, 4)[1] == [4, 5, 6, 7]
    assert len(sorted_batches(range(70), key, 4)) == 16  # what fills no window is left out


def test_regrouping_sorts_by_what_was_seen_so_far():
    requests = [request(n % 4 + 1, 2 * (n % 4) + 1, text=(n % 4 + 1,)) for n in range(16)]
    before, after = regrouped(requests, range(16), 4, 1)
    assert before[0] == [0, 1, 2, 3] and after[0] == [0, 4, 8, 12]
    needed = 4 * (10 + 16 + 10)
    kept = 16 * 4 + needed - 4 * 10  # block 1 keeps 4 everywhere, then everyone its own
    assert needed_over_kept_regrouped(requests, range(16), 4, 1) == needed / kept


# The whole


@pytest.fixture(scope="module")
def model(vqa_checkpoint):
    return tiny_model("vqa", vqa_checkpoint)


def samples(task, length):
    return ShapesSamples(task, "test", length, image_size=IMAGE_SIZE)[:]


@pytest.mark.parametrize("task", TASKS)
def test_a_request_is_observed_as_if_it_were_alone(vqa_checkpoint, task):
    model, asked = tiny_model(task, vqa_checkpoint), samples(task, 3)
    for sample, seen in zip(asked, observe(model, asked, 1.0), strict=True):
        (answer,) = predict(model, [sample], prune_temperature=1.0, keep_mode="per_instance")
        assert seen.need == answer.spent.difficulty
        assert [[needed for _, needed in each] for each in seen.sequences.values()] == [
            [trace.needed for trace in each] for each in answer.spent.traces.values()
        ]
        assert seen.features.tolist() == request_features(sample.pictures, sample.texts).tolist()


def test_the_first_block_of_a_batch_is_simulated_exactly(model):
    asked = samples("vqa", 6)
    answers = predict(model, asked, prune_temperature=1.0, keep_mode=MAX_KEEP)
    largest = max(seen.sequences[VISION][0][1][0] for seen in observe(model, asked, 1.0))
    assert {answer.spent.traces[VISION][0].kept[0] for answer in answers} == {largest}


def test_a_dense_run_shows_no_difficulty(model):
    with pytest.raises(ConfigError, match="prunes nothing"):
        observe(model, samples("vqa", 1), 0.0)


@pytest.fixture(scope="module")
def study(model):
    asked = samples("vqa", 24)
    about = {"model": "tiny", "task": "vqa", "prune_temperature": 1.0, "data": "scenes"}
    return study_difficulty(model, asked, observe(model, asked, 1.0), about, batch_sizes=(2, 4))


def test_a_study_orders_orders(study):
    for orders in study.batches.values():
        assert orders["packed"] == (1.0, 0.0)
        fifo, best = orders["first in, first out"][0], orders["sorted by truth"][0]
        assert 0 < fifo < best < 1
    for orders in study.really_run.values():
        for found in orders.values():
            assert found["needed_over_kept"] <= 1 and 0 < found["flops_ratio"] < 1
            assert found["accuracy"] == 0.0
        assert orders["packed"]["needed_over_kept"] == pytest.approx(1.0)
    assert study.correlations["blocks 1 and 2"].spearman > 0.5
    assert "text" in study.correlations and "words" in study.features


def test_a_captions_study_has_no_words(vqa_checkpoint):
    model, asked = tiny_model("caption", vqa_checkpoint), samples("caption", 8)
    about = {"prune_temperature": 1.0}
    study = study_difficulty(model, asked, observe(model, asked, 1.0), about, batch_sizes=(4,))
    assert "text" not in study.correlations and not set(TEXT_FEATURES) & set(study.features)


def test_what_is_saved_is_read(study, tmp_path):
    study.save(tmp_path / "s.json")
    read = read_study(tmp_path / "s.json")
    assert read.correlations == study.correlations and read.batches.keys() == study.batches.keys()
    assert read.items["need"] == study.items["need"] and len(read.items["features"]["entropy"]) == 24
    (tmp_path / "s.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"s\.json"):
        read_study(tmp_path / "s.json")


def test_a_report_has_a_column_a_model(study, tmp_path):
    table, plot = write_report([study, study], tmp_path)
    assert "|  | tiny | tiny |" in table.read_text() and "batches of 4" in table.read_text()
    with Image.open(plot) as image:
        assert image.width > 1000
    with pytest.raises(ConfigError, match="no study"):
        write_report([], tmp_path)


def test_the_command_studies_and_reports_all_that_lies_there(model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "tiny")
    out = ["--out", str(tmp_path / "out")]
    small = ["--samples", "8", "--batch-sizes", "4"]
    assert main(["study", "difficulty", str(tmp_path / "tiny"), *out, *small]) == 2
    assert "has no calibration" in capsys.readouterr().err
    assert (
        main(["study", "difficulty", str(tmp_path / "tiny"), *out, *small, "--prune-temperature", "1"]) == 0
    )
    (tmp_path / "out" / "difficulty.md").unlink()
    assert main(["study", "difficulty", *out]) == 0
    assert "| tiny |" in (tmp_path / "out" / "difficulty.md").read_text()
