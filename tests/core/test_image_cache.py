"""Encoded images from the cache: the same answers, bounded memory, and nothing where batch mates matter."""

import numpy as np
import pytest

from madtp_core.checkpoint import Checkpoint
from madtp_core.image_cache import ImageCache
from madtp_core.pruning import KEEP_MODES, MAX_KEEP, PER_INSTANCE
from madtp_core.tasks.clip import ClipRetrieval
from madtp_core.tasks.ranking import RetrievalQuery
from madtp_core.tasks.vqa import BlipVqa, VqaAnswer, VqaQuery
from tests.core.tiny_clip import make_checkpoint

MEGABYTE = 1_000_000


def _query(image: int, question: str = "how many stars are there?") -> VqaQuery:
    pixels = np.random.default_rng(image).standard_normal((3, 64, 64), dtype=np.float32)
    return VqaQuery(pixels, question, max_new_tokens=4)


def _model(checkpoint: Checkpoint, max_bytes: int = MEGABYTE) -> tuple[BlipVqa, ImageCache]:
    model = BlipVqa(checkpoint)
    model.image_cache = ImageCache(max_bytes)
    return model, model.image_cache


def _assert_same(ours: list[VqaAnswer], theirs: list[VqaAnswer]) -> None:
    assert [answer.answer for answer in ours] == [answer.answer for answer in theirs]
    assert [answer.spent for answer in ours] == [answer.spent for answer in theirs]
    np.testing.assert_allclose([a.score for a in ours], [a.score for a in theirs], atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_kept_and_new_images_answer_as_all_new_ones_do(
    vqa_checkpoint: Checkpoint, temperature: float
) -> None:
    model, cache = _model(vqa_checkpoint)
    options = {"prune_temperature": temperature, "keep_mode": PER_INSTANCE}
    model.predict([_query(0), _query(1)], **options)
    mixed = [_query(2), _query(1), _query(0, "is it red?"), _query(2), _query(3)]
    answers = model.predict(mixed, **options)
    assert (cache.hits, cache.misses) == (3, 4)  # the second 2 is like the first
    _assert_same(answers, BlipVqa(vqa_checkpoint).predict(mixed, **options))


def test_another_temperature_is_another_encoding(vqa_checkpoint: Checkpoint) -> None:
    model, cache = _model(vqa_checkpoint)
    queries = [_query(0), _query(0), _query(0)]
    temperatures = [0.7, 2.0, 0.7]
    answers = model.predict(queries, prune_temperature=temperatures, keep_mode=PER_INSTANCE)
    assert (cache.hits, cache.misses) == (1, 2)
    plain = BlipVqa(vqa_checkpoint).predict(queries, prune_temperature=temperatures, keep_mode=PER_INSTANCE)
    _assert_same(answers, plain)


def test_under_max_keep_nothing_is_kept_and_nothing_taken(vqa_checkpoint: Checkpoint) -> None:
    model, cache = _model(vqa_checkpoint)
    for _ in range(2):
        model.predict([_query(0)], prune_temperature=0.7, keep_mode=MAX_KEEP)
    assert (cache.hits, cache.misses, cache.bytes) == (0, 0, 0)


def test_bytes_are_bounded_and_the_least_recently_used_go(vqa_checkpoint: Checkpoint) -> None:
    model, cache = _model(vqa_checkpoint)
    model.predict([_query(0)], prune_temperature=0)
    cache.max_bytes = 2 * cache.bytes
    for image in (1, 0, 2):  # 0 was asked for after 1, which therefore makes room for 2
        model.predict([_query(image)], prune_temperature=0)
    assert cache.bytes <= cache.max_bytes
    misses = cache.misses
    model.predict([_query(0), _query(2)], prune_temperature=0)
    assert cache.misses == misses
    model.predict([_query(1)], prune_temperature=0)
    assert cache.misses == misses + 1


def test_a_cache_too_small_for_anything_changes_no_answer(vqa_checkpoint: Checkpoint) -> None:
    model, cache = _model(vqa_checkpoint, max_bytes=10)
    queries = [_query(0), _query(0)]
    _assert_same(
        model.predict(queries, prune_temperature=0),
        BlipVqa(vqa_checkpoint).predict(queries, prune_temperature=0),
    )
    assert cache.bytes == 0


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_clip_takes_images_from_it_too(keep_mode: str) -> None:
    model = ClipRetrieval(make_checkpoint())
    pixels = np.random.default_rng(0).standard_normal((2, 3, 40, 40), dtype=np.float32)
    query = RetrievalQuery(pixels, ("a star",))
    (plain,) = model.predict([query], prune_temperature=2.0, keep_mode=keep_mode)
    model.image_cache = ImageCache(MEGABYTE)
    for _ in range(2):
        (answer,) = model.predict([query], prune_temperature=2.0, keep_mode=keep_mode)
    np.testing.assert_allclose(answer.logits, plain.logits, atol=1e-4)
    assert answer.spent == plain.spent
    assert model.image_cache.hits == (2 if keep_mode == PER_INSTANCE else 0)
