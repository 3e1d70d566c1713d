"""What a running job tells whoever watches it: progress display, log or test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PhaseStarted:
    """The job entered a phase, such as ``"preparing"``; ``detail`` is one short human sentence."""

    phase: str
    detail: str = ""


@dataclass(frozen=True)
class JobChecked:
    """Every expert and every data set can be used, and what the job does is settled."""

    job: Mapping[str, object]  # as it is recorded
    lineage: Mapping[str, str]  # what it stands on: parent, base, experts and pools with hashes
    workers: int


@dataclass(frozen=True)
class TaskPrepared:
    """A task's expert was checked and its pool and self-labels are at hand."""

    task: str
    done: int
    total: int
    seconds: float
    cached: bool  # True when the self-labels came from the artifact store and none were computed


@dataclass(frozen=True)
class RoundDone:
    """One round ended: Λ and the tint layers of the round's tasks have moved once."""

    round: int  # 1-based
    rounds: int  # how many the job will run
    loss: float  # mean over the round's tasks
    agreement: Mapping[str, float]  # task -> share of its batch on which merge and expert agree
    selected_fraction: Mapping[str, float]  # task -> share of its batch that was not filtered out
    seconds: float  # wall time since the fit began
    # task -> the same on examples that it holds back; empty after rounds that are not watched
    held_back: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointSaved:
    """The state after a round is kept: the job can be resumed from there."""

    round: int
    bytes: int
    seconds: float  # what it took


@dataclass(frozen=True)
class TensorsMerged:
    """A merging method got on: ``done`` of ``total`` numbers of the backbone are merged."""

    method: str
    done: int
    total: int


@dataclass(frozen=True)
class TintLearned:
    """A task's tint layer was learned under a backbone that stays, as merges grow."""

    task: str
    done: int
    total: int
    seconds: float
    agreement: float | None  # with the expert on what was held back; None where nothing was


@dataclass(frozen=True)
class Evaluated:
    """One task was measured: ``value`` of the merge beside ``expert``'s on the same data."""

    task: str
    metric: str
    value: float
    expert: float


@dataclass(frozen=True)
class Published:
    """The merge is visible at ``url``."""

    url: str


@dataclass(frozen=True)
class Notice:
    """Something that the user should know, and that stops nothing."""

    text: str


Event = (
    PhaseStarted
    | JobChecked
    | TaskPrepared
    | RoundDone
    | CheckpointSaved
    | TensorsMerged
    | TintLearned
    | Evaluated
    | Published
    | Notice
)
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Watch nothing."""
