"""The catalog: rows that another program wrote, and a database file that was altered."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import raw, trees
from tests.fuzz.surface import Files, Surface, command

_FILE = "catalog.db"
_ODD = (
    *("queued", "fitting", "succeeded", "failed", "cancelled", "lost", "x", "tiny", "tiny/v1"),
    *("two", "2020-01-01 00:00:00.000000", "2020-01-01", "9999-12-31 23:59:59.999999", "yesterday"),
    *("[]", "{}", "file:///dev/zero", "s3", "sqlite:///x", "http://head:8265", "null"),
    *('{"tasks": "x"}', "0" * 64, b"\xff\xfe", b"", 2**62, -5, 1.5, None),
)


def _seeds(fixtures: Path) -> list[Files]:
    held = sqlite3.connect(":memory:")
    with sqlite3.connect(fixtures / "store" / _FILE) as known:
        known.backup(held)
    found: list[Files] = [{_FILE: _plain(held.serialize())}]
    held.execute(
        "UPDATE jobs SET state = 'queued', cluster = 'http://head:8265' "
        "WHERE id = (SELECT id FROM jobs LIMIT 1)"
    )
    held.execute("INSERT INTO clusters VALUES ('http://head:8265', 2)")
    held.commit()
    return [*found, {_FILE: _plain(held.serialize())}]


def _plain(data: bytes) -> bytes:
    """A database without a write-ahead log beside it."""
    return data[:18] + b"\x01\x01" + data[20:]


def _mutate(rng: Random, files: Files, _: Sequence[Files]) -> Files:
    if rng.random() < 0.12:
        return {_FILE: raw.damaged(rng, files[_FILE])}
    held = sqlite3.connect(":memory:")
    held.deserialize(files[_FILE])
    held.execute("PRAGMA foreign_keys = OFF")
    held.execute("PRAGMA ignore_check_constraints = ON")
    for _ in range(rng.choice((1, 1, 2, 4))):
        try:
            _change(rng, held)
        except (sqlite3.Error, OverflowError, UnicodeError):
            continue
    held.commit()
    data = held.serialize()
    held.close()
    return {_FILE: _plain(data)}


def _change(rng: Random, held: sqlite3.Connection) -> None:
    tables = [row[0] for row in held.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    usual = [t for t in ("jobs", "merges", "events", "rounds", "tasks") if t in tables]
    table = rng.choice(usual if rng.random() < 0.7 else tables)
    rows = held.execute(f'SELECT rowid, * FROM "{table}"').fetchall()
    columns = [row[1] for row in held.execute(f'PRAGMA table_info("{table}")')]
    if rng.random() < 0.05:
        held.execute(f'DELETE FROM "{table}"' if rng.random() < 0.8 else f'DROP TABLE "{table}"')
        return
    if not rows:
        return
    row, column = rng.choice(rows), rng.randrange(len(columns))
    value = _value(rng, row[column + 1])
    held.execute(f'UPDATE "{table}" SET "{columns[column]}" = ? WHERE rowid = ?', (value, row[0]))


def _value(rng: Random, before: Any) -> Any:
    if isinstance(before, str) and before[:1] in "{[" and before and rng.random() < 0.8:
        tree = trees.damaged(rng, json.loads(before), _ODD[:-6])
        return trees.as_json(rng, tree).decode("utf-8", "replace")
    value = trees.odd(rng, _ODD)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(value)
    if isinstance(value, list | dict | bool):
        return json.dumps(value)
    return value


_COMMANDS = {
    "ps": 22,
    "ps --json": 8,
    "status latest": 14,
    "list": 14,
    "list --json": 4,
    "gc": 3,
    "show tiny": 10,
    "history tiny": 10,
    "queue": 6,
    "artifacts ls": 6,
    "diff-merges tiny/v1 tiny/v2": 3,
}
SURFACE = Surface(
    "catalog-rows",
    6,
    _seeds,
    _mutate,
    {
        words: (share, command(f"{words} --catalog sqlite:///{{folder}}/{_FILE}"))
        for words, share in _COMMANDS.items()
    },
    confined=False,
)
