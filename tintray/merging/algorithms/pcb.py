"""PCB-Merging: coordinates compete within a task and across tasks."""

from __future__ import annotations

import torch
from torch import Tensor

from tintray.merging.algorithms.order_statistics import value_at
from tintray.merging.declaration import Layer, Parameter, method, rows


@method(
    "pcb",
    summary="Weigh each coordinate by how it stands within its task and towards the others.",
    source="Du et al., PCB-Merging, arXiv 2410.02396, eq. 1-4",
    parameters=[
        Parameter("keep", 0.1, 0, 1, "share of each task's coordinates that is kept",
                  open_low=True),
    ],
    scale=1.0,
    workspace=3,
    expert_at={"keep": 1},
)  # fmt: skip
def pcb(layer: Layer, keep: float) -> Tensor:
    """D = β̂ ⊙ τ / Σ β̂, where β = softmax(K · norm(τ²)) ⊙ Σⱼ softmax(norm(τ τⱼ)), its top kept.

    Softmax runs over the tensor's coordinates; norm divides by the largest magnitude.
    """
    matrix = rows(layer.vectors)
    count, size = matrix.shape
    scores = torch.empty_like(matrix)
    for own, score in zip(matrix, scores, strict=True):
        across = torch.zeros_like(own)
        for other in matrix:
            across += _softmax(own * other, 1)
        score.copy_(_softmax(own * own, count) * across * size)  # × size: away from denormals
        kept = max(1, int(keep * size))
        score[score < value_at(score, size - kept)] = 0
    directions = matrix * scores / scores.sum(0).clamp_min(1e-38)
    return directions.view_as(layer.vectors)


def _softmax(values: Tensor, temper: float) -> Tensor:
    return (values * (temper / values.abs().max().clamp_min(1e-38))).softmax(0)
