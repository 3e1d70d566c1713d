"""Which examples of a batch count: filters that judge a self-label by two confidences."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Filter = Literal["none", "agreement"]


def keep(filter_: Filter, merged: Tensor, expert: Tensor) -> Tensor:
    """Which examples to learn from: bool [N], from logits of merge and expert, each [N, C].

    ``agreement`` keeps an example where both predict the same class, or where they differ and the
    expert is at least as confident (maximum softmax probability) as the merge; it drops those on
    which the merge contradicts its expert with more confidence than the expert has
    (``crosspseudoconf`` of SyMerge, arXiv 2412.19098).
    """
    if filter_ == "none":
        return torch.ones(len(merged), dtype=torch.bool, device=merged.device)
    merged_confidence, merged_class = merged.detach().softmax(-1).max(-1)
    expert_confidence, expert_class = expert.softmax(-1).max(-1)
    return (merged_class == expert_class) | (expert_confidence >= merged_confidence)
