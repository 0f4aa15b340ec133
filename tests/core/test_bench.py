"""The encoder bench: schedules spend what they say, a toy run leaves every field. Nothing is timed."""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from madtp_core.bench import encoder, measure
from madtp_core.bench.mix import Mix
from madtp_core.bench.schedule import TOLERANCE, flops_ratio, geometric_schedule, scheduled_trace
from madtp_core.bench.table import render
from madtp_core.bench.tower import VisionTower, assert_kept
from madtp_core.errors import ConfigError
from madtp_core.flops import AlignmentGeometry, VisionGeometry, vision_macs
from madtp_core.pruning import MAX_KEEP, PER_INSTANCE, madtp, scores

BASE = VisionGeometry(width=768, mlp_width=3072, blocks=12, patch_size=16, image_height=384, image_width=384)
MAG = AlignmentGeometry(num_tokens=100, dim=768)
CPU = torch.device("cpu")


# --- Schedules


@pytest.mark.parametrize("target", [0.95, 0.7, 0.5, 0.3, 0.15])
@pytest.mark.parametrize("alignment", [MAG, None], ids=["mag", "no mag"])
def test_a_schedule_spends_its_share(target: float, alignment: AlignmentGeometry | None) -> None:
    kept = geometric_schedule(BASE, alignment, target)
    spent = vision_macs(BASE, scheduled_trace(BASE, kept), alignment)
    dense = vision_macs(BASE, scheduled_trace(BASE, None))
    assert spent / dense == pytest.approx(target, rel=TOLERANCE)
    assert len(kept) == 12
    assert list(kept) == sorted(kept, reverse=True)
    assert 1 <= kept[-1] <= kept[0] <= 576


def test_the_dense_trace_is_the_paper_s_tower() -> None:
    assert vision_macs(BASE, scheduled_trace(BASE, None)) / 1e9 == pytest.approx(55.539, abs=1e-3)


def test_a_ratio_out_of_reach_names_the_range() -> None:
    with pytest.raises(ConfigError, match=r"spends 0\.01 .* from 0\.05 to 1\.01"):
        geometric_schedule(BASE, MAG, 0.01)


@pytest.fixture(scope="module")
def tower() -> VisionTower:
    return VisionTower("tiny", CPU)


@torch.inference_mode()
@pytest.mark.parametrize("kept", [(48, 32, 20, 9), (63, 30, 30, 5), (62, 62, 1, 1)])
def test_a_scheduled_trace_is_what_a_forward_does(tower: VisionTower, kept: tuple[int, ...]) -> None:
    encoded = tower.pruned(tower.images(2, "fp32"), [kept])
    trace = scheduled_trace(tower.geometry, kept)
    assert_kept(encoded, [trace] * 2)
    assert encoded.tokens.width == trace.leaving()[-1] + 1


@torch.inference_mode()
def test_rows_keep_their_own_schedules_or_the_neediest_row_s(tower: VisionTower) -> None:
    pixel_values, schedules = tower.images(3, "fp32"), [(20, 15, 9, 5), (48, 40, 30, 20), (30, 15, 9, 5)]
    traces = [scheduled_trace(tower.geometry, kept) for kept in schedules]
    packed = tower.pruned(pixel_values, schedules, PER_INSTANCE)
    assert_kept(packed, traces)
    assert torch.equal(packed.needed, packed.kept)
    padded = tower.pruned(pixel_values, schedules, MAX_KEEP)
    assert_kept(padded, [traces[1]] * 3)
    assert torch.equal(padded.needed, packed.needed)


@torch.inference_mode()
def test_a_dense_forward_keeps_all(tower: VisionTower) -> None:
    assert_kept(tower.dense(tower.images(2, "fp32")), [scheduled_trace(tower.geometry, None)] * 2)


@torch.inference_mode()
def test_a_forward_that_keeps_something_else_is_noticed(tower: VisionTower) -> None:
    encoded = tower.pruned(tower.images(1, "fp32"), [(48, 32, 20, 9)])
    with pytest.raises(AssertionError):
        assert_kept(encoded, [scheduled_trace(tower.geometry, (48, 32, 20, 8))])


@pytest.mark.parametrize(("batch", "hard"), [(4, [2]), (8, [4]), (16, [4, 12]), (32, [5, 16, 26])])
def test_a_tenth_of_the_rows_is_hard(tower: VisionTower, batch: int, hard: list[int]) -> None:
    mix = Mix(hard_share=0.1, easy_ratio=0.4, hard_ratio=0.9)
    ratios = [
        flops_ratio(tower.geometry, scheduled_trace(tower.geometry, kept), tower.alignment_geometry)
        for kept in mix.schedules(tower, batch)
    ]
    assert [row for row, ratio in enumerate(ratios) if ratio > 0.6] == hard
    assert mix.hard_rows(batch) == len(hard)
    easy = [ratio for row, ratio in enumerate(ratios) if row not in hard]
    assert statistics.mean(easy) == pytest.approx(0.4, abs=0.02)
    assert max(easy) - min(easy) == pytest.approx(0.2 * (batch - 1) / batch, abs=1 / 32)


def test_a_ratio_counts_the_alignment_tokens() -> None:
    trace = scheduled_trace(BASE, None)
    assert flops_ratio(BASE, trace, None) == 1
    extra = 12 * 576 * (100 * 768 + 100)  # token attention and threshold
    assert flops_ratio(BASE, trace, MAG) == pytest.approx(1 + extra / vision_macs(BASE, trace))


@torch.inference_mode()
def test_every_pruned_block_pays_for_the_threshold(
    tower: VisionTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(importance: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(importance.shape))
        return scores.threshold(importance, *rest)

    monkeypatch.setattr(madtp, "threshold", spy)
    tower.pruned(tower.images(2, "fp32"), [(40, 30, 20, 10)])
    assert seen == [(2, 64), (2, 41), (2, 31), (2, 21)]


# --- Measuring


def test_steps_take_turns() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = measure.interleaved_seconds(steps, repeats=3, device=CPU, warm_ups=1)
    assert order == list("abc" * 4)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_peak_growth_sees_what_a_step_allocates_and_not_what_rests() -> None:
    resting = torch.ones(32 << 20, dtype=torch.uint8)
    grown = measure.peak_growth_bytes(lambda: torch.ones(64 << 20, dtype=torch.uint8), CPU)
    nothing = measure.peak_growth_bytes(lambda: None, CPU)
    assert grown is not None and nothing is not None
    assert 60 << 20 < grown < 90 << 20
    assert nothing < 8 << 20
    assert len(resting) == 32 << 20


def test_no_peak_where_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_PROC", tmp_path / "nothing")
    assert measure.peak_growth_bytes(lambda: None, CPU) is None


# --- The command


def parse(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    encoder.add_arguments(parser)
    return parser.parse_args(options)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What --out holds after a run at toy size."""
    out = tmp_path_factory.mktemp("bench") / "encoder.json"
    options = ["--geometry", "tiny", "--repeats", "2", "--ratios", "0.5", "--batch", "1", "2"]
    options += ["--mix-batch", "4", "--hard-share", "0.25"]
    assert encoder.run(parse(*options, "--out", str(out))) == 0
    loaded: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return loaded


def test_the_report_names_the_machine(report: dict[str, Any]) -> None:
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"]["threads"] == torch.get_num_threads()
    assert report["machine"]["device"] == "cpu" and report["machine"]["cpu"]
    assert "fixed schedule" in report["note"]


def test_the_report_has_every_variant_at_every_size(report: dict[str, Any]) -> None:
    variants = ["hf_eager", "dense_sdpa", "pruned_0.5"]
    expected = [(dtype, batch, name) for dtype in ("fp32", "bf16") for batch in (1, 2) for name in variants]
    assert [(run["dtype"], run["batch"], run["variant"]) for run in report["runs"]] == expected


def test_the_figures_of_a_run_belong_together(report: dict[str, Any]) -> None:
    dense = {(run["dtype"], run["batch"]): run for run in report["runs"] if run["variant"] == "dense_sdpa"}
    for run in report["runs"]:
        baseline = dense[run["dtype"], run["batch"]]
        assert run["speedup"] == pytest.approx(baseline["median_ms"] / run["median_ms"])
        assert 0 < run["fastest_ms"] <= run["median_ms"]
        assert run["flops_ratio"] == pytest.approx(run["gmacs"] / baseline["gmacs"])
        if run["target_ratio"] is None:
            assert run["flops_ratio"] == 1 and run["realised"] is None and run["kept"] is None
        else:
            assert run["flops_ratio"] == pytest.approx(run["target_ratio"], rel=TOLERANCE)
            assert run["realised"] == pytest.approx(run["speedup"] * run["flops_ratio"])
            assert len(run["kept"]) == report["geometry"]["blocks"]


def test_the_report_has_every_way_to_run_a_mix(report: dict[str, Any]) -> None:
    ways = ["dense_sdpa", "max_keep", "per_instance"]
    runs = report["mix"]["runs"]
    assert [(run["dtype"], run["variant"]) for run in runs] == [
        (d, w) for d in ("fp32", "bf16") for w in ways
    ]
    assert {(run["batch"], run["hard_rows"]) for run in runs} == {(4, 1)}


def test_the_figures_of_a_mix_belong_together(report: dict[str, Any]) -> None:
    for dense, padded, packed in zip(*[iter(report["mix"]["runs"])] * 3, strict=True):
        assert dense["needed_per_kept"] == packed["needed_per_kept"] == 1 > padded["needed_per_kept"]
        assert padded["flops_ratio"] == pytest.approx(0.9, abs=1 / 64)
        assert packed["flops_ratio"] == pytest.approx((3 * 0.4 + 0.9) / 4, abs=1 / 32)
        for run in (dense, padded, packed):
            assert run["speedup"] == pytest.approx(dense["median_ms"] / run["median_ms"])
            assert run["time_to_max_keep"] == pytest.approx(run["median_ms"] / padded["median_ms"])
            assert run["flops_to_max_keep"] == pytest.approx(run["gmacs"] / padded["gmacs"])
        assert packed["realised"] == pytest.approx(packed["speedup"] * packed["flops_ratio"])


def test_a_run_prints_tables_and_their_caveat(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--geometry", "tiny", "--repeats", "1", "--ratios", "0.5", "--batch", "1", "--dtype", "fp32"]
    encoder.run(parse(*options, "--mix-batch", "2"))
    printed = capsys.readouterr().out
    assert "fixed\nschedule of counts" in printed and "10% hard rows" in printed
    names = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")]
    assert [name for name in names if name != "variant" and set(name) != {"-"}] == [
        "hf_eager", "dense_sdpa", "pruned_0.5", "dense_sdpa", "max_keep", "per_instance",
    ]  # fmt: skip


@pytest.mark.parametrize(("section", "other"), [("ratios", "mix"), ("mix", "ratios")])
def test_a_section_can_run_alone(section: str, other: str) -> None:
    options = ["--geometry", "tiny", "--repeats", "1", "--ratios", "0.5", "--batch", "1", "--dtype", "fp32"]
    result = encoder.measure(parse(*options, "--mix-batch", "2", "--sections", section))
    runs = {"ratios": result["runs"], "mix": result["mix"]["runs"]}
    assert runs[section] and not runs[other]


@pytest.mark.parametrize(
    "options",
    [
        ["--repeats", "0"],
        ["--batch", "1", "0"],
        ["--mix-batch", "0"],
        ["--threads", "0"],
        ["--ratios", "2"],
        ["--hard-share", "1.5"],
        ["--easy-ratio", "0.95"],
    ],
)
def test_an_impossible_argument_is_refused(options: list[str]) -> None:
    with pytest.raises(ConfigError):
        encoder.run(parse("--geometry", "tiny", *options))


def test_render_aligns_columns_and_shows_none_as_a_dash() -> None:
    rows = [{"name": "a", "ms": 1.25, "more": 0}, {"name": "long", "ms": None, "more": 0}]
    assert render({"name": "{}", "ms": "{:.1f}"}, rows).splitlines() == [
        "| name |  ms |",
        "| ---- | --- |",
        "|    a | 1.2 |",
        "| long |   - |",
    ]
