"""Whether an expert knows its task at all, and whether a merge has learned anything of it.

A merge keeps all of an expert that guesses: 100 % of nothing. Its own answers give it away (hardly
surer than chance, or the same for every example), and labels do where there are some.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from tintray.tasks.evaluation import TaskScore
from tintray.tasks.kind import Kind
from tintray.tasks.metrics import find_metric
from tintray.tasks.outputs import Mask, Outputs

_ENOUGH = 20  # examples, below which nothing is said of how often answers are right
_ALIKE = 10  # and below which the same answer to all is no surprise
_DEVIATIONS = 1.645  # of a guesser's right answers: what luck reaches in one of twenty cases


@dataclass(frozen=True)
class Doubt:
    """What speaks against an expert."""

    said: str  # to be read after "the expert"
    unsure: bool  # it is hardly surer than chance
    at_chance: bool  # no labels show that it is better than guessing all the same


def doubt(
    kind: Kind,
    pool: Outputs,
    mask: Mask,
    test: Outputs | None = None,
    labels: Any = None,
    test_mask: Mask = None,
) -> Doubt | None:
    """What speaks against an expert, by its answers to a pool and to a labelled test set, if any.

    ``mask`` [N, S] tells which tokens count, where an example has many.
    """
    known = None if test is None else better_than_chance(kind, test, labels, test_mask)
    if (said := kind.unsure(pool, mask)) is not None:
        return Doubt(said, True, known is not True)
    if known is False and test is not None:
        name, value = next(iter(kind.measure(test, labels, test_mask).items()))
        figure = f"{name} {find_metric(name).figure(value)}"
        guesses = f"cannot be told from one that guesses by its {len(test):,} test examples"
        return Doubt(f"{guesses} ({figure})", False, True)
    if len(pool) >= _ALIKE and kind.constant(pool, mask):
        said = f"answers the same for each of the {len(pool):,} examples of its pool"
        return Doubt(said, False, known is not True)
    return None


def shortfall(kind: Kind, classes: int, score: TaskScore, selected: float) -> str | None:
    """Why a merge may have learned nothing of a task, to be read after its name; None if it has."""
    if selected == 0:
        return "the confidence filter kept nothing of its pool at the end of the fit"
    chance = kind.chance(classes) if score.examples >= _ENOUGH else 0.0
    if score.agreement == 0 or score.agreement < chance:
        return (
            f"the merge agrees with its expert on {100 * score.agreement:.1f} % of "
            f"{score.examples:,} examples, no more than by chance"
        )
    return None


def better_than_chance(kind: Kind, outputs: Outputs, labels: Any, mask: Mask) -> bool | None:
    """Whether answers are right more often than luck explains; None where that cannot be told.

    A guesser either takes every class alike, or knows how often the expert takes each. Values are
    compared with the best constant answer.
    """
    examples = len(outputs)
    if examples < _ENOUGH:
        return None
    predictions = kind.predictions(outputs, labels, mask)
    if predictions is None:
        name, figure = next(iter(kind.measure(outputs, labels, mask).items()))
        constant = kind.measure(kind.best_constant(labels), labels, mask)[name]
        return figure < constant if constant > 0 else None
    predicted, true, classes = predictions
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
