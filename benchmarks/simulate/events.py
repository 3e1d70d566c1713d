"""A small simulator of discrete events: operations that wait for each other and for a place.

A place (a process, a card, one direction of a network link, a disk) does one thing at a time, in
the order in which things became ready for it. Time passes from event to event; nothing is random.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

Slowdown = Callable[[int], float]
"""How much slower everything is while so many processes of a machine compute at once."""


@dataclass(frozen=True)
class Operation:
    """Something that takes time at a place, once the operations before it are done."""

    kind: str  # what it is: "pass", "merge"; times are added up by it
    place: str
    seconds: float
    after: Sequence[int]
    crowd: str = ""  # the machine whose cores it computes on, where that slows it down


@dataclass(frozen=True)
class Timeline:
    """What a simulation found; times in seconds."""

    seconds: float  # from the start to the end of the last operation
    ends: Sequence[float]  # of each operation
    by_kind: dict[str, float]  # over all places together
    busy: dict[str, float]  # by place

    def busiest(self) -> tuple[str, float]:
        """The place that is busy for the largest share of the time, and that share."""
        place = max(self.busy, key=lambda name: self.busy[name])
        return place, self.busy[place] / self.seconds


class Simulation:
    """Operations are added, each after some that are there; then ``run`` lets time pass."""

    def __init__(self, slowdown: Slowdown = lambda _: 1.0) -> None:
        self._operations: list[Operation] = []
        self._slowdown = slowdown

    def add(
        self, kind: str, place: str, seconds: float, after: Iterable[int] = (), crowd: str = ""
    ) -> int:
        """Add an operation; its number is what others name to come after it."""
        number = len(self._operations)
        before = sorted(set(after))
        if before and before[-1] >= number:
            raise ValueError(f"operation {number} ({kind}) waits for {before[-1]}, not added yet")
        self._operations.append(Operation(kind, place, seconds, before, crowd))
        return number

    def run(self) -> Timeline:
        """Let time pass until every operation is done."""
        followers: dict[int, list[int]] = defaultdict(list)
        missing = [len(operation.after) for operation in self._operations]
        for number, operation in enumerate(self._operations):
            for before in operation.after:
                followers[before].append(number)
        waiting: dict[str, deque[int]] = defaultdict(deque)
        at_work: dict[str, int] = {}  # the operation at each place
        computing: dict[str, int] = defaultdict(int)  # operations on each machine's cores
        ends = [0.0] * len(self._operations)
        by_kind: dict[str, float] = defaultdict(float)
        busy: dict[str, float] = defaultdict(float)
        events: list[tuple[float, int]] = []  # ends to come

        def arrive(number: int) -> str:
            place = self._operations[number].place
            waiting[place].append(number)
            return place

        def begin(now: float, places: Iterable[str]) -> None:
            """All that begin at one moment slow each other down alike."""
            begun = []
            for place in dict.fromkeys(places):
                if place not in at_work and waiting[place]:
                    at_work[place] = number = waiting[place].popleft()
                    computing[self._operations[number].crowd] += 1
                    begun.append(number)
            for number in begun:
                operation = self._operations[number]
                factor = self._slowdown(computing[operation.crowd]) if operation.crowd else 1.0
                taken = operation.seconds * factor
                by_kind[operation.kind] += taken
                busy[operation.place] += taken
                heappush(events, (now + taken, number))

        begin(0.0, [arrive(number) for number, count in enumerate(missing) if count == 0])
        now = 0.0
        while events:
            now, touched = events[0][0], []
            while events and events[0][0] == now:
                _, number = heappop(events)
                operation = self._operations[number]
                ends[number] = now
                computing[operation.crowd] -= 1
                del at_work[operation.place]
                touched.append(operation.place)
                for follower in followers[number]:
                    missing[follower] -= 1
                    if missing[follower] == 0:
                        touched.append(arrive(follower))
            begin(now, touched)
        return Timeline(now, ends, dict(by_kind), dict(busy))
