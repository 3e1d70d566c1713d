"""What a fit holds back of pools, when it looks there, and when agreement has stopped growing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tintray.merging.scale_search import FACTOR, climb
from tintray.numerics.snapshots import Snapshots
from tintray.pools.held_back import held_back_count, split_pool
from tintray.tinting.plateau import Plateau
from tintray.tinting.watching import SHARE, plan_watch


@pytest.mark.parametrize(
    ("total", "wanted", "count"),
    [
        *((5, None, 0), (99, None, 0), (100, None, 10), (1200, None, 120), (9000, None, 256)),
        *((9000, 0, 0), (20, 7, 7)),
    ],
)
def test_a_tenth_is_held_back_or_what_the_job_says(
    total: int, wanted: int | None, count: int
) -> None:
    assert held_back_count(total, wanted) == count


def test_every_example_is_learned_from_or_held_back_by_the_tasks_name_alone() -> None:
    learned, held = split_pool(50, 12, 0, "mnist")
    assert sorted([*learned.tolist(), *held.tolist()]) == list(range(50))
    assert torch.equal(held, split_pool(50, 12, 0, "mnist")[1])
    assert held.tolist() == sorted(held.tolist()) != list(range(12))
    assert not torch.equal(held, split_pool(50, 12, 0, "svhn")[1])
    assert set(split_pool(50, 5, 0, "mnist")[1].tolist()) < set(held.tolist())


def test_what_is_spared_is_learned_from() -> None:
    spared = torch.tensor([3, 4, 30])
    learned, held = split_pool(50, 12, 0, "mnist", spared)
    assert len(held) == 12
    assert set(spared.tolist()) <= set(learned.tolist())
    assert len(split_pool(5, 4, 0, "mnist", torch.arange(3))[1]) == 2


@pytest.mark.parametrize("tasks", [2, 10, 200])
@pytest.mark.parametrize("rounds", [2, 60, 300, 3000])
@pytest.mark.parametrize("window", [None, 20])
def test_watching_costs_little_and_ends_with_the_last_round(
    tasks: int, rounds: int, window: int | None
) -> None:
    held = [256] * tasks
    watch = plan_watch(rounds, 16 * tasks, held, window)
    assert watch.due(rounds, rounds)
    chosen = {n for n in range(1, rounds + 1) if watch.due(n, rounds)}
    assert window is not None or min(chosen) > rounds // 2 or rounds == 2
    passes = len(chosen) * tasks * min(watch.examples, 256) / 3
    if rounds > 2 and window is None:  # a short fit looks at a few examples in any case
        assert passes <= SHARE * rounds * 16 * tasks
    if window is not None and rounds > window:
        assert max(b - a for a, b in zip(sorted(chosen), sorted(chosen)[1:], strict=False)) <= 20


def test_a_plateau_compares_what_was_seen_in_two_windows_of_rounds() -> None:
    plateau = Plateau(10, 0.01)
    rising = [(round_, round_ / 100) for round_ in (5, 12, 20)]
    assert not plateau.reached(rising[:2])  # the first window is not over
    assert not plateau.reached(rising)
    assert plateau.reached([*rising, (30, 0.165)])
    assert not plateau.reached([(20, 0.1)])  # nothing to compare it with


def test_a_mean_of_states_is_kept_step_by_step_and_survives_a_checkpoint() -> None:
    live: dict[str, Tensor] = {"a.b": torch.zeros(2)}
    snapshots = Snapshots(live)
    for number in (1, 2, 3):
        live["a.b"].fill_(float(number**2))
        snapshots.keep("mean", 1 / number)
    other: dict[str, Tensor] = {"a.b": torch.zeros(2)}
    resumed = Snapshots(other)
    resumed.load_state_dict({"values": torch.ones(1), **snapshots.state_dict()})
    resumed.recall("mean")
    assert torch.allclose(other["a.b"], torch.full((2,), 14 / 3))


@pytest.mark.parametrize(
    ("figure", "best", "count"),
    [
        (lambda scale: -abs(scale - 0.5), 0.5, 3),
        (lambda scale: scale, 0.5 * FACTOR**5, 6),  # until so many were tried
        (lambda scale: -scale, 0.5 * FACTOR**-4, 6),
        (lambda scale: -abs(scale - 0.5 * FACTOR**2), 0.5 * FACTOR**2, 4),
    ],
)
def test_a_scale_is_looked_for_beyond_where_the_grid_ends(
    figure: Callable[[float], float], best: float, count: int
) -> None:
    found = climb(figure, 0.5, most=6)
    assert max(found, key=lambda scale: found[scale]) == pytest.approx(best)
    assert len(found) <= count
