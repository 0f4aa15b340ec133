"""The cells of a study: kept one by one, shared between processes, told as tables and plots."""

import json

import pytest
from PIL import Image

from madtp_core.errors import ConfigError
from madtp_core.study import Cells, publish
from madtp_core.study.comparison_report import panels
from madtp_core.study.drawing import Curve, Panel, _draw, new_figure
from madtp_core.study.figures import difference, is_near, paired, ratio, with_spread


def place(number, **more):
    return {"model": "tiny", "number": number, **more}


def test_a_cell_is_measured_once_also_by_a_later_run(tmp_path):
    asked = []

    def measure():
        asked.append(1)
        return {"accuracy": 0.5, "outcomes": [1, 0]}

    first = Cells(tmp_path, "tis")
    assert [first.measured(place(0), measure) for _ in range(2)] == [
        {"accuracy": 0.5, "outcomes": [1, 0]}
    ] * 2
    assert Cells(tmp_path, "tis").measured(place(0), measure)["accuracy"] == 0.5 and len(asked) == 1


def test_a_run_that_dies_leaves_what_it_has_finished(tmp_path):
    cells = Cells(tmp_path, "tis")
    cells.measured(place(0), lambda: {"accuracy": 0.5})

    def dies():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cells.measured(place(1), dies)
    assert [found for _, found in Cells(tmp_path, "tis").cells] == [{"accuracy": 0.5}]


def test_two_runs_fill_one_file_and_take_in_each_others_cells(tmp_path):
    one, other = Cells(tmp_path, "tis"), Cells(tmp_path, "tis")
    one.begin("a", {"task": "vqa"})
    other.begin("b", {"task": "caption"})
    one.measured(place(0), lambda: {"accuracy": 0.0})
    other.measured(place(1), lambda: {"accuracy": 1.0})
    assert one.values("number") == [0] and other.values("number") == [0, 1]
    assert Cells(tmp_path, "tis").models == {"a": {"task": "vqa"}, "b": {"task": "caption"}}
    assert other.measured(place(0), lambda: pytest.fail("measured twice")) == {"accuracy": 0.0}

    def meanwhile():
        other.measured(place(2), lambda: {"accuracy": 0.25})
        return {"accuracy": 0.75}

    assert one.measured(place(2), meanwhile) == {"accuracy": 0.25}  # the first to finish counts
    assert Cells(tmp_path, "tis").values("number") == [0, 1, 2]


def test_a_study_does_not_go_on_with_other_values(tmp_path):
    Cells(tmp_path, "tis").begin("tiny", {"requests": 64, "keep": [1]})
    Cells(tmp_path, "tis").begin("tiny", {"requests": 64, "keep": (1,), "budget": 3})  # adds what is new
    with pytest.raises(ConfigError, match="requests 64, not 65"):
        Cells(tmp_path, "tis").begin("tiny", {"requests": 65})
    assert Cells(tmp_path, "tis").models["tiny"] == {"requests": 64, "keep": [1], "budget": 3}
    with pytest.raises(ConfigError, match="'tis', not 'branches'"):
        Cells(tmp_path, "branches")
    (tmp_path / "data.json").write_text('{"study": "tis"')
    with pytest.raises(ConfigError, match="holds no study"):
        Cells(tmp_path, "tis")


# Figures


def run(accuracy, flops_ratio=0.5, outcomes=None):
    return {"accuracy": accuracy, "flops_ratio": flops_ratio, "multiply_adds": 5e6, "keep_efficiency": 1.0,
            "setting": 1.0, **({} if outcomes is None else {"outcomes": outcomes})}  # fmt: skip


def test_differences_are_paired_over_the_mean_of_seeds():
    first, second = (
        [run(0.5, outcomes=[1, 1, 0, 0])],
        [run(0.75, outcomes=[1, 1, 1, 0]), run(1.0, outcomes=[1] * 4)],
    )
    pair = paired(first, second)
    assert (pair.first, pair.second, pair.difference) == (0.5, 0.875, 0.375)
    assert difference(first, second).startswith("+37.50 ± ") and difference(first, second).endswith(
        "(+25.0, +50.0)"
    )
    assert difference(second, first).startswith("-37.50")
    assert paired([run(None)], second) is None and difference([run(None)], second) == "–"


def test_spread_and_missed_targets_are_told():
    assert with_spread([run(0.5), run(0.7)]) == "60.00 ± 14.14" and with_spread([run(0.5)]) == "50.00"
    assert with_spread([run(None), run(None)]) == "–"
    assert ratio([run(0.5, 0.514)], 0.5) == "0.514" and ratio([run(0.5, 0.516)], 0.5) == "0.516 (!)"
    assert is_near(0.486, 0.5) and not is_near(0.484, 0.5)


# Tables and plots from cells alone


def table_rows(directory, heading=""):
    text = (directory / "table.md").read_text()
    lines = text[text.index(heading) :].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


def comparison(directory, study="methods", **about):
    cells = Cells(directory, study)
    cells.begin("tiny", {"task": "vqa", "measure": "accuracy", "batch_size": 16, **about})

    def add(variant, found, wanted=0.5, is_trained=True, seed=0, model="tiny"):
        at = {"model": model, "variant": variant, "flops_ratio": wanted, "keep_mode": "max_keep",
              "is_trained": is_trained, "seed": seed}  # fmt: skip
        cells.measured(at, lambda: found)

    add("dense", run(1.0, 1.0, [1, 1, 1, 1]), 1.0, False, None)
    return cells, add


def test_methods_are_compared_at_equal_cost_or_told_at_which(tmp_path):
    cells, add = comparison(tmp_path)
    add("stp", run(0.5, 0.49, [1, 1, 0, 0]))
    add("madtp", run(0.75, 0.5, [1, 1, 1, 0]))
    add("tome", run(0.75, 0.55, [1, 1, 1, 0]))
    add("madtp", run(0.5, 0.5, [1, 0, 1, 0]), is_trained=False, seed=None)
    publish(cells, tmp_path)
    trained = {row[1]: row for row in table_rows(tmp_path, "**Fine-tuned")[2:6]}
    assert trained["stp"][2:4] == ["50.00", "0.490"] and trained["stp"][6].startswith("+25.00 ± ")
    assert trained["madtp"][5].startswith("-25.00") and trained["madtp"][6] == "–"
    assert trained["tome"][3] == "0.550 (!)" and trained["tome"][6].endswith("at 0.91 x its cost")
    assert trained["dense"][4] == "5.0"
    assert "Training-free" in (tmp_path / "table.md").read_text()
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 500


def test_methods_stand_beside_madtp_on_their_branch_too(tmp_path):
    cells, add = comparison(tmp_path)
    add("madtp", run(0.25, 0.5, [1, 0, 0, 0]))
    add("tome:vision", run(0.5, 0.5, [1, 1, 0, 0]))
    add("madtp:vision", run(0.75, 0.5, [1, 1, 1, 0]))
    publish(cells, tmp_path)
    head, *rows = table_rows(tmp_path, "**Fine-tuned")
    leads = {row[1]: [told.split(" ")[0] for told in row[6:]] for row in rows[1:5]}
    assert head[6:] == ["madtp − it", "madtp:vision − it"]
    assert leads == {
        "dense": ["–", "–"],
        "madtp": ["–", "+50.00"],
        "tome:vision": ["-25.00", "+25.00"],
        "madtp:vision": ["-50.00", "–"],
    }


def test_a_method_looks_alike_in_all_models(tmp_path):
    cells, add = comparison(tmp_path)
    cells.begin("other", {"measure": "accuracy"})
    for model, order in {"tiny": ("madtp", "stp", "tome"), "other": ("tome", "madtp")}.items():
        for variant in order:
            add(variant, run(0.5), model=model)
    drawn = [{curve.label: curve.colour for curve in panel.curves} for panel in panels(cells)]
    assert drawn == [{"madtp": 0, "stp": 1, "tome": 2}, {"madtp": 0, "tome": 2}]
    publish(cells, tmp_path)
    assert [row[1] for row in table_rows(tmp_path, "### other")[2:]] == ["madtp", "tome"]


def test_costs_that_are_alike_look_alike():
    axes = new_figure(2, 2).subplots()
    _draw(axes, Panel("tiny", "x", "y", [Curve("a", [(0.499, 1), (0.5, 2)])], least_width=0.2))
    left, right = axes.get_xlim()
    assert right - left == pytest.approx(0.2) and (left + right) / 2 == pytest.approx(0.4995)


def test_branches_are_drawn_as_rows_without_labels_too(tmp_path):
    cells, add = comparison(tmp_path, "branches")
    add("madtp, vision and language", run(None), is_trained=False, seed=None)
    add("madtp, vision only", run(None), is_trained=False, seed=None)
    assert [path.name for path in publish(cells, tmp_path)] == ["table.md", "plot.png"]
    assert table_rows(tmp_path)[3][2] == "–"


def test_there_is_nothing_to_publish_before_a_measurement(tmp_path):
    with pytest.raises(ConfigError, match="nothing was measured"):
        publish(Cells(tmp_path, "tis"), tmp_path)


def test_drift_and_repair_are_told_apart(tmp_path):
    cells = Cells(tmp_path, "batch-size")
    cells.begin("tiny", {"measure": "accuracy", "batch_size": 16, "flops_ratio": 0.5})
    one, own = "one temperature", "its own temperature"
    rows = [(16, one, run(0.5, 0.5, [1, 0])), (1, one, run(0.5, 0.3, [1, 0])),
            (1, own, run(0.5, 0.51, [0, 1])), (32, own, run(1.0, 0.5, [1, 1]))]  # fmt: skip
    for size, said, found in rows:
        at = {
            "model": "tiny",
            "keep_mode": "max_keep",
            "batch_size": size,
            "temperature": said,
            "flops_ratio": 0.5,
        }
        cells.measured(at, lambda found=found: found)
    publish(cells, tmp_path)
    told = {(row[1], row[2]): (row[5], row[8]) for row in table_rows(tmp_path)[1:]}
    assert told["1", "one temperature"] == ("-40.0 %", "no")  # cheap, and as good by chance
    assert told["1", "its own temperature"] == ("+2.0 %", "yes")
    assert told["32", "its own temperature"] == ("+0.0 %", "no")  # 50 points off
    assert told["16", "one temperature"] == ("+0.0 %", "–")


def test_sorting_has_a_sign(tmp_path):
    cells = Cells(tmp_path, "sorting")
    cells.begin("tiny", {"measure": "accuracy", "batch_size": 16, "flops_ratio": 0.5})
    cells.measured(
        {"model": "tiny", "what": "needs"}, lambda: {"need": [], "predicted": [], "spearman": 0.625}
    )
    for order, outcomes in (("as they come", [1, 0, 0, 0]), ("sorted by need", [1, 1, 1, 1]),
                            ("sorted by predicted need", [1, 1, 0, 0])):  # fmt: skip
        found = run(sum(outcomes) / 4, 0.5, outcomes)
        cells.measured({"model": "tiny", "batch_size": 4, "order": order}, lambda found=found: found)
    publish(cells, tmp_path)
    assert [row[-1] for row in table_rows(tmp_path)[2:]] == ["–", "+", "(+)"]
    assert "rank correlation of predicted need: 0.62" in (tmp_path / "table.md").read_text()


def test_keep_modes_are_compared_between_and_within_trainings(tmp_path):
    cells = Cells(tmp_path, "per-instance")
    cells.begin("tiny", {"measure": "accuracy"})
    alone, both = "fine-tuned on max_keep", "fine-tuned on both in turn"
    for trained, mode, outcomes in (
        (alone, "max_keep", [1, 1]), (alone, "per_instance", [0, 0]),
        (both, "max_keep", [1, 1]), (both, "per_instance", [1, 0]),
    ):  # fmt: skip
        at = {"model": "tiny", "trained": trained, "seed": 0, "flops_ratio": 0.5, "keep_mode": mode}
        cells.measured(at, lambda outcomes=outcomes: run(sum(outcomes) / 2, 0.5, outcomes))
    publish(cells, tmp_path)
    first, second = (row[6:] for row in table_rows(tmp_path) if row[2] == "per_instance")
    assert first[0].startswith("-100.00") and first[1] == "–"
    assert second[0].startswith("-50.00") and second[1].startswith("+50.00")


def test_the_raw_data_is_plain_json_a_cell_a_line(tmp_path):
    cells, _ = comparison(tmp_path)
    lines = (tmp_path / "data.json").read_text().splitlines()
    data = json.loads("\n".join(lines))
    assert data["cells"][0]["found"]["outcomes"] == [1, 1, 1, 1] and lines[-1] == "]}"
    assert data["models"]["tiny"]["task"] == "vqa" and cells.path.name == "data.json"
