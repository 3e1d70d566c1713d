"""The published merges and the names of things, in one plain statement; see ``drivers``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tintray.storage.catalog.drivers import Execute, ask, moment
from tintray.storage.catalog.values import METRICS, fits, no_value

_SELECT = """
SELECT m.name, m.version, m.url, m.job_id, m.created_at, m.published_at, p.name, p.version,
    m.removed_at, m.metrics, m.added
FROM merges AS m LEFT JOIN merges AS p ON p.id = m.parent_id
"""
_MERGES = f"""{_SELECT}
WHERE m.published_at IS NOT NULL AND m.removed_at IS NULL
ORDER BY m.published_at DESC, m.id DESC
"""
# Those of a name, and what they grew from: of other names too, and such as were removed since.
_TREE = f"""
WITH RECURSIVE tree (id, parent_id) AS (
    SELECT id, parent_id FROM merges
    WHERE name = ? AND published_at IS NOT NULL AND removed_at IS NULL
    UNION SELECT u.id, u.parent_id FROM merges AS u JOIN tree ON u.id = tree.parent_id)
{_SELECT} WHERE m.id IN (SELECT id FROM tree) ORDER BY m.id
"""
_NAMES = {
    "merge": """
SELECT name FROM merges WHERE published_at IS NOT NULL AND removed_at IS NULL
GROUP BY name ORDER BY MAX(id) DESC""",
    "version": """
SELECT name || '/v' || version FROM merges
WHERE published_at IS NOT NULL AND removed_at IS NULL ORDER BY id DESC""",
    "job": "SELECT id FROM jobs ORDER BY created_at DESC",
    "job's name": "SELECT name FROM jobs GROUP BY name ORDER BY MAX(created_at) DESC",
    "task": """
SELECT DISTINCT t.name FROM tasks AS t JOIN merges AS m ON m.job_id = t.job_id
WHERE m.name = ? ORDER BY t.name""",
    "any task": "SELECT DISTINCT name FROM tasks ORDER BY name",
}
_MOST = 200  # names that a shell is offered


@dataclass(frozen=True)
class MergeRow:
    """A published merge as lists show it."""

    name: str
    version: int
    url: str | None
    job_id: str | None
    created_at: datetime
    published_at: datetime
    parent: str | None  # name/v2
    metrics: Mapping[str, Any]
    added: Sequence[str]
    removed: bool = False


def select_merges(execute: Execute) -> list[MergeRow]:
    """All published merges, the newest first."""
    return [_row(row) for row in execute(_MERGES, ())]


def read_merges(url: str) -> list[MergeRow] | None:
    """As :func:`select_merges`, from the catalog at ``url``; None as of ``drivers.ask``."""
    return ask(url, select_merges)


def select_tree(execute: Execute, name: str) -> list[MergeRow]:
    """The merges of a name and all that they grew from, oldest first."""
    return [_row(row) for row in execute(_TREE, (name,))]


def read_tree(url: str, name: str) -> list[MergeRow] | None:
    """As :func:`select_tree`, from the catalog at ``url``; None as of ``drivers.ask``."""
    return ask(url, lambda execute: select_tree(execute, name))


def read_names(url: str, what: str, *values: str) -> list[str]:
    """Names of merges, versions, jobs, or the tasks of a merge; none where it cannot be told."""
    statement = f"{_NAMES[what]} LIMIT {_MOST}"
    found = ask(url, lambda execute: [str(row[0]) for row in execute(statement, values)])
    return found or []


def _row(row: Sequence[Any]) -> MergeRow:
    name, version, url, job_id, created, published, parent, parent_version, *others = row
    removed, *documents = others
    for value, shape in ((name, str), (version, int), (url, str), (job_id, str), (parent, str)):
        if not fits(value, shape):
            raise no_value(value)
    metrics, added = map(_document, documents)
    for value, shapes in ((metrics, METRICS), (added, [str])):
        if value is None or not fits(value, shapes):
            raise no_value(value)
    return MergeRow(
        *(name, version, url, job_id, moment(created), moment(published)),
        None if parent is None else f"{parent}/v{parent_version}",
        *(metrics, added),
        removed=removed is not None,
    )


def _document(value: Any) -> Any:
    """JSON, which SQLite gives as a text."""
    try:
        return json.loads(value) if isinstance(value, str | bytes) else value
    except (ValueError, RecursionError) as error:
        raise no_value(value) from error
