"""CLIP's text tower under pruning: causal, in order, EOT protected, and independent of its batch."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from madtp_core.attention import (
    CLASS_ROW,
    HEAD_NORMS,
    MEAN_MAP,
    PROPORTIONAL,
    RECEIVED,
    Signals,
    attend,
)
from madtp_core.backbones.clip import clip_blocks, embed_text
from madtp_core.encoder import BatchPruning, Pruning
from madtp_core.pruning import (
    KEEP_MODES,
    MAX_KEEP,
    PER_INSTANCE,
    TEXT,
    Pruner,
    PruneStep,
    build_pruner,
)
from madtp_core.tasks.clip_network import ClipNetwork
from madtp_core.tokens import Tokens
from tests.core.tiny_clip import BLOCKS, EQUAL, RAGGED, madtp, make_network, positions_of, texts

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def network() -> ClipNetwork:
    return make_network()


class Listed(Pruner):
    """Keeps the original tokens whose position a rule names: later tokens have no say in it."""

    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        stays = (tokens.position % (2 + step.block) != 0) & (tokens.size == 1)
        if tokens.mask is not None:
            stays = stays & tokens.mask
        return stays[:, 1:].float() + 0.1, stays[:, 1:].sum(1)


LISTED = Pruning(Listed(), torch.ones(3), PER_INSTANCE)


def states(tokens: Tokens, row: int = 0) -> Iterator[tuple[int, bool, Tensor]]:
    """Position, whether it is an original token, and state of a row's real tokens."""
    padded = tokens.unpack()
    for place in range(int(tokens.lengths()[row])):
        is_original = bool(padded.size[row, place] == 1)
        yield int(padded.position[row, place]), is_original, padded.hidden[row, place]


# --- Attention


@pytest.mark.parametrize("lengths", [EQUAL, RAGGED])
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("needs", [{MEAN_MAP}, {MEAN_MAP, RECEIVED}, {MEAN_MAP, PROPORTIONAL}])
@pytest.mark.parametrize("with_grad", [False, True])
def test_a_token_sees_those_before_it_and_eot_sees_all(
    network: ClipNetwork, lengths: tuple[int, ...], is_packed: bool, needs: set[str], with_grad: bool
) -> None:
    tower = network.clip.text_model
    with torch.set_grad_enabled(with_grad):
        tokens = embed_text(tower, texts(lengths))
        tokens = tokens.pack() if is_packed else tokens
        _, signals = attend(*clip_blocks(tower)[0].qkv(tokens.hidden), tokens, frozenset(needs))
    assert signals.mean_map is not None
    for length, seen in zip(lengths, signals.mean_map, strict=True):
        expected = torch.zeros(seen.shape, dtype=torch.bool)
        expected[0, :length] = True  # EOT's row
        for query in range(1, length):
            expected[query, 1 : query + 1] = True
        assert torch.equal(seen > 0, expected)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [EQUAL, RAGGED])
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("needs", [{RECEIVED}, {CLASS_ROW, HEAD_NORMS}, {HEAD_NORMS}, {MEAN_MAP}])
def test_what_is_asked_for_does_not_change_the_context(
    network: ClipNetwork, lengths: tuple[int, ...], is_packed: bool, needs: set[str]
) -> None:
    tower = network.clip.text_model
    tokens = embed_text(tower, texts(lengths))
    qkv = clip_blocks(tower)[0].qkv(tokens.hidden)
    plain, _ = attend(*qkv, tokens)
    laid = tuple(tokens.pack().to_layout(x) for x in qkv) if is_packed else qkv
    scored, _ = attend(*laid, tokens.pack() if is_packed else tokens, frozenset(needs))
    for row, length in enumerate(lengths):
        ours = (tokens.pack().to_padded(scored) if is_packed else scored)[row, :length]
        torch.testing.assert_close(ours, plain[row, :length], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_received_counts_every_query_that_may_see_a_token(network: ClipNetwork) -> None:
    """EOT's row is left out: S_self is what the words give each other."""
    tower = network.clip.text_model
    tokens = embed_text(tower, texts((4,)))
    query, key, value = clip_blocks(tower)[0].qkv(tokens.hidden)  # [1, 4, H, D], EOT first
    _, signals = attend(query, key, value, tokens, frozenset({RECEIVED}))
    logits = torch.einsum("qhd,khd->hqk", query[0].double(), key[0].double()) / query.shape[-1] ** 0.5
    expected = [0.0] * 4
    for asking in (1, 2, 3):
        weights = logits[:, asking, 1 : asking + 1].softmax(-1)
        for place in range(asking):
            expected[1 + place] += float(weights[:, place].max())
    assert signals.received is not None
    assert signals.received[0].tolist() == pytest.approx(expected, abs=TOLERANCE)


# --- Pruning


@torch.no_grad()
@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_a_later_token_never_changes_an_earlier_kept_one(network: ClipNetwork, keep_mode: str) -> None:
    """Word 15 is another one; every kept word before it is bit for bit the same after every block."""
    pair = texts((22,)), texts((22,))
    pair[1][0, 15] = (pair[1][0, 15] + 1) % 38
    left: tuple[list[Tokens], list[Tokens]] = ([], [])
    for ids, blocks in zip(pair, left, strict=True):
        pruning = Pruning(Listed(), torch.ones(1), keep_mode)
        network.encode_text(ids, pruning, on_block=blocks.append)
    compared = 0
    for one, other in zip(*left, strict=True):
        for (position, is_original, ours), (_, _, theirs) in zip(states(one), states(other), strict=True):
            if is_original and position < 15:
                assert torch.equal(ours, theirs)
                compared += 1
            elif is_original and position >= 15:  # EOT among them
                assert not torch.equal(ours, theirs)
    assert compared > 10


@torch.no_grad()
def test_only_eot_and_later_merged_tokens_see_a_merged_one(network: ClipNetwork) -> None:
    """What the first block merged is changed by hand; the kept words go on as they were."""
    tower, blocks = network.clip.text_model, clip_blocks(network.clip.text_model)
    tokens = embed_text(tower, texts((22,)))
    kept = Listed()(tokens, Signals(), PruneStep(TEXT, 0, BLOCKS, MAX_KEEP, torch.ones(1))).tokens
    assert kept.position[0, -1] == 20 and kept.size[0, -1] > 1
    changed = kept.with_hidden(kept.hidden + (torch.arange(kept.width) == kept.width - 1).unsqueeze(-1))
    ours, theirs = (attend(*blocks[1].qkv(each.hidden), each)[0][0] for each in (kept, changed))
    same = [torch.equal(one, other) for one, other in zip(ours, theirs, strict=True)]
    assert same == [False, *[True] * (kept.width - 2), False]  # EOT first, merged last


@torch.no_grad()
@pytest.mark.parametrize("keep_mode", KEEP_MODES)
@pytest.mark.parametrize("lengths", [EQUAL, RAGGED])
def test_eot_stays_first_and_the_words_in_order(
    network: ClipNetwork, keep_mode: str, lengths: tuple[int, ...]
) -> None:
    left: list[Tokens] = []
    network.encode_text(texts(lengths), madtp(2.0, keep_mode), on_block=left.append)
    merged = 0
    for tokens in left:
        for row, length in enumerate(lengths):
            (end, is_original, _), *words = states(tokens, row)
            assert end == length - 1 and is_original
            originals = [position for position, is_original, _ in words if is_original]
            assert originals == sorted(set(originals)) and max(originals, default=0) < end
            merged += sum(not is_original for _, is_original, _ in words)
    assert merged > 3


@torch.no_grad()
def test_a_merged_token_stands_where_the_last_dropped_one_stood(network: ClipNetwork) -> None:
    left: list[Tokens] = []
    network.encode_text(texts(RAGGED), LISTED, on_block=left.append)
    before = [[length - 1, *range(length - 1)] for length in RAGGED]
    for tokens in left:
        for old, new in zip(before, positions_of(tokens), strict=True):
            dropped = set(old) - set(new[:-1])
            if len(new) < len(old):
                assert new[-1] == max(dropped)
        before = positions_of(tokens)


@torch.no_grad()
@pytest.mark.parametrize("prune_temperature", [0.0, 2.0, 16.0])
def test_a_row_of_a_batch_equals_the_row_alone(network: ClipNetwork, prune_temperature: float) -> None:
    ids = texts(RAGGED)
    together = network.encode_text(ids, madtp(prune_temperature, PER_INSTANCE))
    embeddings = network.text_embeddings(together)
    for row, length in enumerate(RAGGED):
        alone = network.encode_text(ids[row : row + 1, :length], madtp(prune_temperature, PER_INSTANCE, 1))
        assert torch.equal(alone.kept[:, 0], together.kept[:, row])
        torch.testing.assert_close(network.text_embeddings(alone)[0], embeddings[row], atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_what_stands_behind_eot_does_not_matter(network: ClipNetwork, keep_mode: str) -> None:
    ids = texts(RAGGED)
    other = ids.clone()
    for row, length in enumerate(RAGGED):
        other[row, length:] = 3
    ours, theirs = (network.encode_text(each, madtp(2.0, keep_mode)) for each in (ids, other))
    assert torch.equal(network.text_embeddings(ours), network.text_embeddings(theirs))


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_every_parameter_in_use_gets_a_finite_gradient(network: ClipNetwork, keep_mode: str) -> None:
    pixels = torch.randn(3, 3, 40, 40)
    pruning = BatchPruning(build_pruner("madtp"), torch.full((3,), 2.0), keep_mode)
    out = network(pixels, texts(RAGGED), pruning, align=True)
    assert out.alignment_loss is not None
    assert (out.vision.kept < out.vision.tokens_in).any()
    assert (out.text.kept < out.text.tokens_in).any()
    logits = out.logit_scale * out.image_embeddings @ out.text_embeddings.T
    loss = logits.logsumexp(1).sum() - logits.trace() + 0.1 * out.alignment_loss
    parameters = dict(network.named_parameters())
    for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
        assert gradient.isfinite().all(), name
        if not name.endswith("k_proj.bias"):  # a softmax does not see it
            assert gradient.abs().sum() > 0, name


@torch.no_grad()
@pytest.mark.parametrize("keep_mode", [None, *KEEP_MODES])
def test_bfloat16_runs_and_stays_near_float32(keep_mode: str | None) -> None:
    network, pixels = make_network(), torch.randn(3, 3, 40, 40)
    pruning = None
    if keep_mode is not None:
        pruning = BatchPruning(build_pruner("madtp"), torch.full((3,), 2.0), keep_mode)
    float32 = network(pixels, texts(RAGGED), pruning)
    network.bfloat16()
    ours = network(pixels.bfloat16(), texts(RAGGED), pruning)
    assert ours.image_embeddings.dtype == ours.text_embeddings.dtype == torch.bfloat16
    for one, other in (
        (ours.image_embeddings, float32.image_embeddings),
        (ours.text_embeddings, float32.text_embeddings),
    ):
        assert (one.float() * other).sum(-1).min() > 0.95
