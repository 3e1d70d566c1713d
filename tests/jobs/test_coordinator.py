"""Rounds: Λ moves as in plain arithmetic, whoever holds the task vectors and hosts the tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tintray.checkpoints.tensors import tensors_as_bytes
from tintray.jobs.engine.backend import Placement
from tintray.jobs.engine.coordinator import Assignment, Coordinator
from tintray.jobs.engine.grouping import form_groups
from tintray.jobs.engine.in_process import InProcessBackend
from tintray.jobs.engine.shards import ShardConfig, Shards
from tintray.jobs.events import RoundDone
from tintray.numerics.layout import build_layout
from tintray.numerics.schedules import Rates, schedule
from tintray.storage.artifacts.blobs import put_blob
from tintray.storage.artifacts.store import open_store
from tintray.tasks.evaluation import TaskScore
from tintray.tinting.draws import Draw, Draws
from tintray.tinting.plateau import Plateau
from tintray.tinting.step import TaskMetrics
from tintray.tinting.watching import Watch
from tintray.vectors.coefficients import Coefficients
from tintray.vectors.correction import Correction

LAYOUT = build_layout({"a": (3, 2), "b": (4,)})
TASKS = ["p", "q", "r", "s"]
RANDOM = torch.Generator().manual_seed(0)
BASE, *VECTORS = torch.randn(1 + len(TASKS), LAYOUT.numel, generator=RANDOM)
WANTED = dict(zip(TASKS, torch.randn(len(TASKS), LAYOUT.numel, generator=RANDOM), strict=True))


class Worker:
    """Its tasks' loss is half the squared distance of θ to where each wants it."""

    def __init__(self, groups: dict[int, list[str]]) -> None:
        self.groups = groups
        self.bounds: list[slice] = []
        self.rates: list[float] = []
        self.script: list[float] = []  # agreement of the states that are watched
        self.said: list[float] = []
        self.watched: list[Any] = []  # their θ

    def begin(self, bounds: list[slice]) -> None:
        self.bounds = bounds

    def step(
        self, group: int, round_: int, rate: float, draws: Mapping[str, Draw], *theta: Any
    ) -> tuple[list[Any], dict[str, TaskMetrics]]:
        self.rates.append(rate)
        whole = torch.from_numpy(np.concatenate(theta))
        tasks = [task for task in self.groups[group] if task in draws]
        gradient = torch.stack([whole - WANTED[task] for task in tasks]).sum(0)
        losses = {task: float((whole - WANTED[task]).square().sum()) / 2 for task in tasks}
        metrics = {task: TaskMetrics(loss, 0.5, 0.25) for task, loss in losses.items()}
        return [gradient[bounds].numpy() for bounds in self.bounds], metrics

    def watch(self, name: str, examples: int, *theta: Any) -> float:
        """What the test says of each state in turn."""
        if name == TASKS[0]:
            self.watched.append(np.concatenate(theta))
            self.said.append(self.script.pop(0))
        return self.said[-1]

    def keep_group(self, group: int, name: str, share: float) -> None:
        pass

    def recall_group(self, group: int, name: str) -> None:
        pass

    def evaluate(self, name: str, *theta: Any) -> TaskScore:
        return TaskScore(name, "agreement", float(np.concatenate(theta)[0]), 1.0, 0.5, 1)


@dataclass
class Fit:
    """A coordinator over such workers."""

    store: Path
    groups: int = 2
    shards: int = 2
    options: dict[str, Any] = field(default_factory=dict)
    correction: Callable[[int], float] | None = None
    rounds: list[RoundDone] = field(default_factory=list)

    def __post_init__(self) -> None:
        store, backend = open_store(str(self.store)), InProcessBackend(1)
        files = (tensors_as_bytes(LAYOUT.views(row)) for row in (BASE, *VECTORS))
        base, *blobs = (put_blob(store, file) for file in files)
        shards = Shards(backend, ShardConfig(str(self.store), base, LAYOUT), self.shards)
        stretches = form_groups(len(TASKS), self.groups)
        groups = {n: TASKS[found.start : found.stop] for n, found in enumerate(stretches)}
        self.worker = Worker(groups)
        member = backend.spawn(Placement("worker"), lambda: self.worker)
        backend.get([*shards.load(TASKS, blobs), member.call(Worker.begin, shards.bounds)])
        self.coefficients = Coefficients(torch.full((len(TASKS), 2), 0.3))
        hosts = dict.fromkeys(groups, member), groups, dict.fromkeys(TASKS, member)
        rates = Rates(lambda n: 0.01 / (n + 1), lambda n: 0.1 * n, self.correction)
        options = {"rates": lambda rounds: rates, "draws": Draws(TASKS, 1), **self.options}
        self.coordinator = Coordinator(
            backend, Assignment(shards, *hosts), self.coefficients, **options
        )

    def run(self, rounds: int, first: int = 0) -> Fit:
        self.coordinator.fit(rounds, self.rounds.append, first=first)
        return self

    def run_until(self, round_: int, of: int = 8) -> None:
        """Break off after a round."""

        def on_round(event: RoundDone) -> None:
            if event.round == round_:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.coordinator.fit(of, on_round)


def plain(rounds: int, turns: list[list[str]], correction_lr: float = 0.0) -> tuple[Tensor, Tensor]:
    """Λ and θ after so many rounds, without groups, shards or members."""
    coefficients, vectors = Coefficients(torch.full((len(TASKS), 2), 0.3)), torch.stack(VECTORS)
    correction, of_tensors = Correction(LAYOUT), [slice(0, 6), slice(6, 10)]

    def theta() -> Tensor:
        values = coefficients.values
        mixed = [values[:, n] @ vectors[:, part] for n, part in enumerate(of_tensors)]
        return BASE + torch.cat(mixed) + correction.values

    for round_ in range(rounds):
        for tasks in turns:
            gradient = torch.stack([theta() - WANTED[task] for task in tasks]).sum(0)
            columns = [vectors[:, part] @ gradient[part] for part in of_tensors]
            if correction_lr:
                correction.update(gradient, correction_lr)
            coefficients.update(torch.stack(columns, dim=1), 0.01 / (round_ + 1))
    return coefficients.values, theta()


@pytest.mark.parametrize("correction_lr", [0.0, 1e-2])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(("groups", "in_turn"), [(1, False), (2, False), (4, False), (4, True)])
def test_rounds_are_those_of_plain_arithmetic(
    tmp_path: Path, groups: int, in_turn: bool, shards: int, correction_lr: float
) -> None:
    correction = (lambda round_: correction_lr) if correction_lr else None
    members = groups, shards, {"in_turn": in_turn}, correction
    fit = Fit(tmp_path, *members).run(3)
    turns = [[task] for task in TASKS] if in_turn else [TASKS]
    values, theta = plain(3, turns, correction_lr)
    assert torch.allclose(fit.coefficients.values, values, atol=1e-6)
    assert np.allclose(fit.coordinator.backbone(), theta.numpy(), atol=1e-5)
    told: list[TaskScore] = []
    scores = fit.coordinator.scores(told.append)
    assert [score.task for score in scores] == TASKS
    assert told == scores
    # Where it stopped it goes on, to the last bit.
    again = Fit(tmp_path, *members)
    again.coordinator.restore(*fit.coordinator.state())
    one, other = (resumed.run(5, first=3).coefficients.values for resumed in (again, fit))
    assert torch.equal(one, other)


def test_rounds_are_told_one_by_one(tmp_path: Path) -> None:
    fit = Fit(tmp_path).run(3)
    assert [(event.round, event.rounds) for event in fit.rounds] == [(1, 3), (2, 3), (3, 3)]
    assert all(event.agreement == dict.fromkeys(TASKS, 0.5) for event in fit.rounds)
    assert fit.coordinator.selected_fractions(TASKS) == dict.fromkeys(TASKS, 0.25)
    seconds = [event.seconds for event in fit.rounds]
    assert seconds == sorted(seconds)
    assert fit.worker.rates == [0.0, 0.0, 0.1, 0.1, 0.2, 0.2]


@pytest.mark.parametrize("in_turn", [False, True])
def test_tasks_that_sit_a_round_out_are_not_asked(tmp_path: Path, in_turn: bool) -> None:
    """Two groups of two tasks, one task a round: one group has nothing to do."""
    draws = Draws(TASKS, 1, chosen=lambda round_: {TASKS[round_]})
    options = {"draws": draws, "in_turn": in_turn}
    fit = Fit(tmp_path, options=options).run(4)
    assert [list(event.agreement) for event in fit.rounds] == [[task] for task in TASKS]
    assert len(fit.worker.rates) == 4


@pytest.mark.parametrize("broken_off", [False, True])
@pytest.mark.parametrize(
    ("watched", "said", "best"),
    [
        ({2, 4, 6}, [0.5, 0.9, 0.6, 0.7], [4]),
        ({2, 4, 6}, [0.5, 0.6, 0.6, 0.7], [8]),  # no other state is worth going back to
        ({5, 7}, [0.1, 0.5, 0.6, 0.9], [7, 8]),  # the fourth is the average of the last two
        ({5, 7}, [0.1, 0.9, 0.6, 0.7], [7]),
        ({5, 7}, [0.1, 0.5, 0.9, 0.6], [8]),
    ],
)
def test_a_fit_ends_in_the_state_that_agreed_most(
    tmp_path: Path, watched: set[int], said: list[float], best: list[int], broken_off: bool
) -> None:
    parts: dict[str, Any] = {"options": {"watch": Watch(frozenset(watched), 4)}}
    parts["correction"] = lambda round_: 1e-2
    fit, seen = Fit(tmp_path, **parts), []
    fit.worker.script = list(said)
    rounds = [*sorted(watched), 8]
    if broken_off:  # it goes on elsewhere, from its checkpoint
        stopped, fit = fit, Fit(tmp_path, **parts)
        stopped.run_until(5)
        fit.coordinator.restore(*stopped.coordinator.state())
        fit.worker.script, seen = stopped.worker.script, stopped.worker.watched
        fit.run(8, first=5)
    else:
        fit.run(8)
        held = {event.round: event.held_back for event in fit.rounds if event.held_back}
        assert held == {n: dict.fromkeys(TASKS, of) for n, of in zip(rounds, said, strict=False)}
    thetas = dict(zip(rounds, [*seen, *fit.worker.watched], strict=False))
    wanted = np.mean([thetas[round_] for round_ in best], axis=0)
    assert np.allclose(fit.coordinator.backbone(), wanted, atol=1e-6)
    assert fit.coordinator.best is not None
    assert fit.coordinator.best.rounds == best
    assert fit.coordinator.best.agreement == dict.fromkeys(TASKS, max(said))


def test_a_fit_ends_where_agreement_stops_growing(tmp_path: Path) -> None:
    """The gain that is asked for is out of reach: two windows, and it is over."""
    fit = Fit(tmp_path, options={"plateau": Plateau(2, 1.0)}).run(10)
    ends = [(event.round, event.rounds) for event in fit.rounds]
    assert ends == [(1, 10), (2, 10), (3, 10), (4, 4)]
    # One that is resumed after its last round has nothing more to run.
    again = Fit(tmp_path, options={"plateau": Plateau(2, 1.0)})
    again.coordinator.restore(*fit.coordinator.state())
    assert again.run(10, first=4).rounds == []


@pytest.mark.parametrize("broken_off", [False, True])
def test_a_fit_that_is_flat_slows_down_before_it_ends(tmp_path: Path, broken_off: bool) -> None:
    """Agreement grows until round 12 and is seen to be flat after round 16: four rounds more."""
    options = {
        "rates": lambda rounds: Rates(lambda n: 1e-3, schedule(1.0, "until_flat", rounds)),
        "plateau": Plateau(4),
        "cool_down": True,
        "watch": Watch(frozenset(range(4, 41, 4)), 4),
    }
    fit = Fit(tmp_path, groups=1, options=options)
    fit.worker.script, paces = [0.1, 0.2, 0.3, 0.3, 0.4, 0.35], []
    if broken_off:
        stopped, fit = fit, Fit(tmp_path, groups=1, options=options)
        stopped.run_until(18, of=40)
        fit.coordinator.restore(*stopped.coordinator.state())
        fit.worker.script, paces = stopped.worker.script, stopped.worker.rates
    fit.run(40, first=18 if broken_off else 0)
    assert [*paces, *fit.worker.rates] == [1.0] * 17 + [0.75, 0.5, 0.25]
    assert fit.rounds[-1].rounds == fit.rounds[-1].round == 20


def test_a_fit_that_is_never_flat_slows_down_in_its_last_fifth(tmp_path: Path) -> None:
    options = {
        "rates": lambda rounds: Rates(lambda n: 1e-3, schedule(1.0, "until_flat", rounds)),
        "plateau": Plateau(2, -1.0),
        "cool_down": True,
    }
    fit = Fit(tmp_path, groups=1, options=options).run(10)
    assert fit.worker.rates == [1.0] * 9 + [0.5]
