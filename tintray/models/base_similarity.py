"""What fine-tuning did to a model: whether it began at the base that a job names, and how far it
went, told by the weights alone.

Fine-tuning moves weights little, compared with their size, so the cosine between a base's weights
and its expert's is near 1 (0.93 to 0.95 even after a thousand large steps on a small model), while
two models that were trained from different starts have cosines near 0: their hidden units stand in
different orders, and the difference of their weights says nothing about a task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tintray.models.structure import backbone_names
from tintray.numerics.randomness import stream

UNRELATED = 0.1
"""Cosine below which an expert does not look as if it came from the base.

Far below what the largest steps leave: models of a few thousand weights that were fine-tuned by
steps larger than their weights still have 0.3.
"""

_SKETCH = 16381  # numbers: a prime, so that rows of no matrix come to lie on one another


@dataclass(frozen=True)
class Change:
    """What fine-tuning did to a backbone's weights, over tensors of two and more dimensions.

    Norms and biases are left out: they are alike in any two models of one architecture.

    Attributes
    ----------
    similarity
        Cosine between the base's weights and the expert's.
    size
        Root mean square of the differences, in units of a weight.
    sketch
        The differences in few numbers [16381]: of two experts of one base, inner products of
        sketches are those of the differences, within some hundredths of their lengths.
    """

    similarity: float
    size: float
    sketch: Tensor


@torch.no_grad()
def change(base: nn.Module, expert: nn.Module) -> Change:
    """How an expert's backbone differs from its base's, computed where the expert is."""
    product = ours = theirs = moved = 0.0
    count, sketch = 0, torch.zeros(_SKETCH)
    for name in backbone_names(base):
        other = expert.get_parameter(name)
        if other.ndim > 1:
            one = base.get_parameter(name).to(other.device).to(other.dtype)
            product += (one * other).sum(dtype=torch.float64).item()
            ours += one.square().sum(dtype=torch.float64).item()
            theirs += other.square().sum(dtype=torch.float64).item()
            moved += (step := other - one).square().sum(dtype=torch.float64).item()
            sketch += _folded(step.flatten(), name).cpu()
            count += one.numel()
    cosine = product / max(math.sqrt(ours * theirs), 1e-300)
    return Change(cosine, math.sqrt(moved / max(1, count)), sketch)


def _folded(numbers: Tensor, name: str) -> Tensor:
    """A vector in stretches that are added up under random signs, the same for every expert."""
    stretches = -(-numbers.numel() // _SKETCH)
    drawn = torch.randint(0, 2, (stretches,), generator=stream(0, name, "sketch"))
    signs = drawn.to(numbers.device) * 2.0 - 1
    padded = functional.pad(numbers.float(), (0, stretches * _SKETCH - numbers.numel()))
    return signs @ padded.view(stretches, _SKETCH)


def is_unrelated(similarity: float) -> bool:
    """Whether a similarity is that of models from different starts."""
    return similarity < UNRELATED


def warning(task: str, similarity: float) -> str:
    """What to tell whoever merges an expert that does not come from the base."""
    return (
        f"tasks.{task}.expert does not look fine-tuned from this base (the cosine between their "
        f"weights is {similarity:.2f}; experts of one base have 0.9 as a rule): its coefficients "
        "start at zero and it will live off its tint layer; check 'base', or expect less of this "
        "task"
    )
