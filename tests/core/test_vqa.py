"""BlipVqa.predict: answers, ranking, batch invariance, costs and bad input."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from madtp_core.errors import ConfigError
from madtp_core.tasks.vqa import BlipVqa, VqaQuery

QUESTIONS = (
    "how many circles are there?",
    "is there a large red star?",
    "what color is the small striped square?",
)


@pytest.fixture(scope="module")
def model(vqa_checkpoint):
    return BlipVqa(vqa_checkpoint)


def query(index: int = 0, question: str | None = None, **options) -> VqaQuery:
    pixels = np.random.default_rng(index).standard_normal((3, 64, 64), dtype=np.float32)
    return VqaQuery(pixels, question or QUESTIONS[index % 3], max_new_tokens=4, **options)


def test_dense_answers_are_hugging_faces(model, vqa_checkpoint, tmp_path):
    """Equal-length questions and identical ids: the same emitted text as HF's own generate."""
    import torch

    queries = [query(seed, QUESTIONS[0]) for seed in range(3)]
    ids, mask = model.codec.questions([q.question for q in queries])
    pixels = torch.from_numpy(np.stack([q.pixel_values for q in queries]))
    expected = vqa_checkpoint.model.generate(ids, pixels, mask, max_new_tokens=4)
    answers = model.predict(queries, prune_temperature=0.0)
    decoded = [
        model.codec.text([t for t in row[1:] if t != model._decoder.end_id]) for row in expected.tolist()
    ]
    assert [answer.answer for answer in answers] == decoded


@pytest.mark.parametrize("prune_temperature", [0.0, 0.7])
def test_per_instance_answers_do_not_depend_on_the_batch(model, prune_temperature):
    queries = [query(0), query(1), query(2), query(3, candidates=("red", "blue")), query(4, num_beams=2)]
    together = model.predict(queries, prune_temperature=prune_temperature, keep_mode="per_instance")
    for own, answer in zip(queries, together, strict=True):
        alone = model.predict([own], prune_temperature=prune_temperature, keep_mode="per_instance")[0]
        assert (alone.answer, alone.spent.traces) == (answer.answer, answer.spent.traces)
        assert alone.score == pytest.approx(answer.score, abs=1e-5)
        assert alone.spent.cost.flops == answer.spent.cost.flops
        assert alone.spent.difficulty == answer.spent.difficulty


def test_max_keep_keeps_what_the_neediest_needs(model):
    answers = model.predict([query(seed) for seed in range(4)], prune_temperature=0.7)
    first = [answer.spent.traces["vision"][0] for answer in answers]
    assert len({trace.kept for trace in first}) == 1
    assert first[0].kept[0] == max(trace.needed[0] for trace in first) < first[0].dense


def test_candidates_are_ranked_best_first(model):
    candidates = ("red", "no", "large red star", "2")
    answer = model.predict([query(1, candidates=candidates)], prune_temperature=0.0)[0]
    assert answer.ranked is not None and {text for text, _ in answer.ranked} == set(candidates)
    scores = [score for _, score in answer.ranked]
    assert scores == sorted(scores, reverse=True)
    assert (answer.answer, answer.score) == answer.ranked[0]


def test_pruning_costs_less_and_padding_more(model):
    queries = [query(seed) for seed in range(3)]
    dense, pruned = (model.predict(queries, prune_temperature=t) for t in (0.0, 0.7))
    for answer in dense:
        assert answer.spent.cost.flops_ratio == 1 and answer.spent.difficulty is None
        assert answer.spent.token_density == 1
        assert answer.spent.cost.padded_flops >= answer.spent.cost.flops
    for answer in pruned:
        assert answer.spent.cost.needed_flops <= answer.spent.cost.flops <= answer.spent.cost.padded_flops
        assert 0 < answer.spent.difficulty < 1
        assert answer.spent.traces["vision"][0].token_density < 1
    assert all(p.spent.cost.flops_ratio < 1 for p in pruned)


def test_each_query_may_have_its_own_temperature(model):
    queries = [query(0), query(1)]
    mixed = model.predict(queries, prune_temperature=[0.0, 0.7], keep_mode="per_instance")
    assert mixed[0].spent.traces["vision"][0].kept == (64, 64)
    alone = model.predict(queries[1:], prune_temperature=0.7, keep_mode="per_instance")[0]
    assert mixed[1].spent.traces["vision"][0] == alone.spent.traces["vision"][0]


def test_an_empty_batch_has_no_answers(model):
    assert model.predict([], prune_temperature=0.0) == []


@pytest.mark.parametrize(
    ("bad", "options"),
    [
        (query(question="  "), {}),
        (query(question="red " * 60), {}),
        (query(candidates=()), {}),
        (query(candidates=("",)), {}),
        (query(candidates=("red " * 60,)), {}),
        (query(num_beams=0), {}),
        (VqaQuery(np.zeros((3, 32, 32), np.float32), "how many?"), {}),
        (query(), {"prune_temperature": -1.0}),
        (query(), {"prune_temperature": float("nan")}),
        (query(), {"prune_temperature": [0.5, 0.5]}),
        (query(), {"keep_mode": "most"}),
    ],
)
def test_bad_values_are_refused(model, bad, options):
    with pytest.raises(ConfigError):
        model.predict([bad], **{"prune_temperature": 0.0, **options})


def test_a_model_without_pruning_refuses_to_prune(vqa_checkpoint):
    from dataclasses import replace

    config = replace(vqa_checkpoint.config, alignment=None, pruning=None)
    plain = BlipVqa(replace(vqa_checkpoint, alignment=None, config=config))
    assert plain.predict([query()], prune_temperature=0.0)[0].answer is not None
    with pytest.raises(ConfigError, match="no pruning"):
        plain.predict([query()], prune_temperature=0.5)


def test_save_and_load_answer_alike(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    loaded = BlipVqa.from_pretrained(tmp_path / "saved")
    assert (
        loaded.predict([query()], prune_temperature=0.7)[0].spent.cost
        == model.predict([query()], prune_temperature=0.7)[0].spent.cost
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").bos_token == "[DEC]"
