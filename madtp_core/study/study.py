"""The study of difficulty: predictors against needs, orders of batching against what they keep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from madtp_core.difficulty import IMAGE_FEATURES, LOG_IMAGE_FEATURES, REQUEST_FEATURES, TEXT_FEATURES
from madtp_core.errors import ConfigError
from madtp_core.evaluate import Progress, Sample, evaluate
from madtp_core.pruning import MAX_KEEP, PER_INSTANCE
from madtp_core.rank_correlation import spearman
from madtp_core.study.batches import needed_over_kept, needed_over_kept_regrouped, sorted_batches
from madtp_core.study.observe import Observation
from madtp_core.study.predictors import Correlation, correlation, held_out
from madtp_core.tasks.base import PrunedModel

Floats = NDArray[np.float64]

BATCH_SIZES: Final = (8, 32)
FIFO, TRUTH, PACKED = "first in, first out", "truth", "packed"
CHEAP: Final = "image + text"
_REALLY_RUN: Final = tuple(f"sorted by {name}" for name in (CHEAP, "block 1", TRUTH))
_ARRIVALS: Final = 20  # random orders of arrival that a figure is the mean of
_DIGITS: Final = 5


@dataclass(frozen=True)
class Study:
    """What was found about one model.

    about: model, task, prune temperature and data. needs: their distribution. correlations: of predictions on
    held-out requests with needs; features: of single figures, sign and all. batches: batch size -> order ->
    mean and spread over arrivals of tokens needed / tokens kept. really_run: the same orders as the model
    really ran them. items: the raw data, a column of features and a need a request.
    """

    about: Mapping[str, Any]
    needs: Mapping[str, float]
    correlations: Mapping[str, Correlation]
    features: Mapping[str, float]
    batches: Mapping[int, Mapping[str, tuple[float, float]]]
    really_run: Mapping[int, Mapping[str, Mapping[str, float]]]
    items: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), separators=(",", ":")) + "\n")


def read_study(path: Path) -> Study:
    """Read what `Study.save` wrote; raises ConfigError for anything else."""
    try:
        data = json.loads(path.read_text())
        data["correlations"] = {name: Correlation(**one) for name, one in data["correlations"].items()}
        for part in ("batches", "really_run"):
            data[part] = {int(size): found for size, found in data[part].items()}
        return Study(**data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path.name} holds no study: {error!r}") from error


def study_difficulty(
    model: PrunedModel,
    samples: Sequence[Sample],
    requests: Sequence[Observation],
    about: Mapping[str, Any],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    on_batch: Progress | None = None,
) -> Study:
    """Study requests that `observe` measured of these samples at about["prune_temperature"].

    Runs the model again: packed, and under max_keep as requests come, sorted by the cheap prediction, by what
    block 1 needed, by the whole need. Raises ConfigError for fewer requests than a batch.
    """
    if len(requests) < max(batch_sizes):
        raise ConfigError(f"need at least {max(batch_sizes)} requests, got {len(requests)}")
    need = np.array([request.need for request in requests])
    features = np.stack([request.features for request in requests])
    predictions = {name: held_out(figures, need) for name, figures in _figures(requests, features).items()}
    keys = {**{f"sorted by {name}": each for name, each in predictions.items()}, f"sorted by {TRUTH}": need}
    run: dict[str, tuple[Floats | None, str]] = {FIFO: (None, MAX_KEEP), PACKED: (None, PER_INSTANCE)}
    run |= {name: (keys[name], MAX_KEEP) for name in _REALLY_RUN}
    return Study(
        dict(about),
        _distribution(requests, need),
        {name: correlation(each, need) for name, each in predictions.items()},
        {
            name: spearman(features[:, column], need)
            for column, name in enumerate(REQUEST_FEATURES)
            if features[:, column].std() > 0 and name not in LOG_IMAGE_FEATURES  # of the same order
        },
        {size: _orders(requests, keys, size) for size in batch_sizes},
        {
            size: {
                name: _really_run(
                    model,
                    samples,
                    requests,
                    sorted_batches(range(len(requests)), key, size),
                    {
                        "batch_size": size,
                        "prune_temperature": about["prune_temperature"],
                        "keep_mode": keep_mode,
                        "on_batch": on_batch,
                    },
                )
                for name, (key, keep_mode) in run.items()
            }
            for size in batch_sizes
        },
        _items(requests, features),
    )


def _figures(requests: Sequence[Observation], features: Floats) -> dict[str, Floats]:
    """The figures of every predictor: [requests, figures] each."""
    columns = {name: features[:, column] for column, name in enumerate(REQUEST_FEATURES)}
    images, logarithms, texts = (
        np.stack([columns[name] for name in names], 1)
        for names in (IMAGE_FEATURES, LOG_IMAGE_FEATURES, TEXT_FEATURES)
    )
    blocks = np.array([[request.image_need(block) for block in (0, 1)] for request in requests])
    has_texts = texts.std(0).max() > 0
    return {
        "image, without logarithms": images,
        "image": np.hstack([images, logarithms]),
        **({"text": texts} if has_texts else {}),
        CHEAP: features,
        "block 1": blocks[:, :1],
        "blocks 1 and 2": blocks,
        f"{CHEAP} + block 1": np.hstack([features, blocks[:, :1]]),
        f"{CHEAP} + blocks 1 and 2": np.hstack([features, blocks]),
    }


def _distribution(requests: Sequence[Observation], need: Floats) -> dict[str, float]:
    """The mean need, its spread, deciles' ends, and the mean of every group."""
    low, middle, high = np.percentile(need, (10, 50, 90))
    groups = sorted({group for request in requests for group in request.groups})
    means = {
        f"mean/{group}": need[[group in request.groups for request in requests]].mean() for group in groups
    }
    figures = {"mean": need.mean(), "sd": need.std(), "p10": low, "p50": middle, "p90": high, **means}
    return {name: float(value) for name, value in figures.items()}


def _orders(
    requests: Sequence[Observation], keys: Mapping[str, Floats], batch_size: int
) -> dict[str, tuple[float, float]]:
    """Order -> tokens needed / tokens kept, mean and spread over random arrivals."""
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {}
    for _ in range(_ARRIVALS):
        arrivals = rng.permutation(len(requests)).tolist()
        for name, key in {FIFO: None, **keys}.items():
            batches = sorted_batches(arrivals, key, batch_size)
            found.setdefault(name, []).append(needed_over_kept(requests, batches))
        for blocks in (1, 2):
            ratio = needed_over_kept_regrouped(requests, arrivals, batch_size, blocks)
            found.setdefault(f"regrouped after block {blocks}", []).append(ratio)
    spread = {name: (float(np.mean(each)), float(np.std(each))) for name, each in found.items()}
    return {**spread, PACKED: (1.0, 0.0)}


def _really_run(
    model: PrunedModel,
    samples: Sequence[Sample],
    requests: Sequence[Observation],
    batches: Sequence[Sequence[int]],
    options: Mapping[str, Any],
) -> dict[str, float]:
    """These batches through the model, beside what the simulation says of them."""
    rows = [row for batch in batches for row in batch]
    result = evaluate(model, [samples[row] for row in rows], **options)
    needed = sum(sum(map(sum, _needs(requests[row]))) for row in rows)
    kept = sum(outlay.kept_tokens for outlay in result.outlays)
    accuracy = result.mean()
    return {
        "needed_over_kept_simulated": (
            needed_over_kept(requests, batches) if options["keep_mode"] == MAX_KEEP else 1.0
        ),
        "needed_over_kept": needed / kept,
        "keep_efficiency": result.keep_efficiency(),
        "flops_ratio": result.flops_ratio(),
        **({} if accuracy is None else {result.measure: accuracy}),
    }


def _needs(request: Observation) -> list[tuple[int, ...]]:
    return [needed for each in request.sequences.values() for _, needed in each]


def _items(requests: Sequence[Observation], features: Floats) -> dict[str, Any]:
    return {
        "features": {
            name: [float(f"{value:.{_DIGITS}g}") for value in features[:, column]]
            for column, name in enumerate(REQUEST_FEATURES)
            if name not in LOG_IMAGE_FEATURES
        },
        "need": [round(request.need, _DIGITS) for request in requests],
        "sequences": [request.sequences for request in requests],
        "groups": [request.groups for request in requests],
    }
