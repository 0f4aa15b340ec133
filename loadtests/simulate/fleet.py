"""A fleet of replicas on a virtual clock: the service's batcher and controller, a plant and a cost model."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from loadtests.simulate.costs import CostModel
from loadtests.simulate.plant import Outcome, Plant
from loadtests.simulate.routing import Routing
from loadtests.simulate.workload import Array, Workload
from service.batcher import Batcher, Ticket
from service.controller import Controller, Setting, TargetClass


@dataclass(frozen=True)
class BatchLog:
    """One batch that was answered: when, how large, and at what cost."""

    began_s: float
    finished_s: float
    size: int
    prune_temperature: float
    target: float
    outcome: Outcome


@dataclass
class Run:
    """What happened. latency_s: [N], nan for a request without an answer."""

    latency_s: Array
    shed: list[int] = field(default_factory=list)
    expired: list[int] = field(default_factory=list)
    batches: list[BatchLog] = field(default_factory=list)


class Replica:
    """One server: a queue, a controller, and at most one batch that runs."""

    def __init__(self, batcher: Batcher, controller: Controller) -> None:
        self.batcher = batcher
        self.controller = controller
        self.running: tuple[float, tuple[int, ...], list[Setting], Outcome] | None = None  # since when, ...
        self.wake_at_s = math.inf
        batcher.next_batch(0.0)  # it asks and finds nothing: idle


class Fleet:
    """Serves one workload; `tokens` are those of an unpruned request."""

    def __init__(
        self,
        workload: Workload,
        replicas: list[Replica],
        routing: Routing,
        plant: Plant,
        costs: CostModel,
        target: TargetClass,
        *,
        tokens: float,
        deadline_s: float,
    ) -> None:
        self._workload = workload
        self._replicas = replicas
        self._routing = routing
        self._plant = plant
        self._costs = costs
        self._target = target
        self._tokens = tokens
        self._deadline_s = deadline_s
        self._inside: Array = np.zeros(len(replicas))  # predicted tokens, waiting and running
        self._events: list[tuple[float, int, int, Callable[[float, int], None]]] = []
        self._numbers = itertools.count()  # events at the same time come in the order they were made
        self._run = Run(np.full(len(workload), np.nan))

    def serve(self) -> Run:
        """Runs until the last request has left: under overload the slowest are those that waited longest."""
        for key, arrival_s in enumerate(self._workload.arrival_s.tolist()):
            self._happen_until(arrival_s)
            self._arrive(key, arrival_s)
        self._happen_until(math.inf)
        return self._run

    def _happen_until(self, end_s: float) -> None:
        while self._events and self._events[0][0] <= end_s:
            now_s, _, index, action = heapq.heappop(self._events)
            action(now_s, index)

    def _arrive(self, key: int, now_s: float) -> None:
        need = float(self._workload.predicted[key])
        index = self._routing(need, self._inside)
        replica = self._replicas[index]
        ticket = Ticket(key, now_s, now_s + self._deadline_s, tokens=need * self._tokens)
        if not replica.batcher.submit(ticket):
            self._run.shed.append(key)
            return
        self._inside[index] += need
        if replica.running is None:
            self._decide(now_s, index)

    def _wake(self, now_s: float, index: int) -> None:
        replica = self._replicas[index]
        if replica.running is None and replica.wake_at_s <= now_s:
            self._decide(now_s, index)

    def _decide(self, now_s: float, index: int) -> None:
        replica = self._replicas[index]
        replica.wake_at_s = math.inf
        pressure = len(replica.batcher) / replica.batcher.max_queue
        decision = replica.batcher.next_batch(now_s)
        for key in decision.expired:
            self._leave(index, key)
            self._run.expired.append(key)
        if not decision.batch:
            if decision.wake_at_s is not None:
                replica.wake_at_s = decision.wake_at_s
                self._at(decision.wake_at_s, index, self._wake)
            return
        replica.controller.set_pressure(pressure, now_s)
        settings = replica.controller.settings([self._target] * len(decision.batch))
        temperatures = [setting.prune_temperature for setting in settings]
        outcome = self._plant.run(self._workload.needs[list(decision.batch)], temperatures)
        replica.running = now_s, decision.batch, settings, outcome
        seconds = self._costs.seconds(len(settings), sum(outcome.flops_ratios) * self._tokens)
        self._at(now_s + seconds, index, self._finish)

    def _finish(self, now_s: float, index: int) -> None:
        replica = self._replicas[index]
        assert replica.running is not None, "only what runs can finish"
        began_s, keys, settings, outcome = replica.running
        replica.running = None
        replica.controller.observe([self._target] * len(keys), settings, outcome.flops_ratios)
        self._run.batches.append(
            BatchLog(
                began_s, now_s, len(keys), settings[0].prune_temperature, settings[0].flops_ratio, outcome
            )
        )
        for key in keys:
            self._leave(index, key)
            self._run.latency_s[key] = now_s - self._workload.arrival_s[key]
        self._decide(now_s, index)

    def _at(self, time_s: float, index: int, action: Callable[[float, int], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._numbers), index, action))

    def _leave(self, index: int, key: int) -> None:
        self._inside[index] -= self._workload.predicted[key]
