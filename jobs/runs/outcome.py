"""What the steps of a run hand on to each other, whatever the operation: frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.configs import Prepared, TaskFacts
from tintray.jobs.runs.change import Change
from tintray.jobs.runs.guard import Loss
from tintray.jobs.runs.parent import Parent, unchanged_since
from tintray.tasks.evaluation import TaskScore


@dataclass(frozen=True)
class Lineage:
    """Where a merge comes from that grew out of another.

    Attributes
    ----------
    head
        The newest version when the change began: one that comes later is a conflict.
    ancestor
        The merge further back whose backbone and tints are what is left.
    """

    parent: Parent
    change: Change
    head: int
    ancestor: Parent | None = None

    @property
    def backbone_source(self) -> Parent:
        """The merge whose backbone the child has, where its own was not computed."""
        return self.ancestor or self.parent

    def source(self, task: str) -> Parent:
        """The merge that an unchanged task is taken from."""
        if self.ancestor is not None and task in unchanged_since(self.ancestor, self.parent):
            return self.ancestor
        return self.parent


@dataclass(frozen=True)
class Checked:
    """Every expert and every data set can be used.

    Attributes
    ----------
    spec
        The job of the merge that comes out: with its site, without tasks that are left out.
    base
        The base model, split at that site.
    facts
        What was found out of each task that is new to the merge, or refreshed.
    skipped
        The tasks that are left out, each with its reason.
    site_search
        How the site was found, where it was searched for.
    """

    spec: JobSpec
    base: SplitModel
    facts: Mapping[str, TaskFacts]
    skipped: Mapping[str, str] = field(default_factory=dict)
    site_search: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Result:
    """What was fitted, and measured.

    Attributes
    ----------
    theta
        The backbone [P]; None where it is the parent's, or the ancestor's.
    coefficients, initial
        Λ [K, L] over all tasks of the merge, and where it began.
    tints
        The private tensors of the tasks whose tint is new or has changed.
    scores
        Of the tasks that were measured; others answer as before.
    selected_fraction
        Share of the last batches that the confidence filter let through, by task.
    extra_parameters
        How many parameters a task owns beside its tint layer.
    peak_memory
        Bytes, of all workers and shards together.
    losses
        Old tasks that lose more than the tolerance: then nothing is published.
    report
        How a change came about, for the manifest.
    """

    theta: Tensor | None
    coefficients: Tensor
    initial: Tensor
    tints: Mapping[str, Mapping[str, Tensor]]
    scores: Mapping[str, TaskScore]
    selected_fraction: Mapping[str, float]
    peak_memory: int
    rounds: int = 0
    extra_parameters: Mapping[str, int] = field(default_factory=dict)
    losses: tuple[Loss, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """All that a run leaves behind, before any of it is visible; ``lineage`` is a child's."""

    checked: Checked
    prepared: Mapping[str, Prepared]
    result: Result
    lineage: Lineage | None = None
