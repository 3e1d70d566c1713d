"""Task vectors in few bytes: what other methods keep of each expert, after their papers' formulas.

Each scheme takes one expert's task vector, tensor by tensor, and the most bits that it may take. It
answers with what the expert would be put together from, and the bits that it did take. Heads are no
part of this: every expert keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Fit = Callable[[Tensors, int], tuple[dict[str, Tensor], int]]
"""(task vector by tensor, the most bits) to (its approximation, the bits that it takes)."""

HALF = 16  # bits of a number that is kept as it is
_BLOCK = 256  # entries whose position is one byte
_BITS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Scheme:
    """A way to compress experts; ``natural`` is the share of a float32 backbone that it is for."""

    label: str
    natural: float
    fit: Fit


def grouped(values: Tensor) -> Tensor:
    """Entries in four groups, by sign and by |v| above or below the median; each its group's mean.

    Two bits for each entry and four numbers (DTS, arXiv 2512.01461).
    """
    large = values.abs() > values.abs().median()
    result = torch.zeros_like(values)
    for group in (large & (values >= 0), large & (values < 0),
                  ~large & (values >= 0), ~large & (values < 0)):  # fmt: skip
        if group.any():
            result[group] = values[group].mean()
    return result


def grouped_bits(count: int) -> int:
    """What ``grouped`` takes for so many entries."""
    return 2 * count + 4 * HALF


def as_matrix(tensor: Tensor) -> Tensor | None:
    """A tensor as a matrix [m, n]; None if it is a vector."""
    matrix = tensor.reshape(len(tensor), -1) if len(tensor) > 1 else tensor.flatten(0, -2)
    return matrix if tensor.ndim > 1 and min(matrix.shape) > 1 else None


def of_rank(kept: Callable[[Tensor], Tensor], bits: Callable[[int], int]) -> Fit:
    """Singular components of the matrices, σᵢ kept(uᵢ) kept(vᵢ)ᵀ: those with most σ² per bit.

    ``bits`` is what ``kept`` takes for a vector of so many entries. Vectors (biases, norms) count
    as components too, in four groups each.
    """

    def fit(vectors: Tensors, most: int) -> tuple[dict[str, Tensor], int]:
        found = {name: torch.zeros_like(tensor) for name, tensor in vectors.items()}
        parts: list[tuple[float, str, int, Callable[[], Tensor]]] = []
        for name, tensor in vectors.items():
            matrix = as_matrix(tensor)
            if matrix is None:
                size = grouped_bits(tensor.numel())
                energy = float(tensor.square().sum())
                parts.append((energy / size, name, size, partial(grouped, tensor)))
                continue
            size = sum(map(bits, matrix.shape)) + HALF
            for sigma, left, right in _components(matrix):
                product = partial(_product, sigma, left, right, kept)
                parts.append((sigma**2 / size, name, size, product))
        taken = 0
        for _, name, size, part in sorted(parts, key=lambda part: -part[0]):
            if taken + size <= most:
                found[name] += part().view_as(found[name])
                taken += size
        return found, taken

    return fit


def _components(matrix: Tensor) -> list[tuple[float, Tensor, Tensor]]:
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return list(zip(s.tolist(), u.T, v, strict=True))


def _product(sigma: float, left: Tensor, right: Tensor, kept: Callable[[Tensor], Tensor]) -> Tensor:
    return sigma * torch.outer(kept(left), kept(right))


def switched(tensor: Tensor, most: int) -> tuple[Tensor, int]:
    """Mask ∘ sign ∘ scale (FlexSwitch, arXiv 2604.28109): the largest entries, in 1 to 8 bits.

    Of the numbers of bits the one with the least squared error; the fewer they are, the more
    entries can be kept. Positions are a byte in a block of 256, or one bit for each entry.
    """
    best, least, taken = torch.zeros_like(tensor), float(tensor.square().sum()), 0
    for bits in _BITS:
        count = kept_entries(tensor.numel(), bits, most)
        if count:
            found = _largest(tensor, count, bits)
            error = float((found - tensor).square().sum())
            if error < least:
                best, least, taken = found, error, switched_bits(tensor.numel(), bits, count)
    return best, taken


def switched_bits(numel: int, bits: int, count: int) -> int:
    """What ``count`` of ``numel`` entries take in ``bits`` each: positions, values, two ends."""
    positions = min(numel, 8 * count + 8 * -(-numel // _BLOCK))
    return positions + bits * count + 2 * HALF


def kept_entries(numel: int, bits: int, most: int) -> int:
    """The most entries that fit, in so many bits each."""
    by_block = (most - 2 * HALF - 8 * -(-numel // _BLOCK)) // (8 + bits)
    by_mask = (most - 2 * HALF - numel) // bits
    return max(0, min(numel, max(by_block, by_mask)))


def _largest(tensor: Tensor, count: int, bits: int) -> Tensor:
    """The ``count`` largest entries, their magnitudes on 2^(bits - 1) even levels."""
    flat = tensor.flatten()
    places = flat.abs().topk(count).indices
    sizes = flat[places].abs()
    levels = 2 ** (bits - 1)
    if levels == 1:
        sizes = sizes.mean().expand_as(sizes)
    else:
        low, step = sizes.min(), (sizes.max() - sizes.min()).clamp_min(1e-12) / (levels - 1)
        sizes = low + ((sizes - low) / step).round() * step
    result = torch.zeros_like(flat)
    result[places] = flat[places].sign() * sizes
    return result.view_as(tensor)


def switch(vectors: Tensors, most: int) -> tuple[dict[str, Tensor], int]:
    """``switched`` for each tensor, with bits in proportion to its share of the largest entries."""
    entries = torch.cat([tensor.abs().flatten() for tensor in vectors.values()])
    count = max(1, min(len(entries), kept_entries(len(entries), 1, most)))
    threshold = entries.topk(count).values[-1]
    found, taken = {}, 0
    for name, tensor in vectors.items():
        part = int((tensor.abs() >= threshold).sum()) / count
        found[name], bits = switched(tensor, int(most * part))
        taken += bits
    return found, taken


SCHEMES: Mapping[str, Scheme] = {
    "dts": Scheme("DTS", 0.01, of_rank(grouped, grouped_bits)),
    "flexswitch": Scheme("FlexSwitch", 0.0148, switch),
    "low_rank": Scheme(
        "low rank, 16 bits", 0.05, of_rank(lambda values: values.half().float(), lambda n: HALF * n)
    ),
}
"""By name; ``emr`` and ``tall_masks`` are merging methods, with a bit for each number."""

MASKED = {"emr": 32, "tall_masks": 0}
"""Methods with one bit a number, and the bits that a task has besides."""
