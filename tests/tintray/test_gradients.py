"""The fused step's gradients are those of the naive formulation, which is written out here.

Naively, each task merges the backbone inside autograd, θ = θ₀ + Σₖ λₖ τₖ, runs its own batch
through its own model, and back-propagates through the merge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_zoo import TinyZoo
from tests.workbench import SETTINGS, Workbench, tiny_workbench, workbench
from tintray.numerics.randomness import sample
from tintray.numerics.schedules import BLOCK_LR
from tintray.pools.pool import Pool
from tintray.tinting.step import StepSettings

Gradients = tuple[Tensor, dict[str, Tensor]]
SITES = ("head", "vit.layers.2", "vit.layers.0")


def naive_gradients(bench: Workbench, coefficients: Tensor, settings: StepSettings) -> Gradients:
    """∂ΣL/∂Λ [K, L], and per task the gradient of its tint tensors as one vector."""
    lambdas = coefficients.clone().requires_grad_()
    base = {slot.name: bench.base.get_parameter(slot.name).detach() for slot in bench.layout.slots}
    tints = {}
    for layer in bench.layers():
        name, expert = layer.task, bench.experts[layer.task]
        tint = {key: layer.tensors[key].detach().clone().requires_grad_() for key in layer.rates}
        merged = dict(base)
        for slot in bench.layout.slots:
            units = enumerate(bench.layout.units)
            column = next(n for n, u in units if u.start <= slot.start < u.stop)
            for row, other in enumerate(bench.experts.values()):
                vector = other.get_parameter(slot.name).detach() - base[slot.name]
                merged[slot.name] = merged[slot.name] + lambdas[row, column] * vector
        index = sample(settings.seed, name, 0, len(bench.pools[name]), settings.batch_size)
        batch = bench.pools[name].batch(index)
        logits = torch.func.functional_call(expert, merged | tint, (), batch).logits
        naive_loss(logits, bench.labels[name][index], settings).backward()
        tints[name] = torch.cat([tint[key].grad.flatten() for key in layer.rates])
    assert lambdas.grad is not None
    return lambdas.grad, tints


def naive_loss(merged: Tensor, expert: Tensor, settings: StepSettings) -> Tensor:
    """Mean over the batch of the loss to the expert's prediction, dropped examples as zeros."""
    if settings.labels == "soft":
        heat = settings.temperature
        target = (expert / heat).softmax(-1)
        loss = -(target * (merged / heat).log_softmax(-1)).sum(-1) * heat**2
    else:
        loss = -merged.log_softmax(-1)[torch.arange(len(merged)), expert.argmax(-1)]
    if settings.filter == "agreement":
        ours, theirs = merged.detach().softmax(-1), expert.softmax(-1)
        contradicts = ours.argmax(-1) != theirs.argmax(-1)
        loss = loss * ~(contradicts & (ours.amax(-1) > theirs.amax(-1)))
    return loss.mean()


def fused_gradients(
    bench: Workbench, coefficients: Tensor, settings: StepSettings
) -> tuple[Gradients, list[float]]:
    """The same of one fused step, and the share of each task's examples that is selected."""
    vectors, group = bench.vectors, bench.group(settings)
    for task in group.tasks:
        task.optimiser = None  # nobody consumes the gradients: they stay in the tint layers
    result = group.step(vectors.merge(coefficients), 0, pace=0.0)
    gradients = {t.name: [p.grad.flatten() for p in t.layer.parameters] for t in group.tasks}
    tints = {name: torch.cat(parts) for name, parts in gradients.items()}
    selected = [metrics.selected_fraction for metrics in result.metrics.values()]
    return (vectors.project(result.gradient), tints), selected


def assert_equal(fused: Gradients, naive: Gradients, relative: float) -> None:
    """Equal up to ``relative``, of Λ as a whole and of each task's tint layer as a whole."""
    pairs = [("Λ", fused[0], naive[0]), *((t, fused[1][t], tint) for t, tint in naive[1].items())]
    for name, ours, theirs in pairs:
        size = theirs.norm()
        assert size > 1e-3, f"{name}: a gradient that vanishes proves nothing"
        assert (ours - theirs).norm() <= relative * size, name


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *(
        ({"site": site}, {"batch_size": 12, "labels": labels, "filter": chosen, "temperature": 1.5})
        for site, labels, chosen in product(SITES, ("soft", "hard"), ("none", "agreement"))
    ),
    *(({"granularity": granularity}, {}) for granularity in ("block", "task")),
    # batches of 6: micro-batches of 4 and 9 end in the middle of one, and span two tasks
    *(
        ({"site": site}, {"filter": "agreement", "micro_batch": size})
        for site, size in product(SITES[:2], (1, 4, 9, 11))
    ),
]


@pytest.mark.parametrize(("options", "changes"), CASES)
def test_fused_gradients_are_the_naive_ones(
    tiny: TinyZoo, options: dict[str, Any], changes: dict[str, Any]
) -> None:
    bench, settings = tiny_workbench(tiny, **options), replace(SETTINGS, **changes)
    noise = torch.randn(bench.uniform(0).shape, generator=torch.Generator().manual_seed(1))
    coefficients = bench.uniform(0.8) + 0.1 * noise
    # Experts are sure of their own pools; less sure ones give the filter something to drop.
    bench.labels = {name: 0.2 * expert for name, expert in bench.labels.items()}
    fused, selected = fused_gradients(bench, coefficients, settings)
    assert (min(selected) < 1) == (settings.filter == "agreement")
    assert max(selected) > 0
    assert_equal(fused, naive_gradients(bench, coefficients, settings), 1e-4)


@pytest.fixture
def double() -> Iterator[None]:
    """Everything that is created here is float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("site", SITES[:2])
def test_gradients_are_the_naive_ones_to_the_precision_of_float64(tiny: TinyZoo, site: str) -> None:
    """What differs in float32 is rounding, not the formula."""
    single = tiny_workbench(tiny, ("two", "three", "five"), site=site)
    pixels = {n: pool.batch(slice(None))["pixel_values"] for n, pool in single.pools.items()}
    pools = {n: Pool({"pixel_values": of.double()}, None, None, "") for n, of in pixels.items()}
    experts = {name: expert.double() for name, expert in single.experts.items()}
    bench = Workbench(single.base.double(), experts, pools, site)
    bench.labels = {name: labels.double() for name, labels in bench.labels.items()}
    settings = replace(SETTINGS, micro_batch=4, filter="agreement")
    found, _ = fused_gradients(bench, bench.uniform(0.7), settings)
    assert found[0].dtype == torch.float64
    assert_equal(found, naive_gradients(bench, bench.uniform(0.7), settings), 1e-11)


@pytest.mark.parametrize("site", SITES[:2])
def test_gradients_in_bfloat16_are_the_naive_ones_of_float32_roughly(
    tiny: TinyZoo, site: str
) -> None:
    """Eight bits of mantissa in each product; Λ, tints and their gradients stay float32."""
    bench = tiny_workbench(tiny, site=site)
    found, _ = fused_gradients(bench, bench.uniform(0.3), replace(SETTINGS, precision="bfloat16"))
    assert {tensor.dtype for tensor in (found[0], *found[1].values())} == {torch.float32}
    expected = naive_gradients(bench, bench.uniform(0.3), SETTINGS)
    assert_equal(found, expected, 0.15)
    with pytest.raises(AssertionError):
        assert_equal(found, expected, 1e-5)  # it was indeed another precision


def test_one_round_moves_a_tint_layer_by_adam_along_its_gradient(tiny: TinyZoo) -> None:
    bench = tiny_workbench(tiny, site="vit.layers.2")
    _, tints = naive_gradients(bench, bench.uniform(0.3), SETTINGS)
    group = bench.group()
    group.step(bench.vectors.merge(bench.uniform(0.3)), 0, pace=1.0)
    for before, task in zip(bench.layers(), group.tasks, strict=True):
        flat = torch.cat([p.detach().flatten() for p in before.parameters])
        gradient = tints[task.name]
        expected = torch.nn.Parameter(flat.clone())
        expected.grad = gradient
        torch.optim.Adam([expected], lr=BLOCK_LR).step()
        found = torch.cat([p.detach().flatten() for p in task.layer.parameters])
        # Adam divides by the gradient's size: where that is rounding noise, so is the direction.
        certain = gradient.abs() > 1e-4 * gradient.abs().max()
        assert torch.allclose(found[certain], expected.detach()[certain], atol=1e-4)
        moved = [not torch.equal(task.layer.tensors[n], before.tensors[n]) for n in before.rates]
        assert all(moved)
        frozen = before.tensors.keys() - set(before.rates)
        assert frozen == {"classifier.weight", "classifier.bias"}
        assert all(torch.equal(task.layer.tensors[n], before.tensors[n]) for n in frozen)


def test_every_task_contributes_to_every_coefficient(tiny: TinyZoo) -> None:
    """∂L/∂λₖ sums over the losses of all tasks, not over that of task k alone."""
    bench = tiny_workbench(tiny, ("two", "three"))
    (together, _), _ = fused_gradients(bench, bench.uniform(0.3), SETTINGS)
    theta, alone = bench.vectors.merge(bench.uniform(0.3)), []
    for name in bench.experts:
        result = bench.group(only=name).step(theta, 0, pace=0.0)
        assert list(result.metrics) == [name]
        alone.append(bench.vectors.project(result.gradient.clone()))
    assert all(gradient.norm(dim=1).min() > 1e-3 for gradient in alone)
    assert not torch.allclose(alone[0], alone[1], rtol=0.1)
    assert torch.allclose(alone[0] + alone[1], together, rtol=1e-4, atol=1e-5)


@pytest.mark.zoo
@pytest.mark.parametrize("site", ["head", "vit.layers.5"])
def test_fused_gradients_of_real_experts_are_the_naive_ones(real_zoo: Path, site: str) -> None:
    data = {name: real_zoo / "data/vision" / f"{name}.npz" for name in ("mnist", "gtsrb")}
    bench = workbench(real_zoo / "zoo", data, site=site, examples=32)
    settings = replace(SETTINGS, batch_size=8, filter="agreement", micro_batch=6)
    found, _ = fused_gradients(bench, bench.uniform(0.3), settings)
    assert_equal(found, naive_gradients(bench, bench.uniform(0.3), settings), 1e-4)
