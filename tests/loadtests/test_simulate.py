"""The simulator: its parts against what is known of them, and short runs with the real batcher."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from loadtests.errors import LoadTestError
from loadtests.simulate.cli import main
from loadtests.simulate.costs import CostModel, Measured, fit_costs, read_costs
from loadtests.simulate.measure import SIZES
from loadtests.simulate.plant import Plant, SimulatedCalibration
from loadtests.simulate.result import Result, summarise
from loadtests.simulate.routing import ROUTINGS, make_routing
from loadtests.simulate.scenarios import SCENARIOS
from loadtests.simulate.setup import Setup, simulate
from loadtests.simulate.workload import MIXES, draw_needs, predict
from madtp_core.rank_correlation import spearman

if TYPE_CHECKING:
    from madtp_core.checkpoint import Checkpoint

COSTS = CostModel()
SHORT = Setup("short", duration_s=8.0)


def _result(setup: Setup) -> Result:
    workload = setup.workload(COSTS)
    return summarise(setup, workload, simulate(setup, workload, COSTS))


def test_a_fit_finds_the_costs_that_made_the_times() -> None:
    true = CostModel(0.01, 0.002, 3e-5)
    batches = [
        Measured(size, tokens, true.seconds(size, tokens))
        for size in (1, 2, 8, 32)
        for tokens in (100.0 * size, 400.0 * size)
    ]
    found = fit_costs(batches)
    assert (found.fixed_s, found.per_request_s, found.per_token_s) == pytest.approx((0.01, 0.002, 3e-5))


def test_a_fit_has_no_negative_term() -> None:
    batches = [Measured(size, 100.0 * size, 0.001 * size - 0.0002) for size in (1, 2, 8, 32)]
    found = fit_costs(batches)
    assert min(found.fixed_s, found.per_request_s, found.per_token_s) >= 0
    assert found.seconds(32, 3200.0) == pytest.approx(0.032, rel=0.15)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[[1, 2, 3]]",
        '{"tokens": 9, "batches": [[1, 2]]}',
        '{"tokens": 9, "batches": [[1, 2, 3]]}',
        '{"tokens": 9, "batches": [[1, 1, 0], [2, 2, 1], [3, 3, 1]]}',
        '{"batches": [[1, 1, 1], [2, 2, 1], [3, 3, 1]]}',
    ],
)
def test_measurements_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "batches.json").write_text(text)
    with pytest.raises(LoadTestError, match=r"wanted"):
        read_costs(tmp_path / "batches.json")


@pytest.mark.parametrize("wanted", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_a_prediction_has_the_rank_correlation_asked_for_and_the_needs_distribution(wanted: float) -> None:
    rng = np.random.default_rng(0)
    needs = draw_needs("uniform", 20_000, 1, 0.0, rng)[:, 0]
    predicted = predict(needs, wanted, rng)
    assert spearman(needs, predicted) == pytest.approx(wanted, abs=0.02)
    assert np.array_equal(np.sort(predicted), np.sort(needs))


def test_mixes_differ_as_their_names_say() -> None:
    rng = np.random.default_rng(0)
    means = {mix: draw_needs(mix, 4000, 6, 0.15, rng).mean() for mix in MIXES}
    assert means["easy"] < means["90:10"] < means["uniform"] < means["hard"]
    with pytest.raises(LoadTestError, match="known: uniform"):
        draw_needs("odd", 1, 1, 0.0, rng)


def test_a_max_keep_batch_pays_for_its_hardest_and_a_packed_one_for_each() -> None:
    needs = np.array([[0.2, 0.3], [0.6, 0.1]])
    padded = Plant(fixed_share=0.1, steepness=0.0).run(needs, [1.0, 1.0])
    assert padded.flops_ratios == pytest.approx([0.1 + 0.9 * 0.45] * 2)
    assert (padded.needed, padded.kept) == pytest.approx((1.2, 1.8))
    packed = Plant("per_instance", fixed_share=0.1, steepness=0.0).run(needs, [1.0, 0.0])
    assert packed.flops_ratios == pytest.approx([0.1 + 0.9 * 0.25, 1.0])
    assert packed.needed == packed.kept


@pytest.mark.parametrize("keep_mode", ["max_keep", "per_instance"])
def test_a_calibration_is_right_about_the_plant_it_was_made_on(keep_mode: str) -> None:
    rng = np.random.default_rng(0)
    needs = draw_needs("uniform", 2000, 6, 0.15, rng)
    plant = Plant(keep_mode)
    calibration = SimulatedCalibration(plant, needs, seed=1)
    for size, target in ((1, 0.3), (3, 0.35), (32, 0.4)):
        t = calibration.temperature_for(target, size, keep_mode)
        runs = [plant.run(needs[rng.integers(0, 2000, size)], [t] * size).flops_ratios for _ in range(300)]
        assert np.mean(runs) == pytest.approx(target, rel=0.05)


@pytest.mark.parametrize("name", ROUTINGS)
def test_a_routing_keeps_to_the_fleet_and_uses_all_of_it(name: str) -> None:
    rng = np.random.default_rng(0)
    sample = draw_needs("90:10", 1000, 1, 0.0, rng)[:, 0]
    routing, inside = make_routing(name, sample, 8, seed=0), np.zeros(8)
    for need in sample:
        inside[routing(float(need), inside)] += need
    assert inside.min() > 0.7 * inside.max()


def test_routing_by_difficulty_keeps_like_with_like() -> None:
    sample = draw_needs("uniform", 1000, 1, 0.0, np.random.default_rng(0))[:, 0]
    routing, inside = make_routing("difficulty", sample, 100, seed=0), np.zeros(100)
    easiest, hardest = routing(0.15, inside), routing(0.65, inside)
    assert (easiest < 13, hardest > 86) == (True, True)


def test_equal_seeds_give_equal_results_and_others_do_not() -> None:
    setup = replace(SHORT, duration_s=2.0)
    assert _result(setup) == _result(setup)
    assert _result(setup) != _result(replace(setup, seed=1))


def test_every_request_ends_in_one_way() -> None:
    setup = replace(SHORT, max_queue=64, deadline_s=0.3, load=3.0, order="fifo")
    workload = setup.workload(COSTS)
    run = simulate(setup, workload, COSTS)
    answered = int(np.isfinite(run.latency_s).sum())
    assert min(answered, len(run.shed), len(run.expired)) > 0
    unfinished = len(workload) - answered - len(run.shed) - len(run.expired)
    assert 0 <= unfinished <= 64 + 32
    assert sum(batch.size for batch in run.batches) == answered
    assert np.nanmax(run.latency_s) <= 0.3 + COSTS.seconds(32, 32 * 577.0)


def test_sorting_packs_better_than_first_in_first_out_and_packing_best() -> None:
    by_need = replace(SHORT, rank_correlation=0.9)
    fifo = replace(by_need, order="fifo")
    ways = fifo, by_need, replace(fifo, keep_mode="per_instance")
    as_they_come, alike, packed = (_result(way).needed_per_kept for way in ways)
    assert as_they_come + 0.1 < alike < packed == pytest.approx(1.0)


def test_one_layer_of_ninety_to_ten_follows_the_curve_of_the_design() -> None:
    """serving.md section 3, needed/kept by correlation; sorting here anchors on the oldest and packs more."""
    setup = replace(SHORT, blocks=1, duration_s=16.0, is_controlled=False)
    fifo = _result(replace(setup, order="fifo")).needed_per_kept
    found = [_result(replace(setup, rank_correlation=r)).needed_per_kept for r in (0.3, 0.6, 0.9, 1.0)]
    assert fifo == pytest.approx(0.51, abs=0.04)
    assert found == pytest.approx([0.54, 0.63, 0.80, 0.94], abs=0.05)


def test_control_holds_what_a_fixed_temperature_does_not() -> None:
    slow = replace(SHORT, load=0.5, duration_s=30.0)
    controlled, fixed = _result(slow), _result(replace(slow, is_controlled=False))
    assert controlled.off_rms is not None
    assert controlled.off_rms < 0.02
    assert fixed.off_rms is not None
    assert fixed.off_rms > 0.1


def test_an_overload_degrades_before_it_sheds_and_recovers() -> None:
    setup = replace(SHORT, profile=((0.2, 0.3), (0.4, 3.0), (0.4, 0.3)), floor=0.3, duration_s=30.0)
    workload = setup.workload(COSTS)
    run = simulate(setup, workload, COSTS)
    first_shed_s = workload.arrival_s[min(run.shed)]
    floor_s = next(batch.finished_s for batch in run.batches if batch.target == pytest.approx(0.3))
    assert floor_s < first_shed_s
    answered_s = (workload.arrival_s + run.latency_s)[workload.arrival_s < 18.0]
    drained_s = float(np.nanmax(answered_s))  # everyone of the overload has left
    recovered = {batch.target for batch in run.batches if batch.finished_s > drained_s + 5.0}
    assert recovered == {0.5}


def test_every_scenario_has_distinct_labels() -> None:
    for scenario in SCENARIOS.values():
        labels = [setup.label for setup in scenario.setups()]
        assert len(labels) == len(set(labels)) > 1


def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert main(["--scenario", "overload", "--duration", "4", "--out", str(out)]) == 0
    table = capsys.readouterr().out.splitlines()
    runs = json.loads(out.read_text())["runs"]
    assert [line.split("  ")[0] for line in table] == ["overload", *(run["setup"]["label"] for run in runs)]
    assert runs[0]["result"]["needed_per_kept"] > 0


def test_measured_costs_are_simulated_with(vqa_checkpoint: "Checkpoint", tmp_path: Path) -> None:
    from tests.serving.tiny import make_models  # Hugging Face's models take a while to import

    costs, out = tmp_path / "costs.json", tmp_path / "out.json"
    make_models(vqa_checkpoint)["vqa"].save_pretrained(tmp_path / "tiny-vqa")
    assert main(["--measure", str(tmp_path / "tiny-vqa"), "--out", str(costs)]) == 0
    found = read_costs(costs)
    assert {batch.size for batch in found.batches} == set(SIZES)
    arguments = ["--scenario", "overload", "--duration", "1", "--costs", str(costs), "--out", str(out)]
    assert main(arguments) == 0
    report = json.loads(out.read_text())
    assert report["costs"] == asdict(found.model)
    assert {run["setup"]["tokens"] for run in report["runs"]} == {found.tokens}


def test_costs_that_cannot_be_read_are_an_error_of_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--scenario", "overload", "--costs", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
