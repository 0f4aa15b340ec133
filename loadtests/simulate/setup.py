"""One simulated run: what is set up, and how it is put together from the service's own parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from loadtests.arrivals import Segment
from loadtests.simulate.costs import CostModel
from loadtests.simulate.fleet import Fleet, Replica, Run
from loadtests.simulate.plant import SAMPLE, Plant, SimulatedCalibration
from loadtests.simulate.routing import make_routing
from loadtests.simulate.workload import Workload, draw_needs, draw_workload
from service.batcher import Batcher
from service.controller import Controller, KeepMode, TargetClass
from service.cut import Order


@dataclass(frozen=True)
class Setup:
    """What is simulated.

    load: offered / what all replicas answer in full batches at the target. profile: (share of the time, load)
    pieces that replace load. calibration_mix: what the calibration was measured on. tokens: of an unpruned
    request. floor: as low as the target degrades. blocks, block_noise: see `draw_needs`.
    """

    label: str
    mix: str = "90:10"
    calibration_mix: str = "90:10"
    load: float = 1.5
    profile: tuple[tuple[float, float], ...] = ()
    replicas: int = 1
    routing: str = "round-robin"
    order: Order = "sorted"
    keep_mode: KeepMode = "max_keep"
    is_controlled: bool = True
    target: float = 0.5
    floor: float = 0.5
    rank_correlation: float = 0.6
    window_batches: int = 8
    max_batch_size: int = 32
    max_batch_wait_s: float = 0.005
    max_queue: int = 512
    deadline_s: float = math.inf
    duration_s: float = 60.0
    blocks: int = 6
    block_noise: float = 0.15
    tokens: float = 577.0
    seed: int = 0

    def capacity_per_s(self, costs: CostModel) -> float:
        """Requests per second that all replicas answer in full batches which spend the target."""
        tokens = self.max_batch_size * self.tokens * self.target
        return self.replicas * self.max_batch_size / costs.seconds(self.max_batch_size, tokens)

    def workload(self, costs: CostModel) -> Workload:
        """The requests: seeded, whatever then serves them."""
        capacity_per_s = self.capacity_per_s(costs)
        segments = [
            Segment(share * self.duration_s, load * capacity_per_s, load * capacity_per_s)
            for share, load in self.profile or ((1.0, self.load),)
        ]
        return draw_workload(
            self.mix,
            segments,
            self.rank_correlation,
            blocks=self.blocks,
            block_noise=self.block_noise,
            seed=self.seed,
        )


def simulate(setup: Setup, workload: Workload, costs: CostModel) -> Run:
    """Runs one setup; equal setups, workloads and costs give equal runs."""
    plant = Plant(setup.keep_mode)
    calibration = _calibration(plant, setup.calibration_mix, setup.blocks, setup.block_noise, setup.seed)
    return Fleet(
        workload,
        [_replica(setup, calibration) for _ in range(setup.replicas)],
        make_routing(setup.routing, workload.predicted[:SAMPLE], setup.replicas, setup.seed),
        plant,
        costs,
        TargetClass("balanced", setup.target, may_degrade=True),
        tokens=setup.tokens,
        deadline_s=setup.deadline_s,
    ).serve()


@cache
def _calibration(plant: Plant, mix: str, blocks: int, block_noise: float, seed: int) -> SimulatedCalibration:
    """Measured on other requests than those that are served."""
    sample = draw_needs(mix, SAMPLE, blocks, block_noise, np.random.default_rng(seed + 1))
    return SimulatedCalibration(plant, sample, seed)


def _replica(setup: Setup, calibration: SimulatedCalibration) -> Replica:
    batcher = Batcher(
        max_batch_size=setup.max_batch_size,
        max_batch_wait_s=setup.max_batch_wait_s,
        max_queue=setup.max_queue,
        order=setup.order,
        window_batches=setup.window_batches,
        is_padded=setup.keep_mode == "max_keep",
    )
    controller = Controller(
        calibration,
        setup.keep_mode,
        floor=setup.floor,
        is_on=setup.is_controlled,
        reference_batch_size=setup.max_batch_size,
    )
    return Replica(batcher, controller)
