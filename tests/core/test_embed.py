"""Embeddings of many requests at once: each request's own vectors, temperature and cost."""

import numpy as np
import pytest

from madtp_core.errors import ConfigError, UnknownNameError
from madtp_core.pruning import KEEP_MODES, PER_INSTANCE
from madtp_core.tasks.clip import ClipRetrieval
from madtp_core.tasks.embed import embed
from madtp_core.tasks.embedding import EmbeddingQuery
from madtp_core.tasks.plain import plain_task
from tests.core.tiny_clip import make_checkpoint


@pytest.fixture(scope="module")
def model() -> ClipRetrieval:
    return ClipRetrieval(make_checkpoint())


def _query(images: int, *texts: str, seed: int = 0) -> EmbeddingQuery:
    pixels = np.random.default_rng(seed).standard_normal((images, 3, 40, 40), dtype=np.float32)
    return EmbeddingQuery(tuple(pixels), texts)


QUERIES = [_query(2, "a red star"), _query(0, "two dots", "stripes"), _query(1, seed=1)]


def test_every_request_gets_its_own_in_its_order(model: ClipRetrieval) -> None:
    answers = embed(model, QUERIES, prune_temperature=0)
    counts = [(len(answer.images), len(answer.texts)) for answer in answers]
    assert counts == [(2, 1), (0, 2), (1, 0)]
    alone = model.embed_texts(["stripes"], prune_temperature=0)[0]
    np.testing.assert_allclose(answers[1].texts[1], alone.values, atol=1e-6)


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_costs_are_sums_over_images_and_texts(model: ClipRetrieval, keep_mode: str) -> None:
    (answer,) = embed(model, QUERIES[:1], prune_temperature=2.0, keep_mode=keep_mode)
    images = model.embed_images(QUERIES[0].pixel_values, prune_temperature=2.0, keep_mode=keep_mode)
    (text,) = model.embed_texts(QUERIES[0].texts, prune_temperature=2.0, keep_mode=keep_mode)
    parts = [*images, text]
    assert answer.spent.cost.flops == sum(part.spent.cost.flops for part in parts)
    assert [len(answer.spent.traces[branch]) for branch in ("vision", "text")] == [2, 1]
    assert (
        min(p.spent.difficulty for p in parts)
        <= answer.spent.difficulty
        <= max(p.spent.difficulty for p in parts)
    )


def test_packed_every_request_has_its_own_temperature(model: ClipRetrieval) -> None:
    answers = embed(model, QUERIES, prune_temperature=[2.0, 0.5, 0.0], keep_mode=PER_INSTANCE)
    for query, temperature, answer in zip(QUERIES, (2.0, 0.5, 0.0), answers, strict=True):
        (alone,) = embed(model, [query], prune_temperature=temperature, keep_mode=PER_INSTANCE)
        np.testing.assert_allclose(
            np.stack([*answer.images, *answer.texts]), [*alone.images, *alone.texts], atol=1e-5
        )


def test_dense_nothing_is_difficult(model: ClipRetrieval) -> None:
    (answer,) = embed(model, QUERIES[:1], prune_temperature=0)
    assert answer.spent.difficulty is None


def test_a_request_without_anything_in_it(model: ClipRetrieval) -> None:
    with pytest.raises(ConfigError, match="at least one image or one text"):
        embed(model, [_query(0)], prune_temperature=0)


def test_a_task_that_does_not_exist() -> None:
    with pytest.raises(UnknownNameError, match="vqa"):
        plain_task("vqq")
