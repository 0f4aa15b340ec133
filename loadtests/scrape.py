"""What the server says about a run: the differences of its /metrics between two moments."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException

from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT_S = 10.0
# Sample name -> the labels that tell its series apart here; models and tasks are added up.
_COUNTERS: dict[str, tuple[str, ...]] = {
    "process_cpu_seconds_total": (),
    "model_process_cpu_seconds_total": (),
    "madtp_flops_total": ("kind",),
    "madtp_keep_efficiency_sum": (),
    "madtp_keep_efficiency_count": (),
    "madtp_batch_size_sum": (),
    "madtp_batch_size_count": (),
    "madtp_images_decoded_total": (),
    "madtp_stage_seconds_sum": ("stage",),
    "madtp_stage_seconds_count": ("stage",),
}


@dataclass(frozen=True)
class Snapshot:
    """The counters at one moment, by name and, after a colon, label value; `taken_s` is `time.monotonic`."""

    taken_s: float
    counters: Mapping[str, float]


def read_counters(text: str) -> dict[str, float]:
    """Add up the counters we want in Prometheus' text format."""
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = _COUNTERS.get(sample.name)
            if labels is not None:
                key = ":".join([sample.name, *(sample.labels.get(label, "") for label in labels)])
                totals[key] = totals.get(key, 0.0) + sample.value
    return totals


def take_snapshot(url: str) -> Snapshot | None:
    """Read the server's counters now; None where it has no /metrics in Prometheus' format, or is too slow."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=_TIMEOUT_S) as response:
            counters = read_counters(response.read().decode())
    except (OSError, HTTPException, ValueError):  # OSError: urllib's errors, and a timeout
        return None
    return Snapshot(time.monotonic(), counters)


def between(before: Snapshot | None, after: Snapshot | None) -> dict[str, float]:
    """Give what was counted between two snapshots, and `seconds`; nothing where one is missing."""
    if before is None or after is None:
        return {}
    counted = {name: value - before.counters.get(name, 0.0) for name, value in after.counters.items()}
    return counted | {"seconds": after.taken_s - before.taken_s}


def added(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Add up what was counted in several runs."""
    total: dict[str, float] = {}
    for each in counts:
        for name, value in each.items():
            total[name] = total.get(name, 0.0) + value
    return total


def server_side(counted: Mapping[str, float]) -> dict[str, float]:
    """Give figures of the server from its counters: none where it has none.

    `needed_per_kept` is the mean keep efficiency of a request, `padding` the operations really run / those
    spent without pads, `cpu_cores` processor seconds a second, `cpu_s_per_request` those of an answer (the
    little that shed ones take included), `stage_<name>_s` the mean of a stage.
    """

    def ratio(above: str, below: str) -> float | None:
        return counted[above] / counted[below] if above in counted and counted.get(below) else None

    if "process_cpu_seconds_total" in counted:  # the models' process is another one, where there is one
        models_s = counted.get("model_process_cpu_seconds_total", 0.0)
        counted = {**counted, "cpu_s": counted["process_cpu_seconds_total"] + models_s}
    stages = [name.partition(":")[2] for name in counted if name.startswith("madtp_stage_seconds_sum:")]
    figures = {
        "cpu_cores": ratio("cpu_s", "seconds"),
        "cpu_s_per_request": ratio("cpu_s", "madtp_batch_size_sum"),
        "batch_size": ratio("madtp_batch_size_sum", "madtp_batch_size_count"),
        "needed_per_kept": ratio("madtp_keep_efficiency_sum", "madtp_keep_efficiency_count"),
        "flops_ratio": ratio("madtp_flops_total:spent", "madtp_flops_total:dense"),
        "needed_flops_ratio": ratio("madtp_flops_total:needed", "madtp_flops_total:dense"),
        "padding": ratio("madtp_flops_total:padded", "madtp_flops_total:spent"),
        **{
            f"stage_{stage}_s": ratio(
                f"madtp_stage_seconds_sum:{stage}", f"madtp_stage_seconds_count:{stage}"
            )
            for stage in stages
        },
    }
    return {name: value for name, value in figures.items() if value is not None}
