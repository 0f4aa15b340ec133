"""`madtp calibrate`: the search for temperatures, the ledger of an interrupted run, the command."""

import json
import math
from dataclasses import replace

import pytest

from madtp_core.calibration import NATURAL, Calibration, CalibrationRow
from madtp_core.cli import main
from madtp_core.config import PruningConfig
from madtp_core.errors import ConfigError
from madtp_core.evaluate import ShapesSamples, evaluate
from madtp_core.pruning import MAX_KEEP, PER_INSTANCE
from madtp_core.train import calibrate as calibration_module
from madtp_core.train.calibrate import calibrate, search
from madtp_core.train.ledger import LEDGER_NAME, Ledger
from tests.core.tiny_models import IMAGE_SIZE, TASKS, tiny_model

WANTED = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


class Plant:
    """A model's flops_ratio over T: falls with log T between two ends; remembers what was asked."""

    def __init__(self, low: float, high: float, middle: float = 1.0, slope: float = 0.2) -> None:
        self.low, self.high, self.middle, self.slope = low, high, middle, slope
        self.measured: dict[float, float] = {}

    def __call__(self, temperature: float) -> float:
        assert temperature not in self.measured, "measured twice"
        value = 0.5 - self.slope * math.log(temperature / self.middle)
        self.measured[temperature] = min(max(value, self.low), self.high)
        return self.measured[temperature]


@pytest.mark.parametrize("middle", [0.01, 1.0, 40.0])
@pytest.mark.parametrize("slope", [0.06, 0.2, 1.0])
def test_every_ratio_gets_a_point_near_it(middle, slope):
    plant = Plant(0.05, 0.98, middle, slope)
    search(plant, WANTED, start=1.0)
    for ratio in WANTED:
        assert min(abs(found - ratio) for found in plant.measured.values()) <= 0.012
    assert len(plant.measured) <= 24


def test_ratios_out_of_reach_cost_little_and_their_ends_are_found():
    plant = Plant(0.35, 0.55)
    search(plant, WANTED, start=1.0)
    assert min(plant.measured.values()) == 0.35 and max(plant.measured.values()) == 0.55
    assert len(plant.measured) <= 9


def test_a_plant_that_does_not_answer_ends_the_search():
    plant = Plant(0.7, 0.7)
    search(plant, WANTED, start=1.0)
    assert len(plant.measured) == 9


@pytest.fixture(scope="module")
def model(vqa_checkpoint):
    return tiny_model("vqa", vqa_checkpoint)


def samples(task="vqa", length=4, mix=NATURAL):
    return ShapesSamples(task, "validation", length, mix=mix, image_size=IMAGE_SIZE)


def test_rows_are_what_evaluation_measures(model):
    mixes = {NATURAL: samples(), "hard": samples(mix="hard")}
    table = calibrate(model, mixes, batch_sizes=(1, 2), wanted=(0.7,))
    assert {(row.keep_mode, row.batch_size, row.mix) for row in table.rows} == {
        (mode, size, mix) for mix in mixes for mode, size in [(MAX_KEEP, 1), (MAX_KEEP, 2), (PER_INSTANCE, 1)]
    }
    for row in table.rows[:: len(table.rows) // 4]:
        result = evaluate(
            model,
            mixes[row.mix],
            batch_size=row.batch_size,
            prune_temperature=row.prune_temperature,
            keep_mode=row.keep_mode,
        )
        assert (row.flops_ratio, row.accuracy, row.samples) == (result.flops_ratio(), result.mean(), 4)
    assert table.dense_accuracy == {mix: evaluate(model, each).mean() for mix, each in mixes.items()}
    assert all(row.prune_temperature > 0 for row in table.rows)


def test_a_batch_of_one_spends_alike_in_both_modes(model):
    table = calibrate(model, {NATURAL: samples()}, batch_sizes=(1,), wanted=(0.7,))
    modes = [
        {(row.prune_temperature, row.flops_ratio) for row in table.rows if row.keep_mode == mode}
        for mode in (MAX_KEEP, PER_INSTANCE)
    ]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_calibrated(vqa_checkpoint, task):
    table = calibrate(
        tiny_model(task, vqa_checkpoint),
        {NATURAL: samples(task, 2)},
        keep_modes=[PER_INSTANCE],
        wanted=(0.7,),
    )
    assert len(table.rows) >= 2 and all(row.accuracy is not None for row in table.rows)


def test_without_labels_accuracy_is_null(model):
    unlabelled = [replace(sample, truth=None) for sample in samples()]
    table = calibrate(model, {NATURAL: unlabelled}, keep_modes=[PER_INSTANCE], wanted=(0.7,))
    assert {row.accuracy for row in table.rows} == {None} and table.dense_accuracy == {}


def test_a_method_without_a_temperature_is_refused(model):
    pruning = PruningConfig("tome", options={"flops_ratio": 0.5})
    config = replace(model.checkpoint.config, pruning=pruning)
    static = type(model)(replace(model.checkpoint, config=config))
    with pytest.raises(ConfigError, match="no prune temperature"):
        calibrate(static, {NATURAL: samples()})


# The ledger

ROW = CalibrationRow(MAX_KEEP, 4, 0.1 + 0.2, 0.5, None, 8, "hard")


def test_a_ledger_remembers_exactly(tmp_path):
    Ledger(tmp_path / "l", {"samples": {"hard": 8}}).add(ROW)
    again = Ledger(tmp_path / "l", {"samples": {"hard": 8}})
    assert again.rows == [ROW]
    assert again.find(MAX_KEEP, 4, "hard", 0.1 + 0.2) == ROW
    assert again.find(MAX_KEEP, 4, "hard", 0.3) is None and again.find(MAX_KEEP, 4, "easy", 0.1 + 0.2) is None


def test_a_torn_last_line_is_measured_again(tmp_path):
    path = tmp_path / "l"
    Ledger(path, {}).add(ROW)
    path.write_text(path.read_text() + '{"keep_mode": "max_k')
    again = Ledger(path, {})
    again.add(replace(ROW, batch_size=8))
    assert [row.batch_size for row in Ledger(path, {}).rows] == [4, 8]


def test_a_ledger_of_something_else_is_refused(tmp_path):
    Ledger(tmp_path / "l", {"weights": "a"}).add(ROW)
    with pytest.raises(ConfigError, match="another calibration"):
        Ledger(tmp_path / "l", {"weights": "b"})


# The command


@pytest.fixture
def stored(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(checkpoint, *options):
    small = ["--samples", "2", "--batch-sizes", "1", "2", "--ratios", "0.7"]
    return main(["calibrate", str(checkpoint), *small, *map(str, options)])


def test_the_command_stores_the_table_and_says_what_is_out_of_reach(stored, capsys):
    before = {path.name: path.read_bytes() for path in stored.iterdir()}
    assert run(stored, "--mixes", "natural", "easy", "--ratios", "0.01", "0.7") == 0
    table = Calibration.load(stored / "calibration.json")
    assert {row.mix for row in table.rows} == {"natural", "easy"}
    said = capsys.readouterr().out
    assert "natural max_keep x2: flops_ratio" in said and "out of reach: 0.01" in said
    assert not (stored / LEDGER_NAME).exists()
    assert {path.name: path.read_bytes() for path in stored.iterdir() if path.name in before} == before


def test_an_interrupted_run_goes_on_where_it_stopped(stored, monkeypatch, capsys):
    assert run(stored, "--mixes", "natural") == 0
    whole = (stored / "calibration.json").read_bytes()
    (stored / "calibration.json").unlink()
    runs = []

    def counted(*args, **options):
        if len(runs) == 5:
            raise KeyboardInterrupt
        runs.append(options)
        return evaluate(*args, **options)

    monkeypatch.setattr(calibration_module, "evaluate", counted)
    with pytest.raises(KeyboardInterrupt):
        run(stored, "--mixes", "natural")
    monkeypatch.setattr(calibration_module, "evaluate", evaluate)
    assert run(stored, "--mixes", "natural") == 0
    assert "after 5 rows" in capsys.readouterr().out
    assert (stored / "calibration.json").read_bytes() == whole


def test_a_user_calibrates_on_files_of_their_own(stored, tmp_path):
    from PIL import Image

    Image.new("RGB", (70, 50), "red").save(tmp_path / "a.png")
    line = json.dumps({"images": ["a.png"], "question": "what color is it?"})
    (tmp_path / "mine.jsonl").write_text(f"{line}\n{line}\n")
    assert run(stored, "--data", tmp_path / "mine.jsonl") == 0
    table = Calibration.load(stored / "calibration.json")
    assert {(row.mix, row.samples, row.accuracy) for row in table.rows} == {(NATURAL, 2, None)}
    assert run(stored, "--data", tmp_path / "mine.jsonl", "--mixes", "easy") == 2


def test_only_a_directory_is_calibrated(tmp_path, capsys):
    assert run(tmp_path / "nothing") == 2
    assert "stored with its checkpoint" in capsys.readouterr().err
