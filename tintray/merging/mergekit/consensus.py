"""Blends of task vectors: sparsified, weighed, added up with or without an election; Model Stock.

Which of several entries of equal size is kept follows torch's own sort, as in mergekit: in 16 bits
there are many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from tintray.merging.mergekit.blend import Each, Inputs, Shared
from tintray.numerics.randomness import stream

Sparsify = Callable[[Tensor, Mapping[str, Any], Generator], Tensor]
"""A task vector, its input's values and a random stream to a mask of it: what is kept is 1."""


def largest(vector: Tensor, own: Mapping[str, Any], _: Generator) -> Tensor:
    """Keep the share ``density`` of the largest entries, one at least where it is not 0."""
    count = vector.numel()
    kept = max(1, int(own["density"] * count)) if own["density"] > 0 else 0
    order = vector.abs().reshape(-1).float().argsort(descending=True)
    return _mask(vector, order[:kept])


def between(vector: Tensor, own: Mapping[str, Any], _: Generator) -> Tensor:
    """Keep the share ``density`` below the share ``gamma`` of the largest entries.

    Where both are more than the whole, fewer of the largest go.
    """
    count = vector.numel()
    kept, top = int(own["density"] * count), int(own["gamma"] * count)
    first = max(0, count - kept - top)
    order = vector.abs().reshape(-1).float().sort().indices
    return _mask(vector, order[first : first + kept])


def at_random(vector: Tensor, own: Mapping[str, Any], generator: Generator) -> Tensor:
    """Keep each entry with the probability ``density``."""
    drawn = torch.rand(vector.shape, generator=generator)
    return drawn.lt(own["density"]).to(vector.dtype)


def by_rank(vector: Tensor, own: Mapping[str, Any], generator: Generator) -> Tensor:
    """Keep with a probability that rises with the rank in the row, by ``epsilon`` to each side."""
    if own["density"] <= 0:
        return torch.zeros_like(vector)
    rows = vector.abs().float()
    rows = rows.reshape(1, -1) if rows.ndim < 2 else rows
    ranks = rows.argsort(1).argsort(1).float()
    share = ranks / max(rows.shape[1] - 1, 1)
    chance = own["density"] - own["epsilon"] + 2 * own["epsilon"] * share
    drawn = torch.rand(rows.shape, generator=generator)
    return drawn.lt(chance).to(vector.dtype).view_as(vector)


def _mask(vector: Tensor, kept: Tensor) -> Tensor:
    mask = torch.zeros(vector.numel(), dtype=vector.dtype)
    mask[kept] = 1
    return mask.view_as(vector)


def summed(
    given: Inputs, shared: Shared, each: Each, sparse: Sparsify | None, *, elect: bool
) -> Tensor:
    """θ₀ + λ Σ wₖ τₖ of the sparsified τₖ; with an election, of the entries that agree with it."""
    if not given.experts:
        return given.origin
    vectors = torch.stack(
        [
            _sparsified(given, number, each[number], sparse, rescale=bool(shared.get("rescale")))
            for number in given.experts
        ]
    )
    column = [-1, *[1] * given.origin.ndim]
    weights = torch.tensor([each[n]["weight"] for n in given.experts], dtype=given.dtype)
    weights = weights.view(column)
    vectors *= weights
    if elect:
        majority = torch.where(vectors.sum(0) >= 0, 1, -1)
        agreeing = (vectors.sign() == majority).to(given.dtype)
        total = (vectors * agreeing).sum(0)
        divisor = (weights * agreeing).sum(0)
        divisor = torch.where(divisor == 0, 1, divisor)
    else:
        total = vectors.sum(0)
        divisor = weights.sum(0)
        divisor = torch.where(divisor.abs() < 1e-8, 1, divisor)
    if shared["normalize"]:
        total /= divisor
    if shared["lambda"] != 1:
        total *= shared["lambda"]
    return given.origin + total


def _sparsified(
    given: Inputs, number: int, own: Mapping[str, Any], sparse: Sparsify | None, *, rescale: bool
) -> Tensor:
    vector = given.tensors[number] - given.origin
    if sparse is None or own["density"] >= 1 or vector.numel() == 0:
        return vector
    generator = stream(given.seed, "blend", given.name, number)
    kept = vector * sparse(vector, own, generator)
    if not rescale:
        return kept
    before, after = (float(x.abs().sum(dtype=given.precise)) for x in (vector, kept))
    return kept * (before / after) if min(before, after) >= 1e-7 else kept


def sce(given: Inputs, shared: Shared, _: Each) -> Tensor:
    """Select entries that vary, calculate weights by size, erase those against the sum's sign.

    Wan et al., FuseChat, arXiv 2408.07990.
    """
    if not given.experts:
        return given.origin
    vectors = torch.stack([tensor - given.origin for tensor in given.others])
    if shared["select_topk"] < 1:
        spread = vectors.var(0, unbiased=False).reshape(-1)
        kept = int(spread.count_nonzero() * shared["select_topk"])
        vectors *= _mask(given.origin, spread.topk(kept).indices)
    majority = torch.where(vectors.sum(0) >= 0, 1, -1)
    sizes = vectors.square().reshape(len(vectors), -1).mean(1)
    total = float(sizes.sum())
    weights = sizes / total if total >= 1e-6 else torch.full_like(sizes, 1 / len(sizes))
    agreeing = (vectors.sign() == majority) * weights.view([-1, *[1] * given.origin.ndim])
    return given.origin + (vectors * agreeing).sum(0) / agreeing.sum(0).clamp(min=1e-6)


def model_stock(given: Inputs, shared: Shared, _: Each) -> Tensor:
    """Between base and mean by the angle between task vectors: of a tensor, or of each row."""
    origin = given.origin.to(given.precise)
    rows = (1, -1) if not shared["filter_wise"] or origin.ndim < 2 else origin.shape
    if origin.numel() == 0:
        return given.origin
    vectors = [(tensor.to(given.precise) - origin).reshape(rows) for tensor in given.others]
    lengths = [vector.norm(dim=-1) for vector in vectors]
    cosines = [
        ((vectors[i] * vectors[j]).sum(-1) / (lengths[i] * lengths[j]).clamp(min=1e-6)).clamp(-1, 1)
        for i in range(len(vectors))
        for j in range(i + 1, len(vectors))
    ]
    cosine = torch.stack(cosines).mean(0)[..., None]
    count = len(vectors)
    below = 1 + (count - 1) * cosine
    share = torch.where(below.abs() < 1e-6, 0.0, count * cosine / below)
    mean = sum(vectors[1:], start=vectors[0]) / count
    return (origin + (share * mean).view_as(origin)).to(given.dtype)
