"""Rounds: only Λ and the tints move, as fast as they are told, in an order that does not show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_zoo import TASKS, TinyZoo
from tintray.jobs.engine.base_model import load_base_model
from tintray.jobs.engine.coordinator import Coordinator
from tintray.jobs.engine.in_process import InProcessBackend
from tintray.jobs.engine.worker import Worker
from tintray.jobs.engine.worker_pool import WorkerPool
from tintray.jobs.events import RoundDone
from tintray.storage.artifacts.store import open_store
from tintray.tasks.evaluation import TaskScore
from tintray.tinting.plateau import Plateau
from tintray.vectors.coefficients import Coefficients


class Fit:
    """A crew that is ready, and a coordinator over it."""

    def __init__(self, tiny: TinyZoo, store: Path, **sections: Any) -> None:
        rates = sections.pop("rates", (1e-2, 1e-2))
        sections.setdefault("merge", {"granularity": "block"})
        spec = tiny.spec(store, **sections)
        self.ground = load_base_model(spec)
        self.fleet = InProcessBackend(1)
        self.crew = WorkerPool(Worker, self.fleet, spec, self.ground)
        self.crew.check()
        self.crew.prepare(open_store(spec.store), lambda done: None)
        units = len(self.ground.partition.layout.units)
        start = torch.full((len(TASKS), units), 0.3)
        self.coefficients = Coefficients(start, spec.merge.bounds)
        rate: Callable[[float], Callable[[int], float]] = lambda value: lambda round_: value  # noqa: E731
        self.coordinator = Coordinator(
            self.fleet,
            self.crew.assignment,
            self.coefficients,
            coefficient_lr=rate(rates[0]),
            tint_lr=rate(rates[1]),
            in_turn=spec.fit.updates == "in_turn",
            plateau=Plateau(spec.fit.patience, spec.fit.min_delta) if spec.fit.patience else None,
            sampled=self.crew.sampler,
        )
        self.rounds: list[RoundDone] = []

    def run(self, rounds: int) -> Fit:
        self.coordinator.fit(rounds, self.rounds.append)
        return self


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all fits: what they prepare is the same."""
    return tmp_path_factory.mktemp("store")


def moved(fit: Fit, tiny: TinyZoo, store: Path) -> tuple[bool, bool]:
    """Whether Λ and whether any tint is elsewhere than at its beginning."""
    before = Fit(tiny, store)
    tints, then = fit.crew.tints(), before.crew.tints()
    tint = any(not torch.equal(tints[t][n], then[t][n]) for t in tints for n in tints[t])
    return not torch.equal(fit.coefficients.values, before.coefficients.values), tint


@pytest.mark.parametrize("rates", [(1e-2, 1e-2), (0.0, 1e-2), (1e-2, 0.0)])
def test_what_has_no_learning_rate_does_not_move(
    tiny: TinyZoo, store: Path, rates: tuple[float, float]
) -> None:
    fit = Fit(tiny, store, rates=rates).run(2)
    assert moved(fit, tiny, store) == (rates[0] > 0, rates[1] > 0)


def test_groups_change_nothing_but_the_order_of_sums(tiny: TinyZoo, store: Path) -> None:
    fits = [Fit(tiny, store, fit={"groups": groups}).run(3) for groups in (1, 2, 4)]
    for other in fits[1:]:
        assert torch.allclose(other.coefficients.values, fits[0].coefficients.values, atol=1e-5)
        for task, tensors in other.crew.tints().items():
            for name, tensor in tensors.items():
                assert torch.allclose(tensor, fits[0].crew.tints()[task][name], atol=1e-4), name


def test_a_fit_is_repeatable_to_the_last_bit(tiny: TinyZoo, store: Path) -> None:
    one, other = Fit(tiny, store).run(3), Fit(tiny, store).run(3)
    assert torch.equal(one.coefficients.values, other.coefficients.values)
    assert np.array_equal(one.coordinator.backbone(), other.coordinator.backbone())
    assert [event.loss for event in one.rounds] == [event.loss for event in other.rounds]


def test_rounds_are_told_one_by_one(tiny: TinyZoo, store: Path) -> None:
    fit = Fit(tiny, store, objective={"filter": "none"}).run(3)
    assert [(event.round, event.rounds) for event in fit.rounds] == [(1, 3), (2, 3), (3, 3)]
    assert all(list(event.agreement) == list(TASKS) for event in fit.rounds)
    assert all(set(event.selected_fraction.values()) == {1.0} for event in fit.rounds)
    assert [fit.coordinator.kept(task) for task in TASKS] == [1.0] * 4
    seconds = [event.seconds for event in fit.rounds]
    assert seconds == sorted(seconds)


def test_backbone_and_scores_are_of_the_present_coefficients(tiny: TinyZoo, store: Path) -> None:
    fit = Fit(tiny, store).run(2)
    values = fit.coefficients.values.numpy()
    assert np.array_equal(fit.coordinator.backbone(), fit.crew.merge(values))
    told: list[TaskScore] = []
    scores = fit.coordinator.scores(told.append)
    assert [score.task for score in scores] == list(TASKS)
    assert told == scores


def test_bounds_hold(tiny: TinyZoo, store: Path) -> None:
    fit = Fit(tiny, store, merge={"bounds": [0.29, 0.31]}, rates=(0.1, 1e-2)).run(3)
    values = fit.coefficients.values
    assert values.min() == pytest.approx(0.29)
    assert values.max() == pytest.approx(0.31)


def test_in_turn_each_task_moves_the_coefficients_by_itself(tiny: TinyZoo, store: Path) -> None:
    together = Fit(tiny, store, rates=(1e-3, 0.0)).run(1)
    in_turn = Fit(tiny, store, rates=(1e-3, 0.0), fit={"updates": "in_turn"}).run(1)
    start = torch.full_like(together.coefficients.values, 0.3)
    # Adam's first step is its learning rate long, whatever the gradient: one step together, and
    # up to one per task in turn.
    assert (together.coefficients.values - start).abs().max() <= 1.01e-3
    assert (in_turn.coefficients.values - start).abs().max() > 1.5e-3
    assert {task for done in in_turn.rounds for task in done.agreement} == set(TASKS)


@pytest.mark.parametrize("updates", ["together", "in_turn"])
def test_tasks_that_sit_a_round_out_stay_as_they_are(
    tiny: TinyZoo, store: Path, updates: str
) -> None:
    """Two groups of two tasks, one task a round: one group has nothing to do."""
    fit = Fit(tiny, store, fit={"tasks_per_round": 1, "groups": 2, "updates": updates})
    before = fit.crew.tints()
    fit.run(1)
    (chosen,) = fit.rounds[0].agreement
    after = fit.crew.tints()
    moved = {t for t in TASKS if any(not torch.equal(after[t][n], before[t][n]) for n in after[t])}
    assert moved == {chosen}
    fit.run(4)
    assert {name for event in fit.rounds[1:] for name in event.agreement} == set(TASKS)


def test_a_round_of_all_tasks_is_an_ordinary_round(tiny: TinyZoo, store: Path) -> None:
    plain, all_four = Fit(tiny, store), Fit(tiny, store, fit={"tasks_per_round": 4})
    assert torch.equal(plain.run(2).coefficients.values, all_four.run(2).coefficients.values)


def test_a_fit_ends_where_agreement_stops_growing(tiny: TinyZoo, store: Path) -> None:
    """Nothing is learned, and the gain asked for is out of reach: two windows, and it is over."""
    fit = Fit(tiny, store, rates=(0.0, 0.0), fit={"patience": 2, "min_delta": 1.0}).run(10)
    assert fit.coordinator.rounds == len(fit.rounds) == 4
    assert [(event.round, event.rounds) for event in fit.rounds] == [
        (1, 10),
        (2, 10),
        (3, 10),
        (4, 4),
    ]
    # One that is resumed after its last round has nothing more to run.
    again = Fit(tiny, store, rates=(0.0, 0.0), fit={"patience": 2, "min_delta": 1.0})
    again.coordinator.restore(*fit.coordinator.state())
    again.coordinator.fit(10, again.rounds.append, first=4)
    assert again.rounds == []


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_formats_change_little_and_shards_change_nothing(
    tiny: TinyZoo, store: Path, format: str
) -> None:
    plain = Fit(tiny, store).run(2).coordinator.backbone()
    found = [
        Fit(
            tiny,
            store,
            merge={"granularity": "block", "task_vectors": format},
            cluster={"shards": n},
        )
        .run(2)
        .coordinator.backbone()
        for n in (1, 3)
    ]
    assert np.array_equal(*found)
    assert not np.array_equal(found[0], plain)
    assert np.allclose(found[0], plain, atol={"bf16": 1e-2, "int8": 1e-2, "int4": 0.15}[format])
