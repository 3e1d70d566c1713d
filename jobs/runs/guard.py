"""Which way of growing is taken, and whether its result may be published. Pure decisions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from tintray.jobs.records import Record
from tintray.jobs.runs.parent import Parent
from tintray.published.manifest import FigureEntry
from tintray.tasks.evaluation import TaskScore
from tintray.tasks.metrics import find_metric

Mode = Literal["tint", "coefficients", "joint"]
Asked = Literal["auto", "tint", "coefficients", "joint"]

LADDER: tuple[Mode, ...] = ("tint", "coefficients", "joint")
"""From the cheapest on."""

WORTH = 0.1
"""The share of what is missing to the target that a way must have gained for a costlier one to be
tried: some experts cannot be matched by any way, and the most expensive one would be spent on each.
"""


@dataclass(frozen=True)
class Loss(Record):
    """An old task that would lose: its figure before and after, and where it had the former."""

    task: str
    metric: str
    before: float
    after: float
    since: str = ""

    @property
    def lost(self) -> float:
        """How much, in points of a share, else in percent of the figure before."""
        return find_metric(self.metric).loss(self.before, self.after)

    def __str__(self) -> str:
        metric = find_metric(self.metric)
        since = f" since {self.since}" if self.since else ""
        figures = f"{metric.figure(self.before)} to {metric.figure(self.after)}"
        return (
            f"{self.task} loses {self.lost:.1f} {metric.lost_in}{since} ({self.metric} {figures})"
        )


@dataclass(frozen=True)
class Verdict:
    """What an attempt at growing came to."""

    mode: Mode
    # of every new task with its expert, on pool examples that were held back; empty if none
    agreement: Mapping[str, float]
    losses: tuple[Loss, ...]  # old tasks that lose more than the tolerance
    abandoned: bool = False  # it gained so little for new tasks that nothing was done for old ones

    @property
    def least(self) -> float:
        """The agreement of the task that agrees least; 1 if there is none."""
        return min(self.agreement.values(), default=1.0)

    def short(self, target: float) -> str:
        """Why this is not enough, or ``""`` if it is."""
        below = {name: share for name, share in self.agreement.items() if not share >= target}
        said = []
        if below:
            worst = min(below, key=lambda name: below[name])
            others = f" (and {len(below) - 1} more)" if len(below) > 1 else ""
            said.append(
                f"{worst}{others} agrees with its expert on {100 * below[worst]:.1f} % of "
                f"held-back examples, the target is {100 * target:.1f} %"
            )
        if self.losses:
            said.append("; ".join(map(str, self.losses)))
        return " and ".join(said)


V = TypeVar("V", bound=Verdict)


def losses(
    before: Mapping[str, Sequence[FigureEntry]], after: Sequence[TaskScore], tolerance: float
) -> tuple[Loss, ...]:
    """Old tasks that lose more than the tolerance, the worst first.

    ``before`` has each task's figure in the parent, and then in the version in which it was fitted.
    Many small losses add up to what the second tells; but where a change takes nothing more, what
    was lost before it is not held against it. All are measured on the same examples: by labels
    where there are any, else by agreement.
    """
    lost = (_loss(score, before[score.task], tolerance) for score in after if score.task in before)
    return tuple(sorted(filter(None, lost), key=lambda loss: -loss.lost))


def _loss(score: TaskScore, before: Sequence[FigureEntry], tolerance: float) -> Loss | None:
    metric, now = find_metric(score.metric), score.merged
    parent, *earlier = (
        Loss(score.task, score.metric, figure.value, now, figure.version) for figure in before
    )
    over = [loss for loss in (parent, *earlier) if metric.lost(loss.before, now, tolerance)]
    if not over or not metric.lost(parent.before, now, 0.0):
        return None
    return max(over, key=lambda loss: loss.lost)


def next_mode(
    asked: Asked, done: Sequence[Verdict], target: float, ladder: Sequence[Mode] = LADDER
) -> Mode | None:
    """What to try next; None if the last attempt is enough, or nothing is left that might help."""
    if asked != "auto":
        return None if done else asked
    if done and (not done[-1].short(target) or hopeless(done, target)):
        return None
    tried = {verdict.mode for verdict in done}
    return next((mode for mode in ladder if mode not in tried), None)


def hopeless(done: Sequence[Verdict], target: float) -> bool:
    """Whether the last way gained so little over the one before that a costlier one is no use."""
    if len(done) < 2:
        return False
    before, last = done[-2].least, done[-1].least
    return last < target and last - before < WORTH * (target - before)


def best(done: Sequence[V], target: float) -> V | None:
    """The attempt to publish: the first that is enough, else what helps most and harms nobody.

    None if every attempt harms an old task.
    """
    harmless = [verdict for verdict in done if not verdict.losses and not verdict.abandoned]
    enough = (verdict for verdict in harmless if verdict.least >= target)
    return next(enough, None) or max(harmless, key=lambda verdict: verdict.least, default=None)


def references(parent: Parent, tasks: Iterable[str]) -> dict[str, tuple[FigureEntry, ...]]:
    """By task: its figure in the parent, and that in the version in which it was fitted last."""
    return {name: (_figure(parent, name), fitted(parent, name)) for name in tasks}


def fitted(parent: Parent, task: str) -> FigureEntry:
    """A task's figure in the version in which it was last merged, added or refreshed.

    A manifest names it, so that the version itself may be gone. For manifests of earlier versions
    of tintray, which do not, it is looked for, as far back as parents are still there.
    """
    entry = parent.merge.task(task)
    oldest = parent
    for version in _line(parent):
        if task not in version.merge.tasks or not entry.same_source(version.merge.task(task)):
            break
        oldest = version
        if (known := version.merge.task(task).fitted) is not None:
            return known
        change = version.manifest.change
        if change is None or change.operation == "rollback" or task in change.tasks:
            break
    return _figure(oldest, task)


def _line(parent: Parent) -> Iterator[Parent]:
    """The merge, and then its ancestors: read only if they are needed, and once."""
    yield parent
    yield from parent.ancestry


def _figure(version: Parent, task: str) -> FigureEntry:
    score = version.merge.task(task).score
    return FigureEntry(version=str(version.ref), metric=score.metric, value=score.merged)
