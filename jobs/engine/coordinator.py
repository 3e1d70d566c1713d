"""The coordinator: the only place where Λ changes.

It asks the shards for θ, every task group for its gradient, the shards for ∂L/∂Λ, and moves Λ. Task
groups are fixed by the job and gradients are summed in group order, so the result does not depend
on how many workers there are or which of them answers first.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tintray.jobs.engine.arrays import Floats, Sent
from tintray.jobs.engine.backend import ActorHandle, Backend, Future, as_argument
from tintray.jobs.engine.best_state import BestState
from tintray.jobs.engine.shards import Shards
from tintray.jobs.engine.worker import Worker
from tintray.jobs.events import RoundDone
from tintray.numerics.schedules import Rates, cooled_down
from tintray.tasks.evaluation import TaskScore, mean
from tintray.tinting.draws import Draw, Draws
from tintray.tinting.plateau import Plateau
from tintray.tinting.step import TaskMetrics
from tintray.tinting.watching import Watch
from tintray.vectors.coefficients import Coefficients

_CORRECTION = "correction."  # before the names of its tensors in a checkpoint
_RECENT = 20  # rounds over which the kept share of a task is averaged


@dataclass(frozen=True)
class Assignment:
    """Who takes part: the shards, and which worker hosts which group and which task."""

    shards: Shards
    groups: Mapping[int, ActorHandle[Worker]]  # group number -> its worker
    names: Mapping[int, Sequence[str]]  # group number -> its tasks, in order
    hosts: Mapping[str, ActorHandle[Worker]]  # task name -> its worker


class Coordinator:
    """Runs the rounds of one job.

    Parameters
    ----------
    backend, assignment
        Where the members run, and who they are.
    coefficients
        Λ and its optimiser; moved here and nowhere else.
    rates
        Learning rates, given how many rounds the fit has.
    in_turn
        Let every group move Λ by itself, one after another (the published loop, with one task per
        group), instead of all groups together.
    plateau
        Ends the fit early, where agreement has stopped growing.
    cool_down
        Instead of ending at once, let the fit have some more rounds in which the rates fall.
    draws
        What each task draws in a round.
    watch
        When the state is measured on examples that tasks hold back; the best one is that in which
        the fit ends. Without it, the last.
    """

    def __init__(
        self,
        backend: Backend,
        assignment: Assignment,
        coefficients: Coefficients,
        *,
        rates: Callable[[int], Rates],
        in_turn: bool = False,
        plateau: Plateau | None = None,
        cool_down: bool = False,
        draws: Draws,
        watch: Watch | None = None,
    ) -> None:
        self._backend = backend
        self._assignment = assignment
        self._coefficients = coefficients
        self._rates = rates
        self._corrected = rates(1).correction is not None
        groups = sorted(assignment.groups)
        self._turns = [[group] for group in groups] if in_turn else [groups]
        self._plateau, self._cool_down = plateau, cool_down
        self._draws = draws
        self._agreement: list[float] = []  # mean of each round, as far back as the plateau looks
        self.best: BestState | None = None
        """The best state so far, where the fit is watched."""
        if watch is not None:
            self.best = BestState(backend, assignment, coefficients, watch)
        self.rounds = 0
        """Rounds that the fit has run."""
        self._last: int | None = None  # the round with which the fit ends, where that is before all
        self._selected: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_RECENT))

    def fit(
        self,
        rounds: int,
        on_round: Callable[[RoundDone], None],
        *,
        first: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Run rounds ``first … rounds - 1``; Λ and the workers' tint layers move in each.

        On a plateau it ends before; the last event then says so many ``rounds`` as there were.
        ``seconds`` are those that the rounds before ``first`` took. When ``on_round`` is called
        nothing moves: what it finds is the state at the end of that round. When the fit is over,
        the state is the best that was watched.

        Raises
        ------
        FitError
            If a loss stops being finite, or a worker dies.
        """
        started = time.perf_counter() - seconds
        self.rounds = first
        self._look_for_plateau(rounds)  # a checkpoint of the last round
        while self.rounds < (last := self._last or rounds):
            metrics = self._round(self.rounds, self._rates(last))
            for name, of_task in metrics.items():
                self._selected[name].append(of_task.selected_fraction)
            agreement = {name: of_task.agreement for name, of_task in metrics.items()}
            self._agreement.append(mean(list(agreement.values())))
            self._draws.heard(agreement)
            self.rounds += 1
            watched: Mapping[str, float] = {}
            if self.best is not None and self.best.watch.due(self.rounds, last):
                watched = self.best.look(self.rounds, last)
            self._look_for_plateau(rounds)
            on_round(
                RoundDone(
                    round=self.rounds,
                    rounds=self._last or rounds,
                    loss=mean([m.loss for m in metrics.values()]),
                    agreement=agreement,
                    selected_fraction={name: m.selected_fraction for name, m in metrics.items()},
                    seconds=time.perf_counter() - started,
                    held_back=watched,
                )
            )
        if self.best is not None:
            self.best.settle(self.rounds)

    def _look_for_plateau(self, rounds: int) -> None:
        """End the fit here, or soon, if agreement has stopped growing: on what is held back.

        Where nothing is held back it goes by the batches of the rounds.
        """
        if self._plateau is None or (self._cool_down and self._last is not None):
            return
        self._agreement = self._agreement[-self._plateau.window :]
        first = self.rounds - len(self._agreement) + 1
        curve = list(enumerate(self._agreement, first)) if self.best is None else self.best.curve
        if self._plateau.reached(curve):
            last = cooled_down(self.rounds) if self._cool_down else self.rounds
            self._last = last if last < rounds else self._last

    def _round(self, round_: int, rates: Rates) -> dict[str, TaskMetrics]:
        found: dict[str, TaskMetrics] = {}
        draws = self._draws.of_round(round_)
        for groups in self._turns:
            found |= self._turn(round_, rates, groups, draws)
        return found

    def _turn(
        self, round_: int, rates: Rates, groups: Sequence[int], draws: Mapping[str, Draw]
    ) -> dict[str, TaskMetrics]:
        """One update of Λ from the gradients of the tasks of these groups that take part."""
        names = {g: [n for n in self._assignment.names[g] if n in draws] for g in groups}
        drawn = {g: {n: draws[n] for n in of_group} for g, of_group in names.items() if of_group}
        if not drawn:
            return {}
        theta = self._assignment.shards.merge(self._coefficients.values, for_a_round=True)
        pace = rates.pace(round_)
        pieces = [as_argument(piece) for piece in theta]
        answers = [
            self._assignment.groups[group].call_direct_parts(
                Worker.step, len(pieces), group, round_, pace, of_group, *pieces
            )
            for group, of_group in drawn.items()
        ]
        correction_lr = 0.0 if rates.correction is None else rates.correction(round_)
        projected = self._assignment.shards.project([parts for parts, _ in answers], correction_lr)
        metrics = self._backend.get([metrics for _, metrics in answers])
        gradient = self._assignment.shards.fold(self._backend.get(projected))
        self._coefficients.update(gradient, rates.coefficients(round_))
        return {name: of for group in metrics for name, of in group.items()}

    def theta(self) -> list[Future[Sent]]:
        """θ for the present Λ in pieces, where members can read it."""
        return self._assignment.shards.merge(self._coefficients.values)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a resumed fit needs of this: Λ and δ with optimisers, and notes as JSON types."""
        kept = {task: list(shares) for task, shares in self._selected.items()}
        tensors = self._coefficients.state_dict()
        if self._corrected:
            found = self._assignment.shards.correction()
            tensors |= {_CORRECTION + name: tensor for name, tensor in found.items()}
        own = {"kept": kept, "agreement": self._agreement, "last": self._last}
        notes = {**own, "draws": self._draws.state()}
        return tensors, notes if self.best is None else {**notes, "best": self.best.state()}

    def restore(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go back to what ``state`` returned."""
        self._coefficients.load_state_dict(tensors)
        correction = {
            name.removeprefix(_CORRECTION): tensor
            for name, tensor in tensors.items()
            if name.startswith(_CORRECTION)
        }
        if correction:
            self._assignment.shards.correct(correction)
        self._agreement, self._last = list(notes["agreement"]), notes.get("last")
        if "draws" in notes:  # checkpoints of 0.1.0 have none, and their fits draw evenly
            self._draws.restore(notes["draws"])
        if self.best is not None:
            self.best.restore(notes["best"])
        self._selected.clear()
        for task, shares in notes["kept"].items():
            self._selected[task].extend(shares)

    def selected_fractions(self, tasks: Iterable[str]) -> dict[str, float]:
        """Shares of tasks' examples that the confidence filter selected in the last rounds."""
        recent = {task: list(self._selected[task]) for task in tasks}
        return {task: mean(shares) if shares else 1.0 for task, shares in recent.items()}

    def scores(self, on_score: Callable[[TaskScore], None]) -> list[TaskScore]:
        """Measure every task under the present Λ, in the order of the job."""
        theta = list(map(as_argument, self.theta()))
        scores = [
            worker.call(Worker.evaluate, name, *theta)
            for name, worker in self._assignment.hosts.items()
        ]
        found: dict[int, TaskScore] = {}
        for index, score in self._backend.as_completed(scores):
            on_score(score)
            found[index] = score
        return [found[index] for index in range(len(scores))]

    def backbone(self) -> Floats:
        """θ [P] for the present Λ, here."""
        return self._assignment.shards.gather(self.theta())
