"""Packed attention: rows of different lengths, shared memories, and no work on padding."""

import inspect
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from madtp_core import attention, packed
from madtp_core.attention import ATTENTION_SIGNALS, attend
from madtp_core.blocks import Memory
from madtp_core.decoding import greedy
from madtp_core.encoder import Encoded, Pruning
from madtp_core.packed import Run, attend_runs, runs_of
from madtp_core.pruning import PER_INSTANCE, build_pruner
from madtp_core.tasks.vqa_network import VqaNetwork
from madtp_core.tokens import Tokens

HEADS, WIDTH = 2, 8
LENGTHS = (5, 3, 3, 7)
MEMORIES = (6, 2, 4, 9)


def heads(*shape: int) -> Tensor:
    return torch.randn(*shape, HEADS, WIDTH)


def ragged(lengths: tuple[int, ...], width: int = HEADS * WIDTH) -> Tokens:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return Tokens.from_hidden(torch.randn(*mask.shape, width), mask)


def row_by_row(query: Tensor, key: Tensor, value: Tensor, spans: list[tuple[slice, slice]]) -> Tensor:
    """Explicit softmax, a row's (queries, keys) at a time: [T, H, D]."""
    context = []
    for queries, keys in spans:
        logits = torch.einsum("qhd,khd->hqk", query[queries], key[keys]) / WIDTH**0.5
        context.append(torch.einsum("hqk,khd->qhd", logits.softmax(-1), value[keys]))
    return torch.cat(context)


def spans_of(lengths: tuple[int, ...]) -> list[slice]:
    starts = [0, *accumulate(lengths)]
    return [slice(start, stop) for start, stop in pairwise(starts)]


READERS: list[tuple[int, ...] | None] = [None, (1, 0, 1, 1), (2, 2, 2, 2), (0, 1, 2, 2), (3, 2, 1, 0)]


# --- Runs


def test_equally_long_neighbours_are_one_run() -> None:
    assert runs_of([4, 4, 4], [4, 4, 4]) == [Run(3, 0, 4, 0, 4)]
    assert runs_of(LENGTHS, LENGTHS) == [Run(1, 0, 5, 0, 5), Run(2, 5, 3, 5, 3), Run(1, 11, 7, 11, 7)]


def test_equal_queries_over_unequal_keys_are_no_run() -> None:
    assert runs_of([1, 1, 1], [2, 2, 3]) == [Run(2, 0, 1, 0, 2), Run(1, 2, 1, 4, 3)]


def test_neighbours_that_read_the_same_sequence_become_one_row() -> None:
    assert runs_of([2, 3, 1, 2], [7, 5], [0, 0, 1, 1]) == [Run(1, 0, 5, 0, 7), Run(1, 5, 3, 7, 5)]


def test_rows_that_read_backwards_stay_apart() -> None:
    assert runs_of([2, 2], [5, 5], [1, 0]) == [Run(1, 0, 2, 5, 5), Run(1, 2, 2, 0, 5)]


def test_a_run_is_a_view() -> None:
    tokens = torch.arange(36.0).view(18, 2)
    run = Run(rows=2, first_query=5, queries=3, first_key=1, keys=4)
    assert torch.equal(run.of_queries(tokens), tokens[5:11].view(2, 3, 2))
    assert torch.equal(run.of_keys(tokens), tokens[1:9].view(2, 4, 2))
    assert run.of_keys(tokens).data_ptr() == tokens[1:].data_ptr()


# --- Attention over runs


@pytest.fixture(params=["cpu", "kernel"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The CPU's runs, or what the variable-length kernel is called with, the kernel being played here."""

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
    ) -> Tensor:
        assert cu_q.dtype == cu_k.dtype == torch.int32
        assert (max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
        assert (len(query), len(key)) == (int(cu_q[-1]), int(cu_k[-1]))
        lengths = (tuple(cu.diff().tolist()) for cu in (cu_q, cu_k))
        spans = list(zip(*(spans_of(each) for each in lengths), strict=True))
        return row_by_row(query, key, value, spans)

    if request.param == "kernel":
        monkeypatch.setattr(packed, "_kernel_for", lambda query: kernel)
    return str(request.param)


@torch.no_grad()
@pytest.mark.parametrize("reader", READERS, ids=str)
def test_each_row_attends_to_its_own_sequence(reader: tuple[int, ...] | None, way: str) -> None:
    query, key, value = heads(sum(LENGTHS)), heads(sum(MEMORIES)), heads(sum(MEMORIES))
    memories = spans_of(MEMORIES)
    read = range(4) if reader is None else reader
    spans = [(own, memories[index]) for own, index in zip(spans_of(LENGTHS), read, strict=True)]
    context = attend_runs(query, key, value, runs_of(LENGTHS, MEMORIES, reader))
    torch.testing.assert_close(context, row_by_row(query, key, value, spans), atol=1e-6, rtol=0)


def test_the_kernel_is_called_as_torch_declares_it() -> None:
    kernel = packed._varlen_kernel()
    if kernel is None:
        pytest.skip("this torch has no variable-length attention")
    names = ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    parameters = inspect.signature(kernel).parameters
    assert list(parameters)[:7] == names
    assert all(p.default is not inspect.Parameter.empty for p in list(parameters.values())[7:])


def test_a_cpu_has_no_kernel() -> None:
    assert packed._kernel_for(heads(3).bfloat16()) is None


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("reader", READERS, ids=str)
def test_a_gpu_attends_as_a_cpu_does(reader: tuple[int, ...] | None, dtype: torch.dtype) -> None:
    sides = (heads(sum(LENGTHS)), heads(sum(MEMORIES)), heads(sum(MEMORIES)))
    runs = runs_of(LENGTHS, MEMORIES, reader)
    expected = attend_runs(*sides, runs)
    query, key, value = (x.to("cuda", dtype) for x in sides)
    context = attend_runs(query, key, value, runs).float().cpu()
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(context, expected, atol=tolerance, rtol=0)


# --- Memories


@pytest.mark.parametrize("is_packed", [True, False], ids=["packed queries", "padded queries"])
@pytest.mark.parametrize("reader", READERS, ids=str)
@pytest.mark.parametrize("lengths", [MEMORIES, None], ids=["ragged memories", "equal memories"])
def test_a_packed_memory_reads_as_a_padded_one(
    reader: tuple[int, ...] | None, lengths: tuple[int, ...] | None, is_packed: bool, way: str
) -> None:
    memories = ragged(lengths) if lengths else Tokens.from_hidden(torch.randn(4, 6, HEADS * WIDTH))
    index = None if reader is None else torch.tensor(reader)
    tokens = ragged(LENGTHS).pack() if is_packed else ragged(LENGTHS)
    query = tokens.hidden.unflatten(-1, (HEADS, WIDTH))
    padded, packed_ = (Memory.project(each, [Splits()], index) for each in (memories, memories.pack()))
    assert packed_.is_packed == (lengths is not None) and not padded.is_packed
    trained = padded.read(query, tokens, 0)
    with torch.no_grad():
        read = packed_.read(query, tokens, 0)
    assert read.shape == tokens.hidden.shape
    real = ... if tokens.is_packed else tokens.mask
    torch.testing.assert_close(read[real], trained[real], atol=1e-6, rtol=0)


class Splits:
    """Reads a memory's own features as keys, and backwards as values."""

    def cross_key_value(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        return memory.unflatten(-1, (HEADS, WIDTH)), memory.flip(-1).unflatten(-1, (HEADS, WIDTH))


def test_a_packed_memory_lets_gradients_through() -> None:
    memories = ragged(MEMORIES)
    hidden = memories.pack().hidden.requires_grad_()
    tokens = ragged(LENGTHS).pack()
    memory = Memory.project(memories.pack().with_hidden(hidden), [Splits()])
    out = memory.read(tokens.hidden.unflatten(-1, (HEADS, WIDTH)), tokens, 0)
    (gradient,) = torch.autograd.grad(out.square().sum(), hidden)
    assert gradient.isfinite().all() and (gradient.abs().sum(1) > 0).all()


# --- No padding


@torch.no_grad()
@pytest.mark.parametrize("needs", [frozenset(), ATTENTION_SIGNALS], ids=["unscored", "scored"])
@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "padded"])
def test_attention_works_on_real_tokens_only(
    needs: frozenset[str], is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps: list[int] = []
    watch(monkeypatch, F, "scaled_dot_product_attention", maps)
    watch(monkeypatch, attention, "scored_in_parts", maps)
    tokens = ragged(LENGTHS).pack() if is_packed else ragged(LENGTHS)
    qkv = [tokens.hidden.unflatten(-1, (HEADS, WIDTH))] * 3
    attend(qkv[0], qkv[1], qkv[2], tokens, needs)
    assert sum(maps) == sum(length**2 for length in LENGTHS)


@torch.no_grad()
def test_reading_works_on_real_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    maps: list[int] = []
    watch(monkeypatch, F, "scaled_dot_product_attention", maps)
    tokens, memory = ragged(LENGTHS).pack(), Memory.project(ragged(MEMORIES).pack(), [Splits()])
    memory.read(tokens.hidden.unflatten(-1, (HEADS, WIDTH)), tokens, 0)
    assert sum(maps) == sum(n * m for n, m in zip(LENGTHS, MEMORIES, strict=True))


def watch(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, maps: list[int]) -> None:
    """Note how many pairs of tokens each call attends to."""
    inner: Callable[..., Any] = getattr(module, name)

    def watched(query: Tensor, key: Tensor, *rest: Any, **named: Any) -> Any:
        maps.append(len(query) * query.shape[2] * key.shape[2])
        return inner(query, key, *rest, **named)

    monkeypatch.setattr(module, name, watched)


# --- The whole network


def per_instance(rows: int, prune_temperature: float = 8.0) -> Pruning:
    return Pruning(build_pruner("madtp"), torch.full((rows,), prune_temperature), PER_INSTANCE)


def encode_both(
    network: VqaNetwork, pixels: Tensor, ids: Tensor, mask: Tensor, reader: Tensor
) -> tuple[Encoded, Encoded]:
    image = network.encode_image(pixels, per_instance(len(pixels)))
    return image, network.encode_question(ids, mask, image, reader, per_instance(len(ids)))


@pytest.fixture
def reader() -> Tensor:
    return torch.tensor([2, 0, 1])


def test_packed_equals_padded_per_instance(
    network: VqaNetwork, pixel_values: Tensor, ragged_questions: tuple[Tensor, Tensor], reader: Tensor
) -> None:
    """With gradients per_instance attends over padded maps, without over packed rows."""
    ways = []
    for with_grad in (True, False):
        with torch.set_grad_enabled(with_grad):
            ways.append(encode_both(network, pixel_values, *ragged_questions, reader))
    for padded, rows in zip(*ways, strict=True):
        assert torch.equal(padded.kept, rows.kept)
        assert len(set(rows.tokens.lengths().tolist())) > 1  # else nothing is ragged
        torch.testing.assert_close(rows.tokens.hidden, padded.tokens.hidden, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_row_of_a_packed_batch_equals_the_row_alone(
    network: VqaNetwork, pixel_values: Tensor, ragged_questions: tuple[Tensor, Tensor], reader: Tensor
) -> None:
    ids, mask = ragged_questions
    _, together = encode_both(network, pixel_values, ids, mask, reader)
    decoder = network.decoder()
    answers = greedy(decoder, decoder.remember(together.tokens), torch.arange(3), 6)
    rows = together.tokens.unpack()
    for row, image in enumerate(reader.tolist()):
        own, real = slice(row, row + 1), mask[row]
        question = ids[own, real], mask[own, real]
        _, alone = encode_both(network, pixel_values[image : image + 1], *question, torch.tensor([0]))
        length = alone.tokens.width
        assert length == int(together.tokens.lengths()[row])
        torch.testing.assert_close(rows.hidden[own, :length], alone.tokens.unpack().hidden, atol=1e-5, rtol=0)
        (answer,) = greedy(decoder, decoder.remember(alone.tokens), torch.tensor([0]), 6)
        assert answer.token_ids == answers[row].token_ids
        assert answer.score == pytest.approx(answers[row].score, abs=1e-5)
