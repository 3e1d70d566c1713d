"""The published merges of a catalog: what ``tintray list`` answers, at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.settings import chosen
from tintray.jobs.records import Record
from tintray.storage.catalog.merge_list import MergeRow, read_merges


@dataclass(frozen=True)
class MergeListing(Record):
    """One line of ``tintray list``."""

    name: str
    version: str
    url: str
    created: str  # ISO 8601, UTC
    job_id: str | None = None
    tasks: int | None = None
    site: str | None = None
    average: float | None = None
    metrics: Sequence[str] = ("accuracy",)  # of its tasks: what "average" is a mean of
    normalised_accuracy: float | None = None
    parent: str | None = None
    method: str | None = None


def list_merges(*, store: str | None = None, catalog: str | None = None) -> list[MergeListing]:
    """All merges that the catalog knows, the newest first."""
    store, catalog = chosen(store, catalog)
    rows = read_merges(catalog)
    if rows is None:
        from tintray.storage.catalog.catalog import Catalog

        with as_input_error(), Catalog.open(catalog, create=False) as opened:
            rows = opened.merges.listing()
    return [_line(row) for row in rows]


def _line(merge: MergeRow) -> MergeListing:
    metrics = merge.metrics
    return MergeListing(
        name=merge.name,
        version=f"v{merge.version}",
        url=merge.url or "",
        created=merge.published_at.isoformat(timespec="seconds"),
        job_id=merge.job_id,
        tasks=metrics.get("tasks") or len(merge.added) or None,
        site=metrics.get("site"),
        average=metrics.get("average"),
        metrics=metrics.get("metrics") or ("accuracy",),
        normalised_accuracy=metrics.get("normalised_accuracy"),
        parent=merge.parent,
        method=metrics.get("method"),
    )
