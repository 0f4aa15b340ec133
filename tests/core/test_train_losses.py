"""What the compression of each task descends, against sums written out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from madtp_core.errors import ConfigError
from madtp_core.flops import greedy_passes
from madtp_core.paper import dense_trace, paper_rows
from madtp_core.served import reference_model, request_shape
from madtp_core.train.compress_vqa import weighted_answer_loss
from madtp_core.train.compression import served_ratio
from madtp_core.train.cost_basis import measure_of
from madtp_core.train.momentum import (
    NO_KEY,
    MomentumConfig,
    MomentumCopy,
    Queue,
    contrastive_loss,
    soft_targets,
)
from madtp_core.train.negatives import hard_pairs
from tests.core.tiny_training import NETWORKS, TinyBatches, make_network, make_task


def test_soft_targets_share_alike_among_a_pictures_candidates():
    logits = torch.tensor([[0.0, 0.0, 0.0, math.log(3.0)]])
    targets = soft_targets(torch.tensor([7]), torch.tensor([7, 8, 7, 9]), logits, 0.4)
    # softmax of the copy: 1/6, 1/6, 1/6, 1/2; its own picture stands first and third
    expected = [0.4 / 6 + 0.6 / 2, 0.4 / 6, 0.4 / 6 + 0.6 / 2, 0.4 / 2]
    assert targets[0].tolist() == pytest.approx(expected)


def test_contrastive_loss_is_a_cross_entropy_with_soft_targets():
    logits, targets = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    log_sum = math.log(math.e + math.e**2)
    expected = (0.25 * (log_sum - 1) + 0.75 * (log_sum - 2) + math.log(2)) / 2
    assert contrastive_loss(logits, targets).item() == pytest.approx(expected)


def test_soft_targets_are_ramped():
    config = MomentumConfig(soft_targets=0.4, soft_ramp_steps=4)
    assert [config.soft_share_at(step) for step in (0, 1, 4, 9)] == pytest.approx([0, 0.1, 0.4, 0.4])
    assert MomentumConfig(soft_targets=0.4).soft_share_at(0) == 0.4


def test_the_queue_rolls():
    queue = Queue(5, 2)

    def push(*keys):
        rows = torch.tensor([[float(key), 0.0] for key in keys])
        queue.push(rows, -rows, torch.tensor(keys))

    push(1, 2, 3)
    assert queue.keys.tolist() == [1, 2, 3, NO_KEY, NO_KEY]
    push(4, 5, 6)
    assert queue.keys.tolist() == [6, 2, 3, 4, 5]
    assert queue.images[:, 0].tolist() == [6, 2, 3, 4, 5]
    assert queue.texts[:, 0].tolist() == [-6, -2, -3, -4, -5]
    push(*range(10, 17))  # more than it holds: the last five stay
    assert sorted(queue.keys.tolist()) == [12, 13, 14, 15, 16]
    images, _, keys = queue.behind(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([9]))
    assert len(images) == 6 and keys[0] == 9


def test_an_empty_queue_compares_within_the_batch():
    queue = Queue(0, 2)
    queue.push(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([1]))
    assert len(queue.behind(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([1]))[0]) == 1


def test_the_copy_follows_and_shares_the_alignment_tokens():
    network = make_network("clip")
    copy = MomentumCopy(network, 0.9)
    assert copy.network.alignment.tokens is network.alignment.tokens
    before = network.clip.text_projection.weight.detach().clone()
    mapped = network.alignment.maps["vision"][0].weight.detach().clone()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    copy.follow(network)
    assert torch.allclose(copy.network.clip.text_projection.weight, before + 0.1, atol=1e-6)
    assert torch.allclose(copy.network.alignment.maps["vision"][0].weight, mapped + 0.1, atol=1e-6)
    assert not any(p.requires_grad for name, p in copy.named_parameters() if "alignment.tokens" not in name)


def test_hard_negatives_are_drawn_by_similarity_among_other_pictures():
    logits = torch.tensor([[9.0, 9.0, 0.0, math.log(3.0)]] + [[0.0] * 4] * 3)
    keys = torch.tensor([5, 5, 6, 7])  # rows 0 and 1 are of one picture
    generator = torch.Generator().manual_seed(0)
    drawn = [hard_pairs(logits, keys, generator) for _ in range(2000)]
    for pairs in drawn[:20]:
        assert pairs.labels.tolist() == [1] * 4 + [0] * 8
        assert pairs.images[:4].tolist() == pairs.texts[:4].tolist() == [0, 1, 2, 3]
        wrong = zip(pairs.images[4:].tolist(), pairs.texts[4:].tolist(), strict=True)
        assert all(keys[image] != keys[text] for image, text in wrong)
        assert pairs.texts[4:8].tolist() == pairs.images[8:].tolist() == [0, 1, 2, 3]
    of_first = [int(pairs.texts[8]) for pairs in drawn]  # of image 0: text 2 or 3, as 1 to 3
    assert set(of_first) == {2, 3}
    assert of_first.count(3) / len(of_first) == pytest.approx(0.75, abs=0.04)
    of_text = [int(pairs.images[4 + 2]) for pairs in drawn]
    assert [of_text.count(image) / len(of_text) for image in (0, 1, 3)] == pytest.approx(
        [1 / 3] * 3, abs=0.05
    )


def test_a_batch_of_one_picture_has_no_negatives():
    pairs = hard_pairs(torch.zeros(2, 2), torch.tensor([3, 3]), torch.Generator())
    assert pairs.labels.tolist() == [1, 1]


def test_pairs_are_matched_where_their_image_is():
    pairs = hard_pairs(torch.zeros(4, 4), torch.arange(4), torch.Generator().manual_seed(1))
    halves = pairs.of_images(0, 2), pairs.of_images(2, 4)
    assert sum(len(half.labels) for half in halves) == len(pairs.labels) == 12
    assert halves[1].images[:2].tolist() == [0, 1] and halves[1].texts[:2].tolist() == [2, 3]


def test_answers_weigh_as_they_are_given():
    """Computed again answer by answer, token by token."""
    network, batch = make_network("vqa").eval(), TinyBatches("vqa", 3, ragged=True)[0]
    with torch.no_grad():
        out = network(batch.pixel_values, batch.question_ids, batch.question_mask, batch.reader,
                      batch.answer_ids[::2])  # fmt: skip
        loss = weighted_answer_loss(network, out.text, batch)
        total = 0.0
        for answer, question in enumerate(batch.answer_reader.tolist()):
            ids = batch.answer_ids[answer][batch.answer_ids[answer] != -100]
            decoder = network.decoder()
            memory = decoder.remember(out.text.tokens.rows(torch.tensor([question])))
            log_probs = decoder.forward(ids[None, :-1], memory)[0][0].log_softmax(-1)
            said = -log_probs[torch.arange(len(ids) - 1), ids[1:]].sum()
            total += batch.answer_weights[answer] * said
    assert loss.item() == pytest.approx(total.item() / 3, rel=1e-4)


def test_a_prompt_is_read_and_not_learnt():
    """Another word in the prompt's place changes what is read, but no prompt word is a target."""
    task, batch = make_task("caption"), TinyBatches("caption", 2)[0]
    network, seen = task.network.eval(), []
    original = F.cross_entropy

    def spy(logits, target, **options):
        seen.append(target)
        return original(logits, target, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "cross_entropy", spy)
        network(batch.pixel_values, batch.caption_ids, 3, batch.reader)
    assert torch.equal(seen[0], batch.caption_ids[:, 3:])
    assert task.weight(batch) == (batch.caption_ids[:, 2:] != -100).sum()


@pytest.mark.parametrize("task", NETWORKS)
def test_the_loss_is_the_tasks_and_alpha_times_the_alignments(task):
    made = make_task(task, keep_mode="max_keep", alpha=0.25)
    made.modules.train()
    loss, figures = made.loss(TinyBatches(task, 4)[0], 0)
    parts = {name.split("_loss/")[0]: value for name, value in figures.items() if "_loss/" in name}
    assert ("alignment" in parts) is (task != "caption")
    assert ("momentum_alignment" in parts) is (task in ("retrieval", "clip"))
    expected = sum((0.25 if "alignment" in name else 1.0) * value for name, value in parts.items())
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert made.network.alignment.tokens.grad.abs().sum() > 0
    assert 0 < figures["flops_ratio/max_keep@0.6"] < 1.1


def test_the_momentum_copy_gets_no_gradient():
    made = make_task("retrieval")
    loss, _ = made.loss(TinyBatches("retrieval", 4)[0], 0)
    loss.backward()
    assert all(p.grad is None for name, p in made.copy.named_parameters() if "alignment.tokens" not in name)


def test_a_network_without_alignment_trains_dense():
    network = make_network("reasoning")
    network.alignment = None
    made = make_task("reasoning", network=network)
    made.costs = None
    loss, figures = made.loss(TinyBatches("reasoning", 2)[0], 0)
    assert set(figures) == {"answer_loss"} and made.prune_temperature == 0.0 and made.state() == {}
    loss.backward()


@pytest.mark.parametrize("task", NETWORKS)
def test_the_measured_average_moves_the_temperature(task):
    """Above its target the temperature rises, below it falls, by gain x the mean error."""
    made = make_task(task)
    state = made.costs.states["per_instance@0.6"]
    for step, ratio in enumerate((0.9, 0.5)):
        made._step = step
        made.after_step({"flops_ratio/per_instance@0.6": ratio})
        before, state = state, made.costs.states["per_instance@0.6"]
        target = 1 - (step + 1) / 2 * 0.4  # ramped over two steps
        mean = ratio if before.mean is None else 0.8 * before.mean + 0.2 * ratio
        assert state.mean == pytest.approx(mean)
        wanted = before.prune_temperature * math.exp(made.costs.gain * (mean - target))
        assert state.prune_temperature == pytest.approx(wanted)


@pytest.mark.parametrize("task", NETWORKS)
def test_both_bases_measure_what_was_kept(task):
    """Dense requests spend all of either; pruned ones less, and on the paper's basis another share."""
    made = make_task(task, keep_mode="max_keep")
    made.network.eval()
    batch = TinyBatches(task, 4)[0]
    paper = measure_of("paper", task)
    assert measure_of("served", task) is served_ratio
    with torch.no_grad():
        dense = made.losses(batch, None, 0).requests
        pruning = made._pruning(batch, 0)
        pruned = made.losses(batch, pruning, 0).requests
    assert served_ratio(made.cost_model, dense, None) == paper(made.cost_model, dense, None) == 1.0
    shares = served_ratio(made.cost_model, pruned, pruning), paper(made.cost_model, pruned, pruning)
    assert all(share < 1.1 for share in shares)
    assert (shares[0] == shares[1]) is (task == "reasoning")


def test_an_unknown_basis_is_refused():
    with pytest.raises(ConfigError, match="paper, served"):
        measure_of("wall", "vqa")


def test_requests_decode_as_many_steps_as_their_first_answer():
    made, batch = make_task("vqa"), TinyBatches("vqa", 3, ragged=True)[0]
    with torch.no_grad():
        requests = made.losses(batch, None, 0).requests
    assert [passes for _, passes in requests] == [greedy_passes(5), greedy_passes(4), greedy_passes(3)]


@pytest.mark.parametrize(
    ("row", "task"), list(enumerate(["reasoning", "caption", "vqa", "retrieval", "clip"]))
)
def test_the_papers_basis_is_the_papers_forward(row, task):
    """Dense, at its geometry, the sums of `madtp_core.paper`, which reproduce the printed figures."""
    model = reference_model(task)
    shape = request_shape(task)
    text = (dense_trace(shape.text_tokens - 1, model.text_geometry.blocks),)
    image = dense_trace(model.vision_geometry.patches, model.vision_geometry.blocks)
    traces = {"vision": (image,) * shape.images, "text": text, "match": text}
    if task == "caption":
        traces = {"vision": (image,)}
    forward = measure_of("paper", task).args[0]
    macs = forward(model.cost_model, traces, greedy_passes(shape.steps), {"vision": None, "text": None})
    assert macs == paper_rows()[row].macs
