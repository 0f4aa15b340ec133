"""MAG: token attention, aligned features and their loss, by hand and inside the loop."""

import math

import pytest
import torch
from torch import Tensor

from madtp_core.alignment import Alignment, aligned_features, alignment_loss
from madtp_core.backbones.blip import embed_image, vision_blocks
from madtp_core.encoder import encode
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.vqa_network import VqaNetwork


def loop_features(queries: Tensor, tokens: Tensor) -> Tensor:
    """F of one instance: queries [N, d], tokens [K, d] -> [K, d] float64."""
    q, e = queries.double(), tokens.double()
    rows = []
    for k in range(len(e)):
        logits = [float(q[i] @ e[k]) / math.sqrt(q.shape[1]) for i in range(len(q))]
        weights = [math.exp(x - max(logits)) for x in logits]
        rows.append(sum(w / sum(weights) * q[i] for i, w in enumerate(weights)))
    return torch.stack(rows)


@torch.no_grad()
def test_token_attention_is_the_unscaled_product() -> None:
    alignment = Alignment(3, 5, {})
    queries = torch.randn(2, 4, 5)
    attention = alignment.token_attention(queries)
    assert attention.shape == (2, 4, 3)
    for b, i, k in [(0, 0, 0), (1, 3, 2), (0, 2, 1)]:
        product = sum(
            q * e for q, e in zip(queries[b, i].tolist(), alignment.tokens[k].tolist(), strict=True)
        )
        assert attention[b, i, k].item() == pytest.approx(product, abs=1e-6)


def test_token_attention_of_half_precision_is_float32() -> None:
    assert Alignment(3, 5, {}).token_attention(torch.randn(2, 4, 5).bfloat16()).dtype == torch.float32


def test_only_a_branch_of_another_width_gets_maps_one_a_block() -> None:
    alignment = Alignment(3, 5, {VISION: (5, 2), TEXT: (4, 3)})
    hidden, narrow = torch.randn(2, 5), torch.randn(2, 4)
    assert alignment.queries(hidden, VISION, 1) is hidden
    assert list(alignment.maps) == [TEXT] and len(alignment.maps[TEXT]) == 3
    assert alignment.queries(narrow, TEXT, 0).shape == (2, 5)
    assert not torch.equal(alignment.queries(narrow, TEXT, 0), alignment.queries(narrow, TEXT, 2))


@torch.no_grad()
def test_aligned_features_equal_a_loop_and_leave_padding_out() -> None:
    alignment = Alignment(3, 5, {})
    queries, lengths = torch.randn(2, 6, 5), (6, 4)
    mask = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    features = aligned_features(queries, alignment.token_attention(queries), mask)
    for row, length in enumerate(lengths):
        expected = loop_features(queries[row, :length], alignment.tokens)
        torch.testing.assert_close(features[row].double(), expected, atol=1e-6, rtol=0)


def test_alignment_loss_reads_directions_only() -> None:
    vision = torch.randn(2, 3, 5)
    orthogonal = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.tensor([[[0.0, 3.0], [5.0, 0.0]]])
    assert alignment_loss(vision, 7 * vision).item() == pytest.approx(0, abs=1e-6)
    assert alignment_loss(vision, -vision).item() == pytest.approx(2, abs=1e-6)
    assert alignment_loss(*orthogonal).item() == pytest.approx(1, abs=1e-6)


def test_alignment_loss_is_the_mean_over_rows_and_alignment_tokens() -> None:
    vision, text = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    assert alignment_loss(vision, text).item() == pytest.approx((1 - 1 / math.sqrt(2)) / 2, abs=1e-6)


@torch.no_grad()
def test_the_loop_sums_the_features_of_every_blocks_input(network: VqaNetwork, pixel_values: Tensor) -> None:
    assert network.alignment is not None
    tower = network.blip.vision_model
    blocks = vision_blocks(tower)
    inputs = [embed_image(tower, pixel_values).hidden]
    for count in (1, 2):
        inputs.append(encode(embed_image(tower, pixel_values), blocks[:count], VISION).tokens.hidden)
    encoded = network.encode_image(pixel_values, collect_aligned=True)
    assert encoded.aligned is not None
    for row in range(len(pixel_values)):
        expected = sum(loop_features(x[row, 1:], network.alignment.tokens) for x in inputs)
        torch.testing.assert_close(encoded.aligned[row].double(), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_questions_features_do_not_depend_on_its_padding(
    network: VqaNetwork, pixel_values: Tensor, ragged_questions: tuple[Tensor, Tensor]
) -> None:
    token_ids, mask = ragged_questions
    image = network.encode_image(pixel_values)
    together = network.encode_question(token_ids, mask, image, collect_aligned=True).aligned
    assert together is not None
    for row, length in enumerate(mask.sum(1).tolist()):
        image = network.encode_image(pixel_values[row : row + 1])
        alone = network.encode_question(
            token_ids[row : row + 1, :length], None, image, collect_aligned=True
        ).aligned
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)


def test_the_loss_reaches_the_alignment_tokens_and_both_towers(
    network: VqaNetwork, pixel_values: Tensor, questions: tuple[Tensor, Tensor]
) -> None:
    assert network.alignment is not None
    image = network.encode_image(pixel_values, collect_aligned=True)
    text = network.encode_question(*questions, image, collect_aligned=True)
    assert image.aligned is not None and text.aligned is not None
    reached = {
        "alignment tokens": network.alignment.tokens,
        "vision": network.blip.vision_model.embeddings.patch_embedding.weight,
        "text": network.blip.text_encoder.embeddings.word_embeddings.weight,
    }
    loss = alignment_loss(image.aligned, text.aligned)
    for name, gradient in zip(reached, torch.autograd.grad(loss, list(reached.values())), strict=True):
        assert gradient.isfinite().all() and gradient.abs().sum() > 0, name
