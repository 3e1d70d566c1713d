"""A round of a job as operations: who computes, what is sent where, what waits for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.simulate.events import Simulation, Slowdown, Timeline
from tintray.jobs.engine.grouping import DEFAULT_MICRO_BATCH
from tintray.jobs.engine.plan import FLOAT, gradients_at_once

DRIVER = "driver"
_MOST = 32  # operations for the passes of one group


@dataclass(frozen=True)
class Costs:
    """What the parts of a round take, in seconds and in seconds for each byte.

    Attributes
    ----------
    micro_batch
        Forward and backward of a full micro-batch, as a step runs it.
    task
        What each task adds to a step beside its examples: its draw, its tint, its optimiser.
    merge, project
        For each byte of task vectors that is read.
    add
        For each byte of a gradient that a shard adds to its sum.
    share
        For each byte that a member hands to the others on its node, and that they take.
    network
        For each byte that leaves a node, and again for each that enters one.
    call
        From calling a member to its having the call; as much again for its answer.
    driver, driver_task, driver_call, driver_piece
        Of the coordinator, beside waiting; and what each task adds to that, each call of a member,
        and each piece of θ or of a gradient that it hands on.
    """

    micro_batch: float
    task: float
    merge: float
    project: float
    add: float
    share: float
    network: float
    call: float
    driver: float
    driver_task: float
    driver_call: float
    driver_piece: float


@dataclass(frozen=True)
class Round:
    """How large a round is, and how it is laid out.

    Attributes
    ----------
    parameters, vector_bytes
        P, and the bytes of all task vectors.
    groups
        Examples and tasks of each task group.
    workers
        The numbers of each worker's groups.
    beside
        Shard n has the process and the card of worker n, and members reach each other directly;
        else shards have processes of their own, and a node takes what is sent to it once.
    in_process
        The one shard is in the coordinator's process.
    one_by_one
        Shards add one gradient with each call, as they once did.
    """

    parameters: int
    vector_bytes: float
    groups: Mapping[int, tuple[int, int]]
    workers: Sequence[Sequence[int]]
    shards: int = 1
    beside: bool = False
    in_process: bool = False
    one_by_one: bool = False
    nodes: int = 1
    micro_batch: int = DEFAULT_MICRO_BATCH

    @property
    def piece(self) -> float:
        """Bytes of θ, or of a gradient, that one shard has."""
        return FLOAT * self.parameters / self.shards

    @property
    def at_once(self) -> int:
        """Gradients that a shard adds with one call."""
        return 1 if self.one_by_one else gradients_at_once(int(self.piece))

    @property
    def calls(self) -> int:
        """Calls that the coordinator makes of shards and workers."""
        added = -(-len(self.groups) // self.at_once)  # the last of them projects too
        return self.shards * (1 + added) + len(self.groups)

    @property
    def pieces(self) -> int:
        """Pieces that it hands on: of θ to each group, of each group's gradient to the shards."""
        return 2 * self.shards * len(self.groups)


@dataclass(frozen=True)
class Simulated:
    """What a round takes: where time goes, and the bytes that cross from node to node."""

    timeline: Timeline
    sent: float


def simulate(given: Round, costs: Costs, slowdown: Slowdown = lambda _: 1.0) -> Simulated:
    """Let one round pass."""
    return _Passing(given, costs, slowdown).simulated()


class _Passing:
    def __init__(self, given: Round, costs: Costs, slowdown: Slowdown) -> None:
        self._round, self._costs = given, costs
        self._time = Simulation(slowdown)
        self._sent = 0.0
        self._messages = 0
        self._there: dict[tuple[int, int], int] = {}  # pieces of θ, by shard and who has them

    def simulated(self) -> Simulated:
        given, costs = self._round, self._costs
        tasks = sum(count for _, count in given.groups.values())
        driver = costs.driver + costs.driver_task * tasks
        driver += costs.driver_call * given.calls + costs.driver_piece * given.pieces
        begin = self._time.add("coordinator", DRIVER, driver / 2)
        theta = [self._merged(shard, begin) for shard in range(given.shards)]
        gradients = {
            group: (worker, answered)
            for worker, hosted in enumerate(given.workers)
            for group, answered in self._stepped(worker, hosted, theta).items()
        }
        projected = [self._projected(shard, gradients) for shard in range(given.shards)]
        self._time.add("coordinator", DRIVER, driver / 2, projected)
        return Simulated(self._time.run(), self._sent)

    def _merged(self, shard: int, begin: int) -> int:
        """A shard's piece of θ is ready for the others."""
        given, costs = self._round, self._costs
        seconds = costs.merge * given.vector_bytes / given.shards
        asked = begin if given.in_process else self._message(begin)
        merged = self._compute("merge", self._shard(shard), seconds, [asked], shard)
        shared = costs.share * given.piece
        return self._compute("hand over θ", self._shard(shard), shared, [merged], shard)

    def _stepped(self, worker: int, hosted: Sequence[int], theta: Sequence[int]) -> dict[int, int]:
        """All groups of a worker have stepped, one after another; their gradients are ready."""
        given, costs, place = self._round, self._costs, f"worker {worker}"
        there = [self._received(shard, ready, worker) for shard, ready in enumerate(theta)]
        before = [self._message(*there)]
        answered: dict[int, int] = {}
        for group in hosted:
            examples, tasks = given.groups[group]
            seconds = costs.micro_batch * examples / given.micro_batch + costs.task * tasks
            pieces = min(_MOST, -(-examples // given.micro_batch))
            for _ in range(pieces):
                before = [self._compute("passes", place, seconds / pieces, before, worker)]
            shared = costs.share * FLOAT * given.parameters
            before = [self._compute("hand over gradients", place, shared, before, worker)]
            answered[group] = before[0]
        return answered

    def _received(self, shard: int, ready: int, worker: int) -> int:
        """A worker has a shard's piece of θ; a node's store has it once for all of its workers."""
        key = shard, worker if self._round.beside else self._node(worker)
        if key not in self._there:
            self._there[key] = self._moved("send θ", shard, worker, ready)
        return self._there[key]

    def _projected(self, shard: int, gradients: Mapping[int, tuple[int, int]]) -> int:
        """A shard has added up its pieces of all gradients, in group order, and projected."""
        given, costs, place = self._round, self._costs, self._shard(shard)
        arrived = [
            self._moved("send gradients", worker, shard, ready)
            for _, (worker, ready) in sorted(gradients.items())
        ]
        before: list[int] = []
        for start in range(0, len(arrived), given.at_once):
            taken = arrived[start : start + given.at_once]
            seconds = costs.add * given.piece * len(taken)
            before = [self._compute("add gradients", place, seconds, [*before, *taken], shard)]
        projecting = costs.project * given.vector_bytes / given.shards
        done = self._compute("project", place, projecting, before, shard)
        return done if given.in_process else self._message(done)

    # -- places --------------------------------------------------------------------------------

    def _shard(self, number: int) -> str:
        if self._round.in_process:
            return DRIVER
        return f"worker {number}" if self._round.beside else f"shard {number}"

    def _node(self, member: int) -> int:
        return member % self._round.nodes

    def _compute(self, kind: str, place: str, seconds: float, after: Sequence[int], at: int) -> int:
        return self._time.add(kind, place, seconds, after, f"node {self._node(at)}")

    def _message(self, *after: int) -> int:
        """A call or an answer on its way; they do not wait for each other."""
        self._messages += 1
        return self._time.add("calls", f"message {self._messages}", self._costs.call, after)

    def _moved(self, kind: str, source: int, target: int, after: int) -> int:
        """A piece goes from one node to another: it leaves the one, then enters the other."""
        source, target = self._node(source), self._node(target)
        if source == target:
            return after
        self._sent += self._round.piece
        seconds = self._costs.network * self._round.piece
        left = self._time.add(kind, f"out of node {source}", seconds, [after])
        return self._time.add(kind, f"into node {target}", seconds, [left])
