"""Kinds of task: what a loss, a metric and an agreement are for each."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

Kind = Literal["classification"]
Labels = Literal["soft", "hard", "entropy"]


def self_label_loss(
    merged: Tensor, expert: Tensor, labels: Labels, temperature: float = 1.0
) -> Tensor:
    """Loss of each example against the expert's prediction: [N], from logits [N, C].

    ``soft`` is cross-entropy to the expert's probabilities at ``temperature`` (its gradient is
    that of KL(expert ‖ merge)); ``hard`` is cross-entropy to the expert's class (``crosspseudo``
    of Model Tinting, arXiv 2412.19098); ``entropy`` asks no expert: it is the entropy of the
    merge's own prediction (AdaMerging, arXiv 2310.02575, eq. 4).
    """
    if labels == "entropy":
        logs = merged.log_softmax(-1)
        return -(logs.exp() * logs).sum(-1)
    target = (expert / temperature).softmax(-1) if labels == "soft" else expert.argmax(-1)
    return functional.cross_entropy(merged, target, reduction="none")


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of examples whose largest logit is at the label, for logits [N, C], labels [N]."""
    return (logits.argmax(-1) == labels).float().mean().item()


def agreement(merged: Tensor, expert: Tensor) -> float:
    """Share of examples on which merge and expert predict the same class; logits [N, C] each."""
    return (merged.argmax(-1) == expert.argmax(-1)).float().mean().item()


def metric_name(kind: Kind) -> str:
    """How the labelled metric of a kind of task is called in tables."""
    return {"classification": "accuracy"}[kind]
