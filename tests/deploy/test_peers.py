"""Peers of a comparison: what they are told, what they answer, and that their BLIP is ours."""

import base64
import io
import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import loadtests.compare as compare_module
from loadtests.compare import Comparison, compare, read_comparison
from loadtests.peers import __main__ as command
from loadtests.peers.options import Peer
from loadtests.peers.wire import picture_bytes
from loadtests.requests import prepare_requests
from loadtests.scenario import Scenario

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "checkpoints" / "blip-vqa-shapes"
SCENARIO = {
    "name": "few",
    "description": "A test.",
    "arrivals": {"kind": "poisson", "rate": 1.0, "duration_s": 6.0},
    "distinct_requests": 4,
}


def test_the_committed_comparison_gives_peers_our_weights_threads_and_batches() -> None:
    comparison, _ = read_comparison(ROOT / "loadtests" / "comparisons" / "peers.yaml")
    assert {peer.framework for peer in comparison.peers.values()} == {"litserve", "ray"}
    for peer in comparison.peers.values():
        assert comparison.settings["MADTP_MODELS"] == f"blip-vqa-shapes={peer.checkpoint}"
        assert comparison.settings["MADTP_THREADS"] == str(peer.threads)
        assert (peer.max_batch_size, peer.batch_wait_s) == (32, 0.005)


def test_a_peer_and_a_configuration_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="a name of its own, got same"):
        Comparison.model_validate(
            {
                "name": "twice",
                "description": "",
                "scenario": "",
                "loads": [1.0],
                "configurations": {"same": {}},
                "peers": {"same": {"framework": "ray", "checkpoint": "somewhere"}},
            }
        )


def test_the_command_reads_back_what_a_peer_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer(framework="ray", checkpoint="somewhere", threads=3, max_batch_size=7, batch_wait_s=0.25)
    served: list[Any] = []
    stand_in = SimpleNamespace(serve=lambda *given: served.append(given))
    monkeypatch.setitem(sys.modules, "loadtests.peers.ray_blip", stand_in)
    assert command.main([*peer.flags(), "--port", "1234"]) == 0
    assert served == [(peer, 1234)]


def test_compare_loads_peers_as_further_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer(framework="litserve", checkpoint="somewhere")
    comparison = Comparison(
        name="both",
        description="",
        scenario="",
        loads=[1],
        rounds=1,
        configurations={"ours": {}},
        peers={"theirs": peer},
    )
    loaded = []

    def start(url: str) -> AbstractContextManager[str]:
        return nullcontext(url)

    def run_trial(target: Any, *_: Any, **__: Any) -> dict[str, Any]:
        loaded.append(target.url)
        return {"summary": None}

    monkeypatch.setattr(compare_module, "serving_peer", lambda given: start(f"peer {given.framework}"))
    monkeypatch.setattr(compare_module, "unloaded_median_s", lambda *_: 0.1)
    monkeypatch.setattr(compare_module, "run_trial", run_trial)
    monkeypatch.setattr(compare_module, "brief", lambda summary: "")
    kept: list[dict[str, Any]] = []
    scenario = Scenario.model_validate(SCENARIO)
    raw = compare(comparison, scenario, lambda text: None, lambda _: start("own"), kept.append)
    assert loaded == ["own", "peer litserve"]
    assert raw["configurations"]["theirs"]["settings"] == peer.settings()
    assert raw["scenario"]["name"] == "both"
    assert [one["configurations"] for one in kept] == [raw["configurations"]]


def test_wrong_options_of_a_peer_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["ray", "--checkpoint", "somewhere", "--threads", "0"])
    assert ended.value.code == 2
    assert "threads" in capsys.readouterr().err


@pytest.mark.slow
def test_their_blip_answers_a_batch_as_ours_does_unpruned() -> None:
    """The demo checkpoint through Hugging Face and through ours, with one question padded."""
    from loadtests.peers.blip import HuggingFaceBlip
    from madtp_core.tasks import load_model
    from service.preprocess import ImageLimits, prepare

    theirs = HuggingFaceBlip(str(CHECKPOINT), device="cpu", threads=1)
    ours: Any = load_model(CHECKPOINT)
    scenario = Scenario.model_validate(SCENARIO | {"encoding": "json"})
    bodies = [json.loads(request.body) for request in prepare_requests(scenario)]
    pictures = [picture_bytes(body["image"]) for body in bodies]
    questions = [body["question"] for body in bodies]
    found = theirs.answer(
        [theirs.prepare(image, text) for image, text in zip(pictures, questions, strict=True)]
    )
    queries = [
        prepare(
            "vqa",
            {"question": text, "num_beams": 1, "max_new_tokens": 20, "candidates": None},
            [("image", image)],
            [text],
            geometry=ours.image_geometry,
            image_tokens=1,
            limits=ImageLimits(10**7, 10**7),
            features="never",
            asked_s=0.0,
        ).query
        for image, text in zip(pictures, questions, strict=True)
    ]
    expected = [
        answer.answer for answer in ours.predict(queries, prune_temperature=0.0, keep_mode="max_keep")
    ]
    assert found == expected


def test_a_picture_comes_as_a_file_or_as_base64() -> None:
    assert picture_bytes(base64.b64encode(b"picture").decode()) == b"picture"
    assert picture_bytes(SimpleNamespace(file=io.BytesIO(b"picture"))) == b"picture"
