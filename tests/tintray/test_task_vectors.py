"""Merging and projecting: what is exact, and that one is the adjoint of the other."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_zoo import TinyZoo
from tests.workbench import tiny_workbench


@pytest.mark.parametrize("granularity", ["tensor", "block", "task"])
def test_merging_is_exact_and_the_adjoint_of_projecting(tiny: TinyZoo, granularity: str) -> None:
    """Coefficients of 0 give the base; one task's of 1 its expert, up to the rounding of
    θ₀ + (θₖ − θ₀), an ulp of the larger; and ⟨θ(Λ) − θ₀, G⟩ = ⟨Λ, project(G)⟩.
    """
    bench = tiny_workbench(tiny, ("five",), granularity=granularity)
    theta = bench.layout.views(bench.vectors.merge(bench.uniform(1.0)))
    for name, tensor in theta.items():
        expert, base = bench.experts["five"].get_parameter(name), bench.base.get_parameter(name)
        ulp = torch.finfo(torch.float32).eps * torch.maximum(expert.abs(), base.abs())
        assert ((tensor - expert).abs() <= ulp).all(), name
    vectors = (bench := tiny_workbench(tiny, granularity=granularity)).vectors
    assert torch.equal(vectors.merge(bench.uniform(0.0)), vectors.base)
    random = torch.Generator().manual_seed(0)
    for _ in range(5):
        coefficients = torch.rand(bench.uniform(0).shape, generator=random)
        gradient = torch.randn(bench.layout.numel, generator=random)
        moved = (vectors.merge(coefficients) - vectors.base).double() @ gradient.double()
        projected = (coefficients.double() * vectors.project(gradient).double()).sum()
        assert moved.item() == pytest.approx(projected.item(), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("site", ["head", "vit.layers.1"])
def test_its_outputs_are_then_those_of_the_expert(tiny: TinyZoo, site: str) -> None:
    bench = tiny_workbench(tiny, ("five",), site=site)
    group, pool = bench.group(), bench.pools["five"]
    fused = group._fused
    fused.bind(bench.vectors.merge(bench.uniform(1.0)), None)
    with torch.inference_mode():
        (logits,) = fused.forward([pool.batch(slice(None))], bench.layers())
        expected = bench.experts["five"](**pool.batch(slice(None))).logits
    assert torch.allclose(logits, expected, rtol=1e-6, atol=2e-6)


def test_merge_is_the_sum_that_it_is_defined_as(tiny: TinyZoo) -> None:
    """In any order of the tasks, and into any buffer."""
    names = ("two", "three", "five", "four")
    bench, back = tiny_workbench(tiny, names), tiny_workbench(tiny, names[::-1])
    vectors = bench.vectors
    coefficients = torch.rand(bench.uniform(0).shape)
    theta = vectors.merge(coefficients)
    for column, unit in enumerate(bench.layout.units):
        stretch = slice(unit.start, unit.stop)
        moved = coefficients[:, column].double() @ vectors.matrix[:, stretch].double()
        expected = vectors.base[stretch].double() + moved
        assert torch.allclose(theta[stretch].double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.allclose(theta, back.vectors.merge(coefficients.flip(0)), atol=1e-6)
    buffer = torch.full_like(vectors.base, torch.nan)
    assert vectors.merge(coefficients, out=buffer) is buffer
    assert torch.equal(buffer, theta)
