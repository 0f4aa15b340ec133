"""Decoding: memories of different lengths, the cache, end tokens, beams and candidates.

Search is tested on a made-up language, where every text's probability is known; attention to the memory, and
the cache, on the tiny BLIP.
"""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from madtp_core.blocks import Memory
from madtp_core.decoding import Cache, Decoded, TextDecoder, beam_search, greedy, rank
from madtp_core.encoder import Encoded
from madtp_core.tasks.vqa_network import VqaNetwork
from madtp_core.tokens import Tokens

START, END, VOCABULARY = 4, 0, 5


class Language(TextDecoder):
    """Log-probabilities drawn from the memory and the text so far; `calls` keeps (rows, new, attended)."""

    def __init__(self, seed: int = 0, peak: float = 1.5, end_bonus: float = 0.0) -> None:
        super().__init__(None, [], None, START, END)
        self.seed, self.peak, self.end_bonus = seed, peak, end_bonus
        self.calls: list[tuple[int, int, int]] = []

    def log_probs(self, memory: int, text: tuple[int, ...]) -> Tensor:
        """[VOCABULARY], after the start token and text."""
        generator = torch.Generator().manual_seed(int.from_bytes(bytes([self.seed, memory, 255, *text])))
        logits = torch.randn(VOCABULARY, generator=generator) * self.peak
        logits[END] += self.end_bonus
        return logits.log_softmax(-1)

    def score(self, memory: int, text: tuple[int, ...]) -> float:
        """Mean log-probability of the tokens of text, its end token included where it has one."""
        steps = [self.log_probs(memory, text[:i])[token].item() for i, token in enumerate(text)]
        return sum(steps) / len(steps)

    def forward(self, token_ids: Tensor, memory: Memory, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        past = token_ids.new_empty(len(token_ids), 0) if cache is None else cache[0][0]
        whole = torch.cat([past, token_ids], 1)
        self.calls.append((len(token_ids), token_ids.shape[1], whole.shape[1]))
        assert memory.reader is not None
        rows = []
        for reader, ids in zip(memory.reader.tolist(), whole.tolist(), strict=True):
            assert ids[0] == START
            steps = range(past.shape[1] + 1, len(ids) + 1)
            rows.append(torch.stack([self.log_probs(reader, tuple(ids[1:end])) for end in steps]))
        return torch.stack(rows), [(whole, whole)]


@pytest.fixture
def memories() -> Memory:
    """Four memories; a Language looks only at which one is read."""
    return Memory((torch.zeros(4, 1, 1, 1),), (torch.zeros(4, 1, 1, 1),), None)


def texts(longest: int) -> Iterator[tuple[int, ...]]:
    """Every text that a search of so many steps can give: ended before, or of full length."""
    words = range(1, VOCABULARY)
    for length in range(longest):
        yield from ((*words_, END) for words_ in itertools.product(words, repeat=length))
    yield from itertools.product(words, repeat=longest)


def without_end(text: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token in text if token != END)


class Speaker(PreTrainedModel, GenerationMixin):
    """One memory of a Language as a model that Hugging Face's `generate` can drive."""

    def __init__(self, language: Language, memory: int) -> None:
        super().__init__(PreTrainedConfig(vocab_size=VOCABULARY))
        self.language, self.memory = language, memory
        self.unused = nn.Parameter(torch.zeros(1))
        self.steps = 0

    def prepare_inputs_for_generation(self, input_ids: Tensor, **_: object) -> dict[str, Tensor]:
        return {"input_ids": input_ids}

    def forward(self, input_ids: Tensor, **_: object) -> CausalLMOutput:
        self.steps += 1
        texts = [tuple(row[1:]) for row in input_ids.tolist()]
        return CausalLMOutput(
            logits=torch.stack([self.language.log_probs(self.memory, text) for text in texts]).unsqueeze(1)
        )

    def search(self, beams: int, longest: int) -> tuple[tuple[int, ...], float]:
        """The text that Hugging Face's beam search finds, without its end token, and its score."""
        found = self.generate(
            torch.tensor([[START]]),
            num_beams=beams,
            do_sample=False,
            max_new_tokens=longest,
            eos_token_id=END,
            pad_token_id=END,
            use_cache=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        text = found.sequences[0, 1:].tolist()
        return tuple(text[: text.index(END)] if END in text else text), found.sequences_scores.item()


# --- Greedy


def test_greedy_takes_the_likeliest_token_until_the_end_token(memories: Memory) -> None:
    language = Language(end_bonus=1.0)
    decoded = greedy(language, memories, torch.tensor([2, 0, 3, 1, 1]), 5)
    for memory, answer in zip([2, 0, 3, 1, 1], decoded, strict=True):
        text: tuple[int, ...] = ()
        while len(text) < 5 and END not in text:
            text = (*text, int(language.log_probs(memory, text).argmax()))
        assert answer.token_ids == without_end(text)
        assert answer.score == pytest.approx(language.score(memory, text), abs=1e-6)
        assert answer.passes == tuple((1, step + 1) for step in range(len(text)))
    assert len({len(answer.passes) for answer in decoded}) > 1  # rows end at different steps
    ran = tuple((new, attended) for _, new, attended in language.calls)
    assert all(answer.padded_passes == ran for answer in decoded)
    assert len(ran) == max(len(answer.passes) for answer in decoded)  # none runs after the last has ended


def test_greedy_stops_when_every_row_has_ended(memories: Memory) -> None:
    language = Language(end_bonus=50.0)
    decoded = greedy(language, memories, torch.tensor([0, 1]), 9)
    assert [answer.token_ids for answer in decoded] == [(), ()]
    assert [answer.passes for answer in decoded] == [((1, 1),)] * 2
    assert language.calls == [(2, 1, 1)]


@pytest.mark.parametrize("longest", [1, 3, 6])
def test_greedy_emits_no_more_than_it_may(memories: Memory, longest: int) -> None:
    language = Language(end_bonus=-50.0)
    (decoded,) = greedy(language, memories, torch.tensor([0]), longest)
    assert len(decoded.token_ids) == longest
    assert len(language.calls) == longest


# --- Beams


@pytest.mark.parametrize("memory", range(4))
def test_one_beam_is_greedy(memories: Memory, memory: int) -> None:
    language = Language(end_bonus=1.0)
    (expected,) = greedy(language, memories, torch.tensor([memory]), 5)
    decoded = beam_search(language, memories, memory, 1, 5)
    assert decoded.token_ids == expected.token_ids and decoded.passes == expected.passes
    assert decoded.score == pytest.approx(expected.score, abs=1e-6)


@pytest.mark.parametrize("memory", range(4))
def test_beams_enough_for_all_texts_find_the_best_one(memories: Memory, memory: int) -> None:
    language = Language(peak=1.0)
    best = max(texts(3), key=lambda text: language.score(memory, text))
    decoded = beam_search(language, memories, memory, VOCABULARY**3, 3)
    assert decoded.token_ids == without_end(best)
    assert decoded.score == pytest.approx(language.score(memory, best), abs=1e-6)


def test_more_beams_escape_a_greedy_mistake(memories: Memory) -> None:
    gains = []
    for seed in range(20):
        language = Language(seed)
        (narrow,) = greedy(language, memories, torch.tensor([0]), 4)
        gains.append(beam_search(language, memories, 0, 3, 4).score - narrow.score)
    assert max(gains) > 0.05
    assert sum(gains) > 0


@pytest.mark.parametrize("beams", [2, 3])
@pytest.mark.parametrize(("end_bonus", "peak"), [(0.0, 1.5), (2.0, 3.0)])
def test_beam_search_finds_what_hugging_faces_does(
    memories: Memory, beams: int, end_bonus: float, peak: float
) -> None:
    lengths = set()
    for seed in (*range(30), 121):  # in 121 a text ends below the best `beams`: that must not count
        language = Language(seed, peak, end_bonus)
        theirs = Speaker(language, 0)
        text, score = theirs.search(beams, 6)
        decoded = beam_search(language, memories, 0, beams, 6)
        assert decoded.token_ids == text
        assert decoded.score == pytest.approx(score, abs=1e-5)
        assert len(language.calls) == theirs.steps
        lengths.add(len(text))
    assert len(lengths) > 3


def test_beam_passes_are_the_rows_that_ran(memories: Memory) -> None:
    language = Language(end_bonus=1.0)
    decoded = beam_search(language, memories, 1, 3, 5)
    ran = [(new, attended) for rows, new, attended in language.calls for _ in range(rows)]
    assert decoded.passes == decoded.padded_passes == tuple(ran)
    assert [rows for rows, _, _ in language.calls[:2]] == [1, 3]


def test_beams_stop_when_no_open_one_can_win(memories: Memory) -> None:
    language = Language(end_bonus=6.0)
    assert beam_search(language, memories, 0, 2, 9).token_ids == ()
    assert len(language.calls) < 9


# --- Ranking


def test_ranking_gives_each_candidate_its_teacher_forced_score(memories: Memory) -> None:
    language = Language()
    candidates = [[1, 2, 3], [4], [2, 2], [3, 1, 4, 1]]
    ranked = rank(language, memories, 2, candidates)
    assert [answer.token_ids for answer in ranked] == [tuple(ids) for ids in candidates]
    for answer, ids in zip(ranked, candidates, strict=True):
        assert answer.score == pytest.approx(language.score(2, (*ids, END)), abs=1e-6)
        assert answer.passes == ((len(ids) + 1, len(ids) + 1),)
        assert answer.padded_passes == ((5, 5),)
    assert language.calls == [(4, 5, 5)]


def test_a_candidates_score_does_not_depend_on_the_others(memories: Memory) -> None:
    language = Language()
    among = rank(language, memories, 0, [[1], [2, 3, 1, 1], [3, 3]])
    for index, ids in enumerate([[1], [2, 3, 1, 1], [3, 3]]):
        (alone,) = rank(language, memories, 0, [ids])
        assert among[index].score == pytest.approx(alone.score, abs=1e-6)


# --- The tiny BLIP: masks, readers and the cache

LENGTHS = (14, 6, 10)


@pytest.fixture
def decoder(network: VqaNetwork) -> TextDecoder:
    return network.decoder()


@pytest.fixture
def text(
    network: VqaNetwork, pixel_values: Tensor, ragged_questions: tuple[Tensor, Tensor]
) -> Iterator[Encoded]:
    with torch.no_grad():
        yield network.encode_question(*ragged_questions, network.encode_image(pixel_values))


@pytest.fixture
def answers() -> Tensor:
    return torch.randint(3, 39, (3, 5))


def alone(tokens: Tokens, row: int, length: int) -> Tokens:
    return Tokens.from_hidden(tokens.hidden[row : row + 1, :length])


def test_a_padded_memory_reads_like_the_row_alone(
    decoder: TextDecoder, text: Encoded, answers: Tensor
) -> None:
    assert text.tokens.mask is not None
    together, _ = decoder.forward(answers, decoder.remember(text.tokens))
    for row, length in enumerate(LENGTHS):
        memory = decoder.remember(alone(text.tokens, row, length))
        expected, _ = decoder.forward(answers[row : row + 1], memory)
        torch.testing.assert_close(together[row : row + 1], expected, atol=1e-5, rtol=1e-5)


def test_a_packed_memory_reads_like_a_padded_one(
    decoder: TextDecoder, text: Encoded, answers: Tensor
) -> None:
    padded, _ = decoder.forward(answers, decoder.remember(text.tokens))
    packed, _ = decoder.forward(answers, decoder.remember(text.tokens.pack()))
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)


def test_readers_choose_their_memory(decoder: TextDecoder, text: Encoded, answers: Tensor) -> None:
    order = torch.tensor([2, 0, 1])
    memory = decoder.remember(text.tokens)
    own, _ = decoder.forward(answers[order], memory.read_by(order))
    paired, _ = decoder.forward(answers, memory)
    torch.testing.assert_close(own, paired[order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1, 1), (2, 1, 2), (3, 2)])
def test_the_cache_changes_nothing(
    decoder: TextDecoder, text: Encoded, answers: Tensor, chunks: tuple[int, ...]
) -> None:
    memory = decoder.remember(text.tokens)
    whole, _ = decoder.forward(answers, memory)
    logits, cache = [], None
    for chunk in answers.split(chunks, 1):
        step, cache = decoder.forward(chunk, memory, cache)
        logits.append(step)
    assert cache is not None and cache[0][0].shape[1] == answers.shape[1]
    torch.testing.assert_close(torch.cat(logits, 1), whole, atol=1e-5, rtol=1e-5)


def test_right_padding_does_not_change_what_stands_before(
    decoder: TextDecoder, text: Encoded, answers: Tensor
) -> None:
    memory = decoder.remember(text.tokens)
    logits, _ = decoder.forward(answers, memory)
    padded, _ = decoder.forward(torch.cat([answers, torch.zeros(3, 4, dtype=torch.int64)], 1), memory)
    torch.testing.assert_close(padded[:, :5], logits, atol=1e-5, rtol=1e-5)


def test_searches_on_a_padded_batch_equal_the_rows_alone(decoder: TextDecoder, text: Encoded) -> None:
    memory = decoder.remember(text.tokens)
    candidates = [[5, 6], [7], [8, 9, 10]]
    batch = greedy(decoder, memory, torch.arange(3), 6)
    for row, length in enumerate(LENGTHS):
        own = decoder.remember(alone(text.tokens, row, length))
        (single,) = greedy(decoder, own, torch.tensor([0]), 6)
        pairs = [(batch[row], single)]
        pairs.append((beam_search(decoder, memory, row, 3, 6), beam_search(decoder, own, 0, 3, 6)))
        pairs += zip(rank(decoder, memory, row, candidates), rank(decoder, own, 0, candidates), strict=True)
        for ours, expected in pairs:
            assert_same(ours, expected)


def assert_same(ours: Decoded, expected: Decoded) -> None:
    assert ours.token_ids == expected.token_ids and ours.passes == expected.passes
    assert ours.score == pytest.approx(expected.score, abs=1e-4)


def test_ranking_on_blip_equals_log_probabilities_by_hand(decoder: TextDecoder, text: Encoded) -> None:
    memory = decoder.remember(text.tokens)
    ids = [11, 5, 23]
    _, ranked, _ = rank(decoder, memory, 1, [[9], ids, [3, 4, 5, 6]])
    logits, _ = decoder.forward(torch.tensor([[decoder.start_id, *ids]]), memory.read_by(torch.tensor([1])))
    total = 0.0
    for step, token in enumerate([*ids, decoder.end_id]):
        row = logits[0, step].double().tolist()
        total += row[token] - math.log(sum(math.exp(x) for x in row))
    assert ranked.score == pytest.approx(total / 4, abs=1e-5)
