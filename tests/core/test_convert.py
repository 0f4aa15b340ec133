"""Released checkpoints into ours: the five models of the reference, BLIP's and OpenAI's own, any geometry."""

import copy

import pytest
import torch

from madtp_core.backbones import MODEL_CLASSES
from madtp_core.checkpoint import load_checkpoint, save_checkpoint
from madtp_core.convert import convert_state_dict
from madtp_core.errors import CheckpointError, ConfigError, UnknownNameError
from tests.core.released import (
    HEADS,
    ORIGINALS,
    VOCABULARY,
    bert_tokenizer,
    clip_tokenizer,
    convert,
    forward,
    inputs,
    original_forward,
    scrambled,
    tokenizer_for,
)

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.mark.parametrize("task", ORIGINALS)
@torch.no_grad()
def test_a_converted_model_computes_what_the_original_computes(task):
    original = scrambled(task)
    images, ids = inputs(task)
    converted = convert(task, original).checkpoint.model
    expected = original_forward(task, original, images, ids)
    torch.testing.assert_close(forward(task, converted, images, ids), expected, **CLOSE)


@pytest.mark.parametrize("task", ORIGINALS)
def test_every_tensor_of_the_source_is_accounted_for_once(task):
    state = scrambled(task).state_dict()
    conversion = convert_state_dict(state, task, tokenizer_for(task), **HEADS)
    dropped = [key for keys in conversion.dropped.values() for key in keys]
    assert sorted([*conversion.converted, *dropped]) == sorted(state)
    assert conversion.fresh == ()


@pytest.mark.parametrize(
    ("task", "reasons"),
    [
        ("vqa", {"constants": 2}),
        ("caption", {"constants": 1}),
        ("retrieval", {"constants": 1, "contrastive temperature": 1, "momentum copies": 91, "queues": 4}),
        ("reasoning", {"constants": 1}),
        ("clip", {"momentum copies": 83, "queues": 4}),
    ],
)
def test_what_is_dropped_is_named_with_its_reason(task, reasons):
    assert {reason: len(keys) for reason, keys in convert(task, scrambled(task)).dropped.items()} == reasons


@pytest.mark.parametrize("task", ORIGINALS)
def test_alignment_tokens_and_temperature_become_ours(task):
    original = scrambled(task)
    checkpoint = convert(task, original, prune_temperature=3.25).checkpoint
    assert torch.equal(checkpoint.alignment.tokens, original.space_dict)
    config = checkpoint.config
    assert (config.alignment.num_tokens, config.alignment.dim) == original.space_dict.shape
    assert (config.pruning.method, config.pruning.prune_temperature) == ("madtp", 3.25)
    assert config.pruning.branches == (("vision",) if task == "caption" else ("vision", "text"))
    assert config.encoder_first_token == ("cls" if task == "clip" else "enc")


def test_clips_alignment_maps_become_ours():
    original = scrambled("clip")
    maps = convert("clip", original).checkpoint.alignment.maps
    for branch, tower in (("vision", original.visual.transformer), ("text", original.transformer)):
        for ours, block in zip(maps[branch], tower.resblocks, strict=True):
            assert torch.equal(ours.weight, block.query_model.q_map[0].weight)
            assert torch.equal(ours.bias, block.query_model.q_map[0].bias)


def test_alignment_of_another_width_has_maps_named_as_in_the_references_clip():
    state = scrambled("vqa", sd=0).state_dict()
    state["space_dict"] = torch.randn(5, 10)
    with pytest.raises(CheckpointError, match=r"visual_encoder\.blocks\.1\.query_model\.q_map\.0\.bias"):
        convert_state_dict(state, "vqa", bert_tokenizer(), **HEADS)
    for blocks in ("visual_encoder.blocks", "text_encoder.encoder.layer"):
        for block in range(2):
            state[f"{blocks}.{block}.query_model.q_map.0.weight"] = torch.randn(10, 24)
            state[f"{blocks}.{block}.query_model.q_map.0.bias"] = torch.randn(10)
    maps = convert_state_dict(state, "vqa", bert_tokenizer(), **HEADS).checkpoint.alignment.maps
    expected = state["text_encoder.encoder.layer.1.query_model.q_map.0.weight"]
    assert torch.equal(maps["text"][1].weight, expected)


@pytest.mark.parametrize("task", ORIGINALS)
def test_a_release_without_alignment_tokens_is_dense(task):
    checkpoint = convert(task, scrambled(task, sd=0)).checkpoint
    assert (checkpoint.config.alignment, checkpoint.config.pruning, checkpoint.alignment) == (
        None,
        None,
        None,
    )


def test_without_a_temperature_the_search_starts_where_the_reference_starts():
    assert convert("vqa", scrambled("vqa")).checkpoint.config.pruning.prune_temperature == 1.0


@pytest.mark.parametrize("task", ORIGINALS)
def test_a_converted_checkpoint_is_saved_and_read_by_hugging_face_bit_for_bit(task, tmp_path):
    checkpoint = convert(task, scrambled(task)).checkpoint
    save_checkpoint(checkpoint, tmp_path / "model")
    theirs = MODEL_CLASSES[task].from_pretrained(tmp_path / "model").state_dict()
    again = load_checkpoint(tmp_path / "model")
    for name, value in checkpoint.model.state_dict().items():
        assert torch.equal(theirs[name], value) and torch.equal(again.model.state_dict()[name], value), name
    assert again.config == checkpoint.config and again.image_geometry == checkpoint.image_geometry
    for name, value in checkpoint.alignment.state_dict().items():
        assert torch.equal(again.alignment.state_dict()[name], value), name


GEOMETRIES = [
    ("vqa", {"width": 48, "text_width": 48, "depth": 1, "text_depth": 3, "patch": 4, "image_size": 32}),
    ("caption", {"width": 36, "text_width": 20, "depth": 3, "vocabulary": 40, "positions": 9}),
    ("retrieval", {"width": 36, "text_width": 20, "text_depth": 1, "embed_dim": 4}),
    ("reasoning", {"text_depth": 4, "merge_start": 1}),
    ("reasoning", {"text_depth": 3, "merge_start": 3}),
    ("clip", {"width": 36, "text_width": 8, "depth": 3, "text_depth": 1, "patch": 6, "embed_dim": 7}),
    ("clip", {"text_depth": 1, "momentum": False}),
]


@pytest.mark.parametrize(("task", "sizes"), GEOMETRIES)
@torch.no_grad()
def test_any_geometry_is_read_off_the_shapes(task, sizes):
    original = scrambled(task, sd=0, **sizes)
    images, ids = inputs(task, sizes.get("image_size", 24))
    checkpoint = convert(task, original).checkpoint
    expected = original_forward(task, original, images, ids)
    torch.testing.assert_close(forward(task, checkpoint.model, images, ids), expected, **CLOSE)
    assert checkpoint.image_geometry.height == sizes.get("image_size", 24)
    assert checkpoint.model.config.vision_config.patch_size == sizes.get("patch", 8)


def plain_blip(**sizes):
    """A pretrained BLIP: both text models, projections, momentum copies, no twins."""
    vqa, retrieval = (scrambled(task, sd=0, **sizes).state_dict() for task in ("vqa", "retrieval"))
    return {**vqa, **retrieval}


def test_a_plain_blip_becomes_a_reasoning_model_by_doubling_its_cross_attention():
    state = plain_blip(text_depth=4)
    conversion = convert_state_dict(state, "reasoning", bert_tokenizer(), **HEADS)
    ours = conversion.checkpoint.model.state_dict()
    for layer in range(4):
        cross = f"text_encoder.encoder.layer.{layer}.crossattention"
        for twin in "01":
            for part in ("query.weight", "key.bias", "value.weight"):
                assert torch.equal(ours[f"{cross}.self{twin}.{part}"], state[f"{cross}.self.{part}"])
            dense = state[f"{cross}.output.dense.weight"]
            assert torch.equal(ours[f"{cross}.output.dense{twin}.weight"], dense)
    merge = "text_encoder.encoder.layer.{}.crossattention.output.merge_layer.{}"
    expected = [merge.format(layer, part) for layer in (2, 3) for part in ("weight", "bias")]
    expected += [f"cls_head.{index}.{part}" for index in (0, 2) for part in ("weight", "bias")]
    assert sorted(conversion.fresh) == sorted(expected)
    torch.rand(1)  # what is fresh does not depend on the state of the generator
    again = convert_state_dict(state, "reasoning", bert_tokenizer(), **HEADS).checkpoint.model.state_dict()
    assert all(torch.equal(again[name], ours[name]) for name in expected)


def test_parts_of_other_tasks_are_dropped_by_name():
    conversion = convert_state_dict(plain_blip(), "caption", bert_tokenizer(), **HEADS)
    parts = {key.split(".")[0] for key in conversion.dropped["parts of other tasks"]}
    assert parts == {"text_encoder", "vision_proj", "text_proj", "itm_head"}


def without(key):
    return lambda state: state.pop(key)


def with_zeros(key, *shape):
    return lambda state: state.update({key: torch.zeros(shape)})


NORM, PROJ = "visual_encoder.norm.bias", "visual_encoder.blocks.1.attn.proj.bias"
TWIN = "text_encoder.encoder.layer.1.crossattention.self1.key.bias"
IN_PROJ = "transformer.resblocks.2.attn.in_proj_bias"
MAP = "visual.transformer.resblocks.1.query_model.q_map.0.weight"
LM_HEAD = "text_decoder.cls.predictions.decoder.weight"
MISFITS = [
    ("vqa", without(PROJ), f"missing: {PROJ}"),
    ("vqa", with_zeros("visual_encoder.stray", 1), "unexpected: visual_encoder.stray"),
    ("vqa", with_zeros("stray_m", 1), "unexpected: stray_m"),
    ("vqa", with_zeros(NORM, 3), f"shape: {NORM} (3,), wanted (24,)"),
    ("vqa", with_zeros(LM_HEAD, 40, 24), f"one tensor in BLIP, but different here: {LM_HEAD} and "),
    ("reasoning", without("cls_head.2.bias"), "missing: cls_head.2.bias"),
    ("reasoning", without(TWIN), f"missing: {TWIN}"),
    ("clip", without(IN_PROJ), f"missing: {IN_PROJ}"),
    ("clip", with_zeros(IN_PROJ, 59), f"shape: {IN_PROJ} (59,), wanted (60,)"),
    ("clip", without(MAP), f"missing: {MAP}"),
    ("clip", with_zeros("visual.proj", 10, 24), "shape: visual.proj (10, 24), wanted (24, 10)"),
    ("clip", with_zeros("visual.transformer.alpha", 1), "unexpected: visual.transformer.alpha"),
]


@pytest.mark.parametrize(("task", "alter", "told"), MISFITS, ids=[told for _, _, told in MISFITS])
def test_a_tensor_that_does_not_fit_is_named(task, alter, told):
    state = scrambled(task).state_dict()
    alter(state)
    with pytest.raises(CheckpointError) as error:
        convert_state_dict(state, task, tokenizer_for(task), **HEADS)
    assert told in str(error.value)


def test_one_error_names_everything():
    state = scrambled("caption").state_dict()
    state["stray"] = state.pop(PROJ)
    state[NORM] = torch.zeros(3)
    with pytest.raises(
        CheckpointError, match=f"missing: {PROJ}; unexpected: stray; of another shape: {NORM}"
    ):
        convert_state_dict(state, "caption", bert_tokenizer(), **HEADS)


@pytest.mark.parametrize(("task", "other"), [("clip", "vqa"), ("vqa", "clip"), ("caption", "retrieval")])
def test_a_checkpoint_of_another_kind_is_refused(task, other):
    with pytest.raises(CheckpointError, match="has no"):
        convert_state_dict(scrambled(other).state_dict(), task, tokenizer_for(task), **HEADS)


def test_a_clip_with_a_resnet_is_refused():
    state = {**scrambled("clip").state_dict(), "visual.attnpool.c_proj.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="ResNet"):
        convert_state_dict(state, "clip", clip_tokenizer(), **HEADS)


def test_a_vqa_model_of_two_widths_is_refused():
    with pytest.raises(CheckpointError, match="36 wide, the text 24"):
        convert("vqa", scrambled("vqa", sd=0, width=36))


def test_an_unknown_task_is_an_error_that_lists_the_known():
    with pytest.raises(UnknownNameError, match="retrieval"):
        convert_state_dict({}, "chess", bert_tokenizer())


def test_heads_are_64_wide_unless_given():
    big = scrambled("caption", width=128, text_width=64, heads=2, text_heads=1, sd=0).state_dict()
    config = convert_state_dict(big, "caption", bert_tokenizer()).checkpoint.model.config
    assert (config.vision_config.num_attention_heads, config.text_config.num_attention_heads) == (2, 1)
    small = scrambled("caption").state_dict()
    with pytest.raises(ConfigError, match="vision_heads"):
        convert_state_dict(small, "caption", bert_tokenizer(), text_heads=2)
    with pytest.raises(ConfigError, match="text_heads"):
        convert_state_dict(small, "caption", bert_tokenizer(), vision_heads=3, text_heads=5)


def interpolated(positions, old, new):
    """`interpolate_pos_embed` of the original BLIP: positions [1, 1 + old * old, C]."""
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)


@torch.no_grad()
def test_position_embeddings_are_interpolated_on_request():
    original = scrambled("caption")
    checkpoint = convert("caption", original, image_size=40).checkpoint
    resized = copy.deepcopy(original)
    positions = interpolated(original.visual_encoder.pos_embed, 3, 5)
    resized.visual_encoder.pos_embed = torch.nn.Parameter(positions)
    images, ids = inputs("caption", side=40)
    ours = forward("caption", checkpoint.model, images, ids)
    torch.testing.assert_close(ours, resized(images, ids), **CLOSE)
    assert (checkpoint.image_geometry.height, checkpoint.image_geometry.width) == (40, 40)


@torch.no_grad()
def test_clips_position_embeddings_are_interpolated_too():
    original = scrambled("clip")
    checkpoint = convert("clip", original, image_size=16).checkpoint
    expected = interpolated(original.visual.positional_embedding[None], 3, 2)[0]
    ours = checkpoint.model.vision_model.embeddings.position_embedding.weight
    torch.testing.assert_close(ours, expected)
    geometry = checkpoint.image_geometry
    assert (geometry.height, geometry.width, geometry.shortest_edge) == (16, 16, 16)


def test_the_trained_size_leaves_position_embeddings_alone():
    original = scrambled("vqa")
    model = convert("vqa", original, image_size=24).checkpoint.model
    assert torch.equal(model.vision_model.embeddings.position_embedding, original.visual_encoder.pos_embed)


@pytest.mark.parametrize("image_size", [0, 4, 25])
def test_an_image_that_patches_do_not_fill_is_an_error(image_size):
    with pytest.raises(ConfigError, match="multiple of the patch size 8"):
        convert("vqa", scrambled("vqa"), image_size=image_size)


def test_a_position_table_that_is_no_square_is_an_error():
    state = scrambled("vqa").state_dict()
    state["visual_encoder.pos_embed"] = torch.zeros(1, 8, 24)
    with pytest.raises(CheckpointError, match=r"1 \+ n \* n rows"):
        convert_state_dict(state, "vqa", bert_tokenizer(), **HEADS)


def test_berts_tokenizer_becomes_blips_and_itself_stays_as_it_was():
    plain = bert_tokenizer()
    checkpoint = convert_state_dict(scrambled("vqa").state_dict(), "vqa", plain, **HEADS).checkpoint
    ids = checkpoint.tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"])
    assert ids == [VOCABULARY - 2, VOCABULARY - 1] and checkpoint.tokenizer.bos_token == "[DEC]"
    text = checkpoint.model.config.text_config
    assert (text.bos_token_id, text.sep_token_id, text.pad_token_id) == (VOCABULARY - 2, 3, 0)
    assert len(plain) == VOCABULARY - 2 and "[ENC]" not in plain.get_vocab()


def test_a_tokenizer_that_is_blips_already_stays_as_it_is():
    state = scrambled("vqa").state_dict()
    once = convert_state_dict(state, "vqa", bert_tokenizer(), **HEADS).checkpoint.tokenizer
    twice = convert_state_dict(state, "vqa", once, **HEADS).checkpoint.tokenizer
    assert twice.get_vocab() == once.get_vocab()


@pytest.mark.parametrize("words", [VOCABULARY - 8, VOCABULARY - 6])
def test_a_tokenizer_of_another_vocabulary_is_refused(words):
    with pytest.raises(CheckpointError, match="the checkpoint embeds 40"):
        convert_state_dict(scrambled("vqa").state_dict(), "vqa", bert_tokenizer(words), **HEADS)


def test_clips_tokenizer_gives_its_ids():
    text = convert("clip", scrambled("clip")).checkpoint.model.config.text_config
    assert (text.bos_token_id, text.eos_token_id) == (VOCABULARY - 2, VOCABULARY - 1)


def test_half_precision_weights_are_converted_to_float32():
    state = scrambled("clip").half().state_dict()
    checkpoint = convert_state_dict(state, "clip", clip_tokenizer(), **HEADS).checkpoint
    assert {value.dtype for value in checkpoint.model.state_dict().values()} == {torch.float32}
    assert torch.equal(checkpoint.model.visual_projection.weight, state["visual.proj"].float().T)
