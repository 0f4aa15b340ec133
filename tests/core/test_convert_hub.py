"""Directories as Hugging Face's hub has them: its released forms, without MADTP's files, load and serve."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from madtp_core.backbones import MODEL_CLASSES
from madtp_core.backbones.blip import blip_config, scramble
from madtp_core.backbones.clip import clip_config
from madtp_core.checkpoint import load_checkpoint, save_checkpoint
from madtp_core.config import PruningConfig
from madtp_core.errors import CheckpointError, ConfigError
from madtp_core.tasks import load_model
from madtp_core.tasks.caption import CaptionQuery
from madtp_core.tasks.ranking import RetrievalQuery
from madtp_core.tasks.reasoning import ReasoningQuery
from madtp_core.tasks.vqa import VqaQuery
from tests.core.released import VOCABULARY, Bomb, bert_tokenizer, clip_tokenizer

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
# What the hub's repositories of 2021 and 2022 say; BLIP's tokenizer there has neither [DEC] nor [ENC].
BLIP_PROCESSOR = {
    "do_normalize": True, "do_resize": True, "image_mean": MEAN, "image_std": STD, "resample": 3,
    "image_processor_type": "BlipImageProcessor", "processor_class": "BlipProcessor", "size_divisor": 32,
    "size": {"height": 24, "width": 24},
}  # fmt: skip
CLIP_PROCESSOR = {
    "crop_size": 24, "do_center_crop": True, "do_normalize": True, "do_resize": True, "image_mean": MEAN,
    "image_std": STD, "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "size": 24,
}  # fmt: skip
OLD_PART = {
    "_name_or_path": "", "add_cross_attention": False, "architectures": None, "chunk_size_feed_forward": 0,
    "do_sample": False, "dropout": 0.0, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "max_length": 20,
    "initializer_factor": 1.0, "is_encoder_decoder": False, "num_beams": 1, "pruned_heads": {}, "top_k": 50,
    "tf_legacy_loss": False, "tie_encoder_decoder": False, "tie_word_embeddings": True, "torch_dtype": None,
    "torchscript": False, "transformers_version": "4.26.0.dev0", "use_bfloat16": False,
}  # fmt: skip
OLD_CONSTANTS = {
    "vqa": ("text_encoder.embeddings", "text_decoder.bert.embeddings"),
    "caption": ("text_decoder.bert.embeddings",),
    "retrieval": ("text_encoder.embeddings",),
    "reasoning": (),
    "clip": ("text_model.embeddings", "vision_model.embeddings"),
}
PIXELS = np.random.default_rng(0).standard_normal((2, 3, 24, 24), dtype=np.float32)
QUERIES = {
    "vqa": VqaQuery(PIXELS[0], "w1 w2 w3", max_new_tokens=2),
    "caption": CaptionQuery(PIXELS[0], "w1 w2", max_new_tokens=2),
    "retrieval": RetrievalQuery(PIXELS, ("w1 w2 w3",)),
    "reasoning": ReasoningQuery(PIXELS[0], PIXELS[1], "w1 w2 w3"),
    "clip": RetrievalQuery(PIXELS[:1], ("a b c", "c d e f")),
}


def tiny_config(task):
    if task == "clip":
        return clip_config(
            vision_width=32, vision_heads=2, vision_blocks=2, image_size=24, patch_size=8, text_width=24,
            text_heads=2, text_blocks=2, embedding_width=16, vocabulary=VOCABULARY, max_text_tokens=12,
            bos_token_id=VOCABULARY - 2, eos_token_id=VOCABULARY - 1,
        )  # fmt: skip
    return blip_config(
        width=32, heads=2, vision_blocks=2, text_blocks=2, image_size=24, patch_size=8, vocabulary=VOCABULARY,
        max_text_tokens=16, bos_token_id=VOCABULARY - 2, sep_token_id=3,
    )  # fmt: skip


def write_repository(task, directory):
    """A tiny model by Hugging Face, saved as the hub has such models."""
    model = MODEL_CLASSES[task](tiny_config(task)).eval()
    scramble(model, std=0.2)
    model.save_pretrained(directory)
    (clip_tokenizer() if task == "clip" else bert_tokenizer()).save_pretrained(directory)
    processor = CLIP_PROCESSOR if task == "clip" else BLIP_PROCESSOR
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


@pytest.fixture(scope="module", params=MODEL_CLASSES)
def repository(request, tmp_path_factory):
    """A task, its model, and its directory, which nothing may change."""
    directory = tmp_path_factory.mktemp(request.param) / "repository"
    return request.param, write_repository(request.param, directory), directory


@pytest.fixture
def copied(repository, tmp_path):
    """The same with a copy of the directory, to be changed."""
    task, model, directory = repository
    return task, model, shutil.copytree(directory, tmp_path / "copy")


@pytest.fixture
def captioner(tmp_path):
    """A model and its directory, where the task makes no difference."""
    return write_repository("caption", tmp_path / "captioner"), tmp_path / "captioner"


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def same_weights(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_there_and_back_is_bit_for_bit(repository, tmp_path):
    task, model, directory = repository
    save_checkpoint(load_checkpoint(directory), tmp_path / "ours")
    back, report = MODEL_CLASSES[task].from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    assert same_weights(back, model)
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (tmp_path / "ours", directory))
    for part in ("text_config", "vision_config"):
        ours[part].pop("dtype")  # which Hugging Face writes for what it has loaded
    assert ours == theirs


def test_without_mag_it_serves_dense(repository):
    task, _, directory = repository
    model = load_model(directory)
    assert (
        model.task == task and model.pruning is None and model.checkpoint.config.encoder_first_token == "cls"
    )
    answer = model.predict([QUERIES[task]], prune_temperature=0.0)[0]
    assert answer.spent.cost.flops_ratio == 1
    with pytest.raises(ConfigError, match="compress it with MADTP training"):
        model.predict([QUERIES[task]], prune_temperature=1.0)


def test_madtp_is_refused_without_mag(repository):
    _, _, directory = repository
    with pytest.raises(ConfigError, match=r"no alignment tokens.*MADTP training.*training-free"):
        load_model(directory, pruning=PruningConfig())


@pytest.mark.parametrize("keep_mode", ["max_keep", "per_instance"])
def test_a_training_free_method_prunes_it(repository, keep_mode):
    task, _, directory = repository
    branches = ("vision",) if task == "caption" else ("vision", "text")
    pruning = PruningConfig(method="evit", branches=branches, options={"flops_ratio": 0.8})
    answer = load_model(directory, pruning=pruning).predict(
        [QUERIES[task]], prune_temperature=1.0, keep_mode=keep_mode
    )[0]
    assert answer.spent.cost.flops_ratio < 1


def test_configurations_of_old_releases_are_read(copied):
    """Every default of the day written out, and what the program of today knows nothing of."""
    task, model, directory = copied

    def age(config):
        for part in ("text_config", "vision_config"):
            config[part] = {**OLD_PART, **config[part]}
            config[part].pop("dtype", None)
        config["vision_config"].update(layer_norm_eps=1e-05, num_channels=3)
        config.update(
            torch_dtype="float32", transformers_version=None, initializer_factor=1.0, _commit_hash=None
        )
        if task == "clip":
            config["text_config"].update(bos_token_id=0, eos_token_id=2)
            config["text_config_dict"], config["vision_config_dict"] = None, None

    edit_json(directory / "config.json", age)
    served = load_model(directory)
    assert same_weights(served.checkpoint.model, model)
    assert served.checkpoint.model.config.vision_config.layer_norm_eps == 1e-05  # the directory's word counts
    served.predict([QUERIES[task]], prune_temperature=0.0)


def test_constants_that_old_releases_stored_are_expected(copied):
    task, model, directory = copied
    weights = load_file(directory / "model.safetensors")
    weights |= {f"{owner}.position_ids": torch.arange(12)[None] for owner in OLD_CONSTANTS[task]}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    assert same_weights(load_checkpoint(directory).model, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_storage_is_served_in_float32(captioner, dtype):
    model, directory = captioner
    weights = {name: value.to(dtype) for name, value in load_file(directory / "model.safetensors").items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    edit_json(
        directory / "config.json", lambda config: config.update(dtype=str(dtype).removeprefix("torch."))
    )
    loaded = load_checkpoint(directory).model
    assert loaded.dtype == torch.float32
    name = "vision_model.post_layernorm.weight"
    assert torch.equal(loaded.state_dict()[name], model.state_dict()[name].to(dtype).float())


def test_shards_are_read(captioner):
    model, directory = captioner
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="40KB")
    assert (directory / "model.safetensors.index.json").exists()
    assert same_weights(load_checkpoint(directory).model, model)


def test_a_repository_that_has_only_a_pickle_is_read(copied):
    task, model, directory = copied
    (directory / "model.safetensors").unlink()
    old = {f"{owner}.position_ids": torch.arange(12)[None] for owner in OLD_CONSTANTS[task]}
    torch.save({**model.state_dict(), **old}, directory / "pytorch_model.bin")
    assert same_weights(load_checkpoint(directory).model, model)


@pytest.mark.parametrize("change", ["missing", "unexpected", "of another shape"])
def test_misfits_of_a_pickle_are_named(captioner, change):
    model, directory = captioner
    (directory / "model.safetensors").unlink()
    weights = dict(model.state_dict())
    name = "vision_model.post_layernorm.weight"
    if change == "unexpected":
        name = "vision_model.stray"
    if change == "missing":
        del weights[name]
    else:
        weights[name] = torch.zeros(3)
    torch.save(weights, directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=f"{change}: .*{name}"):
        load_checkpoint(directory)


def test_a_malicious_pickle_in_a_repository_is_not_executed(captioner, tmp_path):
    model, directory = captioner
    (directory / "model.safetensors").unlink()
    torch.save({**model.state_dict(), "bomb": Bomb(tmp_path / "executed")}, directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        load_checkpoint(directory)
    assert not (tmp_path / "executed").exists()


def test_a_repository_without_weights_says_what_it_lacks(captioner):
    _, directory = captioner
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_checkpoint(directory)


def test_todays_processor_file_is_read_too(copied):
    task, _, directory = copied
    before = load_checkpoint(directory).image_geometry
    processor = json.loads((directory / "preprocessor_config.json").read_text())
    (directory / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        load_checkpoint(directory)
    (directory / "processor_config.json").write_text(json.dumps({"image_processor": processor}))
    assert load_checkpoint(directory).image_geometry == before
    assert (before.height, before.width, before.shortest_edge) == (24, 24, 24 if task == "clip" else None)


def test_files_that_concern_nobody_are_left_alone(captioner):
    model, directory = captioner
    for name in ("README.md", "vocab.txt", "special_tokens_map.json", "tf_model.h5", "merges.txt"):
        if not (directory / name).exists():
            (directory / name).write_text("{}")
    assert same_weights(load_checkpoint(directory).model, model)
