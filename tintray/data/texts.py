"""Tables of text: csv, tsv, json and json lines, each also compressed by gzip.

They are read a row at a time, up to the last row that is meant; a line, the text and what is kept
of it have budgets.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, TextIO

from numpy.typing import NDArray

from tintray.data.source import INPUTS, LABEL, DataSource
from tintray.data.table import Table, memory_of
from tintray.errors import DataError
from tintray.files import foreign, open_regular
from tintray.limits import size_text

_CHUNK = 1 << 16
_DECODER = json.JSONDecoder()
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class TextTable(Table):
    """A file that holds one table, called ``train``."""

    def __init__(self, source: DataSource, role: str, suffix: str) -> None:
        super().__init__(source, role)
        self._suffix = suffix

    @cached_property
    def columns(self) -> list[str]:
        """Those of the first row; the others have to have what is asked for of them."""
        return self._read[0]

    @cached_property
    def rows(self) -> int:
        """Up to the last that is meant."""
        return len(self._read[1])

    def take(self, column: str, rows: Sequence[int] | NDArray[Any]) -> list[Any]:
        """The values of a column."""
        table = self._read[1]
        for number in rows:
            if column not in table[number]:
                raise DataError(
                    f"{self.role}: example {number + 1} of {self.path} has no '{column}'"
                )
        return [table[number][column] for number in rows]

    @cached_property
    def _read(self) -> tuple[list[str], list[dict[str, Any]]]:
        """The columns, and what is kept of each row: no column that no source asks for."""
        csv.field_size_limit(max(csv.field_size_limit(), self.source.limits.max_line_bytes))
        unreadable = f"{self.role}: {self.path} cannot be read as {self._suffix[1:]}"
        with foreign(unreadable, DataError), open_regular(self.path) as raw:
            packed = self.path.suffix.lower() == ".gz"
            text = _Text(gzip.GzipFile(fileobj=raw) if packed else raw, self.source)
            read = _csv_rows if self._suffix in (".csv", ".tsv") else _json_rows
            return self._table(read(text, "\t" if self._suffix == ".tsv" else ","))

    def _table(self, rows: Iterator[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
        columns, enough = list(next(rows, {})), self.source.enough
        wanted = {self.source.column(kind, columns, self.role) for kind in (*INPUTS, LABEL)}
        table: list[dict[str, Any]] = []
        taken = 0
        for row in rows:
            self.source.check_examples(len(table) + 1, self.role)
            table.append({name: row[name] for name in wanted if name in row})
            taken += memory_of(table[-1])
            if taken > self.source.limits.max_pool_bytes:
                self.check_bytes(taken, f"what the first {len(table):,} examples hold")
            if len(table) == enough:
                break
        return columns, table


class _Text:
    """The text of a file, with budgets for a line and for all of it."""

    def __init__(self, file: Any, source: DataSource) -> None:
        buffered = io.BufferedReader(file)
        if buffered.peek(2)[:2] in _WIDE:
            raise ValueError("it is written in UTF-16; expected UTF-8, save it as that")
        self._file: TextIO = io.TextIOWrapper(buffered, encoding="utf-8-sig", newline="")
        self._limits, self._left = source.limits, source.limits.max_text_bytes
        self.most = source.limits.max_line_bytes
        self.row = 0  # characters since the last whole row

    def read(self) -> str:
        """The next characters, no more than a chunk of them; "" at the end."""
        return self._counted(self._file.read(_CHUNK))

    def lines(self) -> Iterator[str]:
        """Lines with their ends, whichever these are."""
        while line := self._counted(self._file.readline(self.most + 1)):
            self.row += len(line)
            self.check(self.row)
            yield line

    def check(self, length: int) -> None:
        """Refuse a line or an example of more than the budget."""
        if length > self.most:
            raise ValueError(f"an example is longer than max_line_bytes, {size_text(self.most)}")

    def check_rows(self, number: int) -> None:
        """Refuse more rows, blank ones counted, than the budget."""
        if number >= self._limits.max_examples:
            raise ValueError(f"it has more rows than max_examples, {number:,}")

    def _counted(self, text: str) -> str:
        self._left -= len(text)
        if self._left < 0:
            raise ValueError(
                f"it holds more text than max_text_bytes, {size_text(self._limits.max_text_bytes)};"
                " read a slice such as 'train[:500]', or raise it"
            )
        return text


def _csv_rows(text: _Text, delimiter: str) -> Iterator[dict[str, Any]]:
    """The names of the columns as a row, then the rows."""
    reader = csv.reader(text.lines(), delimiter=delimiter, strict=True)
    names = next(reader, [])
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"two columns are called {twice[0]!r}")
    yield dict.fromkeys(names)
    for number, row in enumerate(reader):
        text.check_rows(number)
        text.row = 0
        if row and len(row) != len(names):
            raise ValueError(f"line {reader.line_num} has another number of fields than the first")
        if row:
            yield dict(zip(names, row, strict=True))


def _json_rows(text: _Text, _: str) -> Iterator[dict[str, Any]]:
    """The first row once for its columns, then all rows."""
    start = text.read()
    while start.isspace():
        text.check(len(start))
        start = start.lstrip() + text.read()
    start = start.lstrip()
    rows = _items(text, start[1:]) if start.startswith("[") else _lines(text, start)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError("expected one object per example")
        if number == 0:
            yield row
        yield row


def _lines(text: _Text, start: str) -> Iterator[Any]:
    """The value of each line; only ``\\n`` ends one."""
    number, rest, more = 1, start, start
    while more:
        *lines, rest = rest.split("\n")
        for line in lines:
            yield from _value(text, line, number)
            number += 1
        text.check(len(rest))
        more = text.read()
        rest += more
    yield from _value(text, rest, number)


def _value(text: _Text, line: str, number: int) -> Iterator[Any]:
    """The value of a line; none where it is blank."""
    text.check(len(line))
    if line.strip():
        try:
            yield json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error


def _items(text: _Text, rest: str) -> Iterator[Any]:
    """The values of a JSON array, of which ``rest`` is what follows its ``[``."""
    number, at = 0, _blank(rest, 0)
    while not (rest.startswith("]", at) and number == 0):
        try:
            value, end = _DECODER.raw_decode(rest, at)
        except ValueError as error:
            problem, end = str(error), len(rest)
        else:
            problem, end = "it ends within the list", _blank(rest, end)
            if rest[end : end + 1] not in (",", "]", ""):
                raise ValueError(f"example {number + 1} is followed by {rest[end]!r}")
        if end < len(rest):
            yield value
            number += 1
            if rest[end] == "]":
                at = end
                break
            at = _blank(rest, end + 1)
            continue
        text.check(len(rest) - at)
        more = text.read()
        if not more:
            raise ValueError(f"example {number + 1}: {problem}")
        rest, at = rest[at:] + more, 0
    if rest[at + 1 :].strip():
        raise ValueError("something follows the list")


def _blank(text: str, at: int) -> int:
    """Where the white space that begins at ``at`` ends."""
    return int(json.decoder.WHITESPACE.match(text, at).end())  # type: ignore[attr-defined]
