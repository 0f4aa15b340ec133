"""Attention and its signals against float64 loops; padding, parts, layouts and caches change nothing."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from madtp_core import scored
from madtp_core.attention import (
    ATTENTION_SIGNALS,
    KEYS,
    PROPORTIONAL,
    Signals,
    attend,
    causal_attend,
    cross_attend,
)
from madtp_core.tokens import Tokens

BATCH, LENGTH, HEADS, WIDTH = 3, 9, 2, 4
LENGTHS = (9, 4, 6)
UNSCORED: frozenset[str] = frozenset()
SCORED = ATTENTION_SIGNALS

Qkv = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def qkv() -> Qkv:
    """Large enough that some probabilities dominate."""
    query, key, value = (2 * torch.randn(BATCH, LENGTH, HEADS, WIDTH) for _ in range(3))
    return query, key, value


@pytest.fixture(params=["equal", "ragged"])
def tokens(request: pytest.FixtureRequest) -> Tokens:
    return make_tokens(LENGTHS if request.param == "ragged" else None)


def make_tokens(lengths: tuple[int, ...] | None) -> Tokens:
    mask = None if lengths is None else torch.arange(LENGTH) < torch.tensor(lengths).unsqueeze(1)
    return Tokens.from_hidden(torch.zeros(BATCH, LENGTH, HEADS * WIDTH), mask)


def loop_probs(query: Tensor, key: Tensor) -> list[list[list[float]]]:
    """query [N, H, D], key [M, H, D] -> P[h][n][m] in float64."""
    heads, width = query.shape[1:]
    probs = []
    for h in range(heads):
        rows = []
        for n in range(len(query)):
            logits = [
                sum(a * b for a, b in zip(query[n, h].tolist(), key[m, h].tolist(), strict=True))
                / math.sqrt(width)
                for m in range(len(key))
            ]
            weights = [math.exp(x) for x in logits]
            rows.append([w / sum(weights) for w in weights])
        probs.append(rows)
    return probs


def loop_context(probs: list[list[list[float]]], value: Tensor) -> Tensor:
    """P[h][n][m], value [M, H, D] -> [N, H * D] float64."""
    heads, width = value.shape[1:]
    return torch.tensor(
        [
            [
                sum(p * x for p, x in zip(probs[h][n], value[:, h, d].tolist(), strict=True))
                for h in range(heads)
                for d in range(width)
            ]
            for n in range(len(probs[0]))
        ],
        dtype=torch.float64,
    )


def all_signals(qkv: Qkv, tokens: Tokens, with_grad: bool, is_packed: bool) -> Any:
    """Every signal that attention has to give, from either layout."""
    layout = tokens.pack() if is_packed else tokens
    with torch.set_grad_enabled(with_grad):
        _, signals = attend(*(layout.to_layout(x) for x in qkv), layout, SCORED)
    assert all(getattr(signals, name) is not None for name in SCORED)
    return signals


def real(tokens: Tokens, row: int) -> int:
    return int(tokens.lengths()[row])


@pytest.mark.parametrize("needs", [UNSCORED, SCORED], ids=["unscored", "scored"])
@pytest.mark.parametrize("with_grad", [True, False])
def test_context_equals_a_loop(qkv: Qkv, tokens: Tokens, needs: frozenset[str], with_grad: bool) -> None:
    with torch.set_grad_enabled(with_grad):
        context, _ = attend(*qkv, tokens, needs)
    for row in range(BATCH):
        query, key, value = (x[row, : real(tokens, row)] for x in qkv)
        expected = loop_context(loop_probs(query, key), value)
        torch.testing.assert_close(context[row, : len(query)].double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("with_grad", [True, False])
def test_signals_equal_a_loop(qkv: Qkv, tokens: Tokens, with_grad: bool, is_packed: bool) -> None:
    signals = all_signals(qkv, tokens, with_grad, is_packed)
    for row in range(BATCH):
        n = real(tokens, row)
        query, key, value = (x[row, :n] for x in qkv)
        probs = loop_probs(query, key)
        received = [sum(max(probs[h][q][i] for h in range(HEADS)) for q in range(1, n)) for i in range(n)]
        assert signals.received[row, :n].tolist() == pytest.approx(received, abs=1e-5)
        for h in range(HEADS):
            assert signals.class_row[row, h, :n].tolist() == pytest.approx(probs[h][0], abs=1e-5)
            output = loop_context(probs, value).view(n, HEADS, WIDTH)[:, h]
            norms = [math.sqrt(sum(x * x for x in vector)) for vector in output.tolist()]
            assert signals.head_norms[row, h, :n].tolist() == pytest.approx(norms, abs=1e-5)
        for i in range(n):
            keys = [sum(key[i, h, d].item() for h in range(HEADS)) / HEADS for d in range(WIDTH)]
            assert signals.keys[row, i].tolist() == pytest.approx(keys, abs=1e-5)
            shares = [sum(probs[h][i][j] for h in range(HEADS)) / HEADS for j in range(n)]
            assert signals.mean_map[row, i, :n].tolist() == pytest.approx(shares, abs=1e-5)


@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("with_grad", [True, False])
def test_padding_gets_nothing(qkv: Qkv, with_grad: bool, is_packed: bool) -> None:
    tokens = make_tokens(LENGTHS)
    signals = all_signals(qkv, tokens, with_grad, is_packed)
    assert tokens.mask is not None
    padding = ~tokens.mask
    assert (signals.received[padding] == 0).all() and (signals.keys[padding] == 0).all()
    assert (signals.class_row.transpose(1, 2)[padding] == 0).all()
    assert (signals.mean_map[padding] == 0).all() and (signals.mean_map.transpose(1, 2)[padding] == 0).all()


@pytest.mark.parametrize("needs", [UNSCORED, SCORED], ids=["unscored", "scored"])
@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("with_grad", [True, False])
def test_proportional_attention_repeats_a_token_as_often_as_it_stands_for_others(
    qkv: Qkv, tokens: Tokens, needs: frozenset[str], is_packed: bool, with_grad: bool
) -> None:
    """Attention to a token of size s is attention to s copies of it."""
    sizes = torch.randint(1, 4, (BATCH, LENGTH))
    sized = replace(tokens, size=sizes.float())
    layout = sized.pack() if is_packed else sized
    with torch.set_grad_enabled(with_grad):
        context, signals = attend(*(layout.to_layout(x) for x in qkv), layout, needs | {PROPORTIONAL})
    context = layout.to_padded(context)
    for row in range(BATCH):
        n = real(tokens, row)
        query, key, value = (x[row, :n] for x in qkv)
        copies = torch.arange(n).repeat_interleave(sizes[row, :n])
        probs = loop_probs(query, key[copies])
        expected = loop_context(probs, value[copies])
        torch.testing.assert_close(context[row, :n].double(), expected, atol=1e-5, rtol=0)
        if needs:
            assert signals.class_row is not None
            of_copies = torch.tensor(probs[1][0])
            of_tokens = torch.zeros(n).double().index_add(0, copies, of_copies.double())
            assert signals.class_row[row, 1, :n].tolist() == pytest.approx(of_tokens.tolist(), abs=1e-5)


@pytest.mark.parametrize("needs", [UNSCORED, SCORED], ids=["unscored", "scored"])
def test_what_lies_in_the_padding_does_not_matter(qkv: Qkv, needs: frozenset[str]) -> None:
    tokens = make_tokens(LENGTHS)
    assert tokens.mask is not None
    other = [torch.where(tokens.mask[..., None, None], x, 50 * torch.randn_like(x)) for x in qkv]
    context, signals = attend(*qkv, tokens, needs)
    changed, changed_signals = attend(other[0], other[1], other[2], tokens, needs)
    assert torch.equal(context[tokens.mask], changed[tokens.mask])
    if needs:
        assert signals.received is not None and changed_signals.received is not None
        assert torch.equal(signals.received, changed_signals.received)


@pytest.mark.parametrize("maps_at_once", [0, 1, HEADS, 2 * HEADS, BATCH * HEADS])
@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "all"])
def test_working_in_parts_changes_nothing(
    qkv: Qkv, tokens: Tokens, maps_at_once: int, is_causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = replace(tokens, is_causal=is_causal, size=1 + torch.rand(BATCH, LENGTH))
    needs = SCORED | {PROPORTIONAL}
    whole, expected = attend(*qkv, tokens, needs)  # with gradients: all at once
    monkeypatch.setattr(scored, "_PART_BYTES", maps_at_once * 4 * LENGTH**2)
    with torch.no_grad():
        parts, signals = attend(*qkv, tokens, needs)
    for row in range(BATCH):
        n = real(tokens, row)
        torch.testing.assert_close(parts[row, :n], whole[row, :n], atol=1e-6, rtol=0)
        torch.testing.assert_close(signals.keys[row, :n], expected.keys[row, :n], atol=1e-6, rtol=0)
        for name in SCORED - {KEYS}:
            ours, theirs = (getattr(s, name)[row, ..., :n] for s in (signals, expected))
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def alone_context(qkv: Qkv, tokens: Tokens, row: int, needs: frozenset[str]) -> Tensor:
    """What a row's real tokens read where there is no other row and no padding: [n, H * D]."""
    n = real(tokens, row)
    own = Tokens.from_hidden(tokens.hidden[row : row + 1, :n])
    own = replace(own, is_causal=tokens.is_causal, size=tokens.size[row : row + 1, :n])
    context, _ = attend(*(x[row : row + 1, :n] for x in qkv), own, needs)
    return context[0]


@pytest.mark.parametrize("needs", [UNSCORED, SCORED, SCORED | {PROPORTIONAL}], ids=len)
@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "all"])
@pytest.mark.parametrize("with_grad", [True, False])
def test_packed_equals_padded(
    qkv: Qkv, tokens: Tokens, needs: frozenset[str], is_causal: bool, with_grad: bool
) -> None:
    tokens = replace(tokens, is_causal=is_causal, size=1 + torch.rand(BATCH, LENGTH))
    packed = tokens.pack()
    _, padded_signals = attend(*qkv, tokens, needs)
    with torch.set_grad_enabled(
        with_grad
    ):  # which chooses the kernel: on some CPUs the fused one rounds otherwise
        padded_context, _ = attend(*qkv, tokens, needs)
        context, signals = attend(*(packed.to_layout(x) for x in qkv), packed, needs)
        alone = [alone_context(qkv, tokens, row, needs) for row in range(BATCH)]
    torch.testing.assert_close(context, packed.to_layout(padded_context), atol=1e-6, rtol=0)
    torch.testing.assert_close(context, torch.cat(alone), atol=1e-6, rtol=0)
    if needs:
        torch.testing.assert_close(signals.received, padded_signals.received, atol=1e-6, rtol=0)
        torch.testing.assert_close(signals.keys, padded_signals.keys, atol=1e-6, rtol=0)


@pytest.mark.parametrize("is_masked", [True, False])
def test_the_fused_kernel_equals_the_explicit_softmax(qkv: Qkv, is_masked: bool) -> None:
    query, key, value = qkv
    mask = torch.arange(LENGTH) < torch.tensor(LENGTHS).unsqueeze(1) if is_masked else None
    explicit = cross_attend(query[:, :5], key, value, mask)
    with torch.no_grad():
        fused = cross_attend(query[:, :5], key, value, mask)
    assert explicit.shape == (BATCH, 5, HEADS * WIDTH)
    torch.testing.assert_close(fused, explicit, atol=1e-6, rtol=0)
    expected = loop_context(loop_probs(query[1, :5], key[1, :4]), value[1, :4])
    if is_masked:
        torch.testing.assert_close(fused[1].double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("with_grad", [True, False])
@pytest.mark.parametrize("wanted", sorted(ATTENTION_SIGNALS))
def test_a_signal_is_there_if_and_only_if_it_was_asked_for(
    qkv: Qkv, tokens: Tokens, wanted: str, with_grad: bool
) -> None:
    with torch.set_grad_enabled(with_grad):
        _, signals = attend(*qkv, tokens, frozenset({wanted}))
    present = {field.name for field in fields(Signals) if getattr(signals, field.name) is not None}
    assert present == {wanted}


def test_signals_of_half_precision_are_float32(qkv: Qkv) -> None:
    query, key, value = (x.bfloat16() for x in qkv)
    context, signals = attend(query, key, value, make_tokens(None), ATTENTION_SIGNALS)
    assert context.dtype == torch.bfloat16
    for name in ATTENTION_SIGNALS:
        assert getattr(signals, name).dtype == torch.float32


@pytest.mark.parametrize("with_grad", [True, False])
def test_causal_attention_equals_a_loop_over_what_came_before(qkv: Qkv, with_grad: bool) -> None:
    query, key, value = qkv
    with torch.set_grad_enabled(with_grad):
        context = causal_attend(query, key, value)
    for n in range(LENGTH):
        probs = loop_probs(query[0, n : n + 1], key[0, : n + 1])
        expected = loop_context(probs, value[0, : n + 1])[0]
        torch.testing.assert_close(context[0, n].double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("with_grad", [True, False])
@pytest.mark.parametrize("new_tokens", [1, 3])
def test_causal_attention_with_a_cache_equals_without(qkv: Qkv, new_tokens: int, with_grad: bool) -> None:
    query, key, value = qkv
    with torch.set_grad_enabled(with_grad):
        cached = causal_attend(query[:, -new_tokens:], key, value)
        whole = causal_attend(query, key, value)
    torch.testing.assert_close(cached, whole[:, -new_tokens:], atol=1e-6, rtol=0)
