"""Try a split: one merge of all tasks beside the merges of groups, in a store that is deleted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.locations import Location
from tintray.jobs.events import Notice, OnEvent
from tintray.jobs.runs.run import run_job


def try_split(
    spec: JobSpec, groups: Sequence[Sequence[str]], rounds: int, on_event: OnEvent
) -> tuple[float, float]:
    """What one merge of all keeps of the experts after so many rounds, and what those of groups do.

    Means over tasks: of normalised accuracy, which is agreement where there is no test set. All
    learn alike, as the job says, but for the number of rounds.
    """
    warmup = min(spec.fit.warmup, rounds - 1)
    with TemporaryDirectory(prefix="tintray-split-") as name:
        folder = Path(name)
        store, known = Location(str(folder)), Location(f"sqlite:///{folder}/catalog.db")
        short = spec.changed(
            fit={"rounds": rounds, "warmup": warmup}, tracking=None, store=store, catalog=known
        )

        def keeps(tasks: Sequence[str]) -> list[float]:
            on_event(Notice(f"trying {', '.join(tasks)}"))
            part = short.with_tasks([task for task in short.tasks if task.name in tasks])
            merged = run_job(part, on_event).tasks
            return [task.task_score.normalised or 0.0 for task in merged]

        together = keeps([task.name for task in spec.tasks])
        apart = [share for group in groups for share in keeps(group)]
    return sum(together) / len(together), sum(apart) / len(apart)
