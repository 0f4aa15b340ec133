"""Weight files of others: the forms they come in, what is refused, and `madtp convert`."""

import json
import pickle
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from madtp_core.cli import main
from madtp_core.convert import convert_file
from madtp_core.errors import CheckpointError
from madtp_core.tasks.vqa import BlipVqa
from madtp_core.torchscript import read_torchscript
from madtp_core.weights import read_weights_file
from tests.core.released import HEADS, Bomb, bert_tokenizer, clip_tokenizer, scrambled


@pytest.fixture
def state():
    return scrambled("vqa").state_dict()


@pytest.fixture
def tokenizer(tmp_path):
    bert_tokenizer().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def saved(tmp_path, content, name="model.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def test_the_references_file_carries_its_temperature_over(state, tokenizer, tmp_path):
    path = saved(tmp_path, {"model": state, "epoch": 4, "temperature": 2.45})
    config = convert_file(path, "vqa", tokenizer, **HEADS).checkpoint.config
    assert config.pruning.prune_temperature == 2.45


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state}])
def test_bare_state_dicts_and_those_under_model_are_alike(wrap, state, tokenizer, tmp_path):
    checkpoint = convert_file(saved(tmp_path, wrap(state)), "vqa", tokenizer, **HEADS).checkpoint
    assert torch.equal(checkpoint.alignment.tokens, state["space_dict"])


def test_safetensors_are_read(state, tokenizer, tmp_path):
    tied = ("text_decoder.cls.predictions.decoder.weight", "text_decoder.cls.predictions.decoder.bias")
    kept = {name: value.contiguous() for name, value in state.items() if name not in tied}  # cannot share
    save_file(kept, tmp_path / "model.safetensors")
    checkpoint = convert_file(tmp_path / "model.safetensors", "vqa", tokenizer, **HEADS).checkpoint
    head = checkpoint.model.text_decoder.cls.predictions
    assert torch.equal(head.decoder.weight, state["text_decoder.bert.embeddings.word_embeddings.weight"])
    assert torch.equal(head.decoder.bias, state["text_decoder.cls.predictions.bias"])


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_malicious_pickle_is_refused_and_not_executed(is_zip, state, tokenizer, tmp_path):
    path, target = tmp_path / "model.pth", tmp_path / "executed"
    torch.save({"model": state, "extra": Bomb(target)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        convert_file(path, "vqa", tokenizer, **HEADS)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()  # so the bomb was live


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no weights at all"),
        lambda path: path.write_bytes(pickle.dumps([1, 2], protocol=2)[:-3]),
        lambda path: path.with_suffix(".safetensors").write_bytes(b"\xff" * 64),
        lambda path: zipfile.ZipFile(path, "w").writestr("archive/constants.pkl", b""),
        lambda path: torch.save([torch.zeros(1)], path),
        lambda path: torch.save({"model": {"step": 3}}, path),
        lambda path: torch.save({"model": {}, "temperature": "warm"}, path),
        lambda path: None,
    ],
    ids=["empty", "text", "cut", "safetensors", "torchscript", "list", "number", "temperature", "none"],
)
def test_files_that_hold_no_weights_are_refused(write, tokenizer, tmp_path):
    path = tmp_path / "model.pth"
    write(path)
    if (tmp_path / "model.safetensors").exists():
        path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match="model"):
        convert_file(path, "vqa", tokenizer)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A CLIP as OpenAI released it, a TorchScript archive in half precision, and its state dict."""
    original = scrambled("clip", sd=0, momentum=False)
    path = tmp_path_factory.mktemp("openai") / "clip.pt"
    inputs = (torch.zeros(1, 3, 24, 24), torch.ones(1, 4, dtype=torch.int64))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer: nothing is run from the archive
        torch.jit.trace(original, inputs, check_trace=False).half().save(path)
    return path, original.half().state_dict()


def test_a_torchscript_archive_is_read_without_torch_jit(archive, monkeypatch, tmp_path):
    path, state = archive
    monkeypatch.setattr(torch.jit, "load", None)
    read = read_torchscript(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], value) for name, value in state.items())
    clip_tokenizer().save_pretrained(tmp_path / "clip")
    model = convert_file(path, "clip", tmp_path / "clip", **HEADS).checkpoint.model
    assert torch.equal(model.visual_projection.weight, state["visual.proj"].float().T)


def test_a_forged_torchscript_archive_is_not_executed(tmp_path):
    path, target = tmp_path / "clip.pt", tmp_path / "executed"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clip/constants.pkl", b"")
        archive.writestr("clip/data.pkl", pickle.dumps(Bomb(target), protocol=2))
    with pytest.raises(CheckpointError, match="no weights need"):
        read_weights_file(path)
    assert not target.exists()


def options(path, tokenizer, out, *more, task="vqa"):
    named = {"task": task, "tokenizer": tokenizer, "out": out, "vision-heads": 3, "text-heads": 2}
    return ["convert", str(path), *(f"--{name}={value}" for name, value in named.items()), *more]


def test_the_command_writes_a_directory_and_accounts_for_every_tensor(state, tokenizer, tmp_path, capsys):
    path = saved(tmp_path, {"model": state, "temperature": 2.0})
    out = tmp_path / "out"
    assert main(options(path, tokenizer, out, "--dtype", "float16", "--image-size", "32")) == 0
    told = capsys.readouterr().out
    assert "converted 150 tensors: " in told and "visual_encoder (30)" in told
    assert "dropped 2 constants: text_decoder (1), text_encoder (1)" in told
    assert "alignment: 5 tokens of width 24, prune temperature 2" in told
    model = BlipVqa.from_pretrained(out)
    assert model.image_geometry.height == 32 and model.pruning.prune_temperature == 2.0
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"


def test_the_command_names_what_is_fresh(tokenizer, tmp_path, capsys):
    path = saved(tmp_path, scrambled("retrieval", sd=0).state_dict())
    assert main(options(path, tokenizer, tmp_path / "out", task="reasoning")) == 0
    told = capsys.readouterr().out
    assert "fresh 6 tensors, to be trained: " in told and "cls_head.2.bias" in told
    assert "dropped 91 momentum copies: " in told and "served dense" in told


def test_the_command_replaces_nothing_unasked_and_no_foreign_directory(state, tokenizer, tmp_path, capsys):
    path, out = saved(tmp_path, state), tmp_path / "out"
    assert main(options(path, tokenizer, out)) == 0
    assert main(options(path, tokenizer, out)) == 2
    assert "--force" in capsys.readouterr().err
    (out / "mine").write_text("")
    assert main(options(path, tokenizer, out, "--force")) == 0
    assert not (out / "mine").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text("")
    assert main(options(path, tokenizer, foreign, "--force")) == 2
    assert (foreign / "config.json").exists()


def test_the_command_tells_of_a_tokenizer_that_is_not_there(state, tmp_path, capsys):
    assert main(options(saved(tmp_path, state), tmp_path / "nowhere", tmp_path / "out")) == 2
    assert "tokenizer" in capsys.readouterr().err and not (tmp_path / "out").exists()
