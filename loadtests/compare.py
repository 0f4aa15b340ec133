"""Configurations of our service side by side in one run: all started, one loaded at a time, in rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loadtests.measure import Target, result, run_trial, unloaded_median_s
from loadtests.peers.options import Peer, serving_peer
from loadtests.requests import PreparedRequest, prepare_requests
from loadtests.scenario import Scenario, read_checked, read_scenario
from loadtests.search import highest_rate
from loadtests.server import serving

_Load = Annotated[float, Field(gt=0, le=1000)]
Say = Callable[[str], None]
StartService = Callable[[Mapping[str, str]], AbstractContextManager[str]]


class Comparison(BaseModel):
    """What is compared; a load of 1 is what the first configuration answers one at a time, 1 / median.

    The first configuration is also the one whose unloaded median sets the limit of the SLO, for all of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    description: str
    scenario: str = Field(description="its file, relative to this one")
    loads: Annotated[list[_Load], Field(min_length=1)]
    rounds: Annotated[int, Field(ge=1, le=100)] = 2
    search: bool = Field(False, description="also look for the highest rate of each that meets the SLO")
    settings: dict[str, str] = Field({}, description="MADTP_ settings of all configurations")
    configurations: Annotated[dict[str, dict[str, str]], Field(min_length=1)]
    peers: dict[str, Peer] = Field({}, description="others that serve the same weights; no name of the above")

    @model_validator(mode="after")
    def _known_prefix(self) -> Comparison:
        for settings in (self.settings, *self.configurations.values()):
            if wrong := [name for name in settings if not name.startswith("MADTP_")]:
                raise ValueError(f"settings begin with MADTP_, got {', '.join(wrong)}")
        if twice := self.peers.keys() & self.configurations.keys():
            raise ValueError(f"a peer needs a name of its own, got {', '.join(twice)}")
        return self


def read_comparison(path: Path) -> tuple[Comparison, Scenario]:
    """Read and check a comparison and the scenario that it names; raises LoadTestError."""
    comparison = read_checked(path, Comparison)
    return comparison, read_scenario(path.parent / comparison.scenario)


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """Give the names in the order of a round: each comes first as often as any other, whatever drifts."""
    shift = turn % len(names)
    return [*names[shift:], *names[:shift]]


def compare(
    comparison: Comparison,
    scenario: Scenario,
    say: Say,
    start: StartService = serving,
    keep: Callable[[dict[str, Any]], None] = lambda raw: None,
) -> dict[str, Any]:
    """Run the whole comparison and give its raw result; all see the same arrivals and requests.

    start: gives a service with these settings, by its address. keep: is told the result so far after every
    round and search, as what comes later may fail.
    """
    requests = prepare_requests(scenario)
    about = {"name": comparison.name, "description": f"{comparison.description} {scenario.description}"}
    scenario = scenario.model_copy(update=about)
    with ExitStack() as stack:
        targets = _started(comparison, scenario, requests, stack, say=say, start=start)
        reference = next(iter(targets.values()))
        limit_s = scenario.slo.limit_s(reference.unloaded_median_s)

        def so_far() -> dict[str, Any]:
            return result("compare", scenario, limit_s, targets)

        for turn in range(comparison.rounds):
            for load in comparison.loads:
                factor = load / reference.unloaded_median_s / scenario.mean_rate()
                for name in rotated(list(targets), turn):
                    trial = run_trial(
                        targets[name],
                        scenario,
                        requests,
                        factor=factor,
                        limit_s=limit_s,
                        seed=scenario.seed + turn,
                    )
                    say(f"round {turn + 1}, load {load:g}, {name}: {brief(trial['summary'])}")
            keep(so_far())
        if comparison.search:
            for name, target in targets.items():
                say(f"{name}: the highest rate that meets the SLO")
                find_highest(target, scenario, requests, limit_s=limit_s, say=say)
                keep(so_far())
        return so_far()


def _started(
    comparison: Comparison,
    scenario: Scenario,
    requests: Sequence[PreparedRequest],
    stack: ExitStack,
    *,
    say: Say,
    start: StartService,
) -> dict[str, Target]:
    """Start everything, and then measure each unloaded: an idle neighbour costs them all the same."""
    settings, urls = {}, {}
    for name in [*comparison.configurations, *comparison.peers]:
        server: AbstractContextManager[str]
        if (peer := comparison.peers.get(name)) is not None:
            settings[name], server = peer.settings(), serving_peer(peer)
        else:
            settings[name] = comparison.settings | comparison.configurations[name]
            server = start(settings[name])
        urls[name] = stack.enter_context(server)
        say(f"{name}: ready")
    targets = {}
    for name, url in urls.items():
        median_s = unloaded_median_s(url, requests, scenario.timeout_s)
        targets[name] = Target(url, median_s, settings[name])
        say(f"{name}: unloaded median {1000 * median_s:.1f} ms")
    return targets


def find_highest(
    target: Target, scenario: Scenario, requests: Sequence[PreparedRequest], *, limit_s: float, say: Say
) -> None:
    """Look for the highest mean rate that meets the scenario's SLO; note it and every trial on the target."""

    def meets(rate_per_s: float) -> bool:
        factor = rate_per_s / scenario.mean_rate()
        seed = scenario.seed + len(target.trials)
        trial = run_trial(target, scenario, requests, factor=factor, limit_s=limit_s, seed=seed)
        summary = trial["summary"]
        say(f"{rate_per_s:.1f}/s {'meets' if summary['slo_met'] else 'misses'} the SLO: {brief(summary)}")
        return bool(summary["slo_met"])

    bracket = highest_rate(meets, start=1 / target.unloaded_median_s)
    missed = bracket.missed if bracket.missed < float("inf") else None
    target.highest = {"met_per_s": bracket.met, "missed_per_s": missed}


def brief(summary: dict[str, Any]) -> str:
    """Say in one line what a trial gave."""
    latency_s, accuracy, cost = summary["latency_s"], summary["accuracy"], summary["cost"]
    parts = [f"{summary['offered_per_s']:.1f}/s offered, {summary['goodput_per_s']:.1f}/s good"]
    if latency_s:
        parts.append(f"p50 {1000 * latency_s['p50']:.0f} ms, p99 {1000 * latency_s['p99']:.0f} ms")
    parts.append(f"late {summary['late']}, shed {summary['shed']}, failed {summary['failed']}")
    if accuracy is not None:
        parts.append(f"accuracy {accuracy:.3f}")
    if cost:
        parts.append(f"flops_ratio {cost['flops_ratio']:.3f}")
    if summary["client_was_bottleneck"]:
        parts.append("CLIENT LATE")
    return "; ".join(parts)
