"""Named tensors, one flat vector, layer units."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from tintray.numerics.choices import Granularity
from tintray.numerics.layout import build_layout

names = st.from_regex(r"m\.(layers\.\d|norm|embed)\.[abc]", fullmatch=True)
sizes = st.lists(st.integers(0, 4), max_size=3)
some_shapes = st.dictionaries(names, sizes, min_size=1, max_size=8)


@given(some_shapes, st.sampled_from(["tensor", "block", "task"]))
def test_tensors_lie_one_after_another_and_units_cut_none(
    shapes: dict[str, list[int]], granularity: Granularity
) -> None:
    layout = build_layout(shapes, granularity)
    named = {name: torch.rand(shape) for name, shape in shapes.items()}
    flat = layout.flatten(named)
    assert flat.shape == (layout.numel,)
    views = layout.views(flat)
    assert views.keys() == named.keys()
    assert all(torch.equal(views[name], tensor) for name, tensor in named.items())
    for view in views.values():
        view.fill_(7)
    assert (flat == 7).all(), "views share memory with the vector, and cover it"
    for stretches in (layout.slots, layout.units):
        assert (stretches[0].start, stretches[-1].stop) == (0, layout.numel)
        assert all(before.stop == after.start for before, after in pairwise(stretches))
    assert len({unit.name for unit in layout.units}) == len(layout.units)
    for slot in layout.slots:
        assert any(u.start <= slot.start and slot.stop <= u.stop for u in layout.units)


def test_units_of_each_granularity() -> None:
    shapes = {
        "vit.embeddings.cls": (1, 1, 4),
        "vit.embeddings.bias": (4,),
        "vit.layers.0.fc.weight": (3, 4),
        "vit.layers.1.fc.weight": (2, 2),
        "vit.norm.weight": (4,),
        "vit.layers.0.fc.bias": (3,),  # declared apart from its block's other tensor
        "vit.layers.10.scale": (),
    }
    assert [unit.name for unit in build_layout(shapes).units] == list(shapes)
    assert [unit.name for unit in build_layout(shapes, "task").units] == ["backbone"]
    layout = build_layout(shapes, "block")
    sizes = {unit.name.removeprefix("vit."): unit.stop - unit.start for unit in layout.units}
    assert sizes == {"embeddings": 8, "layers.0": 15, "layers.1": 4, "norm": 4, "layers.10": 1}
    assert [slot.name for slot in layout.slots[2:4]] == [
        f"vit.layers.0.fc.{n}" for n in ("weight", "bias")
    ]
