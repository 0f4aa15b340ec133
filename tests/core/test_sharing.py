"""Checkpoints that share a tower load as if each had its own."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import BlipForQuestionAnswering

from madtp_core.checkpoint import load_checkpoint, save_checkpoint
from madtp_core.errors import CheckpointError
from madtp_core.sharing import INDEX, share_weights


@pytest.fixture
def twins(vqa_checkpoint, tmp_path):
    directories = [tmp_path / "one", tmp_path / "two"]
    for directory in directories:
        save_checkpoint(replace(vqa_checkpoint, calibration=None), directory)
    return directories


def test_shared_checkpoints_load_whole_here_and_in_hugging_face(vqa_checkpoint, twins, tmp_path):
    share_weights(twins, tmp_path / "tower", "vision_model.")
    wanted = vqa_checkpoint.model.state_dict()
    for directory in twins:
        ours, theirs = load_checkpoint(directory).model, BlipForQuestionAnswering.from_pretrained(directory)
        for found in (ours.state_dict(), theirs.state_dict()):
            assert all(torch.equal(value, found[name]) for name, value in wanted.items())
        assert not (directory / "model.safetensors").exists()
    index = json.loads((twins[0] / INDEX).read_text())
    places = {index["weight_map"][name] for name in wanted if name.startswith("vision_model.")}
    assert places == {"../tower/model.safetensors"}


def test_a_shared_checkpoint_saves_whole_elsewhere(twins, tmp_path):
    share_weights(twins, tmp_path / "tower", "vision_model.")
    save_checkpoint(load_checkpoint(twins[0]), tmp_path / "apart" / "whole")
    shutil.rmtree(tmp_path / "tower")
    load_checkpoint(tmp_path / "apart" / "whole")
    with pytest.raises(CheckpointError):
        load_checkpoint(twins[0])


def test_different_towers_are_refused_and_left_alone(vqa_checkpoint, twins, tmp_path):
    other = load_checkpoint(twins[1])
    with torch.no_grad():
        other.model.vision_model.post_layernorm.bias += 1
    save_checkpoint(other, twins[1])
    with pytest.raises(CheckpointError, match=r"vision_model.post_layernorm.bias of two"):
        share_weights(twins, tmp_path / "tower", "vision_model.")
    assert (twins[0] / "model.safetensors").exists() and not (tmp_path / "tower").exists()


@pytest.mark.parametrize("prefix", ["vision_model.", "nothing."])
def test_what_cannot_be_shared_is_said(twins, tmp_path, prefix):
    if prefix == "vision_model.":
        share_weights(twins, tmp_path / "tower", prefix)
    with pytest.raises(CheckpointError, match="one"):
        share_weights(twins, tmp_path / "again", prefix)
