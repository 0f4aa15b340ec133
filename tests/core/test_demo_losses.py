"""The demo's auxiliary losses, each computed again in another way."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from madtp_core.backbones.blip import blip_config, build_blip_vision, build_blip_vqa, scramble, vision_blocks
from madtp_core.backbones.clip import build_clip, clip_config, embed_image
from madtp_core.backbones.nlvr import build_blip_reasoning
from madtp_core.blocks import Memory, TwinMemory
from madtp_core.data.shapes import ShapesVqa
from madtp_core.encoder import Pruning
from madtp_core.tasks.reasoning_network import ReasoningNetwork
from madtp_core.tasks.vqa import BlipVqa
from madtp_core.tasks.vqa_network import VqaNetwork
from madtp_core.tokens import Tokens
from madtp_core.train.demo_models import start_from_reader
from madtp_core.train.importance import Seen, WatchedMadtp, importance_loss, spread_loss
from madtp_core.train.patches import balanced_loss, by_patch, centres
from madtp_core.train.reading import Pointing
from madtp_core.train.shapes_clip import start_from_blip
from madtp_core.train.shapes_data import (
    ShapesBatches,
    look_labels,
    named,
    named_by,
    patch_cells,
    pixel_values,
)
from madtp_core.train.shapes_describe import contrast_loss
from madtp_core.train.shapes_vqa import ShapesVqaBatches


def test_look_labels_follow_the_scene():
    example = ShapesVqa(0, "train", 100, 1, 96)[7]
    looks = look_labels(example)
    assert looks.shape == example.patch_labels.shape
    assert np.array_equal(looks > 0, example.patch_labels > 0)
    there = {(1 + ("small", "large").index(o.size) * 3 + ("solid", "striped", "hollow").index(o.texture))
             for o in example.scene.objects}  # fmt: skip
    assert set(looks[looks > 0].tolist()) == there


def test_what_a_question_speaks_of_lies_on_its_objects():
    data = ShapesVqa(0, "train", 100, 8, 96)
    checked = 0
    for example in (data[index] for index in range(20)):
        for question in example.questions:
            patches, marked = named(example, question.about)
            assert not patches[:, example.patch_labels == 0].any()
            for description, where, centre in zip(question.about, patches, marked, strict=True):
                things = [o for o in example.scene.objects if description.matches(o)]
                cells = set(patch_cells(example)[where].tolist())
                assert cells <= {thing.cell for thing in things} and centre.sum() == len(things)
                checked += len(cells) > 0
    assert checked > 50


def test_named_counts_are_the_answers_to_count_questions():
    data = ShapesVqa(0, "train", 100, 8, 96)
    pairs = [
        (example, question) for example in map(data.__getitem__, range(30)) for question in example.questions
    ]
    counts = named_by([(example, question.about) for example, question in pairs], 2).counts.tolist()
    asked = [(row, question) for row, (_, question) in zip(counts, pairs, strict=True)]
    counted = [(row, question) for row, question in asked if question.family == "count"]
    assert counted and all(row == [int(question.answer), -1] for row, question in counted)
    assert all((row[1] >= 0) == (len(question.about) == 2) for row, question in asked)


def a_question_batch(model):
    data = ShapesBatches(ShapesVqa(0, "train", 1000, 2, 64), 2)
    return ShapesVqaBatches(data, model.codec)[0]


def pointing_of(model):
    layers = model.network.blip.text_encoder.encoder.layer
    return Pointing([layer.crossattention.self for layer in layers], descriptions=2)


def test_pointing_and_tally_are_what_the_heads_miss(vqa_checkpoint):
    """Computed again from the weights, question by question: heads 0 and 1 point, heads 2 and 3 tally."""
    model = fresh_model(vqa_checkpoint)
    batch, helper = a_question_batch(model), pointing_of(model)
    image = model.network.encode_image(pixel_values(batch.scenes.images, model.image_geometry))
    stays = torch.ones(2, image.tokens.width, dtype=torch.bool)
    stays[:, 5:9] = False  # dropped patches: what a description names there, no head can find
    image = replace(image, tokens=image.tokens.keep(stays))
    model.network.encode_question(batch.question_ids, batch.question_mask, image, batch.reader)
    pointing, tally = helper.losses(batch.named, batch.reader, image.tokens)

    hidden = image.tokens.hidden.detach()
    means = {"pointing": [], "tally": []}
    with torch.no_grad():
        for index, attention in enumerate(helper.layers):
            seen = attention_input(model, batch, hidden, index)
            missed = {"pointing": [], "tally": []}
            for row, reader in enumerate(batch.reader.tolist()):
                query = attention.query(seen[row, 0]).view(4, 8)
                key = attention.key(hidden[reader]).view(-1, 4, 8)
                logits = torch.einsum("hd,phd->hp", query, key) / 8**0.5
                for place in range(2):
                    wanted = batch.named.patches[row, place][stays[0, 1:]]
                    centre = batch.named.centres[row, place]
                    kept = centre[stays[0, 1:]]
                    if wanted.any():
                        missed["pointing"].append(-logits[place, 1:].softmax(0)[wanted].sum().log())
                    if batch.named.counts[row, place] >= 0 and kept.sum() == centre.sum():
                        there = torch.cat([torch.ones(1), kept.float()])
                        share = logits[2 + place].log_softmax(0)
                        missed["tally"].append(-(share * there).sum() / there.sum())
            for name, values in missed.items():
                means[name].append(torch.stack(values).mean())
    assert pointing.item() == pytest.approx(torch.stack(means["pointing"]).mean().item(), rel=1e-4)
    assert tally.item() == pytest.approx(torch.stack(means["tally"]).mean().item(), rel=1e-4)
    (pointing + tally).backward()
    assert helper.layers[0].query.weight.grad is not None


def test_packed_images_teach_no_heads(vqa_checkpoint):
    model = fresh_model(vqa_checkpoint)
    batch, helper = a_question_batch(model), pointing_of(model)
    image = model.network.encode_image(pixel_values(batch.scenes.images, model.image_geometry))
    assert [part.item() for part in helper.losses(batch.named, batch.reader, image.tokens.pack())] == [0, 0]


def fresh_model(checkpoint):
    """A network of its own with four text heads, so that hooks and gradients stay here."""
    tokenizer = checkpoint.tokenizer
    config = blip_config(
        width=32, heads=2, text_heads=4, vision_blocks=1, text_blocks=2, image_size=64, patch_size=8,
        vocabulary=len(tokenizer), max_text_tokens=40,
        bos_token_id=tokenizer.bos_token_id, sep_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    blip = build_blip_vqa(config)
    scramble(blip, std=0.2)
    madtp = replace(checkpoint.config, alignment=None, pruning=None)
    return BlipVqa(replace(checkpoint, model=blip, alignment=None, config=madtp))


def attention_input(model, batch, image, index):
    """What the cross-attention of a question block is asked with, by Hugging Face's own modules."""
    encoder = model.network.blip.text_encoder
    seen = []
    handle = encoder.encoder.layer[index].crossattention.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    encoder(
        input_ids=batch.question_ids,
        attention_mask=batch.question_mask,
        encoder_hidden_states=image[batch.reader],
        encoder_attention_mask=torch.ones(image[batch.reader].shape[:2]),
    )
    handle.remove()
    return seen[0]


def watched(checkpoint):
    """What the vision blocks of three scenes were pruned by, and where their objects stand."""
    model, pruner = BlipVqa(checkpoint), WatchedMadtp()
    data = ShapesBatches(ShapesVqa(0, "train", 1000, 0, 64), 3)[0]
    pixels = pixel_values(data.images, model.image_geometry)
    model.network.encode_image(pixels, Pruning(pruner, torch.full((3,), 0.7), "max_keep"))
    seen = pruner.seen()
    assert pruner.seen() == [] and any((block.position == -1).any() for block in seen)
    return seen, data.patch_labels > 0


@pytest.mark.parametrize("margin", [1.5, 8.0])
def test_importance_loss_is_how_far_patches_fall_short(vqa_checkpoint, margin):
    """Computed again from what every block's pruner saw, patch by patch."""
    seen, is_object = watched(vqa_checkpoint)
    losses = []
    for block in seen:
        for row in range(3):
            weights = {True: [], False: []}
            places = zip(block.position[row].tolist(), block.importance[row].tolist(), strict=True)
            for place, weight in places:
                if place > 0:
                    weights[bool(is_object[row, place - 1])].append(max(weight, 1e-6))
            short = long = [0.0]
            if all(weights.values()):
                objects, background = (sum(weights[kind]) / len(weights[kind]) for kind in (True, False))
                short = [max(0.0, math.log(margin * background / weight)) for weight in weights[True]]
                long = [max(0.0, math.log(margin * weight / objects)) for weight in weights[False]]
            losses.append((sum(short) / len(short) + sum(long) / len(long)) / 2)
    assert max(losses) > 0
    wanted = pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert importance_loss(seen, is_object, margin).item() == wanted


def test_spread_loss_is_nothing_where_alignment_tokens_look_everywhere_alike(vqa_checkpoint):
    seen, _ = watched(vqa_checkpoint)
    block = seen[0]
    even = Seen(block.position, block.importance, torch.ones_like(block.guidance), block.mask)
    assert spread_loss([even]).item() == pytest.approx(0, abs=1e-5)
    one = torch.zeros_like(block.guidance)
    one[:, 3] = 1e4  # all of them look at the same token
    assert spread_loss([Seen(block.position, block.importance, one, None)]).item() == pytest.approx(
        math.log(block.position.shape[1]), rel=1e-3
    )
    mask = torch.arange(block.position.shape[1]).expand(3, -1) < 10
    ragged = Seen(block.position, block.importance, torch.ones_like(block.guidance), mask)
    assert spread_loss([ragged]).item() == pytest.approx(0, abs=1e-5)


def test_balanced_loss_weighs_rare_objects_like_frequent_background():
    logits = torch.zeros(10, 2)
    logits[:, 0] = 2.0  # says background everywhere
    labels = torch.zeros(10, dtype=torch.int64)
    labels[0] = 1
    miss, hit = torch.nn.functional.cross_entropy(logits[:2], torch.tensor([1, 0]), reduction="none")
    assert balanced_loss(logits, labels).item() == pytest.approx(((miss + hit) / 2).item())
    assert balanced_loss(logits[1:], labels[1:]).item() == pytest.approx(hit.item() / 2)  # no object kept


def test_centres_of_marked_patches():
    patches = torch.zeros(2, 16, dtype=torch.bool)
    patches[0, 1] = True  # row 0, column 1 of 4 x 4
    patches[1, [0, 15]] = True
    assert torch.allclose(centres(patches), torch.tensor([[0.375, 0.125], [0.5, 0.5]]))


def test_features_return_to_the_patches_they_stand_for():
    hidden = torch.arange(2 * 5, dtype=torch.float32).view(2, 5, 1)
    stays = torch.tensor([[True, False, True, True, False], [True, True, False, False, False]])
    kept = Tokens.from_hidden(hidden).keep(stays).pack()
    features, is_kept = by_patch(kept, 4)
    assert is_kept.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert features[..., 0].tolist() == [[0, 2, 3, 0], [6, 0, 0, 0]]


def test_contrast_is_least_where_every_text_is_with_its_image():
    image = torch.eye(3)
    reader = torch.tensor([0, 0, 1, 2])
    right, wrong = (
        contrast_loss(image, torch.eye(3)[index], reader).item() for index in (reader, reader - 1)
    )
    assert wrong > right
    logits = image @ torch.eye(3)[reader].T / 0.07
    rows = logits.log_softmax(1)
    to_texts = -((rows[0, 0] + rows[0, 1]) / 2 + rows[1, 2] + rows[2, 3]) / 3
    to_images = -logits.T.log_softmax(1)[range(4), reader].mean()
    assert right == pytest.approx(((to_texts + to_images) / 2).item())


def test_clip_starts_as_the_blip_tower_that_it_copies():
    """Without CLIP's norm and with BLIP's activation, both towers' first block must do the same."""
    blip = build_blip_vision(blip_config(width=32, heads=2, vision_blocks=1, image_size=32, patch_size=8))
    scramble(blip)
    config = clip_config(
        vision_width=32, vision_heads=2, vision_blocks=1, image_size=32, patch_size=8, text_width=32,
        text_heads=2, text_blocks=1, embedding_width=16, vocabulary=50,
    )  # fmt: skip
    config.vision_config.hidden_act = "gelu"
    config.vision_config.layer_norm_eps = 1e-6
    clip = build_clip(config).vision_model
    start_from_blip(clip, blip)
    clip.pre_layrnorm = torch.nn.Identity()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(embed_image(clip, pixels).hidden, blip.embeddings(pixels), atol=1e-5)
    wanted = blip(pixels).last_hidden_state
    found = clip.post_layernorm(clip(pixels).last_hidden_state)
    assert torch.allclose(found, wanted, atol=1e-4) and len(vision_blocks(blip)) == 1


def test_twins_read_two_equal_images_as_the_reader_that_they_copy_reads_one():
    config = blip_config(
        width=32, heads=2, vision_blocks=1, text_blocks=2, image_size=32, patch_size=8, vocabulary=60,
        bos_token_id=2, sep_token_id=3,
    )  # fmt: skip
    reader, twins = build_blip_vqa(config), build_blip_reasoning(config)
    scramble(reader)
    start_from_reader(twins.text_encoder, reader.text_encoder)
    one, two = VqaNetwork(reader), ReasoningNetwork(twins)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 60, (2, 5), generator=generator)
    image = Tokens.from_hidden(torch.randn(2, 17, 32, generator=generator))
    wanted = one.encode_text(ids, None, Memory.project(image, one.text_blocks()))
    found = two.encode_text(ids, None, TwinMemory.project((image, image), two.text_blocks()))
    assert torch.allclose(found.tokens.hidden, wanted.tokens.hidden, atol=1e-5)
