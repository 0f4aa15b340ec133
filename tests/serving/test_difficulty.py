"""The online predictor of difficulty on a synthetic model whose need is linear in some features."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from madtp_core.rank_correlation import spearman
from service.difficulty import LEAST_OBSERVATIONS, DifficultyPredictor

NAMES = ("entropy", "bytes", "words", "constant")
USUAL = (5.0, 1e-3, 9.0, 0.0)


def _need(features: tuple[float, ...], log_temperature: float = 0.0) -> float:
    entropy, size, words, _ = features
    return 0.5 + 0.08 * (entropy - 5) - 90 * (size - 1e-3) + 0.01 * (words - 9) - 0.05 * log_temperature


def _features(rng: random.Random) -> tuple[float, ...]:
    return rng.gauss(5, 1), rng.gauss(1e-3, 1e-3), float(rng.randint(4, 14)), 0.0


def _taught(count: int, *, noise: float = 0.02, seed: int = 0) -> DifficultyPredictor:
    rng, predictor = random.Random(seed), DifficultyPredictor(NAMES)
    for _ in range(count):
        features = _features(rng)
        predicted = predictor.predict(features)
        need = min(1.0, max(0.01, _need(features) + rng.gauss(0, noise)))
        predictor.observe(features, need, predicted=predicted)
    return predictor


def test_before_anything_was_seen_a_request_needs_everything() -> None:
    predictor = DifficultyPredictor(NAMES)
    assert (predictor.predict(USUAL), predictor.mean_need, predictor.rank_correlation) == (1.0, 1.0, None)


def test_while_little_was_seen_it_says_the_mean() -> None:
    predictor = DifficultyPredictor(NAMES, forgetting=1.0)
    for need in (0.2, 0.3, 0.7):
        predictor.observe(USUAL, need)
    assert predictor.predict((9.0, 0.0, 1.0, 1.0)) == predictor.mean_need == pytest.approx(0.4)


def test_it_learns_a_linear_need_whatever_the_features_scales() -> None:
    predictor, rng = _taught(400), random.Random(1)
    for _ in range(50):
        features = _features(rng)
        assert predictor.predict(features) == pytest.approx(_need(features), abs=0.03)


def test_its_rank_correlation_is_that_of_what_it_said_before() -> None:
    assert (_taught(LEAST_OBSERVATIONS - 1)).rank_correlation is None
    learned = _taught(2000).rank_correlation
    assert learned is not None
    assert learned > 0.95
    blind = DifficultyPredictor(NAMES)
    rng = random.Random(0)
    for _ in range(500):
        blind.observe(_features(rng), rng.uniform(0.2, 0.8), predicted=rng.random())
    assert blind.rank_correlation == pytest.approx(0.0, abs=0.15)


def test_it_follows_a_need_that_changes() -> None:
    predictor, rng = _taught(2000), random.Random(2)
    for _ in range(3000):
        features = _features(rng)
        predictor.observe(features, 1.0 - _need(features))
    assert predictor.predict((6.0, 1e-3, 9.0, 0.0)) == pytest.approx(0.42, abs=0.02)


def test_temperature_and_batch_size_are_told_apart_from_the_features() -> None:
    """Hard requests ran at high temperatures, so that by itself the entropy says nothing of the need."""
    predictor, rng = DifficultyPredictor(NAMES), random.Random(0)
    for _ in range(1000):
        features = _features(rng)
        log_t = 1.6 * (features[0] - 5) + rng.gauss(0, 0.5)
        predictor.observe(features, _need(features, log_t), prune_temperature=math.exp(log_t), batch_size=8)
    easy, hard = (predictor.predict((entropy, 1e-3, 9.0, 0.0)) for entropy in (4.0, 6.0))
    assert hard - easy == pytest.approx(0.16, abs=0.05)


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_a_feature_that_is_no_number_says_nothing(strange: float) -> None:
    predictor = _taught(400)
    assert predictor.predict((strange, 1e-3, 9.0, 0.0)) == pytest.approx(0.5, abs=0.03)


def test_what_is_not_a_number_is_not_learned() -> None:
    predictor = _taught(400)
    before = predictor.predict(USUAL)
    predictor.observe((math.nan, 1e-3, 9.0, 0.0), 0.5, predicted=0.5)
    predictor.observe(USUAL, math.nan, predicted=0.5)
    assert (predictor.observations, predictor.predict(USUAL)) == (400, before)


def test_outliers_hardly_move_it() -> None:
    predictor, rng = _taught(400), random.Random(3)
    for _ in range(20):
        features = _features(rng)
        predictor.observe(features, _need(features))
        predictor.observe((1e9, 1e9, -1e9, 0.0), 0.01)
    assert predictor.predict((6.0, 1e-3, 9.0, 0.0)) > predictor.predict((4.0, 1e-3, 9.0, 0.0)) + 0.05
    assert 0 < predictor.predict((1e12, -1e12, 1e12, 1e12)) <= 1


def test_a_feature_that_was_constant_may_begin_to_vary() -> None:
    predictor, rng = _taught(400), random.Random(4)
    for _ in range(1000):
        entropy, size, words, _ = _features(rng)
        switch = float(rng.random() < 0.5)
        predictor.observe((entropy, size, words, switch), _need((entropy, size, words, 0.0)) + 0.1 * switch)
    on, off = predictor.predict((5.0, 1e-3, 9.0, 1.0)), predictor.predict(USUAL)
    assert on - off == pytest.approx(0.1, abs=0.02)


def test_another_number_of_features_is_an_error() -> None:
    with pytest.raises(ValueError, match="wanted 4 features"):
        DifficultyPredictor(NAMES).predict((1.0, 2.0))
    with pytest.raises(ValueError, match="wanted 4 features"):
        DifficultyPredictor(NAMES).observe((1.0,), 0.5)


# Restarts.


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    predictor = _taught(400)
    predictor.save(tmp_path / "difficulty.json")
    again = DifficultyPredictor.load(tmp_path / "difficulty.json", NAMES)
    assert again.observations == 400
    assert again.rank_correlation == predictor.rank_correlation
    for one in (predictor, again):
        one.observe(USUAL, 0.9)
    rng = random.Random(5)
    for _ in range(20):
        features = _features(rng)
        assert again.predict(features) == predictor.predict(features)
    assert [path.name for path in tmp_path.iterdir()] == ["difficulty.json"]


@pytest.mark.parametrize(
    "text",
    [None, "", "{}", "[1]", '{"schema_version": 0}', "changed names", "nan in the moments", "another shape"],
)
def test_what_cannot_be_read_starts_anew(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "difficulty.json"
    _taught(400).save(path)
    state = json.loads(path.read_text())
    match text:
        case None:
            path.unlink()
        case "changed names":
            path.write_text(json.dumps(state | {"names": ["entropy", "bytes", "words", "other"]}))
        case "nan in the moments":
            state["mean"][0] = math.nan
            path.write_text(json.dumps(state))
        case "another shape":
            path.write_text(json.dumps(state | {"mean": [0.0]}))
        case _:
            path.write_text(text)
    assert DifficultyPredictor.load(path, NAMES).observations == 0


@pytest.mark.parametrize(
    ("left", "right", "wanted"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 31], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 2, 3], [1, 2, 2, 3], 1.0),
        ([1, 2, 3, 4, 5], [5, 6, 7, 8, 7], 0.8207826816681233),  # a textbook's, with a tie
        ([1, 1, 1], [1, 2, 3], 0.0),
    ],
)
def test_spearman(left: list[float], right: list[float], wanted: float) -> None:
    assert spearman(np.array(left, float), np.array(right, float)) == pytest.approx(wanted)
