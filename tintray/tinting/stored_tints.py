"""How what a task owns is stored: in 32 bits a number, or rounded to 16, 8 or 4.

Numbers of 16 bits are float16: those of tints are small, so that its range serves, and it has three
more bits of precision than bfloat16. A tensor whose largest number is out of that range stays
float32. In 8 or 4 bits a matrix is whole numbers from −127 to 127, or −7 to 7, times a float32
scale for each of its rows, or for each of its columns where there are fewer; two numbers of 4 bits
share a byte. Vectors (biases, norms) are few numbers and matter: they have 16 bits at least.

What is rounded is rounded to itself the next time: a tint that is read and stored again keeps its
bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from tintray.numerics.choices import Bits
from tintray.vectors.stacks import CLIPS, quantised

HALF, BYTE, SCALES = ".float16", ".int8", ".scales"
NIBBLES = (".int4.0", ".int4.1")
"""What names in a file end with; the last says along which dimension two numbers share a byte."""

LADDER: tuple[Bits, ...] = (4, 8, 16, 32)
"""Bits that a number of a tint may be stored in."""


@dataclass(frozen=True)
class StoredTint:
    """What one task owns, as it is stored.

    Attributes
    ----------
    tensors
        As they are in the file; ``decode`` reads them.
    lost
        Agreement with the expert, a share of 1, that rounding took on examples of the pool.
    reference
        What new examples of the task are compared with, where it was measured.
    """

    tensors: Mapping[str, Tensor]
    bits: Bits = 32
    lost: float = 0.0
    reference: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, scales included."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def encode(tensors: Mapping[str, Tensor], bits: Bits) -> dict[str, Tensor]:
    """A task's float32 tensors as they are stored in ``bits``; see the module."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        rounds = bits < 32 and tensor.dtype == torch.float32
        if not rounds:
            stored[name] = tensor
        elif bits < 16 and tensor.ndim > 1:
            stored |= _whole_numbers(name, tensor.detach(), bits)
        elif _in_range(tensor.detach()):
            stored[name + HALF] = tensor.detach().half()
        else:
            stored[name] = tensor
    return stored


def decode(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``encode`` was given, rounded; tensors that were stored as they are stay so.

    Raises ValueError or RuntimeError if it was not ``encode`` that made them.
    """
    tensors: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        if key.endswith(HALF):
            tensors[key.removesuffix(HALF)] = tensor.float()
            continue
        name = next((key.removesuffix(end) for end in (BYTE, *NIBBLES) if key.endswith(end)), key)
        if name + SCALES not in stored:
            tensors[key] = tensor
            continue
        whole = tensor if key.endswith(BYTE) else _unpacked(tensor, int(key[-1]))
        scales = stored[name + SCALES]
        if any(own not in (1, n) for own, n in zip(scales.shape, whole.shape, strict=True)):
            raise ValueError(f"the scales {list(scales.shape)} of {name} are not its own")
        tensors[name] = whole.float() * scales
    return {name: tensor for name, tensor in tensors.items() if not _is_scales(name, stored)}


def _is_scales(name: str, stored: Mapping[str, Tensor]) -> bool:
    of = name.removesuffix(SCALES)
    return of != name and any(of + end in stored for end in (BYTE, *NIBBLES))


def stored_bytes(shape: tuple[int, ...], bits: Bits) -> int:
    """Bytes that ``encode`` makes of a float32 tensor of this shape."""
    numbers = prod(shape)
    if bits >= 16 or len(shape) < 2:
        return numbers * max(bits, 16) // 8
    axis = _axis(shape)
    scales = shape[0] if axis else prod(shape[1:])
    length = shape[axis] if bits == 8 else (shape[axis] + 1) // 2
    return numbers // max(shape[axis], 1) * length + 4 * scales


def _in_range(tensor: Tensor) -> bool:
    """Whether float16 holds the largest of these numbers in full precision."""
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    known = torch.finfo(torch.float16)
    return largest == 0 or known.tiny <= largest <= known.max


def _axis(shape: tuple[int, ...]) -> int:
    """The dimension along which numbers have one scale: the longer one of the matrix."""
    return 0 if shape[0] > prod(shape[1:]) else 1


def _whole_numbers(name: str, tensor: Tensor, bits: Bits) -> dict[str, Tensor]:
    axis = _axis(tuple(tensor.shape))
    lines = tensor.flatten(1) if axis else tensor.flatten(1).t()
    most, clips = (127, (1.0,)) if bits == 8 else (7, CLIPS)
    values, scales = quantised(lines.contiguous()[None], most, clips, stable=True)
    matrix = values[0] if axis else values[0].t()
    whole = matrix.reshape(tensor.shape)
    shape = [len(tensor), *[1] * (tensor.ndim - 1)] if axis else [1, *tensor.shape[1:]]
    kept = {name + SCALES: scales.reshape(shape)}
    if bits == 8:
        return {name + BYTE: whole.contiguous(), **kept}
    return {name + NIBBLES[axis]: _packed(whole, axis), **kept}


def _packed(whole: Tensor, axis: int) -> Tensor:
    """Numbers −7 … 7, the first half along ``axis`` low, the second high; 0 is none at the end."""
    half = (whole.shape[axis] + 1) // 2
    low = whole.narrow(axis, 0, half)
    high = whole.narrow(axis, half, whole.shape[axis] - half)
    packed = (low + 8).to(torch.uint8)
    packed.narrow(axis, 0, high.shape[axis]).add_((high + 8).to(torch.uint8) * 16)
    contiguous: Tensor = packed.contiguous()
    return contiguous


def _unpacked(packed: Tensor, axis: int) -> Tensor:
    low, high = (packed & 15).to(torch.int8) - 8, (packed >> 4).to(torch.int8) - 8
    odd = bool((high.select(axis, -1) == -8).all())
    return torch.cat([low, high.narrow(axis, 0, high.shape[axis] - odd)], axis)
