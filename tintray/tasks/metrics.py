"""Every metric, declared once: which way is better, its unit, and what a loss of it is counted in.

All that compares or shows figures of metrics asks here.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from tintray.errors import InputError

Unit = Literal["share", "relative", "degrees", "label"]
"""A share from 0 to 1; a share of the true value, without an upper end; an angle; what the labels
are in, such as metres or stars."""

_ROUNDING = 1e-9  # of points or percent: no loss


@dataclass(frozen=True)
class Metric:
    """A metric as it is declared."""

    name: str
    unit: Unit = "share"
    lower: bool = False  # less is better, down to 0; otherwise more is

    @property
    def lost_in(self) -> str:
        """What losses and tolerances are counted in: points of a share, else percent of before."""
        return "points" if self.unit == "share" else "%"

    def loss(self, before: float, after: float) -> float:
        """How much worse ``after`` is, in ``lost_in``; below 0 if it is better.

        What is no number is worse than any figure; of what was none, nothing can be lost. Where the
        figure before was an error of 0, any error is an infinite loss.
        """
        if math.isnan(after) or math.isnan(before):
            return math.inf if not math.isnan(before) else 0.0
        if before == after:
            return 0.0
        worse = after - before if self.lower else before - after
        if self.unit == "share":
            return 100 * worse
        whole = abs(before)
        if not whole or not math.isfinite(worse):
            return math.copysign(math.inf, worse)
        return 100 * worse / whole

    def lost(self, before: float, after: float, tolerance: float) -> bool:
        """Whether more than ``tolerance`` of ``lost_in`` is lost."""
        return self.loss(before, after) > tolerance + _ROUNDING

    def normalised(self, merged: float, expert: float) -> float | None:
        """Merged figure over expert's, or the inverse where less is better; None if it is none."""
        above, below = (expert, merged) if self.lower else (merged, expert)
        if self.lower and above == below == 0:
            return 1.0
        if not below or not math.isfinite(above) or not math.isfinite(below):
            return None
        return above / below

    def figure(self, value: float) -> str:
        """A figure as messages have it: a share in percent, without the sign."""
        return f"{100 * value:.1f}" if self.unit == "share" else f"{value:.4g}"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy"),
        Metric("agreement"),
        Metric("micro_f1"),
        Metric("token_accuracy"),
        Metric("exact_match"),
        Metric("miou"),
        Metric("pixel_accuracy"),
        Metric("within_11_degrees"),
        Metric("mae", "label", lower=True),
        Metric("absolute_error", "label", lower=True),
        Metric("relative_error", "relative", lower=True),
        Metric("degrees", "degrees", lower=True),
    )
}


def find_metric(name: str) -> Metric:
    """The metric of this name; InputError for one of another version: what is better?"""
    if name not in METRICS:
        raise InputError(
            f"there is no metric {name!r}; expected one of {', '.join(METRICS)}, is the merge of a "
            "later version of tintray?"
        )
    return METRICS[name]


def averaged(names: Collection[str]) -> bool:
    """Whether a mean over figures of these metrics, one per task, says anything.

    Shares can be averaged with each other, and so can figures of one metric, but not those in the
    labels' own units, which may be another for each task.
    """
    units = {find_metric(name).unit for name in names}
    return len(names) == 1 or units <= {"share"} or (len(set(names)) == 1 and units != {"label"})


def percent(share: float | None, digits: int = 1) -> str:
    """A share as people write it, ``83.1 %``; a dash where it was not measured."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def shown(names: Collection[str], value: float | None) -> str:
    """A figure of a metric, or a mean over such, for tables: ``83.1 %``, ``11.25``."""
    if value is None or all(find_metric(name).unit == "share" for name in names):
        return percent(value)
    return f"{value:.4g}"
