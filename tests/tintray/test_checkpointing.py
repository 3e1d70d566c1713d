"""Layers that compute their activations again: the same bits, in less memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.e2e.test_families import FAMILIES, Family, inputs
from tests.growing import hashes
from tests.tintray.test_stacked_step import SITES, fitted
from tests.tiny_zoo import TinyZoo
from tests.workbench import SETTINGS, tiny_workbench
from tintray.jobs import api
from tintray.models.structure import head_modules
from tintray.numerics.layout import build_layout
from tintray.tinting.stacked_step import StackedGroup, form_group
from tintray.tinting.tint_layers import FusedModel, TintLayer


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("sites", SITES)
def test_rounds_have_the_same_bits(tiny: TinyZoo, sites: str, precision: Any) -> None:
    bench = tiny_workbench(tiny, sites=SITES[sites])
    settings = replace(SETTINGS, precision=precision)
    kept, again = bench.group(settings), bench.group(settings)
    assert again._fused.checkpoint() >= 2
    expected, found = fitted(kept, bench), fitted(again, bench)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) or tensor.isnan().any(), name


def test_rounds_of_stacked_tasks_have_the_same_bits(tiny: TinyZoo) -> None:
    bench = tiny_workbench(tiny, sites=SITES["block"])
    groups = [bench.group(SETTINGS) for _ in range(2)]
    groups[1]._fused.checkpoint()
    kept, again = (
        form_group(one.tasks, one._fused, one._gradient, SETTINGS, stacked=True) for one in groups
    )
    assert isinstance(again, StackedGroup)
    expected, found = fitted(kept, bench), fitted(again, bench)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) or tensor.isnan().any(), name


def test_a_job_publishes_the_same_bytes(tiny: TinyZoo, tmp_path: Path) -> None:
    kept, again = (
        api.run(tiny.spec(tmp_path / str(of), cluster={"gradient_checkpointing": of}))
        for of in (False, True)
    )
    assert hashes(kept.url) == hashes(again.url)


def kept_bytes(family: Family, checkpointed: bool) -> tuple[int, Tensor]:
    """What a forward pass keeps for the backward pass, and the gradient of θ."""
    torch.manual_seed(0)
    module = family.make(3).eval()
    head = head_modules(module)
    private = [] if family.kind in ("language_modelling",) else list(head)
    below = tuple(f"{path}." for path in private)
    shared = {
        n: p.detach() for n, p in module.named_parameters() if not n.startswith(below or ("\0",))
    }
    layout = build_layout({name: tensor.shape for name, tensor in shared.items()})
    fused = FusedModel(module, layout, private)
    if checkpointed:
        assert fused.checkpoint()
    own = {n: t for n, t in module.state_dict().items() if n not in shared}
    theta, gradient = layout.flatten(shared), torch.zeros(layout.numel)
    fused.bind(theta, gradient)
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        (answers,) = fused.forward([inputs(family)], [TintLayer("a", own, {})])
    answers.square().mean().backward()
    return sum(sizes.values()), gradient


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_family_keeps_less_and_gives_the_same_gradient(family: Family) -> None:
    (all_of_it, expected), (less, found) = kept_bytes(family, False), kept_bytes(family, True)
    assert torch.equal(found, expected)
    assert less < all_of_it
