"""What a fit makes small: one pure function per kind of answer, each giving one loss per example.

Every function takes the merge's outputs and the expert's on the same N examples and returns [N], so
that a confidence filter can weigh examples afterwards. Where an example has many answers (tokens,
pixels), its loss is their mean; ``mask`` [N, …] tells which of them count (padding does not). None
of them reads a label.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tintray.tasks.kinds import Distance, Labels
from tintray.tasks.outputs import TopTokens, mean_of

_LEAST_VARIANCE = 1e-9  # of the usual one: below is what rounding leaves of none


def class_loss(
    merged: Tensor,
    expert: Tensor,
    labels: Labels = "soft",
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Classification, of examples [N, C] or of their tokens [N, …, C]: classes come last.

    ``soft`` is cross-entropy to the expert's probabilities, both sides at ``temperature`` t and
    scaled by t² (Hinton et al., arXiv 1503.02531): its gradient is that of t² KL(expert ‖ merge).
    ``hard`` is cross-entropy to the expert's class (``crosspseudo`` of Model Tinting, arXiv
    2412.19098); ``entropy`` asks no expert (AdaMerging, arXiv 2310.02575, eq. 4).
    """
    if labels == "entropy":
        logs = merged.log_softmax(-1)
        return mean_of(-(logs.exp() * logs).sum(-1), mask)
    if labels == "hard":
        picked = merged.log_softmax(-1).gather(-1, expert.argmax(-1, keepdim=True)).squeeze(-1)
        return mean_of(-picked, mask)
    target = (expert / temperature).softmax(-1)
    each = -(target * (merged / temperature).log_softmax(-1)).sum(-1)
    return mean_of(each * temperature**2, mask)


def multi_label_loss(
    merged: Tensor, expert: Tensor, labels: Labels = "soft", mask: Tensor | None = None
) -> Tensor:
    """Independent yes or no answers, logits [N, C]: mean binary cross-entropy to the expert's.

    ``hard`` targets are whether the expert says yes; ``entropy`` is that of the merge's own answer.
    """
    given = merged if labels == "entropy" else expert
    target = (given > 0).to(merged) if labels == "hard" else given.sigmoid()
    each = functional.binary_cross_entropy_with_logits(merged, target, reduction="none")
    return mean_of(each, mask)


def value_loss(merged: Tensor, expert: Tensor, distance: Distance = "l1") -> Tensor:
    """Regression and depth, [N, …]: mean |difference| (L1) or mean squared difference (L2)."""
    difference = merged - expert
    return mean_of(difference.abs() if distance == "l1" else difference.square())


def direction_loss(merged: Tensor, expert: Tensor) -> Tensor:
    """Surface normals, [N, 3, H, W]: 1 − cosine of the angle between the two, mean over pixels."""
    return mean_of(1 - functional.cosine_similarity(merged, expert, dim=1))


def token_loss(merged: Tensor, expert: TopTokens, mask: Tensor | None = None) -> Tensor:
    """Language modelling: KL(expert ‖ merge) over the expert's top tokens and all others as one.

    ``merged`` are logits [N, S, V]. With k = V it is the full divergence. Lumping tokens together
    can only lower a divergence (the log sum inequality), so this never asks for more than the full
    one does.
    """
    logs = merged.log_softmax(-1)
    picked = logs.gather(-1, expert.indices)
    divergence = (expert.logs.exp() * (expert.logs - picked)).sum(-1)
    if expert.indices.shape[-1] < merged.shape[-1]:
        rest, merged_rest = _remainder(expert.logs), _remainder(picked)
        divergence = divergence + rest * (rest.log() - merged_rest.log())
    return mean_of(divergence, mask)


def feature_loss(merged: Tensor, expert: Tensor, usual: Tensor) -> Tensor:
    """Features at a depth of the model, [N, …, d]: squared distance over the expert's variance.

    The variance is that of the batch, per feature vector, so that 1 is what a merge pays that
    always answers with the expert's mean, at whatever depth. One example, or examples that are all
    alike, have none: then it is the ``usual`` one, see ``feature_variance``.
    """
    spread = expert - expert.mean(tuple(range(expert.ndim - 1)), keepdim=True)
    variance = spread.square().sum(-1).mean()
    variance = torch.where(variance > _LEAST_VARIANCE * usual, variance, usual)
    return mean_of((merged - expert).square().sum(-1) / variance)


def feature_variance(features: Tensor) -> Tensor:
    """The variance of a pool's feature vectors [N, …, d]; where they are all alike, their square.

    Never 0: an expert whose features are all 0 pays 1 for each.
    """
    flat = features.flatten(0, -2)
    variance, square = flat.var(0, correction=0).sum(), flat.square().sum(-1).mean()
    usual = torch.where(variance > _LEAST_VARIANCE * square, variance, square)
    return torch.where(usual > 0, usual, torch.ones_like(usual))


def _remainder(logs: Tensor) -> Tensor:
    """The probability of all other outcomes, kept off zero so that its logarithm is finite."""
    return (1 - logs.exp().sum(-1)).clamp_min(1e-8)
