"""The paper's ablations: MADTP with some of its terms (Table 8), and in one branch only (Table 7)."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from madtp_core.attention import Signals
from madtp_core.checkpoint import Checkpoint
from madtp_core.config import PruningConfig
from madtp_core.encoder import Pruning
from madtp_core.errors import ConfigError
from madtp_core.pruning import MAX_KEEP, PER_INSTANCE, TEXT, VISION, Pruned, Pruner, PruneStep, build_pruner
from madtp_core.pruning.scores import TERMS
from madtp_core.tasks.vqa import BlipVqa, VqaQuery
from madtp_core.tasks.vqa_network import VqaNetwork
from madtp_core.tokens import Tokens
from tests.core import reference

TIE = 1e-5  # closer than this to the threshold or the cut, float32 and float64 may decide differently
ABLATIONS = [terms for count in (1, 2) for terms in combinations(TERMS, count)]


class Recording(Pruner):
    """MADTP with some terms, and the positions that each block left, row by row."""

    def __init__(self, terms: tuple[str, ...]) -> None:
        self.inner = build_pruner("madtp", terms=terms)
        self.needs = self.inner.needs
        self.positions: list[list[list[int]]] = []

    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        return self.inner.decide(tokens, signals, step)

    def __call__(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Pruned:
        pruned = super().__call__(tokens, signals, step)
        self.positions.append(pruned.tokens.position.tolist())
        return pruned


@torch.no_grad()
@pytest.mark.parametrize("terms", ABLATIONS, ids="+".join)
def test_every_ablation_equals_the_reference(
    network: VqaNetwork, pixel_values: Tensor, questions: tuple[Tensor, Tensor], terms: tuple[str, ...]
) -> None:
    assert network.alignment is not None
    alignment, blip = network.alignment.tokens, network.blip
    seeing, reading = (Pruning(Recording(terms), torch.full((3,), 8.0), MAX_KEEP) for _ in range(2))
    image = network.encode_image(pixel_values, seeing)
    question = network.encode_question(questions[0], None, image, None, reading)
    images = reference.run_vision(blip.vision_model, alignment, pixel_values, 8.0, MAX_KEEP, terms)
    memories = [instance.hidden for instance in images]
    texts = reference.run_text(
        blip.text_encoder, alignment, questions[0], memories, 8.0, MAX_KEEP, terms=terms
    )
    for encoded, pruning, instances in ((image, seeing, images), (question, reading, texts)):
        assert isinstance(pruning.pruner, Recording)
        assert min(instance.margin for instance in instances) > TIE
        for row, instance in enumerate(instances):
            assert [block[row] for block in pruning.pruner.positions] == instance.kept_positions
            assert encoded.needed[:, row].tolist() == instance.needed
            torch.testing.assert_close(
                encoded.tokens.hidden[row].double(), instance.hidden, atol=2e-5, rtol=0
            )
        assert (encoded.kept < encoded.tokens_in).any()


def test_each_ablation_prunes_otherwise(network: VqaNetwork, pixel_values: Tensor) -> None:
    with torch.no_grad():
        kept = {
            terms: network.encode_image(
                pixel_values, Pruning(build_pruner("madtp", terms=terms), torch.full((3,), 8.0), PER_INSTANCE)
            ).tokens.position.tolist()
            for terms in [*ABLATIONS, TERMS]
        }
    assert len({str(positions) for positions in kept.values()}) == len(kept)


# --- Branches


def model_of(checkpoint: Checkpoint, **pruning: object) -> BlipVqa:
    config = replace(checkpoint.config, pruning=replace(checkpoint.config.pruning, **pruning))
    return BlipVqa(replace(checkpoint, config=config))


@pytest.mark.parametrize("keep_mode", [MAX_KEEP, PER_INSTANCE])
@pytest.mark.parametrize("branches", [(VISION,), (TEXT,), (VISION, TEXT)], ids="+".join)
def test_only_the_named_branches_are_pruned_paid_for_and_counted(
    vqa_checkpoint: Checkpoint, branches: tuple[str, ...], keep_mode: str
) -> None:
    model = model_of(vqa_checkpoint, branches=branches)
    image = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1)).numpy()
    query = VqaQuery(image, "how many red circles are left of the small blue square?")
    (answer,) = model.predict([query], prune_temperature=8.0, keep_mode=keep_mode)
    traces = {branch: answer.spent.traces[branch][0] for branch in (VISION, TEXT)}
    assert {branch for branch, trace in traces.items() if trace.token_density < 1} == set(branches)
    assert answer.spent.cost.flops_ratio < 1 or branches == (TEXT,)
    pruned = [traces[branch] for branch in branches]
    needed = sum(sum(trace.needed) for trace in pruned)
    assert answer.spent.difficulty == pytest.approx(
        needed / sum(trace.dense * len(trace.needed) for trace in pruned)
    )


def test_pruning_no_branch_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one branch"):
        PruningConfig(branches=())


def test_loading_refuses_a_target_out_of_reach(vqa_checkpoint: Checkpoint, tmp_path: Path) -> None:
    BlipVqa(vqa_checkpoint).save_pretrained(tmp_path)
    out_of_reach = PruningConfig(method="stp", options={"flops_ratio": 0.01})
    with pytest.raises(ConfigError, match="ask for a ratio from"):
        BlipVqa.from_pretrained(tmp_path, pruning=out_of_reach)


@pytest.mark.parametrize("name", ["static", "stp", "random", "topk", "spatial", "evit", "tome"])
def test_a_served_model_spends_the_target_of_any_static_method(vqa_checkpoint: Checkpoint, name: str) -> None:
    model = model_of(vqa_checkpoint, method=name, options={"flops_ratio": 0.7}, branches=(VISION,))
    image = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1)).numpy()
    (answer,) = model.predict([VqaQuery(image, "how many?")], prune_temperature=1.0)
    assert model._pruner is not None
    spent, dense = (
        model.cost_model.branch_macs(VISION, trace, scoring)
        for trace, scoring in (
            (answer.spent.traces[VISION][0], model._pruner.scoring(model.cost_model.alignment)),
            (answer.spent.traces[VISION][0].unpruned(), None),
        )
    )
    assert spent / dense == pytest.approx(0.7, abs=0.03)


def test_a_method_without_guidance_needs_no_alignment_tokens(vqa_checkpoint: Checkpoint) -> None:
    plain = replace(vqa_checkpoint, alignment=None, config=replace(vqa_checkpoint.config, alignment=None))
    model = model_of(plain, method="evit", options={"flops_ratio": 0.6})
    image = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1)).numpy()
    (answer,) = model.predict([VqaQuery(image, "how many?")], prune_temperature=1.0)
    assert answer.spent.cost.flops_ratio < 1
