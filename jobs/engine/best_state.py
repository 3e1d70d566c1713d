"""The state of a fit that agrees most with the experts on what they hold back, kept by members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tintray.jobs.engine.arrays import Floats, Sent
from tintray.jobs.engine.backend import Backend, Future, as_argument
from tintray.jobs.engine.shards import Shard
from tintray.jobs.engine.worker import Worker
from tintray.tasks.evaluation import mean
from tintray.tinting.watching import Watch
from tintray.vectors.coefficients import Coefficients

if TYPE_CHECKING:
    from tintray.jobs.engine.coordinator import Assignment

BEST, AVERAGE = "best", "average"
_AVERAGED = 0.25  # of a fit's rounds, the last: the states that are watched in them are averaged


class BestState:
    """Measures the present state where the fit is watched, and goes back to the best in the end.

    Who owns a part of the state keeps a copy of it: the coordinator Λ, shards δ, workers tints.
    """

    def __init__(
        self, backend: Backend, assignment: Assignment, coefficients: Coefficients, watch: Watch
    ) -> None:
        self._backend, self._assignment = backend, assignment
        self._coefficients = coefficients
        self.watch = watch
        self.agreement: dict[str, float] = {}
        """Of each task with its expert, on examples that it holds back, in the best state."""
        self.rounds: list[int] = []
        """After which round that was; several where their states were averaged."""
        self.curve: list[tuple[int, float]] = []
        """Rounds that were watched, with the mean agreement after each."""
        self._averaged: list[int] = []

    def look(self, round_: int, last: int) -> dict[str, float]:
        """Measure the state after a round, 1-based, and keep it if none was better; by task."""
        found = self._measure()
        self.curve.append((round_, mean(list(found.values()))))
        if round_ > last * (1 - _AVERAGED):
            self._averaged.append(round_)
            self._keep(AVERAGE, 1 / len(self._averaged))
        if self._is_best(found):
            self.agreement, self.rounds = found, [round_]
            if round_ < last or len(self._averaged) > 1:  # else nothing takes its place
                self._keep(BEST)
        return found

    def settle(self, last: int) -> None:
        """After the ``last`` round, go back to the best state; or to an average, if it is better.

        Nothing moves where the last state is the best.
        """
        present = [last]
        if len(self._averaged) > 1:
            self._recall(AVERAGE)
            present = self._averaged
            if self._is_best(found := self._measure()):
                self.agreement, self.rounds = found, present
        if self.rounds != present:
            self._recall(BEST)

    def state(self) -> dict[str, Any]:
        """Notes as JSON types; the tensors are in the states of those who own them."""
        return {
            "agreement": self.agreement,
            "rounds": self.rounds,
            "curve": self.curve,
            "averaged": self._averaged,
        }

    def restore(self, notes: Mapping[str, Any]) -> None:
        """Go back to what ``state`` returned."""
        self.agreement, self.rounds = dict(notes["agreement"]), list(notes["rounds"])
        self.curve = [(round_, agreement) for round_, agreement in notes["curve"]]
        self._averaged = list(notes["averaged"])

    def forget_learned(self) -> None:
        """Let tints be as they are without learning, when the fit has settled."""
        self._keep(BEST)
        groups = self._assignment.groups.items()
        self._backend.get([host.call(Worker.start_group, n) for n, host in groups])

    def remember_learned(self) -> None:
        """Undo ``forget_learned``."""
        self._recall(BEST)

    def agreement_under(self, theta: Floats, examples: int) -> dict[str, float]:
        """Of each task under θ [P] with its tints as they are, on so many examples at most."""
        return self._ask([as_argument(self._backend.put(theta))], examples)

    def _is_best(self, found: Mapping[str, float]) -> bool:
        known = list(self.agreement.values())
        return not known or mean(list(found.values())) >= mean(known)

    def _measure(self) -> dict[str, float]:
        theta = self._assignment.shards.merge(self._coefficients.values)
        return self._ask(list(map(as_argument, theta)), self.watch.examples)

    def _ask(self, theta: Sequence[Sent], examples: int) -> dict[str, float]:
        hosts = self._assignment.hosts
        asked = [host.call(Worker.watch, name, examples, *theta) for name, host in hosts.items()]
        return dict(zip(hosts, self._backend.get(asked), strict=True))

    def _keep(self, name: str, share: float = 1.0) -> None:
        self._coefficients.snapshots.keep(name, share)
        groups, shards = self._assignment.groups.items(), self._assignment.shards.members
        done: list[Future[None]] = [m.call(Shard.keep, name, share) for m in shards]
        done += [host.call(Worker.keep_group, n, name, share) for n, host in groups]
        self._backend.get(done)

    def _recall(self, name: str) -> None:
        self._coefficients.snapshots.recall(name)
        groups, shards = self._assignment.groups.items(), self._assignment.shards.members
        done: list[Future[None]] = [m.call(Shard.recall, name) for m in shards]
        done += [host.call(Worker.recall_group, n, name) for n, host in groups]
        self._backend.get(done)
