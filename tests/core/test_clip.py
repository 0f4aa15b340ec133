"""CLIP's towers: Hugging Face's when dense, the float64 reference when pruned, causal and in order."""

import pytest
import torch
from torch import Tensor, nn

from madtp_core.attention import CLASS_ROW, Signals, attend
from madtp_core.backbones.clip import (
    clip_blocks,
    clip_config,
    embed_image,
    embed_text,
    end_positions,
    text_config,
)
from madtp_core.checkpoint import build_alignment
from madtp_core.config import AlignmentConfig
from madtp_core.encoder import BatchPruning, Encoded, Pruning, encode
from madtp_core.errors import ConfigError
from madtp_core.pruning import (
    KEEP_MODES,
    MAX_KEEP,
    PER_INSTANCE,
    TEXT,
    VISION,
    PruneStep,
    build_pruner,
)
from madtp_core.pruning.madtp import MadtpPruner
from madtp_core.tasks.clip_network import ClipNetwork
from madtp_core.tokens import Tokens
from tests.core import clip_reference, reference
from tests.core.tiny_clip import BLOCKS, EOT, EQUAL, RAGGED, SOT, madtp, make_network, positions_of, texts

TOLERANCE = 1e-5
TIE = 1e-5  # closer than this to the threshold or the cut, float32 and float64 may decide differently


@pytest.fixture(scope="module")
def network() -> ClipNetwork:
    return make_network()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(10))


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


# --- Dense: Hugging Face's


@torch.no_grad()
def test_the_scrambled_network_is_not_close_to_zero(network: ClipNetwork, pixels: Tensor) -> None:
    image = network.image_embeddings(network.encode_image(pixels))
    text = network.text_embeddings(network.encode_text(texts()))
    for embedding in (image, text):
        assert (embedding @ embedding.T).tril(-1).max() < 0.99
    tokens, block = embed_text(network.clip.text_model, texts()), clip_blocks(network.clip.text_model)[0]
    _, signals = attend(*block.qkv(tokens.hidden), tokens, frozenset({CLASS_ROW}))
    assert signals.class_row is not None
    assert signals.class_row.amax(-1).mean() > 2 / 22  # EOT chooses


@torch.no_grad()
@pytest.mark.parametrize("size", [(40, 40), (48, 48), (32, 56)])
def test_dense_image_tower(network: ClipNetwork, size: tuple[int, int]) -> None:
    """At the trained size, at another one, and on a grid that is not square."""
    images = torch.randn(2, 3, *size)
    theirs = network.clip.vision_model(images, interpolate_pos_encoding=size != (40, 40))
    encoded = network.encode_image(images)
    assert_close(encoded.tokens.hidden, theirs.last_hidden_state)
    features = network.clip.visual_projection(theirs.pooler_output)
    assert_close(network.image_embeddings(encoded), nn.functional.normalize(features, dim=-1))


@torch.no_grad()
@pytest.mark.parametrize("lengths", [EQUAL, RAGGED, (2, 3, 24)])
@pytest.mark.parametrize("keep_mode", [None, *KEEP_MODES])
def test_dense_text_tower(network: ClipNetwork, lengths: tuple[int, ...], keep_mode: str | None) -> None:
    """Unscored, and scored at temperature 0 in either layout."""
    ids = texts(lengths)
    pruning = None if keep_mode is None else Pruning(build_pruner("madtp"), torch.zeros(3), keep_mode)
    theirs = network.clip.text_model(ids, attention_mask=(ids != EOT) | (ids == EOT).cumsum(1).eq(1))
    encoded = network.encode_text(ids, pruning)
    tokens = encoded.tokens.unpack()
    normed = network.clip.text_model.final_layer_norm(tokens.hidden)
    assert_close(normed[:, 0], theirs.pooler_output)
    for row, length in enumerate(lengths):
        assert_close(normed[row, 1:length], theirs.last_hidden_state[row, : length - 1])


@torch.no_grad()
def test_dense_logits(network: ClipNetwork, pixels: Tensor) -> None:
    ids = texts(RAGGED)
    theirs = network.clip(input_ids=ids, pixel_values=pixels)
    ours = network(pixels, ids)
    assert_close(ours.logit_scale * ours.image_embeddings @ ours.text_embeddings.T, theirs.logits_per_image)


def test_gradients_are_hugging_faces(network: ClipNetwork, pixels: Tensor) -> None:
    ids, parameters = texts(RAGGED), dict(network.clip.named_parameters())
    ours = network(pixels, ids)
    theirs = network.clip(input_ids=ids, pixel_values=pixels)
    pair = (
        (ours.logit_scale * ours.image_embeddings @ ours.text_embeddings.T).square().sum(),
        theirs.logits_per_image.square().sum(),
    )
    for name, our, their in zip(
        parameters, *(torch.autograd.grad(loss, list(parameters.values())) for loss in pair), strict=True
    ):
        torch.testing.assert_close(our, their, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@torch.no_grad()
def test_the_old_end_id_means_the_highest_id(pixels: Tensor) -> None:
    network = make_network(eos_token_id=2)
    ids = texts(RAGGED)
    assert text_config(network.clip.config).eos_token_id == 2
    theirs = network.clip.text_model(ids).pooler_output
    tokens = network.encode_text(ids).tokens
    assert_close(network.clip.text_model.final_layer_norm(tokens.hidden[:, 0]), theirs)


def test_the_first_end_token_ends_the_text() -> None:
    ids = torch.tensor([[SOT, 4, EOT, EOT], [SOT, 4, 5, EOT], [SOT, 4, 5, 6]])
    assert end_positions(ids, EOT).tolist() == [2, 3, 0]


@pytest.mark.parametrize("ids", [[SOT, 4, 5], [EOT, EOT, EOT]])
def test_a_text_without_an_end_or_a_start_is_refused(network: ClipNetwork, ids: list[int]) -> None:
    with pytest.raises(ConfigError, match="end token"):
        network.encode_text(torch.tensor([ids]))


def test_a_clip_block_reads_no_memory(network: ClipNetwork, pixels: Tensor) -> None:
    tokens = embed_image(network.clip.vision_model, pixels)
    with pytest.raises(ConfigError, match="no cross-attention"):
        encode(tokens, clip_blocks(network.clip.vision_model), VISION, memory=object())


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"vision_width": 48, "text_width": 48, "embedding_width": 48},
        {"vision_width": 16, "vision_blocks": 1, "text_blocks": 4, "patch_size": 20},
        {"vision_width": 64, "vision_heads": 2, "text_width": 32, "text_heads": 8, "image_size": 24},
    ],
)
def test_any_geometry(options: dict[str, int]) -> None:
    """Towers of other widths, depths, heads and patches: dense as Hugging Face's, and pruned."""
    network, ids = make_network(**options), texts(RAGGED)
    images = torch.randn(
        3, 3, network.clip.config.vision_config.image_size, network.clip.config.vision_config.image_size
    )
    theirs, ours = network.clip(input_ids=ids, pixel_values=images), network(images, ids)
    assert_close(ours.logit_scale * ours.image_embeddings @ ours.text_embeddings.T, theirs.logits_per_image)
    pruned = network(images, ids, BatchPruning(build_pruner("madtp"), torch.full((3,), 4.0), PER_INSTANCE))
    assert (pruned.text.kept < pruned.text.tokens_in).any()
    assert pruned.image_embeddings.isfinite().all() and pruned.text_embeddings.isfinite().all()


# --- Alignment


def test_every_block_of_both_towers_has_a_map_to_the_alignment_width(network: ClipNetwork) -> None:
    assert network.alignment is not None
    shapes = {name: tuple(value.shape) for name, value in network.alignment.state_dict().items()}
    expected = {"tokens": (12, 32)}
    for branch, width in ((VISION, 32), (TEXT, 24)):
        for block in range(BLOCKS):
            expected[f"maps.{branch}.{block}.weight"] = (32, width)
            expected[f"maps.{branch}.{block}.bias"] = (32,)
    assert shapes == expected


def test_clip_l_reaches_768_through_maps_in_both_towers() -> None:
    """At the geometry of ViT-L/14, without its weights: 1024 -> 768 in 24 blocks, 768 -> 768 in 12."""
    with torch.device("meta"):
        alignment = build_alignment(AlignmentConfig(), clip_config())
    shapes = [
        (len(maps), tuple(maps[0].weight.shape))
        for maps in (alignment.maps[VISION], alignment.maps[TEXT])
        if isinstance(maps, nn.ModuleList)
    ]
    assert shapes == [(24, (768, 1024)), (12, (768, 768))]


@torch.no_grad()
@pytest.mark.parametrize("branch", [VISION, TEXT])
def test_alignment_reads_the_raw_stream_without_the_protected_token(
    network: ClipNetwork, pixels: Tensor, branch: str
) -> None:
    """The guidance of the first block is its map of the embeddings, no norm between."""
    seen: list[Tensor] = []

    class Spy(MadtpPruner):
        def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
            assert step.guidance is not None
            seen.append(step.guidance)
            return super().decide(tokens, signals, step)

    alignment = network.alignment
    assert alignment is not None
    pruning = Pruning(Spy(), torch.ones(3), MAX_KEEP)
    if branch == VISION:
        network.encode_image(pixels, pruning)
        hidden = embed_image(network.clip.vision_model, pixels).hidden[:, 1:]
    else:
        network.encode_text(texts(), pruning)
        hidden = network.clip.text_model.embeddings(input_ids=texts())[:, :-1]  # EOT is the last
    maps = alignment.maps[branch]
    assert isinstance(maps, nn.ModuleList)
    assert_close(seen[0], maps[0](hidden) @ alignment.tokens.T)


# --- Pruned: the reference


def maps_of(network: ClipNetwork, branch: str) -> tuple[Tensor, nn.ModuleList]:
    assert network.alignment is not None
    maps = network.alignment.maps[branch]
    assert isinstance(maps, nn.ModuleList)
    return network.alignment.tokens, maps


def assert_equals_reference(
    encoded: Encoded, left: list[Tokens], instances: list[reference.Instance]
) -> None:
    assert min(instance.margin for instance in instances) > TIE
    tokens = encoded.tokens.unpack()
    for row, instance in enumerate(instances):
        assert [positions_of(block)[row] for block in left] == instance.kept_positions
        assert encoded.tokens_in[:, row].tolist() == instance.tokens_in
        assert encoded.needed[:, row].tolist() == instance.needed
        hidden = tokens.hidden[row, : len(instance.hidden)].double()
        torch.testing.assert_close(hidden, instance.hidden, atol=5e-5, rtol=1e-5)
    assert (encoded.kept < encoded.tokens_in).any(1).sum() >= 2  # merged tokens met another pruning block


@torch.no_grad()
@pytest.mark.parametrize("keep_mode", KEEP_MODES)
@pytest.mark.parametrize("prune_temperature", [2.0, 16.0])
def test_the_image_tower_equals_the_reference(
    network: ClipNetwork, pixels: Tensor, prune_temperature: float, keep_mode: str
) -> None:
    left: list[Tokens] = []
    encoded = network.encode_image(pixels, madtp(prune_temperature, keep_mode), on_block=left.append)
    instances = clip_reference.run_vision(
        network.clip.vision_model, *maps_of(network, VISION), pixels, prune_temperature, keep_mode
    )
    assert_equals_reference(encoded, left, instances)


@torch.no_grad()
@pytest.mark.parametrize("keep_mode", KEEP_MODES)
@pytest.mark.parametrize("prune_temperature", [2.0, 16.0])
@pytest.mark.parametrize("lengths", [EQUAL, RAGGED])
def test_the_text_tower_equals_our_definition(
    network: ClipNetwork, prune_temperature: float, keep_mode: str, lengths: tuple[int, ...]
) -> None:
    ids = texts(lengths)
    left: list[Tokens] = []
    encoded = network.encode_text(ids, madtp(prune_temperature, keep_mode), on_block=left.append)
    rows = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    instances = clip_reference.run_text(
        network.clip.text_model, *maps_of(network, TEXT), rows, prune_temperature, keep_mode
    )
    assert_equals_reference(encoded, left, instances)
