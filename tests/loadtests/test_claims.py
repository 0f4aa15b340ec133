"""Every claim from end to end on a tiny model."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn

from loadtests.claims.bench import Bench, Plan
from loadtests.claims.claim import measure
from loadtests.claims.control import CONTROL
from loadtests.claims.keep_modes import KEEP_MODES
from loadtests.claims.keeping import KEEPING
from loadtests.claims.overhead import OVERHEAD, PICTURES
from loadtests.claims.overload import OVERLOAD
from loadtests.server import free_port, is_ready
from service.app import create_app
from service.settings import load_settings

if TYPE_CHECKING:
    from madtp_core.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def checkpoint(vqa_checkpoint: "Checkpoint", tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory of a tiny model with a calibration."""
    from tests.serving.tiny import make_models  # Hugging Face's models take a while to import

    directory = tmp_path_factory.mktemp("checkpoints") / "tiny-vqa"
    make_models(vqa_checkpoint)["vqa"].save_pretrained(directory)
    return str(directory)


@contextmanager
def in_thread(environment: Mapping[str, str]) -> Iterator[str]:
    """A service in this process: it starts in a tenth of the time of one in its own."""
    options = {name.removeprefix("MADTP_").lower(): value for name, value in environment.items()}
    settings = load_settings(env_file=None, **options | {"warm_up_s": 0})
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings), port=port, log_config=None, access_log=False)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    end_s = time.monotonic() + 30
    while not is_ready(url):
        assert time.monotonic() < end_s, "the service was not ready"
        time.sleep(0.01)
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def bench(checkpoint: str) -> Bench:
    return Bench(Plan.tiny(checkpoint), lambda text: None, in_thread)


def test_control_holds_every_cell_against_the_calibrated_setting(bench: Bench, tmp_path: Path) -> None:
    bench.plan = replace(bench.plan, batch_sizes=(2, 4))
    found = measure(CONTROL, bench, tmp_path)
    assert list(found) == [
        f"{mode}, 90:10, {size}" for mode in ("max_keep", "per_instance") for size in (2, 4)
    ]
    cell = found["max_keep, 90:10, 4"]
    assert cell["on"]["requests"] == cell["on_against_calibrated"]["samples"] == bench.plan.samples
    # All full, but for the first, which may find the engine idle, and the last.
    assert cell["on"]["batch_size"] in {(first**2 + 5 * 16 + (4 - first) ** 2) / 24 for first in range(4)}
    assert len(cell["on"]["windows"]) == 2  # of 24 requests the first 8 settle
    assert cell["calibration"]["mix"] == "natural"
    packed = [found[f"per_instance, 90:10, {size}"]["calibrated"] for size in bench.plan.batch_sizes]
    assert packed[0] == packed[1]
    assert len(CONTROL.judge(found, bench.plan)) == 2 * 3


def test_keeping_packs_to_one_and_compares_with_both_curves(bench: Bench, tmp_path: Path) -> None:
    bench.plan = replace(bench.plan, samples=80)  # enough for the predictor to say something
    found = measure(KEEPING, bench, tmp_path)
    assert found["packed"]["needed_per_kept"] == 1.0
    assert 0 < found["fifo"]["needed_per_kept"] < 1
    assert found["sorted"]["rank_correlation"] is not None
    for curve in ("simulated", "replayed"):
        assert found[curve]["fifo"] < found[curve]["perfect"]
    verdicts = KEEPING.judge(found, bench.plan)
    assert verdicts[-1].is_met
    assert len(verdicts) == 4


def test_overhead_measures_both_models_and_every_picture(bench: Bench, tmp_path: Path) -> None:
    found = measure(OVERHEAD, bench, tmp_path)
    for name in ("full size", "demo"):
        (one,) = found[name]["rounds"]
        assert one["service_per_s"] > 0
        assert one["alone_per_s"] > 0
        assert one["batch_size"] >= 1
    assert list(found["latency"]) == list(PICTURES)
    for one in found["latency"].values():
        assert 0 < one["engine_s"] < one["latency_s"]
    assert found["latency"]["640x480 png"]["body_bytes"] > found["latency"]["96x96 png"]["body_bytes"]


def test_overload_sheds_and_degrades_and_comes_back(bench: Bench, tmp_path: Path) -> None:
    found = measure(OVERLOAD, bench, tmp_path)["overload"]
    assert found["sent"] == found["answered"] + found["shed"] + found["failed"]
    assert found["images_decoded"] == found["answered"]
    assert found["shed_without_retry_after"] == 0
    assert found["failed"] == 0
    assert sum(found["seconds"]["answered"]) == found["answered"]
    assert len(OVERLOAD.judge({"overload": found}, bench.plan)) == 7


def test_keep_modes_are_compared_under_the_same_load(bench: Bench, tmp_path: Path) -> None:
    found = measure(KEEP_MODES, bench, tmp_path)
    configurations = found["compare"]["configurations"]
    assert list(configurations) == ["max_keep", "per_instance"]
    assert [one["by_rate"][0]["trials"] for one in configurations.values()] == [1, 1]
    (verdict,) = KEEP_MODES.judge(found, bench.plan)
    assert verdict.is_met is not None
