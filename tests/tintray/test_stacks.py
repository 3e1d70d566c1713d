"""Stacks: every format mixes and projects what it holds, and bits depend on numbers alone."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tintray.numerics.choices import Format
from tintray.numerics.layout import build_layout
from tintray.numerics.low_rank import LowRank
from tintray.vectors.stacks import BITS, Row, make_stack, stack_bytes
from tintray.vectors.task_vectors import TaskVectors, pack, row_of

FORMATS: tuple[Format, ...] = get_args(Format)
SHAPES = [(), (7,), (5, 9), (33, 70), (4, 3, 2, 2), (600, 1000)]
"""Less than a block, and more; odd and even numbers of columns."""


def rows(shape: tuple[int, ...], tasks: int = 3) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random) for _ in range(tasks)]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_held_is_mixed_projected_and_as_large_as_foretold(
    format: Format, shape: tuple[int, ...]
) -> None:
    stack = make_stack(rows(shape), shape, format)
    held = stack.dense().double()
    weights = torch.tensor([0.5, -1.0, 2.0])
    mixed = stack.mix(weights).double()
    torch.testing.assert_close(mixed, weights.double() @ held, rtol=1e-5, atol=1e-6)
    gradient = torch.randn(held.shape[1], generator=torch.Generator().manual_seed(1))
    found = stack.dots(gradient).double()
    torch.testing.assert_close(found, held @ gradient.double(), rtol=1e-4, atol=1e-4)
    slack = 3 * 1024 if BITS[format] == 4 else 0  # a byte per row and block of odd width
    assert abs(stack.nbytes - stack_bytes(shape, 3, format)) <= slack


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_held_is_near_what_was_given(format: Format) -> None:
    given = torch.stack([row.flatten() for row in rows((33, 70))])
    held = make_stack(rows((33, 70)), (33, 70), format).dense()
    error = ((held - given).norm() / given.norm()).item()
    assert error <= {"f32": 0.0, "bf16": 2e-3, "int8": 8e-3, "int4": 0.12}[format]
    if format == "int8":  # half a step of each channel's own scale
        steps = given.view(3, 33, 70).abs().amax(-1, keepdim=True) / 127
        assert ((held - given).view(3, 33, 70).abs() <= steps * 0.5001).all()


def test_a_channel_of_zeros_and_one_outlier_do_no_harm() -> None:
    row = torch.zeros(4, 8)
    row[2, 3] = 1e6
    row[1] = 1e-6
    for format in FORMATS:
        held = make_stack([row], row.shape, format).dense().view(4, 8)
        assert torch.isfinite(held).all()
        assert torch.equal(held[0], row[0])
        assert held[1].allclose(row[1], rtol=0.05)  # its own scale, whatever its neighbour's


def test_mapped_rows_give_the_same_bits(tmp_path: Path) -> None:
    shape = (600, 1000)
    for k, row in enumerate(rows(shape)):
        save_file({"w": row}, tmp_path / f"{k}.safetensors")
    mapped = []
    for k in range(3):
        with safe_open(tmp_path / f"{k}.safetensors", framework="pt") as file:
            mapped.append(row_of(file.keys(), file.get_tensor, "w"))
    kept, lazy = make_stack(rows(shape), shape), make_stack(mapped, shape, mapped=True)
    weights, gradient = torch.rand(3), torch.randn(600_000)
    assert torch.equal(kept.mix(weights), lazy.mix(weights))
    assert torch.equal(kept.dots(gradient), lazy.dots(gradient))
    assert (kept.nbytes, lazy.nbytes) == (3 * 4 * 600_000, 0)


@pytest.mark.parametrize("format", FORMATS)
def test_products_stay_products(format: Format) -> None:
    """A LoRA's task vector, beside a full one and one that leaves the tensor alone."""
    full, _, _ = rows((12, 20))
    low = LowRank(torch.randn(12, 2), torch.randn(2, 20))
    given: list[Row] = [full, low, None]
    stack = make_stack(given, (12, 20), format)
    dense = make_stack([full, low.dense(), torch.zeros(12, 20)], (12, 20))
    weights, gradient = torch.tensor([0.0, 0.7, 3.0]), torch.randn(240)
    torch.testing.assert_close(stack.mix(weights), dense.mix(weights))
    torch.testing.assert_close(stack.dots(gradient)[1:], dense.dots(gradient)[1:])
    torch.testing.assert_close(stack.dense()[1:], dense.dense()[1:])
    assert stack.nbytes <= 2 * 4 * 240 + 4 * 2 * (12 + 20)


def test_a_packed_task_vector_is_read_row_by_row() -> None:
    vector = {"a.w": LowRank(torch.randn(3, 1), torch.randn(1, 4)), "a.b": torch.randn(3)}
    packed = pack(vector)
    assert all(isinstance(tensor, Tensor) for tensor in packed.values())
    product, whole, absent = (
        row_of(packed, packed.__getitem__, name) for name in ("a.w", "a.b", "a.c")
    )
    assert isinstance(product, LowRank)
    assert torch.equal(product.dense(), vector["a.w"].dense())
    assert whole is vector["a.b"]
    assert absent is None


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("granularity", ["tensor", "block"])
def test_parts_give_the_bits_of_the_whole(format: Format, granularity: str) -> None:
    shapes = {f"m.layers.{n}.{k}": s for n in range(4) for k, s in (("w", (24, 16)), ("b", (24,)))}
    layout = build_layout(shapes, granularity)  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, layout.numel, generator=random)
    base, gradient = torch.randn(2, layout.numel, generator=random)
    coefficients = torch.rand(5, len(layout.units), generator=random)

    def over(origin: int, part: object) -> TaskVectors:
        def cut(slot: object) -> list[Tensor]:
            return list(matrix[:, origin + slot.start : origin + slot.stop])  # type: ignore[attr-defined]

        return TaskVectors.gather(
            part,  # type: ignore[arg-type]
            "abcde",
            base[origin : origin + part.numel].clone(),  # type: ignore[attr-defined]
            cut,
            format,
        )

    whole = over(0, layout)
    for count in (2, 3, 8):
        stretches = layout.stretches(count)
        assert 1 < len(stretches) <= count
        merged, projected = [], []
        for stretch in stretches:
            bounds = layout.bounds(stretch)
            part = over(bounds.start, layout.part(stretch))
            spread = layout.spread(coefficients)[:, stretch.start : stretch.stop]
            merged.append(part.merge(spread))
            projected.append(part.project(gradient[bounds].clone()))
        assert torch.equal(torch.cat(merged), whole.merge(coefficients))
        assert torch.equal(layout.fold(torch.cat(projected, 1)), whole.project(gradient))
