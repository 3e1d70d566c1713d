"""The merges of a catalog as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from tintray.jobs.cli.columns import print_columns
from tintray.jobs.display.times import moment
from tintray.tasks.metrics import percent, shown

if TYPE_CHECKING:
    from tintray.jobs.runs.merge_list import MergeListing

_COLUMNS = ("merge", "created", "method", "site", ">tasks", ">average", ">of experts", "parent")
_LEAST_FIRST = ("site", "parent", "created", "method", "average", "tasks")


def print_listing(merges: Sequence[MergeListing], console: Console) -> None:
    """The merges of a catalog, one a line."""
    rows = [
        [
            f"{merge.name}/{merge.version}",
            moment(merge.created),
            merge.method or "-",
            merge.site or "-",
            "-" if merge.tasks is None else str(merge.tasks),
            shown(merge.metrics, merge.average),
            percent(merge.normalised_accuracy),
            merge.parent or "-",
        ]
        for merge in merges
    ]
    print_columns(_COLUMNS, rows, console, _LEAST_FIRST)
