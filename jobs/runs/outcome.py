"""What the steps of a run hand on to each other, whatever the operation: frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.configs import Prepared, TaskFacts
from tintray.jobs.engine.worker_pool import WorkerPool
from tintray.jobs.runs.change import Change
from tintray.jobs.runs.guard import Loss
from tintray.jobs.runs.parent import Parent, unchanged_since
from tintray.tasks.evaluation import TaskScore
from tintray.tinting.stored_tints import StoredTint


@dataclass(frozen=True)
class Lineage:
    """Where a merge comes from that grew out of another."""

    parent: Parent
    change: Change
    head: int  # the newest version when the change began: one that comes later is a conflict
    ancestor: Parent | None = None  # further back: its backbone and tints are what is left

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
    """Every expert and every data set can be used."""

    spec: JobSpec  # of the merge that comes out: with its site, without tasks that are left out
    base: SplitModel
    facts: Mapping[str, TaskFacts]  # of each task that is new to the merge, or refreshed
    skipped: Mapping[str, str] = field(default_factory=dict)  # task that is left out -> why
    site_search: Mapping[str, Any] | None = None  # how the site was found, where searched for


W = TypeVar("W", bound=WorkerPool[Any])


@dataclass(frozen=True)
class Hosted(Checked, Generic[W]):
    """The tasks that an operation works on are hosted by workers."""

    workers: W = field(kw_only=True)


@dataclass(frozen=True)
class Result:
    """What was fitted, and measured; mappings are by task."""

    theta: Tensor | None  # the backbone [P]; None where it is the parent's, or the ancestor's
    coefficients: Tensor  # Λ [K, L] over all tasks of the merge
    initial: Tensor  # where Λ began
    tints: Mapping[str, StoredTint]  # what tasks own, where it is new or has changed
    scores: Mapping[str, TaskScore]  # of the tasks that were measured; others answer as before
    selected_fraction: Mapping[str, float]  # of the last batches, by the confidence filter
    peak_memory: int  # bytes, of all workers and shards together
    rounds: int = 0
    held_back: Mapping[str, float] = field(default_factory=dict)  # agreement there, if watched
    floor: Mapping[str, Any] | None = (
        None  # the best merge without learning beside what was learned
    )
    extra_parameters: Mapping[str, int] = field(default_factory=dict)  # beside the tint layer
    losses: tuple[Loss, ...] = ()  # old tasks that lose too much: then nothing is published
    report: Mapping[str, Any] = field(default_factory=dict)  # how a change came about


@dataclass(frozen=True)
class Outcome:
    """All that a run leaves behind, before any of it is visible; ``lineage`` is a child's."""

    checked: Checked
    prepared: Mapping[str, Prepared]
    result: Result
    lineage: Lineage | None = None
