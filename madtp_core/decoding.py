"""Text decoding: teacher-forced, greedy, beam search and candidate ranking, with a key-value cache.

Ours, because Hugging Face's `generate` drops the cross-attention mask of BLIP and so is wrong on memories of
different lengths.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from madtp_core.attention import causal_attend
from madtp_core.blocks import BlipTextBlock, Memory
from madtp_core.flops import greedy_passes
from madtp_core.tokens import Tokens

Cache = list[tuple[Tensor, Tensor]]  # one key, value [B, L, H, D] a block
_LABEL_SMOOTHING: Final = 0.1  # of the original BLIP's decoder


@dataclass(frozen=True)
class Decoded:
    """One generated or ranked text.

    token_ids: without prompt, start and end tokens. score: mean log-probability of the emitted tokens, the
    end token included where it was emitted; of a shortlist, see there. passes: (new tokens, attended tokens)
    of each decoder pass spent on it. padded_passes: the same with what its batch added, as steps after its
    end or padding. place: of a candidate, among those given.
    """

    token_ids: tuple[int, ...]
    score: float
    passes: tuple[tuple[int, int], ...]
    padded_passes: tuple[tuple[int, int], ...]
    place: int = 0


@dataclass(frozen=True)
class Search:
    """How the text about one memory is found.

    beams: 1 takes the likeliest token at every step. min_new_tokens: no end before so many. prompt: token ids
    behind the start token that the text continues; they are not part of it. candidates: score these texts
    instead of writing one. shortlist: only so many of them, see `rank_shortlist`; None all.
    """

    max_new_tokens: int
    beams: int = 1
    min_new_tokens: int = 0
    prompt: tuple[int, ...] = ()
    candidates: Sequence[Sequence[int]] | None = None
    shortlist: int | None = None


class TextDecoder:
    """A causal text tower that reads a memory: embeddings, blocks and LM head of a BLIP decoder."""

    def __init__(
        self, embeddings: Any, blocks: list[BlipTextBlock], head: Any, start_id: int, end_id: int
    ) -> None:
        self.embeddings, self.blocks, self.head = embeddings, blocks, head
        self.start_id, self.end_id = start_id, end_id

    def remember(self, tokens: Tokens) -> Memory:
        """Project what will be read, once for all its readers and steps."""
        return Memory.project(tokens, list(self.blocks))

    def forward(self, token_ids: Tensor, memory: Memory, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Logits [B, L, vocabulary] float32 of token_ids [B, L] that follow the cached ones; the new cache.

        Right padding is harmless: attention is causal, so no real token sees it.
        """
        past = 0 if cache is None else cache[0][0].shape[1]
        tokens = Tokens.from_hidden(self.embeddings(input_ids=token_ids, past_key_values_length=past))
        grown: Cache = []
        for index, block in enumerate(self.blocks):
            query, key, value = block.qkv(tokens.hidden)
            if cache is not None:
                key = torch.cat([cache[index][0], key], 1)
                value = torch.cat([cache[index][1], value], 1)
            grown.append((key, value))
            context = causal_attend(query, key, value)
            tokens = tokens.with_hidden(block.add_attention(tokens.hidden, context))
            tokens = tokens.with_hidden(block.add_cross_attention(tokens, memory, index))
            tokens = tokens.with_hidden(block.add_mlp(tokens.hidden))
        return self.head(tokens.hidden).float(), grown

    def next_log_probs(self, logits: Tensor, *, may_end: bool) -> Tensor:
        """Log-probabilities of the token behind logits [B, L, vocabulary]: [B, vocabulary].

        Where the text may not end yet its end token has none; the others keep theirs, as in Hugging Face.
        """
        log_probs = logits[:, -1].log_softmax(-1)
        if not may_end:
            log_probs[:, self.end_id] = float("-inf")
        return log_probs


def decode(decoder: TextDecoder, memory: Memory, searches: Sequence[Search]) -> list[list[Decoded]]:
    """One search a memory: its candidates (a shortlist, or all in the given order), or the one text written.

    Greedy searches of the same lengths run as one batch.
    """
    results: list[list[Decoded]] = [[] for _ in searches]
    alike: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for row, search in enumerate(searches):
        longest, shortest, prompt = search.max_new_tokens, search.min_new_tokens, search.prompt
        if search.candidates is not None and search.shortlist is not None:
            wanted = search.shortlist
            results[row] = rank_shortlist(decoder, memory, row, search.candidates, wanted, prompt)
        elif search.candidates is not None:
            results[row] = rank(decoder, memory, row, search.candidates, prompt)
        elif search.beams > 1:
            results[row] = [beam_search(decoder, memory, row, search.beams, longest, shortest, prompt)]
        else:
            alike[longest, shortest, len(prompt)].append(row)
    device = memory.keys[0].device
    for (longest, shortest, _), rows in alike.items():
        prompts = torch.tensor([searches[row].prompt for row in rows], dtype=torch.int64, device=device)
        texts = greedy(decoder, memory, torch.tensor(rows, device=device), longest, shortest, prompts)
        for row, text in zip(rows, texts, strict=True):
            results[row] = [text]
    return results


def greedy(
    decoder: TextDecoder,
    memory: Memory,
    rows: Tensor,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    prompts: Tensor | None = None,
) -> list[Decoded]:
    """The likeliest token at every step for each row; rows [R] names each row's memory, prompts is [R, P]."""
    memory = memory.read_by(rows)
    inputs = torch.full((len(rows), 1), decoder.start_id, device=rows.device)
    if prompts is not None:
        inputs = torch.cat([inputs, prompts], 1)
    first = inputs.shape[1]
    cache: Cache | None = None
    emitted: list[Tensor] = []
    log_probs: list[Tensor] = []
    finished = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for step in range(max_new_tokens):
        logits, cache = decoder.forward(inputs, memory, cache)
        best, token = decoder.next_log_probs(logits, may_end=step >= min_new_tokens).max(-1)
        emitted.append(torch.where(finished, decoder.end_id, token))
        log_probs.append(torch.where(finished, 0.0, best))
        finished = finished | (token == decoder.end_id)
        if bool(finished.all()):
            break
        inputs = token.unsqueeze(1)
    tokens, scores = torch.stack(emitted, 1).tolist(), torch.stack(log_probs, 1).tolist()
    return [_decoded(ids, row, decoder.end_id, first) for ids, row in zip(tokens, scores, strict=True)]


def _decoded(token_ids: list[int], log_probs: list[float], end_id: int, first: int) -> Decoded:
    """Cut a row at its end token; first: tokens that its search started from."""
    steps = token_ids.index(end_id) + 1 if end_id in token_ids else len(token_ids)
    text = tuple(token for token in token_ids[:steps] if token != end_id)
    ran = tuple(greedy_passes(len(token_ids), first=first))
    return Decoded(text, sum(log_probs[:steps]) / steps, ran[:steps], ran)


def rank(
    decoder: TextDecoder,
    memory: Memory,
    row: int,
    candidates: Sequence[Sequence[int]],
    prompt: Sequence[int] = (),
) -> list[Decoded]:
    """Score each candidate about one memory by its mean token log-probability, in the given order."""
    totals = _likelihoods(decoder, memory, row, candidates, prompt)
    scores = [total / (len(ids) + 1) for ids, total in zip(candidates, totals, strict=True)]
    return _ranked(candidates, scores, len(prompt))


def rank_shortlist(
    decoder: TextDecoder,
    memory: Memory,
    row: int,
    candidates: Sequence[Sequence[int]],
    wanted: int,
    prompt: Sequence[int] = (),
) -> list[Decoded]:
    """Score the `wanted` candidates whose first token is likeliest, in the order of that likelihood.

    A score is the log-likelihood of the whole text, not its mean, smoothed as in training. Candidates whose
    first tokens are equally likely stay in their order. Source: `rank_answer` of the original BLIP, where
    `wanted` is `k_test`, and the label-smoothed loss of its decoder that it ranks by (med.py).
    """
    device = memory.keys[0].device
    start = torch.tensor([[decoder.start_id, *prompt]], device=device)
    logits, _ = decoder.forward(start, memory.read_by(torch.tensor([row], device=device)))
    firsts = torch.tensor([ids[0] for ids in candidates], device=device)
    places = logits[0, -1, firsts].sort(descending=True, stable=True).indices[:wanted].tolist()
    chosen = [candidates[place] for place in places]
    totals = _likelihoods(decoder, memory, row, chosen, prompt, _LABEL_SMOOTHING)
    ranked = _ranked(chosen, totals, len(prompt))
    best, chose = ranked[0], (start.shape[1], start.shape[1])
    # The pass that chose goes to the first's account.
    ranked[0] = replace(best, passes=(chose, *best.passes), padded_passes=(chose, *best.padded_passes))
    return [replace(one, place=place) for place, one in zip(places, ranked, strict=True)]


def _likelihoods(
    decoder: TextDecoder,
    memory: Memory,
    row: int,
    candidates: Sequence[Sequence[int]],
    prompt: Sequence[int],
    label_smoothing: float = 0.0,
) -> list[float]:
    """The sum over each candidate's tokens, its end included, of their log-probabilities."""
    device = memory.keys[0].device
    texts = [[decoder.start_id, *prompt, *ids, decoder.end_id] for ids in candidates]
    longest, given = max(len(text) for text in texts), len(prompt)
    padded = torch.tensor([text + [decoder.end_id] * (longest - len(text)) for text in texts], device=device)
    readers = torch.full((len(texts),), row, device=device)
    logits, _ = decoder.forward(padded[:, :-1], memory.read_by(readers))
    losses = F.cross_entropy(
        logits.transpose(1, 2), padded[:, 1:], reduction="none", label_smoothing=label_smoothing
    )[:, given:]  # [R, L]
    lengths = torch.tensor([len(ids) + 1 for ids in candidates], device=device)
    real = torch.arange(losses.shape[1], device=device) < lengths.unsqueeze(1)
    totals: list[float] = (-losses * real).sum(1).tolist()
    return totals


def _ranked(candidates: Sequence[Sequence[int]], scores: Sequence[float], given: int) -> list[Decoded]:
    """Candidates that were read in one pass behind so many tokens of a prompt."""
    lengths = [1 + given + len(ids) for ids in candidates]
    ran = ((max(lengths), max(lengths)),)
    return [
        Decoded(tuple(ids), score, ((length, length),), ran, place)
        for place, (ids, score, length) in enumerate(zip(candidates, scores, lengths, strict=True))
    ]


@dataclass(frozen=True)
class _Hypothesis:
    token_ids: tuple[int, ...]
    log_prob: float

    def score(self) -> float:
        return self.log_prob / len(self.token_ids)


def beam_search(
    decoder: TextDecoder,
    memory: Memory,
    row: int,
    beams: int,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    prompt: Sequence[int] = (),
) -> Decoded:
    """Beam search over one memory; hypotheses compare by mean log-probability (length penalty 1).

    Stops when so many hypotheses have ended that no open beam can beat the worst of them, as Hugging Face's
    `early_stopping=False` does.
    """
    device = memory.keys[0].device
    inputs = torch.tensor([[decoder.start_id, *prompt]], device=device)
    open_beams, ended, cache = [_Hypothesis((), 0.0)], [], None  # type: list[_Hypothesis], list[_Hypothesis], Cache | None
    passes: list[tuple[int, int]] = []
    for step in range(max_new_tokens):
        readers = torch.full((len(open_beams),), row, device=device)
        logits, cache = decoder.forward(inputs, memory.read_by(readers), cache)
        passes += [(inputs.shape[1], len(prompt) + step + 1)] * len(open_beams)
        so_far = torch.tensor([[beam.log_prob] for beam in open_beams], device=device)
        totals = so_far + decoder.next_log_probs(logits, may_end=step >= min_new_tokens)
        best = totals.flatten().topk(min(2 * beams, totals.numel()))
        extended: list[tuple[_Hypothesis, int]] = []
        for rank_, (total, flat) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            parent, token = divmod(flat, totals.shape[1])
            hypothesis = _Hypothesis((*open_beams[parent].token_ids, token), total)
            if token != decoder.end_id:
                extended.append((hypothesis, parent))
            elif rank_ < beams:
                ended.append(hypothesis)
            if len(extended) == beams:
                break
        ended = sorted(ended, key=_Hypothesis.score, reverse=True)[:beams]
        open_beams = [hypothesis for hypothesis, _ in extended]
        if len(ended) == beams and ended[-1].score() >= open_beams[0].score():
            break
        parents = torch.tensor([parent for _, parent in extended], device=device)
        cache = [(key[parents], value[parents]) for key, value in cache]
        inputs = torch.tensor([[hypothesis.token_ids[-1]] for hypothesis in open_beams], device=device)
    else:
        ended = sorted([*ended, *open_beams], key=_Hypothesis.score, reverse=True)
    winner = ended[0]
    text = tuple(token for token in winner.token_ids if token != decoder.end_id)
    return Decoded(text, winner.score(), tuple(passes), tuple(passes))
