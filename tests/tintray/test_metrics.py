"""Every metric has a direction, a unit and a tolerance, and the growth guard goes by them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tintray.errors import FitError, InputError
from tintray.jobs.runs.guard import losses
from tintray.published.manifest import FigureEntry
from tintray.tasks.evaluation import TaskScore, check_finite, overall
from tintray.tasks.metrics import METRICS, Metric, averaged, find_metric, shown

BOUNDED = [name for name, metric in METRICS.items() if metric.unit == "share"]
every_metric = st.sampled_from(sorted(METRICS))
odd = st.sampled_from([math.nan, math.inf, 0.0])


def of(metric: str, value: float) -> FigureEntry:
    """A figure in a version, even one that no manifest holds."""
    return FigureEntry.model_construct(version="m/v1", metric=metric, value=value)


def refused(metric: str, before: float, after: float, tolerance: float) -> bool:
    """Whether the guard stops a task that goes from one figure to another."""
    known = {"t": (of(metric, before), of(metric, before))}
    return bool(losses(known, [TaskScore("t", metric, after, 1.0, 1.0, 10)], tolerance))


def moved(metric: Metric, before: float, by: float) -> float:
    """The figure that is worse by so many points, or percent; below 0, better."""
    step = by / 100 if metric.unit == "share" else before * by / 100
    return before + step if metric.lower else before - step


@given(every_metric, st.floats(0.05, 0.95), st.floats(0, 5), st.floats(1e-3, 4))
def test_the_guard_stops_what_is_worse_by_more_than_the_tolerance(
    name: str, before: float, tolerance: float, by: float
) -> None:
    metric = METRICS[name]
    assert not refused(name, before, before, tolerance)
    assert not refused(name, before, moved(metric, before, tolerance), tolerance)  # at the edge
    assert refused(name, before, moved(metric, before, tolerance + by), tolerance)
    assert not refused(name, before, moved(metric, before, -by), tolerance)  # better
    assert not refused(name, before, moved(metric, before, -99), 0)


@given(every_metric, odd, st.floats(0.05, 0.95), st.floats(0, 100))
def test_the_guard_knows_figures_that_are_none(
    name: str, strange: float, plain: float, tolerance: float
) -> None:
    metric = METRICS[name]
    assert not refused(name, strange, strange, tolerance)
    assert refused(name, plain, math.nan, tolerance)
    assert not refused(name, math.nan, plain, tolerance)  # nothing was known to be lost
    if metric.lower:
        assert refused(name, plain, math.inf, tolerance)
        assert not refused(name, math.inf, plain, tolerance)
        assert refused(name, 0.0, plain, tolerance)
        assert not refused(name, plain, 0.0, tolerance)


@given(every_metric, st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_what_is_kept_of_the_expert_is_more_where_the_merge_is_better(
    name: str, merged: float, expert: float
) -> None:
    metric = METRICS[name]
    share = metric.normalised(merged, expert)
    assert share is not None
    assert (share >= 1) == ((merged <= expert) if metric.lower else (merged >= expert))
    assert metric.normalised(math.nan, expert) is None
    assert metric.normalised(merged, 0.0) == (0.0 if metric.lower else None)
    assert metric.normalised(0.0, expert) == (None if metric.lower else 0.0)
    assert shown([name], merged).endswith("%") == (name in BOUNDED)


def test_a_figure_that_no_share_comes_of_is_left_out_of_the_mean() -> None:
    scores = [
        TaskScore("good", "accuracy", 0.45, 0.9, 0.5, 10),
        TaskScore("none", "accuracy", 0.4, 0.0, 0.1, 10),
        TaskScore("bad", "accuracy", 0.2, 0.2, 1.0, 10),
    ]
    assert overall(scores).normalised_accuracy == pytest.approx(0.75)
    assert overall(scores, at_chance=["bad"]).normalised_accuracy == 0.5
    assert overall(scores[1:], at_chance=["bad"]).normalised_accuracy is None


def test_figures_of_different_units_have_no_mean() -> None:
    assert averaged(["accuracy", "agreement", "miou"])
    assert averaged(["degrees", "degrees"]) and averaged(["mae"])
    assert not averaged(["accuracy", "degrees"])
    assert not averaged(["mae", "mae"])  # stars of one task, metres of another
    mixed = [TaskScore("a", "accuracy", 1, 1, 1, 9), TaskScore("b", "degrees", 9, 9, 1, 9)]
    assert (overall(mixed).average, overall(mixed).normalised_accuracy) == (None, 1)
    with pytest.raises(InputError, match="there is no metric 'psnr'; expected one of accuracy"):
        find_metric("psnr")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_figures_that_are_no_numbers_are_not_published(value: float) -> None:
    fine = TaskScore("a", "mae", 0.5, 0.4, 1, 9)
    check_finite([fine])
    with pytest.raises(FitError, match=r"task 'b': the mae of the merge is .*nothing was publ"):
        check_finite([fine, TaskScore("b", "mae", value, 0.4, 1, 9)])
    lost = losses({"b": (of("mae", 0.5),)}, [TaskScore("b", "mae", value, 1, 1, 9)], 1)
    assert lost[0].to_json()["after"] is None and lost[0].to_json()["before"] == 0.5
