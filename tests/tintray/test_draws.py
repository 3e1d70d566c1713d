"""Which examples a round takes of each task: even, or more of tasks that lag behind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_zoo import TASKS, TinyZoo
from tests.workbench import SETTINGS, tiny_workbench
from tintray.tinting.draws import LEAST, Draws, shares


def test_even_draws_are_the_same_in_every_round() -> None:
    draws = Draws(["a", "b"], 8, chosen=lambda round_: {"b"} if round_ else {"a", "b"})
    assert draws.of_round(0) == {"a": (0, 8), "b": (0, 8)}
    assert draws.of_round(2) == {"b": (16, 8)}


def test_tasks_that_lag_give_more_and_go_on_where_they_were() -> None:
    draws = Draws(["good", "bad"], 16, lagging=True)
    first = draws.of_round(0)
    assert first["good"] == first["bad"] == (0, 16)
    for _ in range(40):
        draws.heard({"good": 1.0, "bad": 0.5})
    (start, few), (other, many) = draws.of_round(1).values()
    assert (start, other) == (16, 16) and LEAST <= few < 16 < many and few + many <= 32
    again = Draws(["good", "bad"], 16, lagging=True)
    again.restore(draws.state())
    assert again.of_round(2) == draws.of_round(2)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(1, 64))
def test_a_round_never_has_more_examples_than_even_ones(agreement: list[float], size: int) -> None:
    sizes = shares(agreement, size)
    assert len(sizes) * size - len(sizes) <= sum(sizes) <= len(sizes) * size
    assert min(sizes) >= min(LEAST, size)
    ordered = [size for _, size in sorted(zip(agreement, sizes, strict=True), reverse=True)]
    assert ordered == sorted(sizes), "who agrees more gives no more"


def test_a_step_sums_the_examples_that_were_drawn(tiny: TinyZoo) -> None:
    """Uneven batches in one step give the sum of the gradients of each task by itself."""
    bench = tiny_workbench(tiny)
    theta = bench.vectors.merge(bench.uniform(0.3))
    draws = {"two": (0, 11), "three": (4, 4), "five": (2, 7)}
    together = bench.group(SETTINGS).step(theta, 0, 0.0, draws=draws)
    assert together.metrics.keys() == draws.keys() < set(TASKS)
    alone = [
        bench.group(SETTINGS, only=name).step(theta, 0, 0.0, draws={name: draw})
        for name, draw in draws.items()
    ]
    torch.testing.assert_close(together.gradient, sum(a.gradient for a in alone))
    for part, name in zip(alone, draws, strict=True):
        assert part.metrics[name].loss == pytest.approx(together.metrics[name].loss, rel=1e-5)
        assert 0 <= part.metrics[name].agreement <= 1
