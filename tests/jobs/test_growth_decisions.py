"""Which way of growing is tried next, which is published, and what the guard calls a loss."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tintray.jobs.runs import guard
from tintray.jobs.runs.guard import LADDER, Loss, Mode, Verdict, best, losses, next_mode
from tintray.published.manifest import Change, FigureEntry, TaskEntry
from tintray.tasks.evaluation import TaskScore

HARM = (Loss("old", "accuracy", 0.9, 0.8),)


def verdict(mode: Mode, agreement: float, lost: tuple[Loss, ...] = ()) -> Verdict:
    return Verdict(mode, {"new": agreement}, lost)


def score(task: str, merged: float) -> TaskScore:
    return TaskScore(task, "accuracy", merged, 1.0, merged, 100)


FAR, NEAR = verdict("tint", 0.5), verdict("tint", 0.79)


@pytest.mark.parametrize(
    ("asked", "done", "expected"),
    [
        ("auto", [], "tint"),  # the cheapest first, until one is enough
        ("auto", [verdict("tint", 0.8)], None),
        ("auto", [NEAR], "coefficients"),
        ("auto", [NEAR, verdict("coefficients", 0.9, HARM)], "joint"),
        ("auto", [NEAR, verdict("coefficients", 0.9)], None),
        ("auto", [NEAR, verdict("coefficients", 0.7), verdict("joint", 0.7)], None),
        ("auto", [FAR, verdict("coefficients", 0.52)], None),  # it gains next to nothing
        ("auto", [FAR, verdict("coefficients", 0.54)], "joint"),
        ("auto", [FAR, verdict("coefficients", 0.9, HARM)], "joint"),
        ("auto", [NEAR, verdict("coefficients", 0.792)], "joint"),
        *((way, [], way) for way in LADDER),  # what was asked for is the only one
        *((way, [verdict(way, 0.1, HARM)], None) for way in LADDER),
    ],
)
def test_which_way_of_growing_is_tried_next(
    asked: Mode, done: list[Verdict], expected: Mode | None
) -> None:
    assert next_mode(asked, done, 0.8) == expected


def test_a_merge_that_takes_tints_alone_is_tried_in_no_other_way() -> None:
    assert next_mode("auto", [NEAR], 0.8, ("tint",)) is None


def test_what_harms_is_never_published() -> None:
    harm, joint = verdict("coefficients", 1.0, HARM), verdict("joint", 0.7)
    enough = verdict("tint", 0.85)
    assert best([FAR, harm, joint], 0.8) is joint
    assert best([FAR, harm], 0.8) is FAR
    assert best([harm], 0.8) is None
    assert best([FAR, replace(joint, abandoned=True)], 0.8) is FAR
    assert best([enough, verdict("joint", 0.9)], 0.8) is enough


def test_a_loss_is_more_than_the_tolerance_and_the_worst_is_told_first() -> None:
    before = {name: (figure("m/v1", "accuracy", 0.9),) for name in "abc"}
    after = [score("a", 0.89), score("b", 0.85), score("c", 0.80), score("new", 0.1)]
    found = losses(before, after, 1.0)
    assert [loss.task for loss in found] == ["c", "b"]
    assert str(found[0]) == "c loses 10.0 points since m/v1 (accuracy 90.0 to 80.0)"
    far = {"a": (figure("m/v1", "degrees", 10.0),)}
    (lost,) = losses(far, [TaskScore("a", "degrees", 12.5, 1.0, 1.0, 9)], 20.0)
    assert str(lost) == "a loses 25.0 % since m/v1 (degrees 10 to 12.5)"


def figure(version: str, metric: str, value: float) -> FigureEntry:
    return FigureEntry(version=version, metric=metric, value=value)


class Version:
    """A version of a merge with one task, as far as the guard asks for it."""

    def __init__(self, number: int, merged: float, change: Any, fitted: Any = None) -> None:
        self.entry = TaskEntry.model_construct(
            expert=SimpleNamespace(sha256="e"),
            pool=SimpleNamespace(sha256="p"),
            score=SimpleNamespace(metric="accuracy", merged=merged),
            fitted=fitted,
        )
        self.ref = f"m/v{number}"
        self.merge = SimpleNamespace(tasks=("old",), task=lambda _: self.entry)
        self.manifest = SimpleNamespace(change=change)


@pytest.mark.parametrize("recorded", [True, False])
def test_small_losses_do_not_add_up_unseen(monkeypatch: pytest.MonkeyPatch, recorded: bool) -> None:
    line = [Version(1, 0.9, None)]
    for step in range(10):
        after = score("old", 0.9 - 0.009 * (step + 1))
        parent: Any = line[-1]
        parent.ancestry = () if recorded else line[-2::-1]  # gone, where manifests name the figure
        known = guard.references(parent, ["old"])
        found = losses(known, [after], 1.0)
        if step == 0:
            assert not found
        else:
            assert [(loss.since, loss.before) for loss in found] == [("m/v1", 0.9)]
        assert not losses(known, [score("old", line[-1].entry.score.merged)], 1.0)
        change = Change(operation="add", tasks=["new"])
        told = guard.fitted(parent, "old") if recorded else None
        line.append(Version(step + 2, after.merged, change, told))


def test_a_refreshed_task_is_compared_with_its_refresh() -> None:
    line: Any = [
        Version(1, 0.9, None),
        Version(2, 0.8, Change(operation="refresh", tasks=["old"])),
        Version(3, 0.79, Change(operation="add", tasks=["new"])),
    ]
    line[-1].ancestry = line[-2::-1]
    assert guard.fitted(line[-1], "old") == figure("m/v2", "accuracy", 0.8)


def test_why_it_is_not_enough_names_task_share_and_loss() -> None:
    found = Verdict("joint", {"x": 0.5, "y": 0.7}, HARM)
    assert found.short(0.8) == (
        "x (and 1 more) agrees with its expert on 50.0 % of held-back examples, the target is "
        "80.0 % and old loses 10.0 points (accuracy 90.0 to 80.0)"
    )
    assert verdict("tint", 0.8).short(0.8) == ""
