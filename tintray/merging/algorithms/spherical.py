"""Methods that merge on a sphere: SLERP for two experts, the Karcher mean for any number.

Both work on the experts' own weights. What they give is a weighted sum of experts, Σ sₖ θₖ with
Σ sₖ ≠ 1, so the directions share the surplus of θ₀ in proportion to the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tintray.merging.declaration import Layer, Parameter, method, per_task, rows

NEARLY_PARALLEL = 0.9995
"""Above this cosine the arc and its chord cannot be told apart."""


def _directions(layer: Layer, weights: Tensor) -> Tensor:
    """D with θ₀ + Σ D = Σ sₖ θₖ, for weights s [K] ≥ 0."""
    surplus = (weights.sum() - 1) / weights.sum()
    return per_task(weights, layer.vectors) * (layer.vectors + surplus * layer.base)


def on_arc(weights: Tensor, cosine: Tensor) -> Tensor:
    """Weights [2] of two ends for a point on the chord, turned into those for the arc."""
    if cosine.abs() <= NEARLY_PARALLEL:
        angle = cosine.acos()
        weights = (weights * angle).sin() / angle.sin()
    return weights


@method(
    "slerp",
    summary="The point at t on the arc between two experts.",
    source="Shoemake, SIGGRAPH 1985, as mergekit applies it to tensors",
    parameters=[Parameter("t", 0.5, 0, 1, "0 is the first expert, 1 the second")],
    tuned=False,
    workspace=2,
    most=2,
)
def slerp(layer: Layer, t: float) -> Tensor:
    """D of s₁θ₁ + s₂θ₂, s₁ = sin((1−t)ω)/sin ω, s₂ = sin(tω)/sin ω, ω the angle between them."""
    if len(layer.vectors) == 1:
        return layer.vectors
    first, second = rows(layer.base + layer.vectors)
    norms = first.norm() * second.norm()
    cosine = (first @ second / norms).clamp(-1, 1) if norms > 0 else norms.new_tensor(1.0)
    return _directions(layer, on_arc(norms.new_tensor([1 - t, t]), cosine))


@method(
    "karcher",
    summary="The mean of the experts' directions on the sphere, at their mean norm.",
    source="Karcher, Comm. Pure Appl. Math. 30 (1977)",
    parameters=[Parameter("steps", 20, 1, 1000, "steps towards the mean at most", whole=True)],
    tuned=False,
    workspace=2,
)
def karcher(layer: Layer, steps: int) -> Tensor:
    """D of r · m, m the point on the unit sphere with the least sum of squared arcs.

    m is a combination of the experts, so all steps happen on their K × K products: in memory, as a
    GPU would only be started for each of their few numbers.
    """
    experts = rows(layer.base + layer.vectors)
    norms = experts.double().norm(dim=1).cpu()
    if len(experts) == 1 or (norms == 0).any():
        return layer.vectors / len(experts)
    products = (experts @ experts.T).cpu().double() / norms.outer(norms)
    mean = mean_on_sphere(products, steps)
    return _directions(layer, (mean * norms.mean() / norms).float().to(experts.device))


def mean_on_sphere(
    products: Tensor, steps: int, *, least_angle: float = 1e-12, least_step: float = 1e-9
) -> Tensor:
    """Weights [K] of K unit vectors whose sum is their Karcher mean, from their products [K, K].

    Angles below ``least_angle`` count as none; a step below ``least_step`` is the last.
    """
    count = len(products)
    mean = torch.full((count,), 1 / count, dtype=products.dtype)
    length = (mean @ products @ mean).clamp_min(0).sqrt()
    if length < least_angle:
        mean = torch.eye(count, dtype=products.dtype)[0]  # the directions cancel each other
    else:
        mean = mean / length
    for _ in range(steps):
        cosines = (products @ mean).clamp(-1, 1)
        angles = cosines.acos()
        stretch = torch.where(angles > least_angle, angles / angles.sin().clamp_min(1e-300), 1.0)
        tangent = (stretch - (stretch @ cosines) * mean) / count  # Σ log_m(uₖ) / K
        step = (tangent @ products @ tangent).clamp_min(0).sqrt()
        if step < least_step:
            break
        mean = step.cos() * mean + step.sin() / step * tangent
    return mean
