"""What is told of a tint: distances, singular directions, attention heads, likeness of features."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests import tiny_models as tiny
from tintray.models.attention import attention_heads
from tintray.tinting.drift import Known, by_head, directions, distance, parting
from tintray.vectors.similarity import cka


def test_directions_are_those_of_the_experts_step() -> None:
    random = torch.Generator().manual_seed(0)
    base, step = torch.randn(2, 12, 7, generator=random)
    left, values, right = torch.linalg.svd(step, full_matrices=False)
    along = base + 0.5 * step - values[1] * torch.outer(left[:, 1], right[1])
    found = directions(Known(along, base + step, base, base + 0.25 * step))
    assert [way.tinted for way in found] == pytest.approx([0.5, -0.5, 0.5, 0.5, 0.5], abs=1e-5)
    assert [way.backbone for way in found] == pytest.approx([0.25] * 5, abs=1e-5)
    assert found[0].energy == pytest.approx(float(values[0] ** 2 / (values**2).sum()), rel=1e-4)
    whole = directions(Known(base, base, None, None))
    assert [(way.tinted, way.backbone) for way in whole] == [(pytest.approx(1), None)] * 5
    assert directions(Known(base, base, base, None)) == [] == directions(Known(*[base[0]] * 4))


def test_directions_of_a_large_matrix_are_the_same() -> None:
    """What is too large to be decomposed whole has the same first directions."""
    random = torch.Generator().manual_seed(0)
    factors = torch.randn(3, 1100, generator=random), torch.randn(3, 1000, generator=random)
    step = torch.einsum("k,km,kn->mn", torch.tensor([9.0, 3.0, 1.0]), *factors)
    found = directions(Known(2 * step, step, torch.zeros_like(step), None))
    assert [way.tinted for way in found] == pytest.approx([2.0] * 3, rel=1e-4)
    assert sum(way.energy for way in found) == pytest.approx(1, rel=1e-4)


def test_distances() -> None:
    one = torch.tensor([3.0, 4.0])
    assert distance(one, one) == 0 and distance(one, 2 * one) == pytest.approx(0.5)
    assert distance(one, None) is None is distance(one, 0 * one)
    steps = [{"x": torch.eye(2)[n] * sign} for n, sign in ((0, 1), (0, 1), (1, 1), (0, -1))]
    found = [parting(steps[0], other) for other in steps]
    assert found == pytest.approx([0, 0, 1, math.sqrt(2)])


@pytest.mark.parametrize(
    ("cls", "config", "path"),
    [
        ("ViTForImageClassification", tiny.BERT | {"image_size": 8, "patch_size": 4}, "vit"),
        ("BertForSequenceClassification", tiny.BERT, "bert"),
        ("GPT2LMHeadModel", tiny.GPT2, "transformer"),
    ],
)
def test_a_head_that_moved_is_the_one_that_is_told(
    cls: str, config: dict[str, Any], path: str
) -> None:
    """Whatever a model calls its projections, and whether they are one or three."""
    module = tiny.model(cls, config)
    known = dict(module.named_parameters())
    own = {name: split for name, split in attention_heads(module).items() if name in known}
    blocks = {split.block for split in own.values()}
    assert blocks and all(block.startswith(path) for block in blocks)
    for name, split in own.items():
        before = torch.ones_like(known[name])
        moved = before.movedim(split.dim, 0).reshape(split.parts, split.heads, -1).clone()
        moved[:, 1] = 3
        shape = before.movedim(split.dim, 0).shape
        after = moved.reshape(shape).movedim(0, split.dim)
        found = by_head([(split, after, before)])
        assert found == pytest.approx([0, 2, *[0] * (split.heads - 2)]), name


def test_features_are_alike_up_to_a_rotation_and_a_factor() -> None:
    random = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 50, 200, generator=random)
    rotation, _ = torch.linalg.qr(torch.randn(200, 200, generator=random))
    assert cka(one, 3 * one @ rotation + 1) == pytest.approx(1, abs=1e-4)
    assert abs(cka(one, other) or 1) < 0.1  # the biased estimate would have 0.8
    half = cka(one, torch.cat([one[:, :100], other[:, :100]], 1))
    assert half is not None and 0.3 < half < 0.7
    assert cka(one[:3], other[:3]) is None is cka(one, torch.ones(50, 2))
