"""The states of a job, in the order in which a job that goes well passes through them."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is; the catalog changes it by compare-and-set only."""

    QUEUED = "queued"  # accepted; nobody works on it
    PLANNING = "planning"  # checkpoints and data are checked, memory and time estimated
    PREPARING = "preparing"  # task vectors and self-labels are computed, or found in the cache
    FITTING = "fitting"  # rounds
    EVALUATING = "evaluating"  # the merge is measured against its experts
    PUBLISHING = "publishing"  # blobs are written, then the manifest
    SUCCEEDED = "succeeded"  # the merge is published and in the catalog
    FAILED = "failed"  # gave up, with the reason in its last event
    CANCELLED = "cancelled"  # stopped on request

    @property
    def terminal(self) -> bool:
        """Whether a job in this state is over."""
        return self in OVER

    def goes_back_to(self, other: JobState) -> bool:
        """Whether a job that was here and is there now has begun again, by itself."""
        return self in BEGUN and other is JobState.QUEUED


OVER = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
ALIVE = tuple(state for state in JobState if state not in OVER)
BEGUN = tuple(state for state in ALIVE if state is not JobState.QUEUED)
