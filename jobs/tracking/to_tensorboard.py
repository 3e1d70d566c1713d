"""A job as a folder of event files for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from tintray.jobs.tracking.tracker import End, TrackedJob, TrackedMerge
from tintray.jobs.tracking.values import Value


def open_run(job: TrackedJob) -> TensorboardRun:
    """The files of a job, below ``tensorboard`` in its store if the job file names no folder."""
    folder = Path(job.spec.to or Path(job.store, "tensorboard"))
    return TensorboardRun(folder / job.id)


class TensorboardRun:
    """The files of a job; what it tells after it was resumed comes into one more of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._resumed = any(folder.glob("events.*"))
        self._writer: SummaryWriter | None = None

    def _at(self, step: int) -> SummaryWriter:
        """The writer. Of the files before, steps from this one on are not shown any more."""
        if self._writer is None:
            purged = step if self._resumed else None
            self._writer = SummaryWriter(str(self._folder), purge_step=purged)
        return self._writer

    def begin(self, parameters: Mapping[str, str], lineage: Mapping[str, str]) -> None:
        """Take the resolved job, and what it stands on, as tables."""
        if not self._resumed:
            self._at(0).add_text("job", _table(parameters), 0)
            self._at(0).add_text("lineage", _table(lineage), 0)
            self._at(0).flush()

    def log(self, values: Sequence[Value]) -> None:
        """Take points of curves."""
        for value in values:
            self._at(value.step).add_scalar(value.name, value.value, value.step)
        if values:
            self._at(values[0].step).flush()

    def published(self, merge: TrackedMerge, step: int) -> None:
        """Take the figures of the merge; files have no place here."""
        self.log([Value(step, name, value) for name, value in merge.figures.items()])
        self._at(step).add_text("merge", _table({"merge": merge.ref, "url": merge.url}), step)

    def end(self, how: End) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer, self._resumed = None, True


def _table(values: Mapping[str, str]) -> str:
    """A table as Markdown has it."""
    rows = [f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])
