"""Which self-labels a task learns from and what filters them; few true labels help, if any.

True labels of a few pool examples do two things. Where classes are chosen they calibrate: the
expert's confidence by temperature scaling, and the threshold of the filter where that is to be
found. And, if the job says so, they take the place of the expert's answers to these examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tintray.tasks.calibration import fit_temperature
from tintray.tasks.classes import ClassKind
from tintray.tasks.confidence import ConfidenceFilter, labelled_threshold, top_p_threshold
from tintray.tasks.kind import Kind
from tintray.tasks.kinds import Filter
from tintray.tasks.outputs import Outputs


@dataclass(frozen=True)
class PseudoLabelConfig:
    """How self-labels are filtered: the job file's section ``objective``, but for the loss."""

    selected_fraction: float  # of a pool, by ``top_p``
    threshold: float | None  # None: found per task
    target_precision: float
    true_labels: bool


@dataclass(frozen=True)
class TrueLabels:
    """Labels of the pool's examples at ``rows`` [n], as their kind of task has them."""

    rows: Tensor
    labels: Any


def prepare_targets(
    kind: Kind,
    outputs: Outputs,
    true: TrueLabels | None,
    config: PseudoLabelConfig,
    filter_: Filter,
    mask: Tensor | None = None,
) -> tuple[Outputs, ConfidenceFilter]:
    """What a task learns from, and what filters it, from its expert's answers over the pool.

    ``mask`` [N, S] tells which tokens count. Without true labels a threshold that sets itself goes
    by the agreement of merge and expert.
    """
    if not isinstance(outputs, Tensor):  # nothing of a language model is filtered
        return outputs, ConfidenceFilter("none")
    temperature, threshold = 1.0, config.threshold
    if isinstance(kind, ClassKind):
        if true is not None:
            of_rows = None if mask is None else mask[true.rows]
            logits, labels = kind.rows(outputs[true.rows], true.labels, of_rows)
            if labels is not None and len(labels):
                temperature = fit_temperature(logits, labels)
                if threshold is None:
                    threshold = labelled_threshold(
                        logits, labels, config.target_precision, temperature
                    )
        if filter_ == "top_p":
            every, _ = kind.rows(outputs, None, mask)
            threshold = top_p_threshold(every, config.selected_fraction, temperature)
    if true is not None and config.true_labels:
        outputs = with_true_labels(kind, outputs, true, mask)
    return outputs, ConfidenceFilter(filter_, threshold, temperature, config.target_precision)


def with_true_labels(
    kind: Kind, outputs: Tensor, true: TrueLabels, mask: Tensor | None = None
) -> Tensor:
    """The expert's answers, but at the labelled examples what is true, with certainty."""
    of_rows = None if mask is None else mask[true.rows]
    found = kind.with_labels(outputs[true.rows], true.labels, of_rows)
    replaced = outputs.clone()
    replaced[true.rows, : found.shape[1]] = found.to(outputs)
    return replaced
