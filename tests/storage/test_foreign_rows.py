"""Rows that another program wrote: every column of the catalog with every sort of value."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.dialects import sqlite

from tintray.errors import StorageError
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.drivers import ask
from tintray.storage.catalog.job_list import select_jobs
from tintray.storage.catalog.tables import Base
from tintray.storage.catalog.values import fits

VALUES: tuple[Any, ...] = (
    *("", "x", "\x1b[31m", "9999", "[]", "{}", "[1]", '{"a": 1}', '{"change": 1}', '{"loss": "x"}'),
    *("queued", "null", "[" * 9999, "2020-01-01 00:00:00.000000", b"\xff", 1, -1, 2**62, 1.5),
    float("inf"),
)
HELD = {float: (int, float), dict: (dict, list)}
COLUMNS = [column for table in Base.metadata.sorted_tables for column in table.columns]


@pytest.mark.parametrize("column", COLUMNS, ids=str)
def test_a_column_gives_what_it_says_or_a_sentence(column: Any) -> None:
    dialect = sqlite.dialect()
    read = column.type.dialect_impl(dialect).result_processor(dialect, None)
    good = []
    for value in VALUES:
        try:
            found = read(value)
        except StorageError as error:
            assert "the catalog holds" in str(error) and str(error).isprintable()
        else:
            assert isinstance(
                found, HELD.get(column.type.impl.python_type, column.type.impl.python_type)
            )
            good.append(found)
    assert 0 < len(good) < len(VALUES)
    assert read(None) is None


@pytest.mark.parametrize(
    ("column", "value"),
    [("state", "x"), ("created_at", "yesterday"), ("stop_at", 5), ("priority", "x"), ("key", b"x")],
)
def test_the_list_of_jobs_refuses_such_rows(tmp_path: Path, column: str, value: Any) -> None:
    file = tmp_path / "catalog.db"
    with Catalog.open(f"sqlite:///{file}") as catalog:
        catalog.jobs.create("a", {"fit": {"rounds": 3}}, "store")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"UPDATE jobs SET {column} = ?", (value,))
        connection.commit()
    with pytest.raises(StorageError, match="the catalog holds"):
        ask(f"sqlite:///{file}", select_jobs)


def test_shapes() -> None:
    number = (int, float)
    right = [(None, int), (1, number), (["a"], [str]), ({"a": 1, "b": "x"}, {"a": int})]
    wrong = [("a", number), (["a", 1], [str]), ({"a": "x"}, {"a": int}), ([], {"a": int})]
    assert all(fits(*one) for one in [*right, ({"a": 1.5, "b": 2}, {None: number})])
    assert not any(fits(*one) for one in [*wrong, ({"a": {"b": 1}}, {"a": {"b": str}})])
