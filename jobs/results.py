"""What the commands on merges answer with.

A share (``agreement``, ``selected_fraction``, ``tint_share``) and an accuracy lie between 0 and 1;
``None`` means that it was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tintray.jobs.records import Record

if TYPE_CHECKING:
    from tintray.published.signatures import Signer


@dataclass(frozen=True)
class TaskResult(Record):
    """How one task fares in a merge."""

    name: str
    kind: str  # such as "classification"
    metric: str  # such as "accuracy"; "agreement" where there is no labelled test set
    merged: float  # the merge's metric
    expert: float | None  # the expert's metric on the same data; None where there are no labels
    agreement: float  # share of the examples on which the merge predicts what the expert predicts
    normalised: float | None  # merged / expert, or the inverse where less is better
    tint_parameters: int  # numbers that only this task has, its head included
    tint_bytes: int  # of these, as they are stored
    tint_bits: int  # of each of them that is part of a matrix
    test_examples: int  # how many examples the metric was measured on
    selected_fraction: float  # share of the pool that was not filtered out when the fit ended
    # of "merged" and "expert": histogram of confidences, their mean, ece, brier; None if unknown
    calibration: Mapping[str, Any] | None = None
    lower_is_better: bool = False  # of "merged" and "expert"
    at_chance: bool = False  # the expert seems to guess: not in normalised_accuracy
    held_back: float | None = None  # agreement on pool examples that the fit did not learn from


@dataclass(frozen=True)
class RoutedTask(Record):
    """Where a task's examples go when nobody says which task they are of."""

    name: str
    metric: str
    given: float  # the metric where the task is given
    # the metric where it is found: what goes elsewhere counts as wrong; of a metric that is no
    # share of right answers, the metric of what finds its task
    found: float
    to: Mapping[str, float]  # share of the examples by the likeliest task, its own included
    unknown: float  # share that is taken for foreign
    examples: int


@dataclass(frozen=True)
class ForeignData(Record):
    """Examples of none of the tasks."""

    data: str
    examples: int
    auroc: float  # how often a task's example looks more familiar than one of these
    unknown: float  # share that is taken for foreign
    to: Mapping[str, float]  # share by the likeliest task


@dataclass(frozen=True)
class RoutingTable(Record):
    """What becomes of a merge's examples when nobody says which task they are of."""

    tasks: Sequence[RoutedTask]
    routed: float  # share of the examples whose likeliest task is their own, a mean over tasks
    shared: Sequence[
        tuple[str, str, float]
    ]  # pairs of tasks with the same inputs, and how many change
    foreign: Sequence[ForeignData] = ()


@dataclass(frozen=True)
class EvalTable(Record):
    """A published merge measured again."""

    merge: str  # "name/version"
    tasks: Sequence[TaskResult]
    average: float | None  # None where the tasks' metrics cannot be averaged
    expert_average: float | None
    normalised_accuracy: float | None  # mean over tasks of merged / expert
    routing: RoutingTable | None = None  # where it was asked for


@dataclass(frozen=True)
class MergeSummary(Record):
    """A published merge: what it is, what it kept and what it cost."""

    name: str
    version: str  # "v1", "v2", ...
    url: str
    job_id: str
    created: str  # ISO 8601, UTC
    site: str  # where the tint layers sit, such as "head"
    tasks: Sequence[TaskResult]
    average: float | None  # mean of the tasks' merged metrics; None where they have none
    expert_average: float | None
    normalised_accuracy: float | None  # mean over tasks of merged / expert
    backbone_parameters: int
    tint_parameters_per_task: Mapping[str, int]
    tint_share: float  # mean of what a task owns, head included / backbone parameters
    tint_bytes: int  # mean size of the file that holds it
    tint_bytes_share: float  # mean of the bytes of what a task owns / the backbone's in float32
    head_parameters: int  # of all heads together
    rounds: int
    seconds: Mapping[str, float] = field(default_factory=dict)  # phase -> wall time
    peak_memory_mib: float | None = None
    parent: str | None = None  # the merge that this one grew from, "name/version"
    method: str = "tint"  # how it was merged: merge.method of its job
    skipped: Mapping[str, str] = field(default_factory=dict)  # task that was left out -> why
    notices: Sequence[str] = ()  # what whoever uses it should know, each a sentence
    # the best merge without learning: its method and scale, its "agreement" on what was held back,
    # that of what was "learned", and whether it was "taken" instead
    floor: Mapping[str, Any] | None = None
    signatures: Sequence[Signer] = ()

    @property
    def separate_parameters(self) -> int:
        """Parameters of the experts kept as models of their own."""
        return self.backbone_parameters * len(self.tasks) + self.head_parameters

    @property
    def merged_parameters(self) -> int:
        """Parameters of the merge: one backbone, and what every task owns."""
        return self.backbone_parameters + sum(self.tint_parameters_per_task.values())


@dataclass(frozen=True)
class CompareRow(Record):
    """One method's metric on one task."""

    method: str  # "experts", "average", "task arithmetic", "merge", ...
    task: str
    metric: str
    value: float


@dataclass(frozen=True)
class CompareTable(Record):
    """A merge beside its rivals on the same data."""

    merge: str  # "name/version"
    rows: Sequence[CompareRow]
    averages: Mapping[str, float]  # method -> mean over tasks; none where metrics have no mean
    normalised: Mapping[str, float]  # method -> mean over tasks of value / expert's value
    best_scale: float | None  # the scale at which task arithmetic did best
    scales: Mapping[str, float] = field(default_factory=dict)  # the same of every method with one


@dataclass(frozen=True)
class ValidationReport(Record):
    """What a job file refers to, checked; no compute was spent on it."""

    name: str
    tasks: Sequence[str]
    backbone_parameters: int
    units: int  # layer units: what a task has one merging coefficient for
    site: str
    tint_parameters: Mapping[str, int]  # task -> parameters that only it would have
    pools: Mapping[str, int] = field(default_factory=dict)  # field -> memory of its examples
    max_pool_bytes: int = 0  # what each of them may take
    max_seconds: int = 0  # that a foreign tokenizer may compute over each of them
    notices: Sequence[str] = ()
