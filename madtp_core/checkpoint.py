"""A checkpoint is a directory: Hugging Face's own files, and MADTP's beside them.

`config.json`, `model.safetensors`, tokenizer and `preprocessor_config.json` are what Hugging Face writes, so
that it can read the directory too, unless parameters were pruned: it knows no uneven blocks.
`mag.safetensors`, `madtp.json` and `calibration.json` are ours. A directory without ours is a plain BLIP or
CLIP, served dense, or with a training-free method.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer
from transformers.utils import logging as hf_logging
from transformers.utils.hub import cached_file

from madtp_core.alignment import Alignment
from madtp_core.backbones import MODEL_CLASSES
from madtp_core.calibration import Calibration
from madtp_core.config import AlignmentConfig, MadtpConfig
from madtp_core.errors import CheckpointError, ConfigError
from madtp_core.images import ImageGeometry, image_geometry_from_processor_config
from madtp_core.parameter_pruning.structures import sized
from madtp_core.pruning import TEXT, VISION
from madtp_core.weights import read_weights_file, tensors_of

MADTP_JSON, MAG_WEIGHTS, CALIBRATION = "madtp.json", "mag.safetensors", "calibration.json"
CONFIG_JSON = "config.json"
PROCESSOR_JSON, _PROCESSOR_PARTS_JSON = "preprocessor_config.json", "processor_config.json"
PICKLED_WEIGHTS = "pytorch_model.bin"
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_MAX_SHARD = "20GB"
_CLIP_POSITIONS = 77  # where a configuration is too old to say
_OLD_BUFFERS = ("embeddings.position_ids",)  # constants that older releases of BLIP stored


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything a task's model needs to run; alignment and calibration are None where there are none.

    model: the Hugging Face model of the task, which owns all weights but the alignment's.
    """

    model: Any
    tokenizer: Any
    image_geometry: ImageGeometry
    config: MadtpConfig
    alignment: Alignment | None = None
    calibration: Calibration | None = None


def build_alignment(config: AlignmentConfig, model_config: Any) -> Alignment:
    """Fresh alignment tokens for a BLIP or CLIP: a Linear a block in a branch whose width is not theirs.

    A CLIP has them in both branches whatever their widths, as the reference has.
    """
    parts = {VISION: model_config.vision_config, TEXT: model_config.text_config}
    widths = {branch: (part.hidden_size, part.num_hidden_layers) for branch, part in parts.items()}
    is_clip = model_config.model_type == "clip"
    return Alignment(config.num_tokens, config.dim, widths, maps_equal_widths=is_clip)


def save_checkpoint(checkpoint: Checkpoint, directory: Path, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint directory, whole or not at all; dtype converts the stored weights.

    An existing directory of that name is replaced only when everything has been written.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        target = Path(scratch) / directory.name
        _write(checkpoint, target, dtype)
        if directory.exists():
            shutil.rmtree(directory)
        target.rename(directory)


def _write(checkpoint: Checkpoint, target: Path, dtype: torch.dtype | None) -> None:
    stored = dtype or checkpoint.model.dtype
    with _stored_as(checkpoint.model, stored):
        checkpoint.model.save_pretrained(target, max_shard_size=_MAX_SHARD)
    checkpoint.tokenizer.save_pretrained(target)
    geometry = checkpoint.image_geometry
    _write_json(target / PROCESSOR_JSON, _processor_config(geometry))
    _write_json(target / MADTP_JSON, checkpoint.config.to_dict())
    if checkpoint.alignment is not None:
        weights = {
            name: value.to(stored).contiguous() for name, value in checkpoint.alignment.state_dict().items()
        }
        save_file(weights, target / MAG_WEIGHTS, metadata={"format": "pt"})
    if checkpoint.calibration is not None:
        checkpoint.calibration.save(target / CALIBRATION)
    for file in target.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, which a container's user could not read


@contextmanager
def _stored_as(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """The module in another dtype; afterwards it has its own values back, not rounded ones."""
    values = {tensor: tensor.data for tensor in (*module.parameters(), *module.buffers())}
    module.to(dtype)
    try:
        yield
    finally:
        for tensor, value in values.items():
            tensor.data = value


def load_checkpoint(name: str | Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Read a directory, or a repository of the Hugging Face hub by its id.

    Raises CheckpointError when it is not there, when weights are missing, unexpected or of another shape (all
    are named), or when MADTP's files contradict each other; ConfigError for a geometry that its model's
    configuration does not allow. Safetensors are preferred; a repository that has
    only `pytorch_model.bin`, as openai/clip-vit-large-patch14-336, is read without executing the pickle.
    """
    config = read_config(name)
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it would write into log lines
    try:
        with _LOADING:
            model, report = _load_sized(name, config, dtype)
        tokenizer = AutoTokenizer.from_pretrained(str(name))
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot load a model for {config.task!r} from {str(name)!r}: {error}"
        ) from error
    _check_complete(name, config, report)
    calibration = _find(name, CALIBRATION)
    return Checkpoint(
        model,
        tokenizer,
        image_geometry_from_processor_config(_read_processor_config(name)),
        config,
        _load_alignment(name, config, model.config, dtype),
        None if calibration is None else Calibration.load(calibration),
    )


# While it loads, transformers patches torch's initialisers and its own tying of weights for the whole
# process: two threads at once lose each other's tied weights.
_LOADING = threading.Lock()


def _load_sized(name: str | Path, config: MadtpConfig, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """As `_load_model`, into blocks of the size that madtp.json gives them where parameters were pruned."""
    model_class = MODEL_CLASSES[config.task]
    if config.geometry is None:
        return _load_model(name, model_class, dtype)
    model, report = _load_model(name, sized(model_class, config.geometry), dtype)
    model.__class__ = model_class
    return model, report


def _load_model(name: str | Path, model_class: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """Hugging Face's model and what it reports of missing, unexpected and misshapen weights."""
    options: dict[str, Any] = {
        "dtype": dtype,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # so that they are reported, for `_check_complete` to refuse
    }
    loaded: tuple[Any, dict[str, Any]]
    if any(_find(name, file) for file in _SAFETENSORS):
        loaded = model_class.from_pretrained(str(name), use_safetensors=True, **options)
        return loaded
    pickled = _find(name, PICKLED_WEIGHTS)
    if pickled is None:
        raise CheckpointError(f"{str(name)!r} has neither {_SAFETENSORS[0]} nor {PICKLED_WEIGHTS}")
    weights = tensors_of(read_weights_file(pickled), str(name))
    config = model_class.config_class.from_pretrained(str(name))
    loaded = model_class.from_pretrained(None, config=config, state_dict=weights, **options)
    return loaded


def read_config(name: str | Path) -> MadtpConfig:
    """The contents of madtp.json; without one, a dense model of the task that Hugging Face's file tells.

    Raises CheckpointError where the directory or repository cannot be read or its model is of no known task.
    """
    path = _find(name, MADTP_JSON)
    if path is None:
        theirs = _read_json(name, CONFIG_JSON)
        architectures = theirs.get("architectures") or ["none"]
        tasks = {model.__name__: task for task, model in MODEL_CLASSES.items()}
        if architectures[0] not in tasks:
            raise CheckpointError(f"{str(name)!r} holds a {architectures[0]}; known: {', '.join(tasks)}")
        if tasks[architectures[0]] == "clip":  # texts may be as long as its positions go
            longest = theirs.get("text_config", {}).get("max_position_embeddings", _CLIP_POSITIONS)
            return MadtpConfig(task="clip", max_text_tokens=longest)
        return MadtpConfig(task=tasks[architectures[0]])
    return MadtpConfig.from_dict(_read_json(name, MADTP_JSON))


def _read_json(name: str | Path, file: str) -> dict[str, Any]:
    path = _find(name, file)
    if path is None:
        raise CheckpointError(f"{str(name)!r} has no {file}")
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} of {str(name)!r} is not JSON: {error}") from error
    return data


def _read_processor_config(name: str | Path) -> dict[str, Any]:
    """How images are preprocessed: a file of its own, or a part of what today's processors save."""
    if _find(name, PROCESSOR_JSON) is not None:
        return _read_json(name, PROCESSOR_JSON)
    if _find(name, _PROCESSOR_PARTS_JSON) is not None:
        part = _read_json(name, _PROCESSOR_PARTS_JSON).get("image_processor")
        if isinstance(part, dict):
            return part
    raise CheckpointError(
        f"{str(name)!r} has no {PROCESSOR_JSON}; its image size and normalisation are unknown"
    )


def _load_alignment(
    name: str | Path, config: MadtpConfig, model_config: Any, dtype: torch.dtype
) -> Alignment | None:
    path = _find(name, MAG_WEIGHTS)
    if config.alignment is None:
        if path is not None:
            raise CheckpointError(
                f"{str(name)!r} has {MAG_WEIGHTS}, but {MADTP_JSON} gives no alignment geometry"
            )
        return None
    if path is None:
        raise CheckpointError(
            f"{str(name)!r}: {MADTP_JSON} names alignment tokens, but {MAG_WEIGHTS} is missing"
        )
    alignment = build_alignment(config.alignment, model_config)
    weights, wanted = load_file(path), alignment.state_dict()
    wrong = sorted(set(weights) ^ set(wanted)) + [
        f"{key} {tuple(weights[key].shape)}, wanted {tuple(wanted[key].shape)}"
        for key in sorted(set(weights) & set(wanted))
        if weights[key].shape != wanted[key].shape
    ]
    if wrong:
        raise CheckpointError(f"{MAG_WEIGHTS} of {str(name)!r} does not fit: {'; '.join(wrong)}")
    alignment.load_state_dict(weights)
    return alignment.to(dtype)


def _check_complete(name: str | Path, config: MadtpConfig, report: dict[str, Any]) -> None:
    report = dict(report)
    report["unexpected_keys"] = [key for key in report["unexpected_keys"] if not key.endswith(_OLD_BUFFERS)]
    parts = [
        f"{label}: {', '.join(str(key) for key in sorted(report[field], key=str))}"
        for label, field in (
            ("missing", "missing_keys"),
            ("unexpected", "unexpected_keys"),
            ("of another shape", "mismatched_keys"),
        )
        if report.get(field)
    ]
    if not parts:
        return
    hint = ""
    if report.get("mismatched_keys"):
        given = "is not that of these weights" if config.geometry else "is missing"
        hint = f". If parameters were pruned from them, the geometry in {MADTP_JSON} {given}"
    raise CheckpointError(
        f"the weights of {str(name)!r} do not fit a {config.task!r} model; {'; '.join(parts)}{hint}"
    )


def _find(name: str | Path, file: str) -> Path | None:
    """A file of the directory, or of the hub's repository, of that name; None where there is none."""
    directory = Path(name)
    if directory.is_dir():
        path = directory / file
        return path if path.is_file() else None
    if directory.is_absolute() or len(directory.parts) != 2 or directory.parent.is_dir():
        raise CheckpointError(f"there is no directory {str(name)!r}, and it cannot be a hub id (owner/name)")
    try:
        found = cached_file(str(name), file, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise CheckpointError(f"{str(name)!r} is no directory, nor can the hub give it: {error}") from error
    return None if found is None else Path(found)


def _processor_config(geometry: ImageGeometry) -> dict[str, Any]:
    size = {"height": geometry.height, "width": geometry.width}
    form: dict[str, Any] = {"image_processor_type": "BlipImageProcessor", "size": size}
    if geometry.shortest_edge is not None:
        form = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": geometry.shortest_edge},
            "do_center_crop": True,
            "crop_size": size,
        }
    return form | {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": int(geometry.resample),
        "rescale_factor": geometry.rescale,
        "image_mean": list(geometry.mean),
        "image_std": list(geometry.std),
    }


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")
