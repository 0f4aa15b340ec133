"""What CLIP costs: fvcore's count of dense and pruned towers, of a whole query, and the paper's figure."""

import numpy as np
import pytest
import torch
from torch import Tensor

from madtp_core.backbones.blip import vision_geometry
from madtp_core.backbones.clip import clip_config, text_config, text_geometry, vision_config
from madtp_core.encoder import Encoded, Pruning
from madtp_core.flops import AlignmentGeometry, BranchTrace, clip_text_macs, clip_vision_macs, linear_macs
from madtp_core.pruning import MAX_KEEP, PER_INSTANCE, TEXT, VISION, build_pruner
from madtp_core.tasks.clip import ClipRetrieval
from madtp_core.tasks.clip_cost import ClipCostModel
from madtp_core.tasks.clip_network import ClipNetwork
from madtp_core.tasks.cost import Traces
from madtp_core.tasks.ranking import RetrievalQuery
from tests.core.counting import counted, traces_of, uncounted
from tests.core.tiny_clip import madtp, make_checkpoint, make_network, texts

ALIGNMENT = AlignmentGeometry(12, 32, vision_mapped=True, text_mapped=True)
EMBEDDING = 16


@pytest.fixture(scope="module")
def network() -> ClipNetwork:
    return make_network()


@pytest.fixture(scope="module")
def costs(network: ClipNetwork) -> ClipCostModel:
    return ClipCostModel(network, 40, 40)


def dense(tokens: int, blocks: int = 3) -> BranchTrace:
    full = (tokens,) * blocks
    return BranchTrace(tokens, full, full, full)


def test_both_branches_are_mapped(costs: ClipCostModel) -> None:
    assert costs.alignment == ALIGNMENT


def test_a_dense_query_counts_as_fvcore_does(costs: ClipCostModel) -> None:
    """Two images, three texts of 12 tokens, their comparison: the dense towers are Hugging Face's too."""
    network = make_network()
    network.clip.set_attn_implementation("eager")  # the counter sees no fused attention
    pixels, ids = torch.randn(2, 3, 40, 40), texts((12, 12, 12))

    def ours(images: Tensor, token_ids: Tensor) -> Tensor:
        image = network.image_embeddings(network.encode_image(images))
        return image @ network.text_embeddings(network.encode_text(token_ids)).T

    def theirs(images: Tensor, token_ids: Tensor) -> Tensor:
        vision, text = network.clip.vision_model(images), network.clip.text_model(token_ids)
        image, words = (tower.pooler_output for tower in (vision, text))
        return network.clip.visual_projection(image) @ network.clip.text_projection(words).T

    traces: Traces = {VISION: (dense(25),) * 2, TEXT: (dense(11),) * 3}
    expected = costs.macs(traces, (), {VISION: None, TEXT: None})
    assert counted(network, ours, pixels, ids) == expected
    final_norms_of_other_tokens = 5 * 24 * 11 * 3  # Hugging Face norms every token of a text
    assert counted(network, theirs, pixels, ids) == expected + final_norms_of_other_tokens


@pytest.mark.parametrize(("keep_mode", "rows"), [(MAX_KEEP, 3), (PER_INSTANCE, 1)])
@pytest.mark.parametrize("branch", [VISION, TEXT])
def test_a_pruned_tower_counts_as_fvcore_does(
    network: ClipNetwork, costs: ClipCostModel, branch: str, keep_mode: str, rows: int
) -> None:
    pruning = madtp(2.0, keep_mode, rows)
    left: list[Encoded] = []

    def run(inputs: Tensor) -> Tensor:
        is_image = branch == VISION
        left.append(
            network.encode_image(inputs, pruning) if is_image else network.encode_text(inputs, pruning)
        )
        embed = network.image_embeddings if is_image else network.text_embeddings
        return embed(left[-1])

    inputs = torch.randn(rows, 3, 40, 40) if branch == VISION else texts((20,) * rows)
    total = counted(network, run, inputs)
    width = costs.vision.width if branch == VISION else costs.text.width
    traces = traces_of(left[-1])
    assert all(max(trace.kept) < trace.dense for trace in traces)
    assert total == sum(
        costs.branch_macs(branch, trace, ALIGNMENT) + uncounted(trace, ALIGNMENT, width, is_mapped=True)
        for trace in traces
    )


def test_a_served_query_counts_its_traces() -> None:
    model = ClipRetrieval(make_checkpoint())
    pixels = np.random.default_rng(0).standard_normal((3, 3, 40, 40), dtype=np.float32)
    spent = model.predict([RetrievalQuery(pixels, ("a red star",))], prune_temperature=2.0)[0].spent
    network = ClipCostModel(model.network, 40, 40)
    images = sum(network.branch_macs(VISION, trace, ALIGNMENT) for trace in spent.traces[VISION])
    (text,) = spent.traces[TEXT]
    compared = linear_macs(EMBEDDING, 3)
    assert spent.cost.flops == 2 * (images + network.branch_macs(TEXT, text, ALIGNMENT) + compared)


def test_a_training_free_method_meets_its_target_in_both_towers() -> None:
    """The schedule is fitted to CLIP's own formulas, whatever the text's length."""
    geometry = ClipRetrieval(make_checkpoint())._pruning_geometry((VISION, TEXT))
    network = make_network()
    for keep_mode in (MAX_KEEP, PER_INSTANCE):
        pruner = build_pruner("evit", geometry=geometry, flops_ratio=0.6)
        pruning = Pruning(pruner, torch.ones(3), keep_mode)
        text = network.encode_text(texts((22, 22, 22)), pruning)
        image = network.encode_image(torch.randn(3, 3, 40, 40), pruning)
        for branch, encoded in ((VISION, image), (TEXT, text)):
            macs = geometry.branches[branch].macs
            trace = traces_of(encoded)[0]
            spent = macs(trace, pruner.scoring(ALIGNMENT)) / macs(trace.unpruned(), None)
            assert spent == pytest.approx(0.6, abs=0.05)


def test_the_papers_dense_total_and_its_parts() -> None:
    """ViT-L/14 at 336: model and momentum copy of both towers, and four similarities to a queue of 57,600."""
    config = clip_config()
    vision = vision_geometry(vision_config(config), 336, 336)
    text = text_geometry(text_config(config))
    image = clip_vision_macs(vision, dense(vision.patches, vision.blocks), 768) / 1e9
    words = clip_text_macs(text, dense(76, text.blocks), 768) / 1e9
    queue = 4 * linear_macs(768, 57_600) / 1e9
    assert (image, words, queue) == pytest.approx((191.105, 6.657, 0.177), abs=6e-4)
    assert 2 * image + 2 * words + queue == pytest.approx(395.70, abs=5e-3)
