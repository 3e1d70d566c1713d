"""What the coordinator takes of a round: rounds of members that do nothing, on Ray.

Everything that a round sends is sent: coefficients, θ, gradients, what tasks drew and what became
of them. Only the computing is left out. Processor time of the coordinator's thread, so that other
programs on the machine change it little; medians of rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.simulate.rounds import Round
from tintray.jobs.engine.arrays import Floats, Sent
from tintray.jobs.engine.backend import Placement
from tintray.jobs.engine.coordinator import Assignment, Coordinator
from tintray.jobs.engine.grouping import form_groups, spread_groups
from tintray.jobs.engine.plan import object_store_bytes
from tintray.jobs.engine.ray_backend import RayBackend
from tintray.jobs.engine.shards import Shard, ShardConfig, Shards
from tintray.jobs.engine.worker import Worker
from tintray.numerics.layout import Layout, build_layout
from tintray.numerics.schedules import Rates
from tintray.storage.artifacts.blobs import BlobRef
from tintray.tinting.draws import Draw, Draws
from tintray.tinting.step import TaskMetrics
from tintray.vectors.coefficients import Coefficients

# Tasks, groups and shards of the rounds from which the coordinator's parts are told apart.
_SMALL, _MANY, _CUT, _LONG = (8, 2, 1), (64, 32, 1), (64, 32, 8), (10_000, 32, 1)
TENSORS, WIDTH = 32, 256  # 2 M parameters


@dataclass(frozen=True)
class Coordinating:
    """Processor seconds of the coordinator in a round; see ``rounds.Costs``."""

    driver: float
    driver_task: float
    driver_call: float
    driver_piece: float


class IdleShard(Shard):
    """A shard that answers zeros."""

    def merge(self, coefficients: Floats, direct: bool = False) -> Sent:
        """θ, all zeros."""
        return np.zeros(self._layout.numel, np.float32)

    def add(self, *gradients: Sent) -> None:
        """Take gradients, and forget them."""

    def project(self, correction_lr: float, *gradients: Sent | None) -> Floats:
        """∂L/∂Λ by tensor, all zeros."""
        return np.zeros((self._tasks, len(self._layout.slots)), np.float32)

    def load(self, tasks: Sequence[str], vectors: Sequence[BlobRef]) -> None:
        """Know how many tasks there are."""
        self._tasks = len(tasks)


class IdleShards(Shards):
    """Shards that compute nothing."""

    member = IdleShard


class IdleWorker(Worker):
    """A worker that steps no group, and answers as if it had."""

    def __init__(self, bounds: Sequence[slice]) -> None:
        self._bounds = list(bounds)

    def step(
        self, group: int, round_: int, pace: float, draws: Mapping[str, Draw], *theta: Sent
    ) -> tuple[list[Sent], dict[str, TaskMetrics]]:
        """Zeros, and metrics that differ from task to task."""
        pieces: list[Sent] = [np.zeros(s.stop - s.start, np.float32) for s in self._bounds]
        return pieces, {name: TaskMetrics(1 / (k + 2), 0.5, 0.9) for k, name in enumerate(draws)}


def idle_layout() -> Layout:
    """A backbone of some tensors; nothing is computed in it."""
    names = {f"layers.{n}.weight": torch.Size((WIDTH, WIDTH)) for n in range(TENSORS)}
    return build_layout(names)


def coordinator_seconds(tasks: int, groups: int, shards: int, rounds: int = 7) -> float:
    """Processor seconds of the coordinator in a round of idle members."""
    layout, names = idle_layout(), [f"task{k:05}" for k in range(tasks)]
    stretches = form_groups(tasks, groups)
    backend = RayBackend(None, 2, object_store_bytes(layout.numel, groups))
    try:
        config = ShardConfig("", BlobRef("0" * 64, 0), layout)
        members = IdleShards(backend, config, shards)
        workers = [
            backend.spawn(Placement(f"worker {n}", 1), IdleWorker, members.bounds)
            for n, _ in enumerate(spread_groups(stretches, 2))
        ]
        backend.get(members.load(names, []))
        coordinator = Coordinator(
            backend,
            Assignment(
                members,
                {n: workers[n % len(workers)] for n in range(len(stretches))},
                {n: [names[k] for k in stretch] for n, stretch in enumerate(stretches)},
                {},
            ),
            Coefficients(torch.full((tasks, len(layout.units)), 0.01)),
            rates=lambda _: Rates(lambda _: 1e-3, lambda _: 1.0),
            draws=Draws(names, 16),
        )
        taken = []
        for number in range(rounds + 2):
            began = time.thread_time()
            coordinator.fit(number + 1, lambda _: None, first=number)
            taken.append(time.thread_time() - began)
        return statistics.median(taken[2:])
    finally:
        backend.close()


def coordinating() -> tuple[Coordinating, dict[str, float]]:
    """What the coordinator takes, from rounds of four sizes; and what each of these took."""
    sizes = (_SMALL, _MANY, _CUT, _LONG)
    small, many, cut, long = taken = [coordinator_seconds(*size) for size in sizes]
    rounds = [_round(groups, shards) for _, groups, shards in sizes]
    call, piece = _solved(
        [
            (after.calls - before.calls, after.pieces - before.pieces, seconds)
            for before, after, seconds in (
                (rounds[0], rounds[1], many - small),
                (rounds[1], rounds[2], cut - many),
            )
        ]
    )
    task = max(0.0, (long - many) / (_LONG[0] - _MANY[0]))
    rest = small - call * rounds[0].calls - piece * rounds[0].pieces - task * _SMALL[0]
    told = dict(zip(map(str, sizes), taken, strict=True))
    return Coordinating(max(0.0, rest), task, call, piece), told


def _solved(rows: Sequence[tuple[int, int, float]]) -> tuple[float, float]:
    """Seconds of a call and of a piece, neither below none; least squares."""
    counts = np.array([row[:2] for row in rows], float)
    call, piece = np.linalg.lstsq(counts, np.array([row[2] for row in rows]))[0]
    return max(0.0, float(call)), max(0.0, float(piece))


def _round(groups: int, shards: int) -> Round:
    size = dict.fromkeys(range(groups), (0, 0))
    return Round(idle_layout().numel, 0, size, [list(size)], shards)
