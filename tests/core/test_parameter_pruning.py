"""Heads and units taken out: what the smaller model computes, costs, stores, and refuses to load."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from madtp_core.checkpoint import load_checkpoint, save_checkpoint
from madtp_core.config import MadtpConfig, PruningConfig
from madtp_core.errors import CheckpointError, ConfigError
from madtp_core.evaluate import ShapesSamples, evaluate
from madtp_core.evaluate.run import predict
from madtp_core.parameter_pruning.geometry import BlockGeometry, ModelGeometry
from madtp_core.parameter_pruning.masks import Masks
from madtp_core.parameter_pruning.materialise import without_parameters
from madtp_core.parameter_pruning.structures import components_of, every_component, geometry_of
from madtp_core.pruning import KEEP_MODES, PER_INSTANCE
from madtp_core.sharing import OWN, WHOLE, share_weights
from madtp_core.tasks import load_model
from tests.core.pruned_models import masked, pruned, pruned_model, some_of_each
from tests.core.tiny_models import IMAGE_SIZE, TASKS, tiny_model
from tests.core.tiny_training import NETWORKS, TinyBatches, make_network, make_task

MODES = ("dense", *KEEP_MODES)


def hugging_face(network):
    """The Hugging Face model of a network."""
    return network.clip if hasattr(network, "clip") else network.blip


def losses(task, network, mode):
    """Every loss of one batch, and what its requests kept."""
    trained = make_task(task, 4, mode, ragged=True, network=network)
    trained.modules.eval()
    batch = TinyBatches(task, 4, ragged=True)[0]
    found = trained.losses(batch, trained._pruning(batch, 0), 0)
    return {name: part.item() for name, part in found.parts.items()}, found.requests


@pytest.fixture(scope="module", params=TASKS)
def model(request, vqa_checkpoint):
    """A tiny model of each task with parameters pruned."""
    return pruned_model(tiny_model(request.param, vqa_checkpoint))


@pytest.fixture(scope="module")
def stored(vqa_checkpoint, tmp_path_factory):
    """A pruned model for questions in a directory."""
    directory = tmp_path_factory.mktemp("stored") / "vqa"
    save_checkpoint(pruned(vqa_checkpoint), directory)
    return directory


# --- What it computes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", TASKS)
def test_masks_of_ones_change_nothing(task, mode):
    network = make_network(task)
    before = losses(task, network, mode)
    Masks(hugging_face(network))
    assert losses(task, network, mode) == before


@pytest.mark.parametrize("task", TASKS)
def test_a_masked_model_is_the_smaller_model(task):
    mode, network = "dense", make_network(task)
    whole, kept = hugging_face(network), some_of_each(hugging_face(network))
    smaller = deepcopy(whole)
    for component, indices in zip(every_component(smaller), kept, strict=True):
        component.keep(indices)
    before, _ = losses(task, network, mode)
    masked(whole, kept)
    ours, requests = losses(task, network, mode)
    wanted, same_requests = losses(task, NETWORKS[task](smaller, network.alignment), mode)
    assert wanted == pytest.approx(ours, abs=1e-5, rel=1e-5)
    assert requests == same_requests
    assert ours != pytest.approx(before, rel=1e-2)


def test_masks_leave_no_trace(vqa_checkpoint):
    network = make_network("vqa")
    before = losses("vqa", network, "dense")
    masks = masked(network.blip, some_of_each(network.blip))
    masks.remove()
    assert losses("vqa", network, "dense") == before


def test_answers_are_written_as_by_the_masked_model(vqa_checkpoint):
    model = tiny_model("vqa", replace(vqa_checkpoint, model=deepcopy(vqa_checkpoint.model)))
    kept = some_of_each(model.checkpoint.model)
    smaller = type(model)(without_parameters(model.checkpoint, kept))
    samples = ShapesSamples("vqa", "test", 4, 0, "natural", IMAGE_SIZE)
    batch = [samples[row] for row in range(4)]
    masked(model.checkpoint.model, kept)
    ours, wanted = (predict(one, batch, prune_temperature=0.0) for one in (smaller, model))
    assert [one.answer for one in ours] == [one.answer for one in wanted]
    assert [one.score for one in ours] == pytest.approx([one.score for one in wanted], abs=1e-4)


def test_blocks_are_uneven_and_none_is_empty(model):
    geometry = model.checkpoint.config.geometry
    blocks = [*geometry.vision, *geometry.text, *geometry.decoder]
    assert len({block.mlp_units for block in blocks}) > 2
    assert min(min(block.heads, block.mlp_units, *block.cross_heads) for block in blocks) == 1


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_tokens_are_pruned_on_top(model, keep_mode):
    samples = ShapesSamples(model.task, "test", 3, 0, "natural", IMAGE_SIZE)
    dense = evaluate(model, samples)
    result = evaluate(model, samples, prune_temperature=8.0, keep_mode=keep_mode)
    assert result.flops_ratio() < dense.flops_ratio() < 1
    assert result.token_density() < 1


def test_a_row_of_a_batch_costs_what_it_costs_alone(model):
    samples = ShapesSamples(model.task, "test", 3, 0, "natural", IMAGE_SIZE)
    options = {"prune_temperature": 1.0, "keep_mode": PER_INSTANCE}
    together = predict(model, [samples[row] for row in range(3)], **options)
    alone = [predict(model, [samples[row]], **options)[0] for row in range(3)]
    assert [one.spent.cost.flops for one in together] == [one.spent.cost.flops for one in alone]


# --- Where it is stored


def test_it_is_the_same_after_saving_and_loading(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    ours, theirs = model.network.state_dict(), loaded.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.checkpoint.config == model.checkpoint.config
    assert type(loaded.checkpoint.model) is type(model.checkpoint.model)
    assert geometry_of(loaded.checkpoint.model) == model.checkpoint.config.geometry


def test_it_can_be_pruned_again(stored, tmp_path):
    again = pruned(load_checkpoint(stored), seed=1)
    save_checkpoint(again, tmp_path / "again")
    assert load_checkpoint(tmp_path / "again").config.geometry == again.config.geometry
    assert sum(block.mlp_units for block in again.config.geometry.vision) < sum(
        block.mlp_units for block in load_checkpoint(stored).config.geometry.vision
    )


def test_a_shared_tower_stays_as_it_is(vqa_checkpoint, tmp_path):
    for name in ("first", "second"):
        save_checkpoint(vqa_checkpoint, tmp_path / name)
    share_weights([tmp_path / "first", tmp_path / "second"], tmp_path / "tower", "vision_model.")
    before = (tmp_path / "tower" / WHOLE).read_bytes()
    smaller = pruned(load_checkpoint(tmp_path / "first"))
    save_checkpoint(smaller, tmp_path / "first")
    assert (tmp_path / "tower" / WHOLE).read_bytes() == before
    assert not (tmp_path / "first" / OWN).exists()
    assert "vision_model.post_layernorm.weight" in load_file(tmp_path / "first" / WHOLE)
    assert load_checkpoint(tmp_path / "first").config.geometry == smaller.config.geometry
    assert load_checkpoint(tmp_path / "second").config.geometry is None


def test_pruned_towers_can_be_shared(stored, tmp_path):
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        shutil.copytree(stored, place)
    share_weights(places, tmp_path / "tower", "vision_model.")
    assert geometry_of(load_checkpoint(places[1]).model) == load_checkpoint(stored).config.geometry


def test_a_whole_models_file_does_not_speak_of_geometry(vqa_checkpoint):
    assert "geometry" not in vqa_checkpoint.config.to_dict()


def test_the_configuration_survives_json():
    blocks = BlockGeometry(2, 17, (1,)), BlockGeometry(1, 3, (2,))
    config = MadtpConfig(geometry=ModelGeometry(vision=(BlockGeometry(1, 5),), text=blocks, decoder=blocks))
    assert MadtpConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# --- What is refused


@pytest.mark.parametrize(
    ("geometry", "said"),
    [
        (7, "must be a mapping"),
        ({"vison": []}, "known: decoder, text, vision"),
        ({"vision": 3}, "must be a list"),
        ({"vision": [3]}, r"geometry.vision\[0\] must be a mapping"),
        ({"vision": [{"heads": 1}]}, "needs heads, mlp_units"),
        ({"vision": [{"heads": 1, "mlp_units": 2, "depth": 1}]}, "unknown key"),
        ({"vision": [{"heads": 0, "mlp_units": 2}]}, ">= 1, got 0"),
        ({"vision": [{"heads": True, "mlp_units": 2}]}, "got True"),
        ({"vision": [{"heads": 1.0, "mlp_units": 2}]}, "got 1.0"),
        ({"vision": [{"heads": "1", "mlp_units": 2}]}, "got '1'"),
        ({"vision": [{"heads": 1, "mlp_units": -3}]}, "got -3"),
        ({"text": [{"heads": 1, "mlp_units": 2, "cross_heads": 2}]}, "a list cross_heads"),
        ({"text": [{"heads": 1, "mlp_units": 2, "cross_heads": [0]}]}, r"text\[0\].*got 0"),
    ],
)
def test_a_geometry_that_is_none_is_refused(geometry, said):
    with pytest.raises(ConfigError, match=said):
        MadtpConfig.from_dict(MadtpConfig().to_dict() | {"geometry": geometry})


def changed(stored, directory, change):
    """A copy of a checkpoint with a changed geometry in its madtp.json."""
    shutil.copytree(stored, directory)
    path = directory / "madtp.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda geometry: geometry["vision"][1].update(heads=10**12), r"vision\[1\].heads is 1000000000000"),
        (lambda geometry: geometry["text"][0].update(mlp_units=129), r"text\[0\].mlp_units is 129.*has 128"),
        (lambda geometry: geometry["decoder"].pop(), "geometry.decoder has 1 blocks"),
        (lambda geometry: geometry.pop("text"), "geometry.text has 0 blocks"),
        (lambda geometry: geometry["decoder"][0].update(cross_heads=[]), r"decoder\[0\] reads 1 memories"),
        (lambda geometry: geometry["vision"][0].update(cross_heads=[1]), r"vision\[0\] reads 0 memories"),
    ],
)
def test_a_geometry_of_another_model_is_refused(stored, tmp_path, change, said):
    directory = changed(stored, tmp_path / "bad", lambda config: change(config["geometry"]))
    with pytest.raises(ConfigError, match=said):
        load_checkpoint(directory)


def test_weights_of_another_geometry_are_named(stored, tmp_path):
    directory = changed(
        stored, tmp_path / "bad", lambda config: config["geometry"]["vision"][0].update(mlp_units=1)
    )
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.fc1.*geometry in madtp.json is not that"):
        load_checkpoint(directory)


def test_weights_without_their_geometry_are_explained(stored, tmp_path):
    directory = changed(stored, tmp_path / "bad", lambda config: config.pop("geometry"))
    with pytest.raises(CheckpointError, match=r"of another shape.*the geometry in madtp\.json is missing"):
        load_checkpoint(directory)


# --- What it costs


def test_dense_costs_are_those_of_the_whole_model(vqa_checkpoint):
    whole = tiny_model("vqa", vqa_checkpoint)
    smaller = pruned_model(whole)
    samples = ShapesSamples("vqa", "test", 2, 0, "natural", IMAGE_SIZE)
    (spent,) = predict(smaller, [samples[0]], prune_temperature=0.0)
    traces, passes = spent.spent.traces, [(1, 1)]
    assert smaller.cost_model.dense_macs(traces, passes) == whole.cost_model.dense_macs(traces, passes)
    assert spent.spent.cost.flops_ratio < 1


def test_a_method_without_training_spends_a_share_of_the_whole(vqa_checkpoint):
    config = replace(vqa_checkpoint.config, pruning=PruningConfig("evit", options={"flops_ratio": 0.4}))
    model = tiny_model("vqa", vqa_checkpoint)
    model = pruned_model(type(model)(replace(vqa_checkpoint, config=config)), seed=3)
    samples = ShapesSamples("vqa", "test", 2, 0, "natural", IMAGE_SIZE)
    dense, spent = (evaluate(model, samples, prune_temperature=t).flops_ratio() for t in (0.0, 1.0))
    assert dense == pytest.approx(0.6, abs=0.25)
    assert spent == pytest.approx(0.4, abs=0.05)


def test_a_component_counts_its_parameters(model):
    before = sum(parameter.numel() for parameter in model.checkpoint.model.parameters())
    copy = deepcopy(model.checkpoint.model)
    gone = 0
    for blocks in components_of(copy).values():
        for block in blocks:
            for component in block:
                gone += (component.count - 1) * component.parameters_each
                component.keep([0])
    assert before - sum(parameter.numel() for parameter in copy.parameters()) == gone
