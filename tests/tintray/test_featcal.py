"""FeatCal: its closed forms, its order, and what of every family of models it can fit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.e2e.test_families import FAMILIES, Family, inputs
from tintray.errors import SpecError
from tintray.merging import featcal
from tintray.merging.featcal import Settings
from tintray.models.structure import backbone_names
from tintray.pools.pool import Pool

SETTINGS = Settings(examples=6, start=0.3, ridge=0.05, anchor=2.0, mix=0.25)


def fitted(
    base: nn.Module, experts: list[nn.Module], pools: list[Pool], settings: Settings = SETTINGS
) -> tuple[dict[str, Tensor], list[featcal.Stage]]:
    """θ after all stages, from base + start · Σ τ."""
    names = backbone_names(base)
    of_base = {n: base.get_parameter(n).detach() for n in names}
    vectors = {n: sum(e.get_parameter(n).detach() - of_base[n] for e in experts) for n in names}
    start = {n: of_base[n] + settings.start * vectors[n] for n in names}
    theta = dict(start)
    stages = featcal.stages(base, names, pools[0])
    for stage in stages:
        total: dict[str, Tensor] = {}
        for expert, pool in zip(experts, pools, strict=True):
            part = featcal.observed(expert, carrying(expert, theta), pool, stage, settings.mix)
            total = {n: total[n] + part[n] if total else part[n] for n in part}
        theta |= featcal.solved(base, stage, total, of_base, start, settings)
    return theta, stages


def carrying(model: nn.Module, theta: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model on another backbone."""
    model = copy.deepcopy(model)
    for name, tensor in theta.items():
        model.get_parameter(name).data.copy_(tensor)
    return model


class Net(nn.Module):
    """Every kind of layer that has a closed form, in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8, bias=False)) for _ in range(2)
        )
        self.head = nn.Linear(8, 2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.norm(self.patches(pixel_values).movedim(1, -1)).movedim(-1, 1)
        x = self.deep(x).flatten(2).mT
        for block in self.blocks:
            x = x + block(x)
        answers: Tensor = self.head(x.mean(1))
        return answers


def moved(base: nn.Module, seed: int) -> nn.Module:
    """Another model of the kind, some way off."""
    random = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(base).requires_grad_(False).eval()
    for parameter in model.parameters():
        parameter += 0.2 * torch.randn(parameter.shape, generator=random)
    return model


@pytest.fixture(scope="module")
def nets() -> tuple[nn.Module, list[nn.Module], list[Pool]]:
    torch.manual_seed(0)
    base = Net().requires_grad_(False).eval()
    pools = [Pool({"pixel_values": torch.randn(6, 3, 8, 8)}, None, None, str(n)) for n in range(2)]
    return base, [moved(base, 1), moved(base, 2)], pools


def seen(model: nn.Module, path: str, pool: Pool) -> Tensor:
    """What a layer is given over a pool."""
    found: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda _, a: found.append(a[0]))
    with torch.no_grad():
        model(**pool.batch(slice(None)))
    hook.remove()
    return found[0]


Nets = tuple[nn.Module, list[nn.Module], list[Pool]]


@pytest.mark.parametrize("path", ["patches", "blocks.0.0", "blocks.1.2"])
def test_a_linear_layer_is_the_ridge_regression_onto_the_experts(nets: Nets, path: str) -> None:
    """Solved naively: all rows of all tasks under each other, and η as rows of their own."""
    base, experts, pools = nets
    theta, stages = fitted(base, experts, pools)
    before = [n for stage in stages for n in stage.calls]
    stage = next(stage for stage in stages if path in stage.calls)
    first = before.index(next(iter(stage.calls)))
    done = {n: t for n, t in theta.items() if n.rpartition(".")[0] in before[:first]}
    start = {
        n: p + 0.3 * sum(e.get_parameter(n) - p for e in experts)
        for n, p in base.named_parameters()
        if not n.startswith("head")
    }
    left, right, shares, gaps = [], [], [], []
    for expert, pool in zip(experts, pools, strict=True):
        layer: Any = expert.get_submodule(path)
        ours = rows(layer, seen(carrying(expert, start | done), path, pool))
        mixed = 0.25 * rows(layer, seen(expert, path, pool)) + 0.75 * ours
        share = 1 / (ours.mT @ ours / len(ours)).norm()
        left.append((share / len(ours)) ** 0.5 * ours)
        right.append((share / len(ours)) ** 0.5 * mixed @ layer.weight.flatten(1).T)
        shares.append(share)
        if layer.bias is not None:
            gap = layer.bias + mixed.mean(0) @ layer.weight.flatten(1).T
            gaps.append(share * (gap - ours.mean(0) @ theta[f"{path}.weight"].flatten(1).T))
    name, eta = f"{path}.weight", SETTINGS.ridge
    anchor = {n: base.get_parameter(n) + 2 * (start[n] - base.get_parameter(n)) for n in start}
    left.append(eta**0.5 * torch.eye(left[0].shape[1]))
    right.append(eta**0.5 * anchor[name].flatten(1).T)
    expected = torch.linalg.lstsq(torch.cat(left).double(), torch.cat(right).double()).solution
    torch.testing.assert_close(theta[name].flatten(1).T, expected.float(), atol=1e-4, rtol=1e-4)
    if gaps:
        bias = (sum(gaps) + eta * anchor[f"{path}.bias"]) / (sum(shares) + eta)
        torch.testing.assert_close(theta[f"{path}.bias"], bias, atol=1e-4, rtol=1e-4)


def rows(layer: Any, given: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        given = nn.functional.unfold(given, layer.kernel_size, padding=1, stride=2).mT
    return given.flatten(0, 1)


def test_a_normalisation_is_the_least_squares_fit_of_every_channel(nets: Nets) -> None:
    base, experts, pools = nets
    theta, _ = fitted(base, experts, pools)
    start = {
        n: p + 0.3 * sum(e.get_parameter(n) - p for e in experts)
        for n, p in base.named_parameters()
        if not n.startswith("head")
    }
    so_far = start | {n: theta[n] for n in ("patches.weight", "patches.bias")}
    for channel in range(8):
        left, right = [], []
        for expert, pool in zip(experts, pools, strict=True):
            given = seen(carrying(expert, so_far), "norm", pool)
            z = nn.functional.layer_norm(given, (8,))[..., channel].flatten()
            both = torch.stack([z, torch.ones_like(z)], 1) / len(z) ** 0.5
            own = [expert.get_parameter(f"norm.{n}")[channel] for n in ("weight", "bias")]
            left.append(both)
            right.append(both @ torch.stack(own))
        eta = SETTINGS.ridge**0.5
        anchor = [
            base.get_parameter(n)[channel] + 2 * (start[n] - base.get_parameter(n))[channel]
            for n in ("norm.weight", "norm.bias")
        ]
        left.append(eta * torch.eye(2))
        right.append(eta * torch.stack(anchor))
        expected = torch.linalg.lstsq(torch.cat(left), torch.cat(right)[:, None]).solution[:, 0]
        found = torch.stack([theta["norm.weight"][channel], theta["norm.bias"][channel]])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_stages_are_blocks_in_forward_order_and_the_rest_stays(nets: Nets) -> None:
    base, experts, pools = nets
    theta, stages = fitted(base, experts, pools)
    assert [list(stage.calls) for stage in stages] == [
        ["patches"],
        ["norm"],
        ["blocks.0.0"],
        ["blocks.0.2"],
        ["blocks.1.0"],
        ["blocks.1.2"],
    ]
    kernel = base.get_parameter("deep.weight")  # depthwise: no linear map of all channels
    others = sum(expert.get_parameter("deep.weight") - kernel for expert in experts)
    torch.testing.assert_close(theta["deep.weight"], kernel + 0.3 * others)
    assert "head.weight" not in theta


def test_equal_experts_give_back_the_expert(nets: Nets) -> None:
    base, (expert, _), pools = nets
    settings = Settings(examples=6, start=0.5, ridge=0.05, anchor=1.0, mix=0.25)
    theta, _ = fitted(base, [expert, expert], pools, settings)
    for name, tensor in theta.items():
        torch.testing.assert_close(tensor, expert.get_parameter(name), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_family_has_layers_that_are_fitted(family: Family) -> None:
    """Padding aside: what a text is padded with must not enter."""
    torch.manual_seed(0)
    base = family.make(3).eval().requires_grad_(False)
    experts = [moved(base, 1), moved(base, 2)]
    pools = [Pool(dict(inputs(family)), None, None, str(n)) for n in range(2)]
    theta, stages = fitted(base, experts, pools)
    shared = set(backbone_names(base))
    changed = {f"{path}.weight" for stage in stages for path in stage.calls}
    assert len(changed) >= 6 and changed <= shared == theta.keys()
    assert all(torch.isfinite(tensor).all() for tensor in theta.values())
    if "attention_mask" in pools[0].inputs:
        for pool in pools:
            pool.inputs["input_ids"][pool.inputs["attention_mask"] == 0] = 7
        again, _ = fitted(base, experts, pools)
        for name, tensor in theta.items():
            torch.testing.assert_close(again[name], tensor, atol=1e-4, rtol=1e-3)


def test_a_model_without_such_layers_is_refused() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, input_ids: Tensor) -> Tensor:
            answers: Tensor = self.head(self.table(input_ids).mean(1))
            return answers

    base, pool = Lookup(), Pool({"input_ids": torch.ones(2, 3, dtype=torch.long)}, None, None, "")
    with pytest.raises(SpecError, match="'featcal' fits linear layers, and Lookup calls none"):
        featcal.stages(base, backbone_names(base), pool)
