"""Which self-labels a task learns from and who judges them; few true labels help, if there are any.

True labels of a few pool examples do two things. Where classes are chosen they calibrate: the
expert's confidence by temperature scaling, and the threshold of the filter where that is to be
found. And, if asked for, they take the place of the expert's answers to these examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tintray.tasks.calibration import fit_temperature
from tintray.tasks.confidence import ConfidenceFilter, Filter, labelled_threshold, top_p_threshold
from tintray.tasks.tasks import CLASSES, Kind, Outputs, by_class, by_token, chosen

LABELLED: tuple[Kind, ...] = (
    "classification",
    "multi_label",
    "regression",
    "token_classification",
    "segmentation",
    "depth",
    "normals",
)
"""Kinds of which few true labels can be used; a text's own words are no label beside it."""

_CERTAIN = 50.0  # a logit so far above the others that its probability is 1 at any temperature
_NONE = -100


@dataclass(frozen=True)
class PseudoLabelConfig:
    """How self-labels are trusted: the job file's section ``objective``, but for the loss."""

    keep: float
    threshold: float | None  # None: found per task
    goal: float
    true_labels: bool


@dataclass(frozen=True)
class TrueLabels:
    """Labels of the pool's examples at ``rows`` [n], as their kind of task has them."""

    rows: Tensor
    labels: Any


def trusted(
    kind: Kind,
    outputs: Outputs,
    true: TrueLabels | None,
    trust: PseudoLabelConfig,
    filter_: Filter,
    mask: Tensor | None = None,
) -> tuple[Outputs, ConfidenceFilter]:
    """What a task learns from, and who judges it, from its expert's answers over the pool.

    ``mask`` [N, S] tells which tokens count. Without true labels a threshold that sets itself goes
    by the agreement of merge and expert.
    """
    if not isinstance(outputs, Tensor):  # nothing of a language model is filtered
        return outputs, ConfidenceFilter("none")
    temperature, threshold = 1.0, trust.threshold
    if kind in CLASSES:
        if true is not None:
            of_rows = None if mask is None else mask[true.rows]
            logits, labels = by_class(kind, outputs[true.rows], true.labels, of_rows)
            if labels is not None and len(labels):
                temperature = fit_temperature(logits, labels)
                if threshold is None:
                    threshold = labelled_threshold(logits, labels, trust.goal, temperature)
        if filter_ == "top_p":
            every, _ = by_class(kind, outputs, None, mask)
            threshold = top_p_threshold(every, trust.keep, temperature)
    if true is not None and trust.true_labels:
        outputs = with_true_labels(kind, outputs, true, mask)
    return outputs, ConfidenceFilter(filter_, threshold, temperature, trust.goal)


def with_true_labels(
    kind: Kind, outputs: Tensor, true: TrueLabels, mask: Tensor | None = None
) -> Tensor:
    """The expert's answers, but at the labelled examples what is true, with certainty.

    What a label leaves open (a word's later tokens, ignored pixels, depths that are not known)
    stays the expert's. Maps are brought to the size of the answers, each pixel to its nearest.
    """
    given = chosen(outputs, true.rows)
    assert isinstance(given, Tensor)
    match kind:
        case "classification":
            found = _certain(given, true.labels)
        case "token_classification":
            assert mask is not None, "pools of token classification say which tokens count"
            labels = by_token(true.labels, mask[true.rows])[:, : given.shape[1]]
            found = _certain(given[:, : labels.shape[1]], labels)
        case "segmentation":
            labels = _resized(true.labels[:, None].float(), given)[:, 0].long()
            found = _certain(given.movedim(1, -1), labels).movedim(-1, 1)
        case "multi_label":
            found = _CERTAIN * (2 * true.labels - 1)
        case "regression":
            found = true.labels
        case "depth":
            labels = _resized(true.labels[:, None], given).view(given.shape)
            found = torch.where(labels > 0, labels, given)
        case "normals":
            labels = _resized(true.labels, given)
            found = torch.where(labels.square().sum(1, keepdim=True) > 0, labels, given)
        case _:
            raise ValueError(f"expected one of {', '.join(LABELLED)}, found {kind}")
    replaced = outputs.clone()
    replaced[true.rows, : found.shape[1]] = found.to(outputs)
    return replaced


def _certain(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [..., C] that are sure of labels [...]; as given where a label is none."""
    one = functional.one_hot(labels.clamp_min(0), logits.shape[-1]).to(logits)
    return torch.where((labels == _NONE).unsqueeze(-1), logits, _CERTAIN * (2 * one - 1))


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(maps, size=like.shape[-2:], mode="nearest")
