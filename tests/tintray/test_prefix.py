"""A tint learned on cached prefix activations is the one that the whole model gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_zoo import TinyZoo
from tests.workbench import SETTINGS, Workbench, tiny_workbench
from tintray.tinting.prefix import NoPrefixError, PrefixModel, fit_tints, prefix_key
from tintray.tinting.step import TaskState
from tintray.tinting.tint_layers import FusedModel

ROUNDS = 5
TASKS = ("two", "five")

SITES = ["head", "vit.layers.2", "vit.layers.1", "vit.layers.1.mlp", "vit.layers.0"]


def states(bench: Workbench, pools: dict[str, Any]) -> list[TaskState]:
    """Every task at its beginning, over these pools."""
    return [TaskState(x.task, x, pools[x.task], bench.labels[x.task]) for x in bench.layers()]


def whole(bench: Workbench) -> FusedModel:
    """The model that runs every module for every batch."""
    return FusedModel(bench.experts["two"], bench.layout, bench.private)


def shortened(bench: Workbench, theta: Tensor) -> tuple[PrefixModel, dict[str, Any]]:
    """The model that begins at the site, and the tasks' pools of activations."""
    model = PrefixModel(bench.experts["two"], bench.layout, bench.private, bench.paths)
    model.bind(theta, None)
    layers = {layer.task: layer for layer in bench.layers()}
    return model, {name: model.cached(bench.pools[name], layers[name]) for name in layers}


def fitted(tasks: list[TaskState], model: FusedModel, theta: Tensor) -> dict[str, Tensor]:
    """The tints after a few rounds, and the last losses, by name."""
    metrics = fit_tints(tasks, model, theta, SETTINGS, lambda _: 1.0, ROUNDS)
    found = {f"{s.name}.{n}": t.detach() for s in tasks for n, t in s.layer.tensors.items()}
    return found | {f"{name}.loss": torch.tensor(m.loss) for name, m in metrics.items()}


@pytest.mark.parametrize("site", SITES)
def test_the_tints_are_those_of_the_full_step(tiny: TinyZoo, site: str) -> None:
    bench = tiny_workbench(tiny, TASKS, site=site)
    theta = bench.vectors.merge(bench.uniform(0.3))
    expected = fitted(states(bench, bench.pools), whole(bench), theta)
    model, cached = shortened(bench, theta)
    found = fitted(states(bench, cached), model, theta)
    start = {f"{x.task}.{n}": t.detach() for x in bench.layers() for n, t in x.tensors.items()}
    assert any(not torch.allclose(found[n], start[n], atol=1e-3) for n in start)  # it has learned
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


def test_what_lies_before_the_site_runs_once_over_the_pool(tiny: TinyZoo) -> None:
    bench = tiny_workbench(tiny, TASKS, site="vit.layers.2")
    theta = bench.vectors.merge(bench.uniform(0.3))
    model, cached = shortened(bench, theta)
    seen = []
    for name in ("vit.embeddings", "vit.layers.0", "vit.layers.1", "vit.layernorm"):
        model._module.get_submodule(name).register_forward_hook(
            lambda *_, name=name: seen.append(name)
        )
    hidden = model._module.get_submodule("vit.layers.1.mlp")
    hidden.register_forward_hook(lambda *_: seen.append("mlp"))
    fitted(states(bench, cached), model, theta)
    assert "mlp" not in seen
    assert seen.count("vit.layernorm") == ROUNDS


def test_kept_activations_are_what_the_site_needs_and_give_the_same_pool(tiny: TinyZoo) -> None:
    bench = tiny_workbench(tiny, TASKS, site="head")
    _, cached = shortened(bench, bench.vectors.merge(bench.uniform(0.3)))
    for pool in cached.values():
        assert {name: tuple(t.shape[1:]) for name, t in pool.inputs.items()} == {"prefix.0": (16,)}
    # The residual connection around ``mlp`` carries what the modules before it gave.
    bench = tiny_workbench(tiny, TASKS, site="vit.layers.1.mlp")
    model, cached = shortened(bench, bench.vectors.merge(bench.uniform(0.3)))
    activations = cached["two"].activations
    assert len(activations) == 3  # the site's input, and both ends of the sum
    again = model.cached(bench.pools["two"], bench.layers()[0], activations=activations)
    assert again.inputs.keys() == cached["two"].inputs.keys()
    assert all(torch.equal(again.inputs[n], t) for n, t in cached["two"].inputs.items())


def test_large_answers_round_more_and_are_no_reason_to_refuse(tiny: TinyZoo) -> None:
    bench = tiny_workbench(tiny, TASKS, site="head")
    model = PrefixModel(bench.experts["two"], bench.layout, bench.private, bench.paths)
    model.bind(bench.vectors.merge(bench.uniform(0.3)), None)
    for layer in bench.layers():
        with torch.no_grad():
            layer.tensors["classifier.weight"] *= 1e4
        assert model.cached(bench.pools[layer.task], layer).activations


def test_nothing_can_be_skipped_before_the_first_module(tiny: TinyZoo) -> None:
    bench = tiny_workbench(tiny, TASKS, site="vit.embeddings")
    with pytest.raises(NoPrefixError, match=r"nothing runs before vit\.embeddings"):
        shortened(bench, bench.vectors.merge(bench.uniform(0.3)))


def test_the_key_names_all_that_activations_depend_on() -> None:
    keys = {
        prefix_key(theta, pool, torch.tensor(rows), site, precision)
        for theta in ("a", "b")
        for pool in ("a", "b")
        for rows in ([0, 1], [1, 0])
        for site in (("x",), ("x", "y"))
        for precision in ("float32", "bfloat16")
    }
    assert len(keys) == 32
