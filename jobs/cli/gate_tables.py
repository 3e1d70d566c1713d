"""What a merge is held to, and its aliases, as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from tintray.jobs.cli.columns import print_columns
from tintray.jobs.cli.tables import table_of, title
from tintray.jobs.runs.gate import CheckReport
from tintray.jobs.upkeep.aliases import AliasLine
from tintray.tasks.metrics import find_metric, percent, shown


def print_check(report: CheckReport, console: Console) -> None:
    """The verdict first, then each task beside what it is held to."""
    verdict = ("passed", "green") if report.passed else ("failed", "red")
    console.print(title(report.merge, *verdict))
    for problem in report.problems:
        console.print(f"  {problem}")
    if report.kept is not None:
        console.print(f"  kept {percent(report.kept)} of the experts' accuracy")
    rows = [
        [
            check.task,
            check.metric,
            shown([check.metric], check.wanted),
            shown([check.metric], check.found),
            f"{check.lost:.1f} {find_metric(check.metric).lost_in}",
            "ok" if check.passed else "failed",
        ]
        for check in report.tasks
    ]
    columns = ("task", "metric", f">{report.against}", ">merged", ">lost", "")
    if rows:
        print_columns(columns, rows, console, ["metric", report.against])


def print_aliases(lines: Sequence[AliasLine], console: Console) -> None:
    """Aliases, one a line, and what one meant before it was changed."""
    rows = [[line.alias, line.merge or "removed", line.before or ""] for line in lines]
    console.print(table_of(("alias", "merge", "before"), rows))
