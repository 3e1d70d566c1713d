"""Whether a merge is good enough to be used: what ``tintray check`` answers a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tintray.errors import InputError
from tintray.jobs.records import Record
from tintray.jobs.results import TaskResult
from tintray.tasks.metrics import find_metric, percent


@dataclass(frozen=True)
class TaskCheck(Record):
    """A task beside what it is held to."""

    task: str
    metric: str  # "agreement" where there are no labels
    wanted: float  # the expert's figure, or that of the other merge; 1 of an agreement
    found: float
    lost: float  # points of a share, else percent of the figure that was wanted
    passed: bool


@dataclass(frozen=True)
class CheckReport(Record):
    """A merge, held to its limits."""

    merge: str
    passed: bool  # whether all of it holds
    against: str  # "its experts", or another merge
    kept: float | None  # of the experts' accuracy, a mean over tasks
    min_kept: float | None
    max_loss: float | None
    tasks: Sequence[TaskCheck] = ()
    problems: Sequence[str] = ()


def judge(
    merge: str,
    tasks: Sequence[TaskResult],
    *,
    min_kept: float | None = None,
    max_loss: float | None = None,
    against: str | None = None,
    before: Sequence[TaskResult] = (),
) -> CheckReport:
    """Hold a merge to a least share of its experts' figures, and to a largest loss of any task.

    Parameters
    ----------
    min_kept
        Of the mean over tasks of merged / expert, where an agreement stands for a task without
        labels; an expert that cannot be told from one that guesses does not count.
    max_loss
        Points of a share, percent of an error, that a task may be worse than its expert; with
        ``against``, than the same task ``before``. A task that is gone has lost all.
    """
    kept = _kept(tasks)
    earlier = {task.name: task for task in before}
    checks = [
        _check(task, earlier.get(task.name), against is not None, max_loss)
        for task in tasks
        if against is None or task.name in earlier
    ]
    problems = [
        f"{check.task} loses {check.lost:.1f} {find_metric(check.metric).lost_in}, "
        f"{max_loss:g} are allowed"
        for check in checks
        if not check.passed
    ]
    gone = sorted(earlier.keys() - {task.name for task in tasks})
    problems += [f"{name} is gone" for name in gone if max_loss is not None]
    if min_kept is not None and not (kept is not None and kept >= min_kept):
        found = "an unknown share" if kept is None else percent(kept)
        problems.insert(0, f"kept {found}, the least is {percent(min_kept)}")
    told = against or "its experts"
    return CheckReport(merge, not problems, told, kept, min_kept, max_loss, checks, problems)


def _kept(tasks: Sequence[TaskResult]) -> float | None:
    shares = [
        task.agreement if task.normalised is None else task.normalised
        for task in tasks
        if not task.at_chance
    ]
    return sum(shares) / len(shares) if shares else None


def _check(
    task: TaskResult, earlier: TaskResult | None, other: bool, max_loss: float | None
) -> TaskCheck:
    if other and earlier is not None and earlier.metric != task.metric:
        raise InputError(
            f"{task.name} was measured by {earlier.metric} before and by {task.metric} now; "
            "measure both on the same data with `tintray eval`"
        )
    metric, found = task.metric, task.merged
    wanted = earlier.merged if earlier is not None else task.expert
    if wanted is None:
        metric, wanted, found = "agreement", 1.0, task.agreement
    lost = max(0.0, find_metric(metric).loss(wanted, found))
    passed = max_loss is None or not find_metric(metric).lost(wanted, found, max_loss)
    return TaskCheck(task.name, metric, wanted, found, lost, passed)
