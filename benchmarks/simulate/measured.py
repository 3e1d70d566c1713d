"""What this machine takes: the constants of a simulated round, and the real round beside it.

Both are processor time, of the threads in which members compute: of a round, that of the
coordinator, and of the shard and the worker that took most. So long does a round last where each
member has a core of its own; how long it lasts on a crowded machine says more of the crowd. What
waits for the network, or for Ray to pass on a call, is in neither.

Constants and rounds take turns on the same members, since processors share caches and clocks. No
constant comes from a round: passes are those of a probing group, and task vectors are merged and
projected by the shards when nothing else happens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import torch

from benchmarks.scaling import BATCH, ZOO, MadeShard, MadeShards, MadeWorker, Members, members
from benchmarks.simulate.overhead import Coordinating
from benchmarks.simulate.rounds import Costs, Round, simulate
from tintray.jobs.engine.arrays import Floats
from tintray.jobs.engine.backend import ActorHandle
from tintray.jobs.engine.grouping import DEFAULT_MICRO_BATCH
from tintray.jobs.engine.plan import FLOAT
from tintray.tinting.draws import Draw
from tintray.tinting.step import TaskGroup

FEW, MANY = 4, 16  # tasks that share the probing micro-batch
M = TypeVar("M")


class ProbedWorker(MadeWorker):
    """A worker with a group of its own, on which its passes are timed."""

    def begin(self, bounds: Sequence[slice]) -> None:
        """Form the groups, and the one that is probed."""
        super().begin(bounds)
        first = next(iter(self._groups.values()))
        tasks = [self._task(f"probe{k}") for k in range(MANY)]
        self._probed = TaskGroup(tasks, first._fused, first._gradient, first._settings)
        self._theta = torch.zeros(self._parts.layout.numel)

    def steps(self) -> tuple[float, float]:
        """Seconds of steps of a full micro-batch, of few tasks and of many."""
        return self._seconds(FEW), self._seconds(MANY)

    def _seconds(self, tasks: int) -> float:
        draws: dict[str, Draw] = {}
        for k in range(tasks):
            draws[f"probe{k}"] = 0, DEFAULT_MICRO_BATCH // tasks
        began = time.thread_time()
        self._probed.step(self._theta, 0, 1e-3, draws=draws)
        return time.thread_time() - began

    def used(self) -> float:
        """Processor seconds that members here have used so far."""
        return time.thread_time()


class ProbedShard(MadeShard):
    """A shard whose merging, adding and projecting is timed."""

    def parts(self) -> tuple[float, float, float]:
        """Seconds of a merge, of adding a gradient, and of a projection."""
        shape = len(self._loaded.tasks), len(self._layout.slots)
        coefficients = torch.full(shape, 0.01).numpy()
        moments = [time.thread_time()]
        gradient = self.merge(coefficients)
        moments.append(time.thread_time())
        self.add(*[gradient] * 10)
        moments.append(time.thread_time())
        self.project(0.0)
        moments.append(time.thread_time())
        merge, add, project = (after - before for before, after in pairwise(moments))
        return merge, add / 10, project

    def used(self) -> float:
        """Processor seconds that members here have used so far."""
        return time.thread_time()


class ProbedShards(MadeShards):
    """Shards that can be timed."""

    member = ProbedShard


@dataclass
class Probes:
    """Seconds that were measured between rounds."""

    steps: list[tuple[float, float]] = field(default_factory=list)
    parts: list[tuple[float, float, float]] = field(default_factory=list)
    share: list[float] = field(default_factory=list)  # of θ, from one process to another

    def take(self, found: Members) -> None:
        """Measure everything once."""
        self.steps += on_each(found, found.workers, ProbedWorker.steps)
        parts = on_each(found, found.shards.members, ProbedShard.parts)
        self.parts.append(max(parts))
        theta: Floats = torch.zeros(found.layout.numel).numpy()
        began = time.thread_time()
        found.backend.put(theta).result()
        self.share.append(time.thread_time() - began)

    def costs(self, found: Members) -> dict[str, float]:
        """As the costs of a round, without the coordinator's."""
        theta = FLOAT * found.layout.numel
        shards = len(found.shards.members)
        vectors = theta * tasks_of(found) / shards
        few, many = (statistics.mean(each) for each in zip(*self.steps, strict=True))
        merge, add, project = (statistics.mean(each) for each in zip(*self.parts, strict=True))
        task = max(0.0, (many - few) / (MANY - FEW))
        return {
            "micro_batch": few - FEW * task,
            "task": task,
            "merge": merge / vectors,
            "project": project / vectors,
            "add": add * shards / theta,
            "share": statistics.mean(self.share) / theta,
        }


def on_each(
    found: Members, handles: Sequence[ActorHandle[Any]], method: Callable[[Any], M]
) -> list[M]:
    """Call a method of every member at once."""
    return found.backend.get([handle.call(method) for handle in handles])


def tasks_of(found: Members) -> int:
    """K."""
    return sum(map(len, found.groups))


def laid_out(found: Members) -> Round:
    """The round of these members, as it is simulated."""
    return Round(
        parameters=found.layout.numel,
        vector_bytes=FLOAT * found.layout.numel * tasks_of(found),
        groups={n: (BATCH * len(group), len(group)) for n, group in enumerate(found.groups)},
        workers=found.hosted,
        shards=len(found.shards.members),
        in_process=found.shards.in_process,
    )


def used(found: Members) -> tuple[float, list[float], list[float]]:
    """Processor seconds so far: the coordinator's, each shard's and each worker's."""
    shards = [] if found.shards.in_process else found.shards.members
    of_shards = on_each(found, shards, ProbedShard.used)
    return time.thread_time(), of_shards, on_each(found, found.workers, ProbedWorker.used)


def one_round(found: Members, number: int) -> tuple[float, float]:
    """Processor seconds of a round, each member having its own core; and seconds by the clock."""
    driver, shards, workers = used(found)
    began = time.perf_counter()
    found.coordinator.fit(number + 1, lambda _: None, first=number)
    wall = time.perf_counter() - began
    after = used(found)
    longest = [
        max((b - a for a, b in zip(before, behind, strict=True)), default=0.0)
        for before, behind in ((shards, after[1]), (workers, after[2]))
    ]
    return after[0] - driver + sum(longest), wall


def compare(tasks: int, workers: int, repeats: int) -> dict[str, Any]:
    """A real round of K tasks on so many workers of this machine, with what it was made of."""
    with members(ZOO, tasks, workers, kinds=(ProbedWorker, ProbedShards)) as found:
        Probes().take(found)  # a warm-up
        if tasks <= 32:  # in longer rounds a slow start does not show
            one_round(found, repeats)
        probes, rounds = Probes(), []
        for repeat in range(repeats):
            for _ in range(max(1, tasks // 128)):  # long rounds need as long a look
                probes.take(found)
            rounds.append(one_round(found, repeat))
            probes.take(found)
        given, costs = laid_out(found), probes.costs(found)
    return {
        "tasks": tasks,
        "workers": len(given.workers),
        "measured": statistics.median(seconds for seconds, _ in rounds),
        "by_clock": statistics.median(wall for _, wall in rounds),
        "costs": costs,
        "round": asdict(given),
    }


def predicted(row: dict[str, Any], coordinating: Coordinating) -> float:
    """Seconds that the simulator gives a round that was measured."""
    given = dict(row["round"])
    groups = {int(number): tuple(size) for number, size in given.pop("groups").items()}
    costs = Costs(**row["costs"], **asdict(coordinating), network=0.0, call=0.0)
    return simulate(Round(**given, groups=groups), costs).timeline.seconds
