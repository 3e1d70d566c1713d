"""What tasks own, rounded: what comes back, that rounding it again changes nothing, its size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tintray.numerics.choices import Bits
from tintray.tinting.stored_tints import StoredTint, decode, encode, stored_bytes

SHAPES = [(10,), (3, 64), (65, 3), (7, 5), (1, 9), (9, 1), (1, 1), (2, 1), (8, 3, 3, 3), (99, 1, 3)]


def tensors(scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    made = {f"t{k}.weight": torch.randn(s, generator=generator) for k, s in enumerate(SHAPES)}
    return {name: tensor * scale for name, tensor in made.items()}


@pytest.mark.parametrize(("bits", "worst"), [(16, 1e-3), (8, 0.02), (4, 0.4)])
@pytest.mark.parametrize("scale", [1.0, 1e-2, 100.0])
def test_a_rounded_tint_is_near_and_is_rounded_to_itself(
    bits: Bits, worst: float, scale: float
) -> None:
    given = tensors(scale)
    stored = encode(given, bits)
    found = decode(stored)
    assert list(found) == list(given)
    for name, tensor in given.items():
        assert found[name].shape == tensor.shape
        assert (found[name] - tensor).abs().max() <= worst * tensor.abs().max(), name
    again = encode(found, bits)
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in stored.items())
    sizes = {name: stored_bytes(tuple(tensor.shape), bits) for name, tensor in given.items()}
    assert StoredTint(stored).nbytes == sum(sizes.values())


def test_what_cannot_be_rounded_stays_as_it_is() -> None:
    odd = {
        "large": torch.tensor([1e6, 1.0]),
        "small": torch.tensor([1e-6, 0.0]),
        "steps": torch.tensor(3),
        "zeros": torch.zeros(3, 5),
        "x.scales": torch.ones(2),  # a name like those of scales, of which it is none
    }
    for bits in (32, 16, 8, 4):
        found = decode(encode(odd, bits))
        assert found.keys() == odd.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in odd.items())
    assert encode(odd, 32) == odd


def test_scales_that_are_not_its_own_make_no_larger_tensor() -> None:
    stored = {"w.int8": torch.ones(1, 1000, dtype=torch.int8), "w.scales": torch.ones(1000, 1)}
    with pytest.raises(ValueError, match="scales"):
        decode(stored)


def test_the_smallest_numbers_make_no_scale_of_zero() -> None:
    tiny = {"w": torch.full((2, 3), 1e-44)}
    assert decode(encode(tiny, 8))["w"].isfinite().all()
