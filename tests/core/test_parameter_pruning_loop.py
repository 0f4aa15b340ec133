"""Uneven blocks through our loop: tokens pruned as the reference does, and costs as fvcore counts them."""

import pytest
import torch

from madtp_core.backbones.blip import text_blocks, text_geometry, vision_blocks, vision_geometry
from madtp_core.backbones.nlvr import twin_text_blocks
from madtp_core.flops import BranchTrace, decoder_macs, greedy_passes, text_encoder_macs, vision_macs
from madtp_core.parameter_pruning.structures import every_component
from madtp_core.pruning import KEEP_MODES, TEXT, VISION
from madtp_core.tasks.clip_cost import ClipCostModel
from madtp_core.tasks.reasoning_cost import ReasoningCostModel
from madtp_core.tasks.vqa_cost import VqaCostModel
from madtp_core.tokens import Tokens
from tests.core import reference, tiny_clip
from tests.core.counting import counted
from tests.core.pruned_models import some_of_each
from tests.core.test_encoder import assert_equals_reference, madtp, unpadded
from tests.core.tiny_training import SIZE, TinyBatches
from tests.core.tiny_training import make_network as make_tiny

NOTHING = {VISION: None, TEXT: None}


def shrink(model):
    """Take heads and units out of a Hugging Face model, in place."""
    for component, kept in zip(every_component(model), some_of_each(model, seed=4), strict=True):
        component.keep(kept)
    return model


@pytest.fixture(scope="module")
def uneven(make_network):
    """The tiny network of four heads with parameters pruned, fewer heads in some blocks than in others."""
    network = make_network()
    shrink(network.blip)
    assert len({block.heads for block in vision_blocks(network.blip.vision_model)}) > 1
    return network


def read_by_its_own_heads(cross, x, memory, heads):
    return reference.read_image(cross, x, memory, cross.self.num_attention_heads)


@torch.no_grad()
@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_pruned_tokens_equal_the_reference(uneven, pixel_values, ragged_questions, keep_mode):
    token_ids, mask = ragged_questions
    seeing, asking = madtp(4.0, keep_mode), madtp(4.0, keep_mode)
    image = uneven.encode_image(pixel_values, seeing)
    images = reference.run_vision(
        uneven.blip.vision_model, uneven.alignment.tokens, pixel_values, 4.0, keep_mode
    )
    assert_equals_reference(image, seeing, images)
    question = uneven.encode_question(token_ids, mask, image, None, asking)
    memories = [instance.hidden for instance in images]
    texts = reference.run_text(
        uneven.blip.text_encoder, uneven.alignment.tokens, unpadded(token_ids, mask), memories, 4.0,
        keep_mode, read_by_its_own_heads,
    )  # fmt: skip
    assert_equals_reference(question, asking, texts)


@torch.no_grad()
def test_a_cached_answer_is_the_teacher_forced_one(uneven):
    decoder, token_ids = uneven.decoder(), torch.randint(3, 39, (2, 5))
    memory = decoder.remember(Tokens.from_hidden(torch.randn(2, 7, 32)))
    whole, _ = decoder.forward(token_ids, memory)
    cache, steps = None, []
    for step in token_ids.split(1, 1):
        logits, cache = decoder.forward(step, memory, cache)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-4, rtol=1e-4)


def dense(tokens, blocks=3):
    full = (tokens,) * blocks
    return BranchTrace(tokens, full, full, full)


def test_an_image_costs_what_fvcore_counts(uneven, pixel_values):
    tower = uneven.blip.vision_model
    geometry = vision_geometry(uneven.blip.config.vision_config, 40, 40, vision_blocks(tower))

    def run(pixels):
        return uneven.encode_image(pixels).tokens.hidden

    macs = vision_macs(geometry, dense(25))
    assert counted(uneven, run, pixel_values[:1]) == macs < vision_macs(geometry.whole(), dense(25))


def test_a_question_and_its_image_cost_what_fvcore_counts(uneven, pixel_values, questions):
    geometry = text_geometry(uneven.blip.config.text_config, text_blocks(uneven.blip.text_encoder))
    with torch.no_grad():
        image = uneven.encode_image(pixel_values[:1])

    def run(token_ids):
        return uneven.encode_question(token_ids, None, image).tokens.hidden

    macs = text_encoder_macs(geometry, dense(13), 26)
    assert counted(uneven, run, questions[0][:1]) == macs < text_encoder_macs(geometry.whole(), dense(13), 26)


def test_an_answer_costs_what_fvcore_counts(uneven):
    decoder = uneven.decoder()
    question = Tokens.from_hidden(torch.randn(1, 9, 32))
    geometry = VqaCostModel(uneven, 40, 40).decoder

    def run(token_ids):
        memory, cache, logits = decoder.remember(question), None, []
        for step in token_ids.split(1, 1):
            new, cache = decoder.forward(step, memory, cache)
            logits.append(new)
        return torch.cat(logits, 1)

    macs = decoder_macs(geometry, greedy_passes(4), 9)
    assert counted(uneven, run, torch.randint(3, 39, (1, 4))) == macs
    assert geometry != text_geometry(uneven.blip.config.text_config, text_blocks(uneven.blip.text_encoder))


def test_a_statement_costs_what_fvcore_counts():
    network = make_tiny("reasoning")
    shrink(network.blip)
    widths = [block.widths.cross for block in twin_text_blocks(network.blip.text_encoder)]
    assert len({width for pair in widths for width in pair}) > 1
    batch = TinyBatches("reasoning", 1)[0]
    costs = ReasoningCostModel(network, SIZE, SIZE)

    def run(pixels):
        images = network.encode_pairs(pixels)
        return network.classify(network.encode_statement(batch.token_ids, None, images))

    image, text = dense(9, 2), dense(batch.token_ids.shape[1] - 1, 2)
    traces = {VISION: (image, image), TEXT: (text,)}
    assert counted(network, run, batch.pixel_values) == costs.macs(traces, (), NOTHING)
    assert costs.macs(traces, (), NOTHING) < costs.dense_macs(traces, ())
    apart = 2 * costs.branch_macs(VISION, image, None) + costs.branch_macs(TEXT, text, None)
    assert apart < costs.macs(traces, (), NOTHING)


def test_a_pair_costs_what_fvcore_counts():
    network = tiny_clip.make_network()
    shrink(network.clip)
    costs = ClipCostModel(network, 40, 40)
    text = tiny_clip.texts((22,))
    pixels = torch.randn(1, 3, 40, 40)

    def run(images):
        return (
            network.image_embeddings(network.encode_image(images))
            @ network.text_embeddings(network.encode_text(text)).T
        )

    blocks = costs.vision.blocks, costs.text.blocks
    traces = {VISION: (dense(25, blocks[0]),), TEXT: (dense(21, blocks[1]),)}
    assert counted(network, run, pixels) == costs.macs(traces, (), NOTHING) < costs.dense_macs(traces, ())
