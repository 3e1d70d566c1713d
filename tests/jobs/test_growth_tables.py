"""What people read of a merge's tree and of the difference of two merges."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from rich.console import Console

from tintray.jobs.cli.growth_tables import print_history, print_merge_difference
from tintray.jobs.display.times import moment
from tintray.jobs.runs.history import Version
from tintray.jobs.runs.merge_difference import LayerDifference, MergeDifference, TaskDifference


def shown(write: Any, found: object) -> list[str]:
    text = io.StringIO()
    write(found, Console(file=text, width=110))
    return [line.rstrip() for line in text.getvalue().splitlines()]


def test_each_version_stands_below_the_one_it_grew_from() -> None:
    first = Version("m/v1", None, "2026-01-02T03:04:05", "merged", [], None, 2, 0.8, 0.9)
    child = replace(first, ref="m/v2", parent="m/v1", operation="add", mode="tint", tasks=22)
    second = replace(child, changed=[f"t{n}" for n in range(20)])
    branch = replace(first, ref="m/v3", parent="m/v1", operation="remove", changed=["a"], tasks=1)
    gone = replace(first, ref="m/v4", parent="m/v3", operation="rollback", removed=True)
    at = moment(first.created, "minutes")
    assert shown(print_history, [first, second, branch, gone]) == [
        f"m/v1  merged  2 tasks, 90.0 % of the experts, {at}",
        f"├── m/v2  add t0, t1, t2, t3 and 16 more (tint)  22 tasks, 90.0 % of the experts, {at}",
        f"└── m/v3  remove a  1 task, 90.0 % of the experts, {at}  newest",
        f"    └── m/v4  rollback  2 tasks, 90.0 % of the experts, {at}, removed",
    ]


def test_a_difference_shows_what_changed_and_counts_the_rest() -> None:
    same = TaskDifference("old", "same", [], "accuracy", 0.8, 0.8)
    tasks = [
        same,
        TaskDifference("kin", "same", [], "accuracy", 0.8, 0.79),
        TaskDifference("warm", "changed", ["tint", "coefficients"], "accuracy", 0.7, 0.712),
        TaskDifference("far", "changed", ["tint"], "degrees", 10.0, 12.5),
        TaskDifference("new", "added", [], "accuracy", None, 0.6),
        TaskDifference("gone", "removed", [], "accuracy", 0.5, None),
    ]
    layers = [LayerDifference("first", 0.01, 0.0), LayerDifference("last", 0.02, 0.125)]
    lines = shown(print_merge_difference, MergeDifference("m/v1", "m/v2", False, tasks, layers))
    assert [" ".join(line.split()) for line in lines] == [
        "m/v1 → m/v2",
        "task what changed metric before after change",
        "kin the backbone alone accuracy 80.0 79.0 -1.0",
        "warm tint, coefficients accuracy 70.0 71.2 +1.2",
        "far tint degrees 10 12.5 +25.0 %",
        "new added accuracy 60.0",
        "gone removed accuracy 50.0",
        "1 other task as before",
        "layer backbone moved coefficients moved",
        f"last 2.00 % {'━' * 24} 0.1250",
        f"first 1.00 % {'━' * 12} 0.0000",
    ]
    lines = shown(print_merge_difference, MergeDifference("m/v1", "m/v2", True, [same, same]))
    assert lines[1:] == ["2 tasks as before, bit for bit", "the backbone is the same, bit for bit"]
