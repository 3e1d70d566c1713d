"""Kinds of task: what a metric and an agreement are for each."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Kind = Literal["classification"]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of examples whose largest logit is at the label, for logits [N, C], labels [N]."""
    return (logits.argmax(-1) == labels).float().mean().item()


def agreement(merged: Tensor, expert: Tensor) -> float:
    """Share of examples on which merge and expert predict the same class; logits [N, C] each."""
    return (merged.argmax(-1) == expert.argmax(-1)).float().mean().item()


def metric_name(kind: Kind) -> str:
    """How the labelled metric of a kind of task is called in tables."""
    return {"classification": "accuracy"}[kind]
