"""Ranked answers as the original BLIP finds them: a shortlist by first tokens, then whole likelihoods."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from madtp_core.decoding import Search, TextDecoder, decode, rank_shortlist
from madtp_core.errors import ConfigError
from madtp_core.tasks.vqa import BlipVqa, VqaQuery

# Ids of answers of one to four tokens; three begin alike, and one comes twice.
ANSWERS = [[5, 6], [7], [8, 9, 10, 11], [5], [12, 3], [5, 20, 21], [7], [30]]


@pytest.fixture(scope="module")
def network(make_network):
    """A tiny BLIP whose decoder's loss is smoothed, as the original's always is."""
    network = make_network()
    network.blip.text_decoder.label_smoothing = 0.1
    return network


@pytest.fixture(scope="module")
def question(network, pixel_values, ragged_questions):
    ids, mask = ragged_questions
    with torch.no_grad():
        return network.encode_question(ids, mask, network.encode_image(pixel_values, None)).tokens


@pytest.fixture(scope="module")
def decoder(network):
    return network.decoder()


def originals(tower, states, wanted):
    """Places and scores by the original's `rank_answer`, of one question, by Hugging Face's decoder."""
    with torch.no_grad():
        start = tower(torch.tensor([[tower.config.bos_token_id]]), encoder_hidden_states=states)
        first = start.logits[0, 0].softmax(-1)[[ids[0] for ids in ANSWERS]]
        places = sorted(range(len(ANSWERS)), key=lambda place: (-first[place].item(), place))[:wanted]
        scores = []
        for place in places:
            text = torch.tensor([[tower.config.bos_token_id, *ANSWERS[place], tower.config.sep_token_id]])
            loss = tower(text, encoder_hidden_states=states, labels=text, reduction="none").loss
            scores.append(-loss.item())
    return places, scores


@pytest.mark.parametrize("wanted", [1, 3, 5, 8, 100])
def test_a_shortlist_is_the_originals(network, decoder, question, wanted):
    memory = decoder.remember(question)
    for row, length in enumerate((14, 6, 10)):
        places, scores = originals(network.blip.text_decoder, question.hidden[row : row + 1, :length], wanted)
        found = rank_shortlist(decoder, memory, row, ANSWERS, wanted)
        assert [one.place for one in found] == places
        assert [one.token_ids for one in found] == [tuple(ANSWERS[place]) for place in places]
        assert [one.score for one in found] == pytest.approx(scores, abs=1e-4)


def test_scores_are_sums_by_hand(decoder, question):
    """0.9 of a token's own log-probability and 0.1 of the vocabulary's mean, over its tokens and the end."""
    memory = decoder.remember(question)
    found = {one.place: one.score for one in rank_shortlist(decoder, memory, 0, ANSWERS, 8)}
    ids = ANSWERS[2]
    logits, _ = decoder.forward(torch.tensor([[decoder.start_id, *ids]]), memory.read_by(torch.tensor([0])))
    by_hand = 0.0
    for step, token in enumerate([*ids, decoder.end_id]):
        log_probs = F.log_softmax(logits[0, step].double(), -1)
        by_hand += (0.9 * log_probs[token] + 0.1 * log_probs.mean()).item()
    assert found[2] == pytest.approx(by_hand, abs=1e-5)


class Flat(TextDecoder):
    """Knows only how likely a token is, whatever stands before it."""

    def __init__(self, logits):
        super().__init__(None, [], None, start_id=0, end_id=1)
        self.logits = torch.tensor(logits)

    def forward(self, token_ids, memory, cache=None):
        return self.logits.expand(*token_ids.shape, -1), []


def test_first_tokens_that_tie_leave_the_lists_order(decoder, question):
    flat = Flat([0.0, 0.0, 2.0, 1.0, 1.0, 1.0])
    memory = decoder.remember(question)
    assert [one.place for one in rank_shortlist(flat, memory, 0, [[3], [4], [2], [5]], 3)] == [2, 0, 1]


def test_a_shortlist_may_miss_the_likeliest_text(decoder, question):
    """The longer text begins better, but as a whole the shorter is likelier."""
    flat, texts = Flat([0.0, 1.0, 2.0, 1.9]), [[3], [2, 2, 2]]
    memory = decoder.remember(question)
    assert [one.place for one in rank_shortlist(flat, memory, 0, texts, 1)] == [1]
    both = rank_shortlist(flat, memory, 0, texts, 2)
    assert max(both, key=lambda one: one.score).place == 0


def test_the_pass_that_chooses_is_on_the_account_of_the_first(decoder, question):
    (found,) = decode(decoder, decoder.remember(question), [Search(1, candidates=ANSWERS, shortlist=3)])
    lengths = [len(one.token_ids) + 1 for one in found]
    assert found[0].passes == ((1, 1), (lengths[0], lengths[0]))
    assert [one.passes for one in found[1:]] == [((length, length),) for length in lengths[1:]]
    longest = max(lengths)
    assert all(one.padded_passes[-1] == (longest, longest) for one in found)


# A model's questions


@pytest.fixture(scope="module")
def model(vqa_checkpoint):
    return BlipVqa(vqa_checkpoint)


WORDS = ("red", "no", "large red star", "2", "red star", "large blue circle")


def query(**options):
    pixels = np.random.default_rng(1).standard_normal((3, 64, 64), dtype=np.float32)
    return VqaQuery(pixels, "is there a large red star?", **options)


def test_a_question_is_answered_by_the_best_of_its_shortlist(model):
    (answer,) = model.predict([query(candidates=WORDS, shortlist=4)], prune_temperature=0.0)
    assert len(answer.ranked) == 4 and {text for text, _ in answer.ranked} < set(WORDS)
    assert (answer.answer, answer.score) == answer.ranked[0] == max(answer.ranked, key=lambda pair: pair[1])


def test_a_shortlist_longer_than_the_list_ranks_all(model):
    (answer,) = model.predict([query(candidates=WORDS, shortlist=128)], prune_temperature=0.0)
    assert sorted(text for text, _ in answer.ranked) == sorted(WORDS)


def test_every_ranked_answer_is_paid_for(model):
    """The pass that chooses costs what writing one token does, however long the list."""
    asked = [query(candidates=WORDS, shortlist=wanted) for wanted in (2, 4)]
    asked += [query(candidates=("red",)), query(candidates=("red",), shortlist=1), query(max_new_tokens=1)]
    answers = [model.predict([each], prune_temperature=0.0)[0] for each in asked]
    two, four, alone, chosen, written = (answer.spent.cost.flops for answer in answers)
    assert four > two > chosen
    assert chosen - alone == written - _without_passes(model)


def _without_passes(model):
    """Operations of the same question before anything is decoded."""
    spent = model.predict([query(max_new_tokens=1)], prune_temperature=0.0)[0].spent
    return 2 * model.cost_model.spent_macs(spent.traces, [], None)


def test_pruned_questions_are_ranked_too(model):
    (answer,) = model.predict([query(candidates=WORDS, shortlist=3)], prune_temperature=0.7)
    assert answer.spent.cost.flops_ratio < 1 and len(answer.ranked) == 3


def test_a_list_is_tokenized_once(model, monkeypatch):
    words, read = tuple(f"{word} one" for word in WORDS), []
    answer_ids = model.codec.answer_ids
    monkeypatch.setattr(model.codec, "answer_ids", lambda text: read.append(text) or answer_ids(text))
    for _ in range(2):
        model.predict([query(candidates=words, shortlist=2)] * 2, prune_temperature=0.0)
    assert read == list(words)


@pytest.mark.parametrize("options", [{"shortlist": 3}, {"shortlist": 0, "candidates": WORDS}])
def test_a_shortlist_needs_candidates(model, options):
    with pytest.raises(ConfigError, match="shortlist"):
        model.predict([query(**options)], prune_temperature=0.0)
