"""The form of a step that GPUs run gives what tasks give one by one, but for rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.round import kernels
from tests.tiny_zoo import TinyZoo
from tests.workbench import SETTINGS, Workbench, tiny_workbench
from tintray.numerics.sites import TintSite
from tintray.tinting.draws import Draw
from tintray.tinting.stacked_step import StackedGroup, form_group
from tintray.tinting.step import StepSettings, TaskGroup

ROUNDS = 3
SITES = {
    "head": (TintSite("head"),),
    "prompt and head": (TintSite("prompt", 4), TintSite("head")),
    "block": (TintSite("vit.layers.2"),),
    "products": (TintSite("vit.layers.1", 2), TintSite("head")),
}


def formed(bench: Workbench, settings: StepSettings) -> TaskGroup:
    one = bench.group(settings)
    return form_group(one.tasks, one._fused, one._gradient, settings, stacked=True)


def stacked(bench: Workbench, settings: StepSettings) -> StackedGroup:
    group = formed(bench, settings)
    assert isinstance(group, StackedGroup)
    return group


def fitted(
    group: TaskGroup, bench: Workbench, draws: Mapping[str, Draw] | None = None, start: int = 0
) -> dict[str, Any]:
    """What a few rounds give: gradients, metrics, and the tints at the end."""
    found: dict[str, Any] = {}
    for round_ in range(start, start + ROUNDS):
        theta = bench.vectors.merge(bench.uniform(0.3))
        result = group.step(theta, round_, 0.5, draws=draws)
        found[f"gradient {round_}"] = result.gradient.clone()
        for name, metrics in result.metrics.items():
            found[f"{name} {round_}"] = torch.tensor(
                [metrics.loss, metrics.agreement, metrics.selected_fraction]
            )
    for task in group.tasks:
        found |= {f"{task.name} {n}": t.detach().clone() for n, t in task.layer.tensors.items()}
    return found


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # Attention does not depend on a key's bias: its gradient is rounding, and Adam's steps too.
        if not name.endswith("k_proj.bias"):
            assert torch.allclose(
                found[name].to(tensor), tensor, rtol=2e-4, atol=2e-5, equal_nan=True
            ), name


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("changed", [{}, {"filter": "agreement", "micro_batch": 16}])
def test_rounds_are_those_of_tasks_one_by_one(
    tiny: TinyZoo, sites: str, changed: dict[str, Any]
) -> None:
    bench = tiny_workbench(tiny, sites=SITES[sites])
    settings = replace(SETTINGS, **changed)
    same(fitted(stacked(bench, settings), bench), fitted(bench.group(settings), bench))


def test_how_many_kernels_a_round_takes_does_not_grow_with_its_tasks() -> None:
    assert kernels(32) <= 1.2 * kernels(4)


def test_tasks_draw_what_they_are_told_and_those_left_out_stay(tiny: TinyZoo) -> None:
    bench = tiny_workbench(tiny, sites=SITES["prompt and head"])
    names = list(bench.experts)
    draws = {name: (3 * n, 5 + 4 * n) for n, name in enumerate(names[:-1])}
    found = fitted(stacked(bench, SETTINGS), bench, draws)
    same(found, fitted(bench.group(SETTINGS), bench, draws))


def test_states_are_kept_and_read_by_either_form(tiny: TinyZoo) -> None:
    bench = tiny_workbench(tiny, sites=SITES["prompt and head"])
    first, second = stacked(bench, SETTINGS), bench.group(SETTINGS)
    fitted(first, bench)
    fitted(second, bench)
    for task, other in zip(first.tasks, second.tasks, strict=True):
        state, expected = task.state_dict(), other.state_dict()
        same(state, expected)
        other.load_state_dict(state)
    third = stacked(bench, SETTINGS)
    for task, other in zip(third.tasks, first.tasks, strict=True):
        task.load_state_dict(other.state_dict())
    expected = fitted(first, bench, start=ROUNDS)
    same(fitted(second, bench, start=ROUNDS), expected)
    same(fitted(third, bench, start=ROUNDS), expected)


def test_tasks_part_where_a_module_cannot_run_for_all_of_them(
    tiny: TinyZoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that looks at numbers to decide what to do, as many a model from elsewhere does."""
    bench = tiny_workbench(tiny, sites=SITES["block"])
    expected = fitted(bench.group(SETTINGS), bench)
    block = type(next(iter(bench.experts.values())).get_submodule("vit.layers.2"))
    plain = block.forward

    def curious(self: Any, given: Tensor, *args: Any, **options: Any) -> Any:
        return plain(self, given if given.sum().item() < 1e9 else -given, *args, **options)

    monkeypatch.setattr(block, "forward", curious)
    group = formed(bench, SETTINGS)
    assert type(group) is TaskGroup
    same(fitted(group, bench), expected)


@pytest.mark.parametrize("changed", [{"features": 0.1}, {"filter": "threshold"}])
def test_tasks_part_where_they_remember_something_of_their_own(
    tiny: TinyZoo, changed: dict[str, Any]
) -> None:
    bench = tiny_workbench(tiny)
    assert type(formed(bench, replace(SETTINGS, **changed))) is TaskGroup
