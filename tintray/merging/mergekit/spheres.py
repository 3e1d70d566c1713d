"""Blends on spheres as mergekit defines them: SLERP, NuSLERP, Multi-SLERP, the Karcher mean."""

from __future__ import annotations

import torch
from torch import Tensor

from tintray.errors import SpecError
from tintray.merging.algorithms.spherical import mean_on_sphere, on_arc
from tintray.merging.mergekit.blend import Each, Inputs, Shared


def slerp(given: Inputs, shared: Shared, _: Each) -> Tensor:
    """The point at t on the arc from the base to the other; on the chord of parallel ones."""
    first = given.origin.to(given.precise)
    second = given.others[0].to(given.precise)
    t = torch.tensor(shared["t"], dtype=given.precise)
    lengths = [tensor.norm() for tensor in (first, second)]
    units = [
        (tensor / length if length > 1e-8 else tensor).reshape(-1)
        for tensor, length in zip((first, second), lengths, strict=True)
    ]
    cosine = (units[0] @ units[1]).clamp(-1, 1)
    weights = on_arc(torch.stack([1 - t, t]), cosine)
    return (weights[0] * first + weights[1] * second).to(given.dtype)


def nuslerp(given: Inputs, shared: Shared, each: Each) -> Tensor:
    """Between two tensors, or their task vectors: flat, by rows or by columns."""
    weights = [each[number]["weight"] for number in given.experts]
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    origin = None if given.base is None else given.origin
    ends = [tensor if origin is None else tensor - origin for tensor in given.others]
    merged = _along(ends[0], ends[1], t, shared)
    return merged if origin is None else origin + merged


def _along(first: Tensor, second: Tensor, t: float, shared: Shared) -> Tensor:
    shape = first.shape
    turned = shared["nuslerp_row_wise"] and not shared["nuslerp_flatten"]
    if shared["nuslerp_flatten"]:
        first, second = first.reshape(-1), second.reshape(-1)
    elif turned:
        first, second = first.transpose(0, -1), second.transpose(0, -1)
    units = [x / x.norm(dim=-1, keepdim=True).clamp(min=1e-7) for x in (first, second)]
    cosine = (units[0] * units[1]).sum(-1, keepdim=True).clamp(-1, 1)
    parallel = 1 - cosine.square() <= 1e-16
    angle = torch.where(parallel, 0, cosine).acos()
    arc = (((1 - t) * angle).sin() * first + (t * angle).sin() * second) / angle.sin()
    merged = torch.where(parallel, (1 - t) * first + t * second, arc)
    return (merged.transpose(0, -1) if turned else merged).reshape(shape)


def multislerp(given: Inputs, shared: Shared, each: Each) -> Tensor:
    """The barycentre in the tangent space at the weighted mean of the directions."""
    if len(given.experts) == 1:
        return given.others[0]
    points = torch.stack(given.others).to(given.precise)
    if given.base is not None:
        points -= given.origin
    flat = points.view(len(points), -1)
    weights = torch.tensor([each[n]["weight"] for n in given.experts], dtype=points.dtype)
    if shared["normalize_weights"]:
        weights = weights / weights.sum()
    lengths = flat.norm(dim=1)
    units = flat / (lengths[:, None] + shared["eps"])
    mean = weights @ units
    length = mean.norm()
    if length < shared["eps"]:
        if len(points) > 2:
            raise SpecError(
                f"multislerp: the weighted directions of tensor '{given.name}' cancel each other; "
                "choose other weights"
            )
        merged = weights @ flat
    else:
        mean = mean / length
        tangent = weights @ (units - (units @ mean)[:, None] * mean)
        angle = tangent.norm() + shared["eps"]
        merged = (mean * angle.cos() + tangent * (angle.sin() / angle)) * (lengths @ weights)
    merged = merged.view(given.shape)
    return (merged if given.base is None else merged + given.origin).to(given.dtype)


def karcher(given: Inputs, shared: Shared, _: Each) -> Tensor:
    """The mean of all inputs' directions on the sphere, at their mean length."""
    if len(given.tensors) == 1:
        return given.tensors[0]
    flat = [tensor.to(given.precise).reshape(-1) for tensor in given.tensors]
    lengths = torch.stack([row.norm() for row in flat]).double()
    there = lengths > shared["tol"]
    if not there.any():
        return torch.zeros_like(given.tensors[0])
    rows = [row for row, is_there in zip(flat, there, strict=True) if is_there]
    own = lengths[there]
    products = torch.stack([torch.stack([a @ b for b in rows]) for a in rows]).double()
    mean = mean_on_sphere(
        products / own.outer(own), shared["max_iter"], least_angle=shared["tol"],
        least_step=shared["tol"],
    )  # fmt: skip
    weights = (mean / own * lengths.mean()).to(given.precise)
    merged = sum(
        (weight * row for weight, row in zip(weights[1:], rows[1:], strict=True)),
        start=weights[0] * rows[0],
    )
    return merged.view(given.shape).to(given.dtype)
