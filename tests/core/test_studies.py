"""What studies measure: variants at equal cost, fine-tuned alike; batch sizes, orders, keep modes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from madtp_core.cli import main
from madtp_core.config import PruningConfig
from madtp_core.errors import ConfigError, UnknownNameError
from madtp_core.evaluate import ShapesSamples
from madtp_core.pruning.stp import StpPruner
from madtp_core.study import (
    BatchSizes,
    Bench,
    Budget,
    Cells,
    Comparison,
    FineTuning,
    KeepModes,
    Sorting,
    Variant,
    branch_variants,
    term_variants,
)
from madtp_core.study.bench import figures
from madtp_core.study.sorting import NEED, PREDICTED, ordered
from madtp_core.study.variant import Tuned
from madtp_core.tasks import load_model, model_class
from madtp_core.train.compress import CompressionRun, Data
from madtp_core.train.shapes_examples import ShapesExamples
from tests.core.tiny_models import IMAGE_SIZE, tiny_model

RATIO = 0.7
TINY = Budget(steps=2, batch_size=4, learning_rate=1e-3, alignment_tokens=5, dtype="fp32")


@pytest.fixture(scope="module")
def model(vqa_checkpoint):
    return tiny_model("vqa", vqa_checkpoint)


@pytest.fixture(scope="module")
def plain(model):
    """The same weights without alignment tokens or pruning."""
    config = replace(model.checkpoint.config, alignment=None, pruning=None)
    return model_class("vqa")(replace(model.checkpoint, alignment=None, config=config))


@pytest.fixture(scope="module")
def bench():
    drawn = ShapesSamples("vqa", "test", 6, image_size=IMAGE_SIZE)
    return Bench(drawn[:], drawn[:4], batch_size=4)


class Recorded:
    """Examples that remember who asked for them."""

    def __init__(self):
        self.examples, self.asked = ShapesExamples("vqa", 40, "train"), []

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.examples[index]


def fine_tuning(start, bench, directory, examples=None):
    data = Data(examples or ShapesExamples("vqa", 12, "train"), ShapesExamples("vqa", 2, "validation"), False)
    return FineTuning(start, data, TINY, bench, directory)


# Variants


def test_variants_have_names():
    assert Variant.named("stp:vision") == Variant("stp", ("vision",)) and Variant.named("tome") == Variant(
        "tome"
    )
    with pytest.raises(UnknownNameError, match="pruner 'stq'"):
        Variant.named("stq")
    with pytest.raises(UnknownNameError, match="branch 'image'"):
        Variant.named("stp:image")
    assert list(branch_variants(["stp"])) == [
        "stp, vision and language",
        "stp, language only",
        "stp, vision only",
    ]
    terms = term_variants()
    assert len(terms) == 7 and terms["S_self & S_cls"].options == {"terms": ["self", "cls"]}
    names = [variant.name for variant in (*terms.values(), *branch_variants(["stp"]).values())]
    assert len(set(names)) == 10 and all(name.replace("=", "_").isidentifier() for name in names)


def test_what_a_model_cannot_prune_is_refused(vqa_checkpoint, plain):
    with pytest.raises(ConfigError, match="caption prunes vision, not text"):
        Variant("stp", ("text",)).at(tiny_model("caption", vqa_checkpoint), 2.0)
    with pytest.raises(ConfigError, match="no alignment tokens"):
        Variant().at(plain, 1.0)


@pytest.mark.parametrize("name", ["madtp", "stp", "stp:vision", "evit:vision", "tome:vision", "random"])
def test_variants_are_searched_to_spend_the_same(model, bench, name):
    """Of the whole served request, though a static schedule knows the branches alone."""
    tuned = bench.tuned(model, Variant.named(name), RATIO)
    same = Bench(bench.search_samples, (), batch_size=4)
    assert same.measured(tuned)["flops_ratio"] == pytest.approx(RATIO, rel=0.03)
    assert tuned.setting != RATIO and model.pruning == PruningConfig(prune_temperature=1.0)


def test_what_is_out_of_reach_gives_the_nearest(model, bench):
    low = bench.measured(bench.tuned(model, Variant("tome", ("vision",)), 0.05))["flops_ratio"]
    assert 0.2 < low < RATIO
    dense = bench.measured(bench.tuned(model, Variant("none"), 0.05))
    assert dense["flops_ratio"] == 1.0 and dense["setting"] == 0.0


def test_outcomes_stand_at_their_samples_in_whatever_order():
    outlays = [SimpleNamespace(flops=4), SimpleNamespace(flops=8), SimpleNamespace(flops=0)]
    asked = SimpleNamespace(
        measure="cider",
        outcomes={"cider": (0.3, 0.0, 1 / 6), "bleu": (0.0, 0.0, 0.0)},
        outlays=outlays,
        mean=lambda: 0.5,
        flops_ratio=lambda: 0.7,
        keep_efficiency=lambda: 0.9,
    )
    found = figures(asked, Tuned(None, 1.0, 0.25), [2, 0, 1])
    assert found["outcomes"] == [0, 0.1667, 0.3] and found["accuracy"] == 0.5
    assert found["multiply_adds"] == 2.0 and found["setting"] == 0.25  # an operation is two to a multiply-add
    unlabelled = SimpleNamespace(**{**vars(asked), "outcomes": {}, "mean": lambda: None})
    assert "outcomes" not in figures(unlabelled, Tuned(None, 1.0, 1.0), [2, 0, 1])


# Fine-tuning


def test_a_static_method_learns_with_its_pruning_in_the_forward(model, bench, tmp_path, monkeypatch):
    training, before = [], [p.clone() for p in model.network.parameters()]
    real = StpPruner.score

    def score(self, tokens, signals, step):
        if tokens.hidden.requires_grad:
            training.append(step.branch)
        return real(self, tokens, signals, step)

    monkeypatch.setattr(StpPruner, "score", score)
    trained = fine_tuning(model, bench, tmp_path).model(Variant("stp", ("vision",)), RATIO, seed=3)
    assert training == ["vision"] * (2 * TINY.steps)  # two blocks, none of the text
    assert (trained.pruning.method, trained.pruning.branches) == ("stp", ("vision",))
    moved = [
        not a.equal(b) for a, b in zip(trained.network.parameters(), model.network.parameters(), strict=False)
    ]
    assert any(moved) and all(a.equal(b) for a, b in zip(before, model.network.parameters(), strict=True))
    begun = json.loads((tmp_path / "stp_vision-max_keep-0.7-3" / "run.json").read_text())
    assert begun["alpha"] == 0 and begun["options"]["flops_ratio"] == trained.pruning.options["flops_ratio"]
    assert begun["options"]["flops_ratio"] != RATIO  # what gives it of the whole request


def test_all_variants_see_the_same_examples_in_a_seed(plain, bench, tmp_path, monkeypatch):
    settled(monkeypatch)
    seen = {}
    for number, (name, seed) in enumerate([("madtp", 0), ("tome:vision", 0), ("none", 0), ("none", 1)]):
        examples = Recorded()
        wanted = 1.0 if name == "none" else RATIO
        fine_tuning(plain, bench, tmp_path / str(number), examples).model(Variant.named(name), wanted, seed)
        seen[name, seed] = examples.asked
    assert len(seen["madtp", 0]) == TINY.steps * TINY.batch_size
    assert seen["madtp", 0] == seen["tome:vision", 0] == seen["none", 0] != seen["none", 1]


def test_a_model_without_alignment_tokens_gets_them_for_madtp(plain, bench, tmp_path):
    trained = fine_tuning(plain, bench, tmp_path).model(Variant(), RATIO, seed=0)
    assert trained.network.alignment.tokens.shape == (5, 32) and plain.checkpoint.alignment is None
    begun = json.loads((tmp_path / "madtp-max_keep-0.7-0" / "run.json").read_text())
    assert begun["alpha"] == TINY.alpha and begun["search"]["ramp"] == 0
    assert begun["search"]["first_temperature"] != 1.0  # searched on the starting model


def test_a_finished_run_is_not_trained_again(model, bench, tmp_path, monkeypatch):
    settled(monkeypatch)
    tuning = fine_tuning(model, bench, tmp_path)
    first = tuning.model(Variant("stp", ("vision",)), RATIO, seed=0)
    monkeypatch.setattr(CompressionRun, "train", lambda self: pytest.fail("trained again"))
    again = tuning.model(Variant("stp", ("vision",)), RATIO, seed=0)
    pairs = zip(first.network.parameters(), again.network.parameters(), strict=True)
    assert all(a.equal(b) for a, b in pairs)
    left = {path.name for path in (tmp_path / "stp_vision-max_keep-0.7-0").iterdir()}
    assert left == {"model", "run.json", "log.jsonl"}  # what a run needs to go on is gone


def test_a_run_that_stopped_goes_on_at_the_setting_it_began_with(model, bench, tmp_path, monkeypatch):
    settled(monkeypatch)
    tuning, variant = fine_tuning(model, bench, tmp_path), Variant()
    with monkeypatch.context() as patch:
        patch.setattr("madtp_core.train.compress.CompressionRun._evaluate", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tuning.model(variant, RATIO, seed=0)
    monkeypatch.setattr(Bench, "tuned", lambda *args, **options: pytest.fail("searched again"))
    assert tuning.model(variant, RATIO, seed=0).pruning.method == "madtp"


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="steps >= 1"):
        Budget(steps=0)


# Studies


def settled(monkeypatch):
    """Bench.tuned without its search, which has tests of its own."""

    def tuned(self, model, variant, flops_ratio, **options):
        return variant.at(model, 1.0 if variant.method in ("madtp", "none") else 1 / flops_ratio)

    monkeypatch.setattr(Bench, "tuned", tuned)


def test_a_comparison_measures_each_cell_that_differs(model, plain, bench, tmp_path, monkeypatch):
    settled(monkeypatch)
    variants = {name: Variant.named(name) for name in ("madtp", "stp:vision", "random:vision", "none")}
    cells = Cells(tmp_path, "methods")
    Comparison(variants, (0.7, 0.8), seeds=(0, 1)).measure(model, bench, cells)
    places = [(place["variant"], place["flops_ratio"], place["seed"]) for place, _ in cells.cells]
    assert len(places) == len(set(places)) == 1 + 2 + 2 + 4  # random alone differs from seed to seed
    draws = [found["setting"] for _, found in cells.of(variant="random:vision", flops_ratio=0.7)]
    assert len(draws) == 2 and ("madtp", 0.8, None) in places
    without = Cells(tmp_path / "plain", "methods")
    Comparison(variants, (0.7,), seeds=(0,)).measure(plain, bench, without)
    assert without.values("variant") == ["dense", "stp:vision", "random:vision"]


def test_a_comparison_fine_tunes_every_variant_in_every_seed(model, bench, tmp_path, monkeypatch):
    settled(monkeypatch)
    asked = []

    def trained(self, variant, flops_ratio, seed, keep_modes=("max_keep",)):
        asked.append((variant.method, flops_ratio, seed, keep_modes))
        return model

    monkeypatch.setattr(FineTuning, "model", trained)
    cells, tuning = Cells(tmp_path, "methods"), fine_tuning(model, bench, tmp_path)
    variants = {"madtp": Variant(), "none": Variant("none")}
    plan = Comparison(variants, (0.7,), (0, 1), "per_instance", is_free=False, fine_tuning=tuning)
    plan.measure(model, bench, cells)
    plan.measure(model, bench, cells)
    mode = ("per_instance",)
    assert asked == [(m, r, s, mode) for s in (0, 1) for m, r in (("madtp", 0.7), ("none", 1.0))]
    assert len(cells.cells) == 5


def test_one_temperature_drifts_with_the_batch_and_per_instance_does_not(model, bench, tmp_path, monkeypatch):
    def tuned(self, model, variant, flops_ratio, *, keep_mode, batch_size):
        return variant.at(model, float(batch_size))

    monkeypatch.setattr(Bench, "tuned", tuned)
    cells = Cells(tmp_path, "batch-size")
    BatchSizes(RATIO, reference=4, sizes=(1, 2, 4)).measure(model, bench, cells)
    one = {
        (place["keep_mode"], place["batch_size"]): found
        for place, found in cells.of(temperature="one temperature")
    }
    spent = [one["max_keep", size]["flops_ratio"] for size in (1, 2, 4)]
    assert spent[0] < spent[1] < spent[2]
    alone = [one["per_instance", size] for size in (1, 2, 4)]
    assert alone[0]["flops_ratio"] == alone[2]["flops_ratio"] == pytest.approx(spent[0], rel=1e-6)
    assert alone[0]["outcomes"] == alone[1]["outcomes"] == alone[2]["outcomes"]
    own = [place["batch_size"] for place, _ in cells.of(temperature="its own temperature")]
    assert {found["setting"] for found in one.values()} == {4.0}  # that of batches of 4
    assert [found["setting"] for _, found in cells.of(temperature="its own temperature")] == [1.0, 2.0]
    assert own == [1, 2] and not list(cells.of(temperature="the calibration's temperature"))


def test_the_calibrations_temperature_is_looked_up(model, bench, tmp_path, monkeypatch):
    from madtp_core.calibration import Calibration, CalibrationRow

    settled(monkeypatch)
    rows = [
        CalibrationRow("max_keep", size, t, r, 0.5, 9) for size in (1, 4) for t, r in ((1.0, 0.8), (4.0, 0.6))
    ]
    checkpoint = replace(model.checkpoint, calibration=Calibration(tuple(rows)))
    cells = Cells(tmp_path, "batch-size")
    BatchSizes(0.7, reference=4, sizes=(1,)).measure(model_class("vqa")(checkpoint), bench, cells)
    looked_up = [found["setting"] for _, found in cells.of(temperature="the calibration's temperature")]
    assert looked_up == [pytest.approx(2.0), pytest.approx(2.0)]


def test_orders_are_permutations_sorted_whole_or_in_windows():
    rng = np.random.default_rng(0)
    keys = {NEED: rng.random(50), PREDICTED: rng.random(50)}
    assert ordered("as they come", keys, 50, 2) == list(range(50))
    whole = ordered("sorted by need", keys, 50, 2)
    assert whole == np.argsort(keys[NEED]).tolist()
    assert ordered("sorted by predicted need", keys, 50, 2) == np.argsort(keys[PREDICTED]).tolist()
    rows = ordered("by predicted need, in windows", keys, 50, 2)
    assert sorted(rows) == list(range(50)) and rows != sorted(rows)
    assert [set(rows[start : start + 16]) for start in (0, 16, 32)] == [
        set(range(start, start + 16)) for start in (0, 16, 32)
    ]
    assert keys[PREDICTED][rows[48]] < keys[PREDICTED][rows[49]]  # what fills no window is sorted too


def test_sorting_by_need_spends_less_at_one_temperature(model, tmp_path, monkeypatch):
    settled(monkeypatch)
    samples = ShapesSamples("vqa", "test", 16, image_size=IMAGE_SIZE)[:]
    cells = Cells(tmp_path, "sorting")
    plan = Sorting(RATIO, reference=4, sizes=(1, 4))
    plan.measure(model, Bench(samples, (), batch_size=4), cells)
    found = {place["order"]: found for place, found in cells.of(batch_size=4) if "order" in place}
    assert found["sorted by need"]["flops_ratio"] < found["as they come"]["flops_ratio"]
    assert found["sorted by need"]["keep_efficiency"] > found["as they come"]["keep_efficiency"]
    assert len(found) == 5 and len(list(cells.of(batch_size=1))) == 2
    (needs,) = [found for _, found in cells.of(what="needs")]
    assert len(needs["need"]) == len(needs["predicted"]) == 16


def test_both_keep_modes_of_what_is_given_and_what_is_trained(model, bench, tmp_path, monkeypatch):
    settled(monkeypatch)
    asked = []
    monkeypatch.setattr(FineTuning, "model", lambda self, *args: asked.append(args[3]) or model)
    cells = Cells(tmp_path, "per-instance")
    KeepModes((RATIO,), (0,), fine_tuning(model, bench, tmp_path)).measure(model, bench, cells)
    assert cells.values("trained") == [
        "dense",
        "as given",
        "fine-tuned on max_keep",
        "fine-tuned on both in turn",
    ]
    assert asked == [("max_keep",)] * 2 + [("max_keep", "per_instance")] * 2
    ratios = {place["keep_mode"]: found["flops_ratio"] for place, found in cells.of(trained="as given")}
    assert ratios["per_instance"] < ratios["max_keep"]


# The commands


def test_a_command_goes_on_and_draws_again(model, tmp_path, monkeypatch, capsys):
    settled(monkeypatch)
    model.save_pretrained(tmp_path / "tiny")
    out = ["--out", str(tmp_path / "out"), "--samples", "3", "--search-samples", "2", "--batch-size", "2"]
    train = ["--steps", "1", "--train-batch-size", "2", "--runs", str(tmp_path / "runs"), "--seeds", "0"]
    what = ["--methods", "stp:vision", "--reductions", "0.3"]
    assert main(["study", "methods", str(tmp_path / "tiny"), *out, *train, *what]) == 0
    assert capsys.readouterr().out.count("flops_ratio 0.7, keep_mode") == 2
    assert main(["study", "methods", str(tmp_path / "tiny"), *out, *train, *what]) == 0
    assert "keep_mode" not in capsys.readouterr().out  # nothing was left to measure
    (tmp_path / "out" / "table.md").unlink()
    assert main(["study", "methods", "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "table.md").read_text()
    assert "steps 1, batch size 2" in text and "requests: 3" in text and "| 0.3 | stp:vision |" in text
    assert main(["study", "methods", str(tmp_path / "tiny"), *out[:2], "--samples", "4", *train, *what]) == 2
    assert "requests 3, not 4" in capsys.readouterr().err
    trained = load_model(tmp_path / "runs" / "methods" / "tiny" / "stp_vision-max_keep-0.7-0" / "model")
    assert trained.pruning.method == "stp"


def test_ones_own_requests_are_studied(model, tmp_path, monkeypatch):
    settled(monkeypatch)
    model.save_pretrained(tmp_path / "tiny")
    lines = []
    for number in range(4):
        Image.new("RGB", (20, 30), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append({"images": [f"{number}.png"], "question": "how many stars?", "truth": str(number)})
    data = tmp_path / "own.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    what = ["--data", str(data), "--samples", "3", "--methods", "stp", "--out", str(tmp_path / "out")]
    assert main(["study", "branches", str(tmp_path / "tiny"), *what]) == 0
    kept = json.loads((tmp_path / "out" / "data.json").read_text())
    assert kept["models"]["tiny"]["data"] == "manifest:own.jsonl" and kept["models"]["tiny"]["requests"] == 3
    assert {len(cell["found"]["outcomes"]) for cell in kept["cells"]} == {3}


@pytest.mark.parametrize("name", ["tis", "branches", "batch-size", "sorting", "per-instance"])
def test_every_study_has_a_command(model, tmp_path, monkeypatch, name, capsys):
    settled(monkeypatch)
    model.save_pretrained(tmp_path / "tiny")
    sizes = ["--batch-sizes", "1", "2"] if name in ("batch-size", "sorting") else []
    small = ["--out", str(tmp_path / "out"), "--samples", "6", "--search-samples", "2", "--batch-size", "2"]
    assert main(["study", name, str(tmp_path / "tiny"), *small, *sizes]) == 0
    assert str(tmp_path / "out" / "plot.png") in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "data.json").read_text())["study"] == name
