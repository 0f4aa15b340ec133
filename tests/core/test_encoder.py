"""The whole pruned loop against the float64 reference, and what readers of one memory share."""

import pytest
import torch
from torch import Tensor

from madtp_core.attention import Signals
from madtp_core.backbones.blip import vision_blocks
from madtp_core.encoder import BatchPruning, Encoded, Pruning, encode
from madtp_core.errors import ConfigError
from madtp_core.pruning import (
    KEEP_MODES,
    MAX_KEEP,
    PER_INSTANCE,
    TEXT,
    VISION,
    Pruned,
    Pruner,
    PruneStep,
    build_pruner,
)
from madtp_core.tasks.vqa_network import VqaNetwork
from madtp_core.tokens import Tokens
from tests.core import reference

TIE = 1e-5  # closer than this to the threshold or the cut, float32 and float64 may decide differently
TEMPERATURES = (4.0, 16.0)


class Recording(Pruner):
    """MADTP, with the positions of the real tokens that each block left, row by row."""

    def __init__(self) -> None:
        self.inner = build_pruner("madtp")
        self.needs = self.inner.needs
        self.positions: list[list[list[int]]] = []

    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        return self.inner.decide(tokens, signals, step)

    def __call__(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Pruned:
        pruned = super().__call__(tokens, signals, step)
        lengths = pruned.tokens.lengths().tolist()
        rows = zip(pruned.tokens.position.tolist(), lengths, strict=True)
        self.positions.append([row[:length] for row, length in rows])
        return pruned


def madtp(prune_temperature: float, keep_mode: str, rows: int = 3) -> Pruning:
    return Pruning(Recording(), torch.full((rows,), prune_temperature), keep_mode)


def assert_equals_reference(encoded: Encoded, pruning: Pruning, instances: list[reference.Instance]) -> None:
    """Same counts and kept positions in every block, same tokens at the end; the inputs are clear of ties."""
    assert isinstance(pruning.pruner, Recording)
    assert min(instance.margin for instance in instances) > TIE
    tokens = encoded.tokens.unpack()
    for row, instance in enumerate(instances):
        assert [block[row] for block in pruning.pruner.positions] == instance.kept_positions
        assert encoded.tokens_in[:, row].tolist() == instance.tokens_in
        assert encoded.needed[:, row].tolist() == instance.needed
        hidden = tokens.hidden[row, : len(instance.hidden)].double()
        torch.testing.assert_close(hidden, instance.hidden, atol=2e-5, rtol=0)
    assert (encoded.kept < encoded.tokens_in).all(0).any()  # a row was pruned in every block


def unpadded(token_ids: Tensor, mask: Tensor) -> list[Tensor]:
    return [ids[real] for ids, real in zip(token_ids, mask, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("keep_mode", KEEP_MODES)
@pytest.mark.parametrize("prune_temperature", TEMPERATURES)
def test_vision_equals_the_reference(
    network: VqaNetwork, pixel_values: Tensor, prune_temperature: float, keep_mode: str
) -> None:
    assert network.alignment is not None
    pruning = madtp(prune_temperature, keep_mode)
    encoded = network.encode_image(pixel_values, pruning)
    instances = reference.run_vision(
        network.blip.vision_model, network.alignment.tokens, pixel_values, prune_temperature, keep_mode
    )
    assert_equals_reference(encoded, pruning, instances)


@torch.no_grad()
@pytest.mark.parametrize("keep_mode", KEEP_MODES)
@pytest.mark.parametrize("prune_temperature", TEMPERATURES)
@pytest.mark.parametrize("lengths", ["equal", "ragged"])
def test_the_question_over_pruned_images_equals_the_reference(
    network: VqaNetwork,
    pixel_values: Tensor,
    questions: tuple[Tensor, Tensor],
    ragged_questions: tuple[Tensor, Tensor],
    prune_temperature: float,
    keep_mode: str,
    lengths: str,
) -> None:
    assert network.alignment is not None
    token_ids, mask = questions if lengths == "equal" else ragged_questions
    alignment_tokens = network.alignment.tokens
    image = network.encode_image(pixel_values, madtp(prune_temperature, keep_mode))
    pruning = madtp(prune_temperature, keep_mode)
    encoded = network.encode_question(token_ids, mask, image, None, pruning)
    images = reference.run_vision(
        network.blip.vision_model, alignment_tokens, pixel_values, prune_temperature, keep_mode
    )
    instances = reference.run_text(
        network.blip.text_encoder,
        alignment_tokens,
        unpadded(token_ids, mask),
        [instance.hidden for instance in images],
        prune_temperature,
        keep_mode,
    )
    assert_equals_reference(encoded, pruning, instances)


@torch.no_grad()
def test_at_a_small_prune_temperature_tokens_tie_with_the_threshold_and_still_agree(
    network: VqaNetwork, pixel_values: Tensor
) -> None:
    assert network.alignment is not None
    pruning = madtp(0.05, MAX_KEEP)
    encoded = network.encode_image(pixel_values, pruning)
    instances = reference.run_vision(
        network.blip.vision_model, network.alignment.tokens, pixel_values, 0.05, MAX_KEEP
    )
    assert min(instance.margin for instance in instances) < TIE
    for row, instance in enumerate(instances):
        difference = encoded.needed[:, row] - torch.tensor(instance.needed)
        assert difference.abs().max() <= 1  # the tied token


@torch.no_grad()
@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_questions_about_one_image_share_its_memory(
    network: VqaNetwork, pixel_values: Tensor, ragged_questions: tuple[Tensor, Tensor], keep_mode: str
) -> None:
    reader = torch.tensor([1, 0, 1])
    images = network.encode_image(pixel_values[:2], madtp(4.0, PER_INSTANCE, rows=2))
    shared = network.encode_question(*ragged_questions, images, reader, madtp(4.0, keep_mode))
    repeated = network.encode_image(pixel_values[:2][reader], madtp(4.0, PER_INSTANCE))
    apart = network.encode_question(*ragged_questions, repeated, None, madtp(4.0, keep_mode))
    assert images.tokens.mask is not None
    assert torch.equal(shared.kept, apart.kept)
    ours, theirs = shared.tokens.unpack(), apart.tokens.unpack()
    real = torch.arange(ours.width) < ours.lengths().unsqueeze(1)
    torch.testing.assert_close(ours.hidden[real], theirs.hidden[real], atol=1e-5, rtol=0)


@torch.no_grad()
def test_without_a_pruner_every_block_keeps_what_enters(
    network: VqaNetwork, pixel_values: Tensor, ragged_questions: tuple[Tensor, Tensor]
) -> None:
    image = network.encode_image(pixel_values)
    text = network.encode_question(*ragged_questions, image)
    assert image.kept.tolist() == [[25] * 3] * 3
    assert text.tokens_in.tolist() == text.needed.tolist() == text.kept.tolist() == [[13, 5, 9]] * 3
    assert image.aligned is None


@torch.no_grad()
def test_collecting_aligned_features_does_not_change_the_tokens(
    network: VqaNetwork, pixel_values: Tensor
) -> None:
    plain = network.encode_image(pixel_values, madtp(4.0, PER_INSTANCE))
    collected = network.encode_image(pixel_values, madtp(4.0, PER_INSTANCE), collect_aligned=True)
    assert torch.equal(plain.tokens.hidden, collected.tokens.hidden)
    assert collected.aligned is not None and collected.aligned.isfinite().all()


def test_a_vision_block_reads_no_memory(network: VqaNetwork, pixel_values: Tensor) -> None:
    image = network.encode_image(pixel_values)
    memory = network.decoder().remember(image.tokens)
    with pytest.raises(ConfigError, match="no cross-attention"):
        encode(image.tokens, vision_blocks(network.blip.vision_model), VISION, memory=memory)


# --- The network's training forward


@pytest.fixture
def answers() -> Tensor:
    """Start 39, answer, end 2; the third is short and padded with -100."""
    return torch.tensor([[39, 5, 6, 2], [39, 7, 8, 2], [39, 9, 2, -100]])


def pruned_batch(keep_mode: str, branches: frozenset[str] = frozenset({VISION, TEXT})) -> BatchPruning:
    return BatchPruning(build_pruner("madtp"), torch.tensor([4.0, 8.0, 16.0]), keep_mode, branches)


def test_a_branch_that_is_not_named_runs_dense(
    network: VqaNetwork, pixel_values: Tensor, questions: tuple[Tensor, Tensor], answers: Tensor
) -> None:
    pruning = pruned_batch(MAX_KEEP, frozenset({TEXT}))
    out = network(pixel_values, *questions, torch.arange(3), answers, pruning)
    assert torch.equal(out.vision.kept, out.vision.tokens_in)
    assert (out.text.kept < out.text.tokens_in).any()


def test_an_image_takes_the_prune_temperature_of_a_question_about_it(
    network: VqaNetwork, pixel_values: Tensor, questions: tuple[Tensor, Tensor], answers: Tensor
) -> None:
    order = torch.tensor([2, 0, 1])
    out = network(pixel_values, *questions, order, answers, pruned_batch(PER_INSTANCE))
    own = torch.tensor([8.0, 16.0, 4.0])  # question 1 asks about image 0, 2 about 1, 0 about 2
    alone = network.encode_image(pixel_values, Pruning(build_pruner("madtp"), own, PER_INSTANCE))
    assert torch.equal(out.vision.kept, alone.kept)


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_every_parameter_in_use_gets_a_finite_gradient(
    network: VqaNetwork,
    pixel_values: Tensor,
    ragged_questions: tuple[Tensor, Tensor],
    answers: Tensor,
    keep_mode: str,
) -> None:
    out = network(
        pixel_values, *ragged_questions, torch.arange(3), answers, pruned_batch(keep_mode), align=True
    )
    assert out.alignment_loss is not None
    used = {name: p for name, p in network.named_parameters() if "pooler" not in name}
    loss = out.answer_loss + 0.1 * out.alignment_loss
    for name, gradient in zip(used, torch.autograd.grad(loss, list(used.values())), strict=True):
        assert gradient.isfinite().all(), name
        if not name.endswith("key.bias"):  # a softmax does not see it
            assert gradient.abs().sum() > 0, name
