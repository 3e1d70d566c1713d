"""Whether corrupted examples are noticed, others are not, and accuracy is told without labels.

A part of each task's test set is new. What the task is known by is drawn from the rest, anew in
each trial: no example is on both sides. Of labels, the accuracy on the known side goes into an
estimate, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tintray.data.corruptions import Corruption
from tintray.jobs.runs.evaluate import read_data, source_of
from tintray.models.calling import answer_space
from tintray.numerics.randomness import stream
from tintray.pools.pool import Pool
from tintray.pools.preparing import labels_of
from tintray.published.manifest import TaskEntry
from tintray.published.merge import Merge
from tintray.references.observing import Observed
from tintray.references.reference import MOST, Reference
from tintray.tasks.evaluation import TaskScore
from tintray.tasks.registry import find_kind
from tintray.tinting.self_labels import known_by, observe

ALPHA = 0.05
CORRUPTIONS = ("gaussian_noise", "blur", "contrast", "brightness", "impulse_noise")


@dataclass(frozen=True)
class Answered:
    """N examples, what was noted of them, and which were answered rightly, bool [N]."""

    pool: Pool
    observed: Observed
    right: Tensor

    def at(self, rows: Tensor) -> Answered:
        """Some examples."""
        return Answered(self.pool[rows], self.observed[rows], self.right[rows])

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return float(self.right.float().mean())


@dataclass(frozen=True)
class Trial:
    """One comparison of new examples with known ones."""

    task: str
    severity: int  # 0: the examples as they are
    of: str
    found: bool  # whether they were said to differ
    estimate: float
    error: float  # what the estimate says of itself
    accuracy: float  # in truth


def trials(merge: Merge, examples: int, severities: Sequence[int], count: int) -> Iterator[Trial]:
    """All trials of a merge, ``count`` of each set of new examples and as many of clean ones."""
    for task in merge.manifest.tasks:
        if task.test is None or task.kind != "classification":
            continue
        clean, module = _answered(merge, task), merge.for_task(task.name)
        total = len(clean.right)
        order = torch.randperm(total, generator=stream(0, task.name, "new"))
        size = min(examples, total // 2)
        corrupted = [
            (of, _answered(merge, task, of, order[:size]))
            for of in (Corruption(name, n) for name in CORRUPTIONS for n in severities)
        ]
        for trial in range(count):
            random = stream(trial, task.name, "known")
            rest = order[size:][torch.randperm(total - size, generator=random)]
            reference = _known(clean.at(rest[:MOST]), task, module)
            for of, new in corrupted:
                yield _trial(task.name, reference, new, of)
            shuffled = torch.randperm(total, generator=random)
            reference = _known(clean.at(shuffled[size : size + MOST]), task, module)
            yield _trial(task.name, reference, clean.at(shuffled[:size]))


def _trial(task: str, reference: Reference, new: Answered, of: Corruption | None = None) -> Trial:
    differ = any(d.adjusted <= ALPHA for d in reference.compare(new.observed))
    estimate = reference.estimate(new.observed)
    assert estimate is not None, "tasks of classes have one"
    figures = (differ, estimate.value, estimate.error, new.accuracy)
    return Trial(task, of.severity if of else 0, str(of or "clean"), *figures)


def _known(clean: Answered, task: TaskEntry, module: nn.Module) -> Reference:
    share = clean.accuracy
    score = TaskScore(task.name, "accuracy", share, share, share, len(clean.right))
    reference = known_by(module, clean.pool, find_kind(task.kind), clean.observed, score)
    assert reference is not None, "test sets have many examples"
    return reference


def _answered(
    merge: Merge, task: TaskEntry, corruption: Corruption | None = None, rows: Tensor | None = None
) -> Answered:
    """The merge's answers to the task's test set, or to some of it, corrupted perhaps."""
    assert task.test is not None, "looked at before"
    role, kind, module = f"task '{task.name}'", find_kind(task.kind), merge.for_task(task.name)
    source, pool = read_data(merge, task, source_of(task.test), role, corruption)
    pool = pool if rows is None else pool[rows]
    outputs, observed = observe(module, pool, kind)
    assert isinstance(outputs, Tensor), "classifiers answer with logits"
    labels = labels_of(source, kind, pool, answer_space(module, task.classes), role)
    return Answered(pool, observed, outputs.argmax(-1) == labels)
