"""What every tracker of experiments does, and how one is found by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol, cast

from tintray.errors import check_installed
from tintray.jobs.config.cluster_sections import TrackingSpec
from tintray.jobs.tracking.values import Value

End = Literal["finished", "failed", "killed"]


@dataclass(frozen=True)
class TrackedJob:
    """Which job it is, and where it is tracked. A run of a tracker is found again by the job."""

    id: str
    name: str  # of the merge
    store: str
    catalog: str
    spec: TrackingSpec


@dataclass(frozen=True)
class TrackedMerge:
    """A merge that was published, and the files that trackers keep of it."""

    ref: str  # "name/v3"
    url: str
    figures: Mapping[str, float]
    files: Sequence[Path]  # its manifest and its report


class Tracker(Protocol):
    """One run of a tracker. Whatever a call raises is told, and it is called again later."""

    def begin(self, parameters: Mapping[str, str], lineage: Mapping[str, str]) -> None:
        """Take the resolved job, and what it stands on."""

    def log(self, values: Sequence[Value]) -> None:
        """Take points of curves, in the order of their steps."""

    def published(self, merge: TrackedMerge, step: int) -> None:
        """Take the figures and files of the merge; register it where there is a registry."""

    def end(self, how: End) -> None:
        """Close the run; a job that goes on later opens it again."""


def check_tracker(spec: TrackingSpec | None) -> None:
    """Raise InputError if the tracker of a job is not installed here; imports nothing."""
    if spec is not None:
        check_installed(f"tracking: {spec.tracker}", [spec.tracker], spec.tracker)


def open_tracker(job: TrackedJob) -> Tracker:
    """The run of a job in its tracker: the one that it had before, or a new one."""
    adapter = import_module(f"tintray.jobs.tracking.to_{job.spec.tracker}")
    return cast(Tracker, adapter.open_run(job))
