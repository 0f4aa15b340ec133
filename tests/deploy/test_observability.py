"""Rules and dashboards: only documented metrics, all of them used; alerts tested; dashboards as built."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.boards import DASHBOARDS
from deploy.grafana.build import FOLDER, as_text

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
RULE_FILES = sorted((PROMETHEUS / "rules").glob("*.yml"))

# Of every Python process and of Prometheus itself: not in our own table.
COMMON = {
    "up",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
    "model_process_cpu_seconds_total",
    "model_process_resident_memory_bytes",
}
PARTS_OF_A_HISTOGRAM = ("_bucket", "_sum", "_count")


def documented() -> dict[str, str]:
    """Names and kinds of the table in docs/api.md."""
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    return dict(re.findall(r"^\| `(madtp_\w+)\{[\w,]*\}` \| (\w+) \|", text, re.MULTILINE))


def exposed() -> set[str]:
    """Names of series: a histogram is three."""
    names = set()
    for name, kind in documented().items():
        names |= {name + part for part in PARTS_OF_A_HISTOGRAM} if kind == "histogram" else {name}
    return names


def rules() -> list[dict[str, Any]]:
    files = [yaml.safe_load(path.read_text("utf-8")) for path in RULE_FILES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def panel_queries() -> list[str]:
    boards = [json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    return [
        target["expr"] for board in boards for panel in board["panels"] for target in panel.get("targets", ())
    ]


def metrics_in(query: str) -> set[str]:
    """Metric names of a PromQL query: what looks like one of ours, of a process, or like a recorded rule."""
    without_strings = re.sub(r'"[^"]*"', "", query)
    words = set(re.findall(r"[a-zA-Z_:][\w:]*", without_strings))
    return {word for word in words if re.match(r"(madtp_|model_process_|process_|python_|up$)|\w+:", word)}


RECORDED = {rule["record"] for rule in rules() if "record" in rule}
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
QUERIES = [rule["expr"] for rule in rules()] + panel_queries()


def test_metrics_in_finds_names_and_no_labels() -> None:
    query = 'sum by (task) (rate(madtp_a_total{kind="madtp_b"}[5m])) / model_task:madtp_c:ratio and up == 0'
    assert metrics_in(query) == {"madtp_a_total", "model_task:madtp_c:ratio", "up"}


def test_rules_and_dashboards_ask_only_for_documented_metrics() -> None:
    asked = set().union(*map(metrics_in, QUERIES))
    assert asked - exposed() - RECORDED - COMMON == set()


def test_every_documented_metric_is_shown_or_watched() -> None:
    asked = set().union(*map(metrics_in, QUERIES))
    series = {
        name: {name + part for part in PARTS_OF_A_HISTOGRAM} if kind == "histogram" else {name}
        for name, kind in documented().items()
    }
    assert [name for name, parts in series.items() if not parts & asked] == []


def test_every_recorded_rule_is_used() -> None:
    asked = set().union(*map(metrics_in, QUERIES))
    assert RECORDED - asked == set()


def test_latency_objective_is_a_bucket_of_the_histogram() -> None:
    limits = {limit for query in QUERIES for limit in re.findall(r'le="([\d.]+)"', query)}
    text = (ROOT / "service" / "metrics.py").read_text("utf-8")
    buckets = re.search(r"_SECONDS = \(([^)]*)\)", text)
    assert buckets is not None
    assert limits <= {str(float(bucket)) for bucket in buckets[1].split(",")}


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        assert set(rule["annotations"]) == {"summary", "description"}, name


def test_every_alert_has_a_unit_test_in_which_it_fires() -> None:
    tests = yaml.safe_load((PROMETHEUS / "tests" / "alerts.test.yml").read_text("utf-8"))["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(ALERTS)


def test_every_rule_file_is_loaded() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    loaded = {path for pattern in config["rule_files"] for path in PROMETHEUS.glob(pattern)}
    assert loaded == set(RULE_FILES)


def test_committed_dashboards_are_the_built_ones() -> None:
    """After a change of boards.py: python -m deploy.grafana.build."""
    built = {f"{dashboard.uid}.json": as_text(dashboard) for dashboard in DASHBOARDS}
    assert {path.name: path.read_text("utf-8") for path in FOLDER.iterdir()} == built


def test_dashboards_name_the_provisioned_datasource_and_folder() -> None:
    provisioning = GRAFANA / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text("utf-8"))
    uids = {source["uid"] for source in sources["datasources"]}
    named = {
        uid for path in FOLDER.iterdir() for uid in re.findall(r'"uid": "(prom\w+)"', path.read_text("utf-8"))
    }
    assert named == uids
    providers = yaml.safe_load((provisioning / "dashboards" / "madtp.yml").read_text("utf-8"))["providers"]
    compose = (ROOT / "docker-compose.yml").read_text("utf-8")
    assert f"./deploy/grafana/dashboards:{providers[0]['options']['path']}:ro" in compose


def test_panels_do_not_overlap_and_fill_no_more_than_the_width() -> None:
    for path in FOLDER.iterdir():
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            place = panel["gridPos"]
            cells = {
                (column, line)
                for column in range(place["x"], place["x"] + place["w"])
                for line in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, f"{path.name}: {panel['title']}"
            assert max(column for column, _ in cells) < 24
            taken |= cells


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", "--lint=all", "--lint-fatal", *map(str, RULE_FILES)],
        ["test", "rules", *map(str, sorted((PROMETHEUS / "tests").glob("*.yml")))],
        ["check", "config", "--syntax-only", str(PROMETHEUS / "prometheus.yml")],
    ],
    ids=["check rules", "test rules", "check config"],
)
def test_promtool_agrees(arguments: list[str]) -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed")
    ran = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
