"""What differs between two jobs, or between a job and a job file: fields, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tintray.errors import NotFoundError
from tintray.jobs.config.renamed import upgraded
from tintray.jobs.queue.views import opened, resolve, status_of
from tintray.jobs.records import Record
from tintray.storage.catalog.catalog import Catalog


@dataclass(frozen=True)
class Difference(Record):
    """A field that is not the same in both."""

    field: str  # such as "fit.rounds", or "tasks.mnist.expert"
    one: str
    other: str


@dataclass(frozen=True)
class JobDifference(Record):
    """Two jobs beside each other."""

    one: str
    other: str
    fields: Sequence[Difference]
    results: Sequence[Difference]  # their states and metrics; empty beside a job file


def diff(one: str, other: str, *, catalog: str | None = None) -> JobDifference:
    """Compare two jobs, or a job with the job file at the path ``other``.

    Raises ``InputError``: one of them does not exist or cannot be read.
    """
    with opened(catalog) as (known, _):
        first = resolve(known, one)
        before = known.jobs.get(first).spec
        if Path(other).suffix in (".yaml", ".yml") or Path(other).is_file():
            from tintray.jobs.config.job_file import load_spec

            after = load_spec(Path(other)).record()
            return JobDifference(first, other, changed_fields(before, after), [])
        second = resolve(known, other)
        fields = changed_fields(before, known.jobs.get(second).spec)
        results = _compared(_results(known, first), _results(known, second))
        return JobDifference(first, second, fields, results)


def changed_fields(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """The fields of two recorded job files that differ; tasks are matched by their names."""
    return _compared(_flat(upgraded(one)), _flat(upgraded(other)))


def _compared(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    pairs = [(name, one.get(name, "-"), other.get(name, "-")) for name in {**one, **other}]
    return [Difference(name, str(a), str(b)) for name, a, b in pairs if a != b]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        # Where a job was recorded is no part of it.
        items = {str(key): item for key, item in value.items() if path or key != "catalog"}
    elif isinstance(value, list) and all(isinstance(v, Mapping) and "name" in v for v in value):
        items = {str(item["name"]): item for item in value}
    else:
        return {path: value}
    found: dict[str, Any] = {}
    for key, item in items.items():
        found |= _flat(item, f"{path}.{key}" if path else key)
    return found


def _results(catalog: Catalog, job_id: str) -> dict[str, Any]:
    status = status_of(catalog, job_id)
    found: dict[str, Any] = {"state": status.state, "round": status.round or "-"}
    if status.merge is not None:
        try:
            merge = catalog.merges.find(status.merge)
        except NotFoundError:  # it was removed
            return found
        metrics = {n: f"{v:.4f}" for n, v in merge.metrics.items() if isinstance(v, float)}
        found |= {"merge": status.merge, **metrics}
    return found
