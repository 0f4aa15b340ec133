"""The checkpoint directory: whole, readable by Hugging Face, and every misfit named."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, BlipForQuestionAnswering

from madtp_core.calibration import Calibration, CalibrationRow
from madtp_core.checkpoint import load_checkpoint, save_checkpoint
from madtp_core.errors import CheckpointError
from madtp_core.tasks.vqa import BlipVqa


@pytest.fixture
def saved(vqa_checkpoint, tmp_path):
    calibration = Calibration((CalibrationRow("max_keep", 1, 0.5, 0.7, None, 8),))
    save_checkpoint(replace(vqa_checkpoint, calibration=calibration), tmp_path / "model")
    return tmp_path / "model"


def test_everything_comes_back(vqa_checkpoint, saved):
    loaded = load_checkpoint(saved)
    assert loaded.config == vqa_checkpoint.config
    assert loaded.image_geometry == vqa_checkpoint.image_geometry
    assert loaded.calibration is not None and loaded.calibration.rows[0].prune_temperature == 0.5
    assert loaded.tokenizer.get_vocab() == vqa_checkpoint.tokenizer.get_vocab()
    for name, value in vqa_checkpoint.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert torch.equal(loaded.alignment.tokens, vqa_checkpoint.alignment.tokens)


def test_hugging_face_reads_its_own_part(vqa_checkpoint, saved):
    blip, report = BlipForQuestionAnswering.from_pretrained(saved, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert torch.equal(
        blip.vision_model.post_layernorm.weight, vqa_checkpoint.model.vision_model.post_layernorm.weight
    )
    assert AutoImageProcessor.from_pretrained(saved).size["height"] == vqa_checkpoint.image_geometry.height


def test_half_precision_storage_leaves_the_model_in_memory_alone(vqa_checkpoint, tmp_path):
    save_checkpoint(vqa_checkpoint, tmp_path / "half", torch.float16)
    assert vqa_checkpoint.model.dtype == torch.float32
    assert {value.dtype for value in load_file(tmp_path / "half" / "model.safetensors").values()} == {
        torch.float16
    }
    assert load_checkpoint(tmp_path / "half").model.dtype == torch.float32


def test_saving_over_a_directory_replaces_it(vqa_checkpoint, saved):
    (saved / "stale").write_text("old")
    save_checkpoint(vqa_checkpoint, saved)
    assert not (saved / "stale").exists() and (saved / "madtp.json").exists()
    assert [entry.name for entry in saved.parent.iterdir()] == ["model"]


def test_every_user_may_read_what_is_saved(saved):
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in saved.iterdir())


def test_a_plain_hugging_face_directory_is_dense(saved):
    for name in ("madtp.json", "mag.safetensors", "calibration.json"):
        (saved / name).unlink()
    model = BlipVqa.from_pretrained(saved)
    assert model.pruning is None and model.calibration is None
    assert model.codec.first_id is None


def edit_weights(path, change):
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


QKV = "vision_model.encoder.layers.0.self_attn.qkv.weight"


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("model.safetensors", lambda w: w.pop(QKV), QKV),
        ("model.safetensors", lambda w: w.update(stray=torch.zeros(1)), "stray"),
        ("model.safetensors", lambda w: w.update({QKV: torch.zeros(3, 3)}), QKV),
        ("mag.safetensors", lambda w: w.update(tokens=torch.zeros(2, 2)), "tokens"),
        ("mag.safetensors", lambda w: w.update(stray=torch.zeros(1)), "stray"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved, file, change, named):
    edit_weights(saved / file, change)
    with pytest.raises(CheckpointError, match=named.replace(".", r"\.")):
        load_checkpoint(saved)


def test_constants_that_older_releases_stored_are_expected(saved):
    old = "text_encoder.embeddings.position_ids"
    edit_weights(saved / "model.safetensors", lambda weights: weights.update({old: torch.arange(40)[None]}))
    assert load_checkpoint(saved).config.task == "vqa"


@pytest.mark.parametrize("file", ["mag.safetensors", "model.safetensors", "preprocessor_config.json"])
def test_a_missing_file_is_an_error(saved, file):
    (saved / file).unlink()
    with pytest.raises(CheckpointError):
        load_checkpoint(saved)


def test_mag_weights_without_their_geometry_are_an_error(saved):
    path = saved / "madtp.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "alignment": None, "pruning": None}))
    with pytest.raises(CheckpointError, match=r"mag\.safetensors"):
        load_checkpoint(saved)


@pytest.mark.parametrize("name", ["no-such/model", "/nowhere/at/all", "tests/mistyped"])
def test_a_name_that_leads_nowhere_is_an_error(name):
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(name)


def test_saving_in_another_dtype_rounds_nothing_in_memory(vqa_checkpoint, tmp_path):
    before = {name: value.clone() for name, value in vqa_checkpoint.model.state_dict().items()}
    save_checkpoint(vqa_checkpoint, tmp_path / "half", torch.float16)
    after = vqa_checkpoint.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_threads_load_at_the_same_time(vqa_checkpoint, tmp_path):
    """Transformers loads through state of the whole process; unlocked, tied weights go missing."""
    save_checkpoint(vqa_checkpoint, tmp_path / "saved")
    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(load_checkpoint, [tmp_path / "saved"] * 8))
    wanted = vqa_checkpoint.model.state_dict()
    for checkpoint in loaded:
        found = checkpoint.model.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in wanted.items())
