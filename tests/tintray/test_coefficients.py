"""Λ and its learning rates."""

from __future__ import annotations

import pytest
import torch

from tintray.merging import find_method
from tintray.numerics.schedules import schedule
from tintray.vectors.coefficients import Coefficients


def gradients(count: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(3, 5, generator=random) for _ in range(count)]


def test_many_tasks_share_what_ten_have() -> None:
    """Of a sum; a mean, an election or a decomposition does not grow with the tasks."""
    arithmetic = find_method("task_arithmetic")
    assert [arithmetic.start(tasks) for tasks in (1, 8, 10)] == [0.3] * 3
    assert [tasks * arithmetic.start(tasks) for tasks in (20, 200)] == pytest.approx([3.0, 3.0])
    assert find_method("ties").start(200) == find_method("ties").start(8) == 1.0
    assert find_method("average").start(200) == 1 / 200


def test_updates_move_against_the_gradient_by_the_rate_and_stay_in_bounds() -> None:
    coefficients = Coefficients(torch.full((3, 5), 0.3))
    (gradient,) = gradients(1)
    coefficients.update(gradient, 0.01)
    assert torch.allclose(coefficients.values, 0.3 - 0.01 * gradient.sign(), atol=1e-6)
    coefficients = Coefficients(torch.full((3, 5), 0.5), bounds=(0.4, 0.6))
    for gradient in gradients(5):
        coefficients.update(gradient, 0.2)
        assert coefficients.values.min() >= 0.4 and coefficients.values.max() <= 0.6
    assert coefficients.values.min() < 0.41  # they were reached


def test_resumed_coefficients_go_on_bit_for_bit() -> None:
    steps = gradients(6)
    whole, first = Coefficients(torch.zeros(3, 5)), Coefficients(torch.zeros(3, 5))
    for gradient in steps[:3]:
        first.update(gradient, 0.01)
    state = first.state_dict()
    first.update(steps[3], 0.01)  # what the job lost: it must not reach into the checkpoint
    resumed = Coefficients(torch.ones(3, 5))
    resumed.load_state_dict(state)
    for gradient in steps:
        whole.update(gradient, 0.01)
    for gradient in steps[3:]:
        resumed.update(gradient, 0.01)
    assert torch.equal(whole.values, resumed.values)


def test_schedule_rises_and_falls() -> None:
    constant = schedule(2.0, "constant", 10, warmup=4)
    assert [constant(n) for n in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    cosine = schedule(2.0, "cosine", 10)
    rates = [cosine(n) for n in range(10)]
    assert rates[0] == 2.0
    assert rates[5] == pytest.approx(1.0)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0
    linear = schedule(2.0, "linear", 12, warmup=2)
    assert [linear(n) for n in (0, 1, 2, 7, 11)] == pytest.approx([1.0, 2.0, 2.0, 1.0, 0.2])
