"""Whether an expert knows its task at all, and whether a merge has learned anything of it.

A merge keeps all of an expert that guesses: 100 % of nothing. Its own answers give it away (hardly
surer than chance, or the same for every example), and labels do where there are some.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tintray.tasks.evaluation import TaskScore
from tintray.tasks.metrics import find_metric
from tintray.tasks.objectives import TopTokens
from tintray.tasks.tasks import CLASSES, Kind, Outputs, by_class, chosen, measure

LEAST_SURENESS = 0.2
"""How much surer than chance an expert must be on average, from 0 (chance) to 1 (certain)."""

_ENOUGH = 20  # examples, below which nothing is said of how often answers are right
_ALIKE = 10  # and below which the same answer to all is no surprise
_DEVIATIONS = 1.645  # of a guesser's right answers: what luck reaches in one of twenty cases
_BATCH = 64
_NONE = -100


@dataclass(frozen=True)
class Doubt:
    """What speaks against an expert.

    Attributes
    ----------
    said
        To be read after "the expert".
    unsure
        It is hardly surer than chance.
    at_chance
        No labels show that it is better than guessing all the same.
    """

    said: str
    unsure: bool
    at_chance: bool


def doubt(
    kind: Kind,
    pool: Outputs,
    mask: Tensor | None,
    test: Outputs | None = None,
    labels: Any = None,
    test_mask: Tensor | None = None,
) -> Doubt | None:
    """What speaks against an expert, by its answers to a pool and to a labelled test set, if any.

    ``mask`` [N, S] tells which tokens count, where an example has many.
    """
    known = None if test is None else better_than_chance(kind, test, labels, test_mask)
    if (said := _unsure(kind, pool, mask)) is not None:
        return Doubt(said, True, known is not True)
    if known is False and test is not None:
        name, value = next(iter(measure(kind, test, labels, test_mask).items()))
        figure = find_metric(name).figure(value)
        said = (
            f"cannot be told from one that guesses by its {_count(test):,} test examples ({name} "
            f"{figure})"
        )
        return Doubt(said, False, True)
    examples = _count(pool)
    if examples >= _ALIKE and _constant(kind, pool, mask):
        said = f"answers the same for each of the {examples:,} examples of its pool"
        return Doubt(said, False, known is not True)
    return None


def shortfall(kind: Kind, classes: int, score: TaskScore, kept: float) -> str | None:
    """Why a merge may have learned nothing of a task, to be read after its name; None if it has."""
    if kept == 0:
        return "the confidence filter kept nothing of its pool at the end of the fit"
    chance = 0.0
    if kind in CLASSES and score.examples >= _ENOUGH and classes > 1:
        chance = 0.5 if kind == "multi_label" else 1 / classes
    if score.agreement == 0 or score.agreement < chance:
        return (
            f"the merge agrees with its expert on {100 * score.agreement:.1f} % of "
            f"{score.examples:,} examples, no more than by chance"
        )
    return None


def better_than_chance(
    kind: Kind, outputs: Outputs, labels: Any, mask: Tensor | None
) -> bool | None:
    """Whether answers are right more often than luck explains; None where that cannot be told.

    A guesser either takes every class alike, or knows how often the expert takes each. Values are
    compared with the best constant answer.
    """
    examples = _count(outputs)
    if examples < _ENOUGH:
        return None
    if kind not in CLASSES and not isinstance(outputs, TopTokens):
        name, found = next(iter(measure(kind, outputs, labels, mask).items()))
        constant = measure(kind, _best_constant(kind, labels), labels, mask)[name]
        return found < constant if constant > 0 else None
    predicted, true, classes = _classes(kind, outputs, labels, mask)
    if not len(true):
        return None
    size = int(max(predicted.max(), true.max())) + 1
    shares = [torch.bincount(of, minlength=size).double() / len(of) for of in (predicted, true)]
    several = bool((shares[1] > 0).sum() > 1)  # of one class alone, its share says nothing
    chance = max(1 / classes, float((shares[0] * shares[1]).sum()) if several else 0.0)
    right = float((predicted == true).double().mean())
    deviation = math.sqrt(chance * (1 - chance) * examples)
    reached = chance * examples + _DEVIATIONS * deviation + 0.5
    return None if reached > examples else right * examples > reached


def _classes(
    kind: Kind, outputs: Outputs, labels: Any, mask: Tensor | None
) -> tuple[Tensor, Tensor, int]:
    """Predicted and true class of all that counts, and how many classes there are."""
    if isinstance(outputs, TopTokens):
        length = min(outputs.indices.shape[1], labels.shape[1])
        tokens, true = outputs.indices[:, :length, 0].long(), labels[:, :length].long()
        return tokens[true != _NONE], true[true != _NONE], int(tokens.max()) + 2
    found, known, classes = [], [], 2
    for rows in _stretches(len(outputs)):
        part, true = by_class(
            kind, outputs[rows], labels[rows], None if mask is None else mask[rows]
        )
        assert true is not None, "there are labels"
        found.append(part.argmax(-1)[true != _NONE])
        known.append(true[true != _NONE].long())
        classes = part.shape[-1]
    return torch.cat(found), torch.cat(known), classes


def _best_constant(kind: Kind, labels: Tensor) -> Tensor:
    """The answer that is best for all examples alike, as outputs."""
    if kind == "regression":
        return labels.median(0, keepdim=True).values.expand_as(labels)
    if kind == "depth":
        known = labels[labels > 0]
        return torch.full_like(labels, float(known.median()) if len(known) else 1.0)[:, None]
    return labels.mean((0, 2, 3), keepdim=True).expand_as(labels)


def _unsure(kind: Kind, outputs: Outputs, mask: Tensor | None) -> str | None:
    """What is said of an expert whose answers are all nearly uniform."""
    if isinstance(outputs, TopTokens):
        spread = (outputs.logs[..., 0] - outputs.logs[..., -1]).float()
        if outputs.logs.shape[-1] < 2 or float(spread.mean()) > math.log(2):
            return None
        return "finds the tokens of its pool nearly all alike likely"
    if kind not in CLASSES:
        return None
    total, count, classes = 0.0, 0, 2
    for part, counts in _parts(outputs, mask):
        rows = by_class(kind, part, None, counts)[0]
        total += float(rows.softmax(-1).amax(-1).double().sum())
        count, classes = count + len(rows), rows.shape[-1]
    chance = 1 / classes
    confidence = total / max(1, count)
    if not count or classes < 2 or (confidence - chance) / (1 - chance) >= LEAST_SURENESS:
        return None
    return (
        f"is unsure of nearly every example of its pool (mean confidence {confidence:.2f}, chance "
        f"is {chance:.2f})"
    )


def _constant(kind: Kind, outputs: Outputs, mask: Tensor | None) -> bool:
    """Whether every example is answered alike."""
    if isinstance(outputs, TopTokens):
        tokens = outputs.indices[..., 0]
        counted = tokens if mask is None else tokens[mask[:, : tokens.shape[1]].bool()]
        return counted.numel() > 0 and bool((counted == counted.flatten()[0]).all())
    if kind == "multi_label":
        return bool(((outputs > 0) == (outputs[:1] > 0)).all())
    if kind not in CLASSES:
        spread = max(float((part - outputs[:1]).abs().max()) for part, _ in _parts(outputs, None))
        return spread <= 1e-6 * float(outputs[:1].abs().max())
    if outputs.shape[1 if kind == "segmentation" else -1] < 2:
        return False
    answers = [
        by_class(kind, part, None, counts)[0].argmax(-1) for part, counts in _parts(outputs, mask)
    ]
    ends = [int(end) for found in answers if len(found) for end in (found.min(), found.max())]
    return len(set(ends)) == 1


def _stretches(total: int) -> Iterator[slice]:
    for start in range(0, total, _BATCH):
        yield slice(start, start + _BATCH)


def _parts(outputs: Tensor, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A few examples at a time: maps of a whole pool are large."""
    for rows in _stretches(len(outputs)):
        part = chosen(outputs, rows)
        assert isinstance(part, Tensor)
        yield part, None if mask is None else mask[rows]


def _count(outputs: Outputs) -> int:
    return len(outputs.indices) if isinstance(outputs, TopTokens) else len(outputs)
