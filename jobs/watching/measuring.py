"""Measure what a report can only tell where it was measured, and keep it in the merge's store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tintray.errors import InputError
from tintray.jobs.engine.finding import load_merge, store_of
from tintray.jobs.events import Notice, OnEvent
from tintray.jobs.results import CompareTable
from tintray.jobs.runs.compare import RIVALS
from tintray.jobs.runs.compare import compare as measure
from tintray.jobs.watching.conflicts import conflicts
from tintray.jobs.watching.remembered import keep, recall
from tintray.storage.artifacts.store import open_store


def compare(
    url: str, store: str, on_event: OnEvent, methods: Sequence[str] | None = None
) -> CompareTable:
    """Measure a merge beside other methods (left out: averaging and task arithmetic).

    Reports on it have these figures from then on, with those that were measured before.
    """
    merge, place = load_merge(url), store_of(url, store)
    table = measure(merge, place, on_event, RIVALS if methods is None else methods)
    opened = open_store(place)
    before = recall(opened, merge.manifest, CompareTable)
    both = table if before is None else _with(table, before)
    keep(opened, merge.manifest, both, on_event)
    return table


def everything(url: str, store: str, catalog: str, on_event: OnEvent) -> None:
    """Measure all that a report has: the rivals, and which tasks fight, if that can be said."""
    compare(url, store, on_event)
    try:
        conflicts(url, store=store, catalog=catalog, on_event=on_event)
    except InputError as error:
        on_event(Notice(str(error)))


def _with(table: CompareTable, before: CompareTable) -> CompareTable:
    """A table with the methods of an earlier one that it has not."""
    measured = {row.method for row in table.rows}
    scale = table.best_scale
    return replace(
        table,
        rows=[*table.rows, *(row for row in before.rows if row.method not in measured)],
        averages={**before.averages, **table.averages},
        normalised={**before.normalised, **table.normalised},
        scales={**before.scales, **table.scales},
        best_scale=before.best_scale if scale is None else scale,
    )
