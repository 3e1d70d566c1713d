"""How far a merge's figure would be off on other test examples: the bootstrap."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from tintray.jobs.engine.finding import load_merge
from tintray.jobs.runs.evaluate import Evaluator, TaskAnswers
from tintray.published.signatures import digest
from tintray.tasks.evaluation import score

DRAWS = 200
_MOST = 100_000_000  # numbers that the draws of one task may go through, for answers that are maps


def sampling_error(merge: str, store: str, tasks: Sequence[str]) -> float:
    """Standard deviation of the mean over tasks, if each test set had been drawn anew."""
    evaluator = Evaluator(merge, digest(load_merge(merge).manifest), store)
    spreads = [spread(evaluator.answers(name)) for name in tasks]
    return math.sqrt(sum(each**2 for each in spreads)) / len(spreads)


def spread(answers: TaskAnswers, draws: int = DRAWS, seed: int = 0) -> float:
    """Standard deviation of what is kept of one expert over ``draws`` draws of its N examples.

    Merge and expert are measured on the same draws, as they are on the test set.
    """
    merged, size = answers.merged, len(answers.merged)
    if isinstance(merged, Tensor):
        draws = max(10, min(draws, _MOST // max(1, merged.numel())))
    random = torch.Generator().manual_seed(seed)
    shares = [share(answers, torch.randint(size, (size,), generator=random)) for _ in range(draws)]
    known = [each for each in shares if each is not None]
    return statistics.stdev(known) if len(known) > 1 else 0.0


def share(answers: TaskAnswers, rows: Tensor) -> float | None:
    """What the merge keeps of the expert on these examples, by the first metric of its kind."""
    kind, merged, expert, labels, mask = answers
    if isinstance(labels, Tensor):
        labels = labels[rows]
    elif labels is not None:
        labels = [labels[int(row)] for row in rows]
    drawn = None if mask is None else mask[rows]
    return score("drawn", kind, merged[rows], expert[rows], labels, drawn).normalised
