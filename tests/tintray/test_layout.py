"""Named tensors, one flat vector, layer units."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from tintray.numerics.choices import Granularity
from tintray.numerics.layout import build_layout

# A block's tensors are declared apart: a final norm stands between them.
SHAPES = {
    "vit.embeddings.cls": (1, 1, 4),
    "vit.embeddings.bias": (4,),
    "vit.layers.0.fc.weight": (3, 4),
    "vit.layers.1.fc.weight": (2, 2),
    "vit.norm.weight": (4,),
    "vit.layers.0.fc.bias": (3,),
    "vit.layers.10.scale": (),
}

names = st.from_regex(r"m\.(layers\.\d|norm|embed)\.[abc]", fullmatch=True)
some_shapes = st.dictionaries(
    names, st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=8
)
granularities = st.sampled_from(["tensor", "block", "task"])


@given(some_shapes, granularities)
def test_flatten_and_views_are_inverse(
    shapes: dict[str, list[int]], granularity: Granularity
) -> None:
    layout = build_layout(shapes, granularity)
    named = {name: torch.rand(shape) for name, shape in shapes.items()}
    flat = layout.flatten(named)
    assert flat.shape == (layout.numel,)
    views = layout.views(flat)
    assert views.keys() == named.keys()
    assert all(torch.equal(views[name], tensor) for name, tensor in named.items())
    assert torch.equal(layout.flatten(views), flat)


@given(some_shapes, granularities)
def test_slots_and_units_cover_the_vector_once(
    shapes: dict[str, list[int]], granularity: Granularity
) -> None:
    layout = build_layout(shapes, granularity)
    for stretches in (layout.slots, layout.units):
        assert stretches[0].start == 0
        assert stretches[-1].stop == layout.numel
        assert all(before.stop == after.start for before, after in pairwise(stretches))
    assert len({unit.name for unit in layout.units}) == len(layout.units)
    for slot in layout.slots:  # no tensor is cut
        assert any(u.start <= slot.start and slot.stop <= u.stop for u in layout.units)


def test_views_share_memory_with_the_vector() -> None:
    layout = build_layout(SHAPES)
    flat = torch.zeros(layout.numel)
    layout.views(flat)["vit.norm.weight"].fill_(7)
    assert flat.sum() == 28


def test_units_of_each_granularity() -> None:
    def units(granularity: Granularity) -> list[str]:
        return [unit.name for unit in build_layout(SHAPES, granularity).units]

    assert units("tensor") == list(SHAPES)
    assert units("task") == ["backbone"]
    assert units("block") == [
        "vit.embeddings",
        "vit.layers.0",
        "vit.layers.1",
        "vit.norm",
        "vit.layers.10",
    ]


def test_tensors_of_a_block_that_are_declared_apart_lie_together() -> None:
    layout = build_layout(SHAPES, "block")
    block = next(unit for unit in layout.units if unit.name == "vit.layers.0")
    inside = {s.name for s in layout.slots if block.start <= s.start < block.stop}
    assert inside == {"vit.layers.0.fc.weight", "vit.layers.0.fc.bias"}
    assert block.stop - block.start == 15
