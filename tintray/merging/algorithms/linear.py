"""Methods that weigh whole task vectors: average, task arithmetic, LiNeS, Model Stock."""

from __future__ import annotations

from torch import Tensor

from tintray.merging.declaration import Layer, Parameter, method, rows


@method(
    "average",
    summary="The mean of the experts: θ = θ₀ + (1/K) Σ τₖ.",
    source="Wortsman et al., arXiv 2203.05482",
    scale=None,
    tuned=False,
    elementwise=True,
)
def average(layer: Layer) -> Tensor:
    """D = τ, at scale 1/K."""
    return layer.vectors


@method(
    "task_arithmetic",
    summary="The sum of the task vectors at one scale: θ = θ₀ + λ Σ τₖ.",
    source="Ilharco et al., arXiv 2212.04089",
    scale=0.3,
    adds_up=True,
    elementwise=True,
)
def task_arithmetic(layer: Layer) -> Tensor:
    """D = τ."""
    return layer.vectors


@method(
    "lines",
    summary="Task arithmetic whose scale grows with depth: λ(d) = λ (shallow + (1 − shallow) d).",
    source="Wang et al., LiNeS, arXiv 2410.17146",
    parameters=[Parameter("shallow", 0.3, 0, 1, "share of the scale before the first block")],
    scale=0.4,
    adds_up=True,
    elementwise=True,
    expert_at={"shallow": 1},
)
def lines(layer: Layer, shallow: float) -> Tensor:
    """D = (shallow + (1 − shallow) · depth) τ, linear from the first block to the last."""
    return layer.vectors * (shallow + (1 - shallow) * layer.depth)


@method(
    "model_stock",
    summary="Between base and mean, tensor by tensor, by the angle between the task vectors.",
    source="Jang et al., Model Stock, arXiv 2403.19522, eq. 2 and its form for K models",
    tuned=False,
    workspace=2,
)
def model_stock(layer: Layer) -> Tensor:
    """D = (t/K) τ with t = K cos / (1 + (K − 1) cos); cos is the mean over pairs of tasks."""
    count = len(layer.vectors)
    if count == 1:
        return layer.vectors
    matrix = rows(layer.vectors)
    unit = matrix / matrix.norm(dim=1, keepdim=True).clamp_min(1e-38)
    cosine = (((unit @ unit.T).sum() - (unit * unit).sum()) / (count * (count - 1))).clamp(0, 1)
    share = count * cosine / (1 + (count - 1) * cosine)
    directions: Tensor = layer.vectors * (share / count)
    return directions
