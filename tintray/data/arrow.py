"""Parquet files and data sets of the hub: the batches of a column that hold what is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintray.data.source import LABEL, DataSource
from tintray.data.table import Table, memory_of
from tintray.errors import DataError
from tintray.files import foreign, open_regular

HUB = "hf://"
_MOST_ROWS = 1024  # of a batch
_BATCH_BYTES = 64 << 20  # of a batch of texts, as a rule
_REPEATED_BYTES = 1 << 30  # of a batch in which one value stands in all rows, at most
_HUB_ROWS = 16

Batches = Iterator[tuple[int, Any]]  # the number of the first row, and an Arrow array


class ArrowTable(Table):
    """A split whose columns come in batches."""

    def __init__(
        self,
        source: DataSource,
        role: str,
        rows: int,
        names: Mapping[str, list[str] | None],
        batches: Callable[[str, int], Batches],
    ) -> None:
        super().__init__(source, role)
        self.columns, self.rows = list(names), rows
        column = source.column(LABEL, self.columns, role)
        self.class_names = names[column] if column else None
        self._batches = batches

    def take(self, column: str, rows: Sequence[int] | NDArray[Any]) -> list[Any]:
        """The values of a column, as Python has them; no batch after the last is read."""
        wanted = np.asarray(rows, np.int64)
        chosen = np.unique(wanted)
        by_row: dict[int, Any] = {}
        taken = 0
        with foreign(f"{self.role}: {self.source.path} cannot be read", DataError):
            for first, batch in self._batches(column, int(chosen[0])):
                edges = np.searchsorted(chosen, [first, first + len(batch)])
                here = chosen[edges[0] : edges[1]]
                part = batch.take((here - first).tolist()) if len(here) else batch[:0]
                what = f"'{column}', up to row {first + len(batch):,},"
                self.check_bytes(taken + _expanded(part), what)
                values = part.to_pylist()
                by_row |= zip(here.tolist(), values, strict=True)
                taken += memory_of(values)
                self.check_bytes(taken, what)
                if first + len(batch) > chosen[-1]:
                    break
            if len(by_row) != len(chosen):
                raise ValueError(f"it promises {self.rows:,} rows and has fewer")
        return [by_row[row] for row in wanted.tolist()]


def parquet_table(source: DataSource, role: str) -> ArrowTable:
    """The one table of a parquet file; DataError is raised if it or pyarrow cannot be used."""
    read: Any = _imported("pyarrow.parquet", source, role).ParquetFile
    path = Path(source.path)
    with foreign(f"{role}: {path} cannot be read as parquet", DataError):
        with open_regular(path) as file, read(file) as table:
            rows, schema = table.metadata.num_rows, table.schema_arrow
        known = _features(schema)
        names = {name: _class_names(known.get(name)) for name in schema.names}
        if rows < 0 or len(names) < len(schema.names):
            raise ValueError("two columns have one name, or it has less than no rows")

    def batches(column: str, first: int) -> Batches:
        # texts that repeat stay references to one another until it is known what they take
        repeated = [column] if str(schema.field(column).type) == "string" else None
        options: dict[str, Any] = {"pre_buffer": False, "read_dictionary": repeated}
        with open_regular(path) as file, read(file, **options) as table:
            groups = [table.metadata.row_group(n) for n in range(table.num_row_groups)]
            start = skipped = 0
            while skipped < len(groups) and start + groups[skipped].num_rows <= first:
                start, skipped = start + groups[skipped].num_rows, skipped + 1
            size = _batch_rows(groups[skipped:], repeated is not None)
            left = list(range(skipped, len(groups)))
            for batch in table.iter_batches(size, left, [column], use_threads=False):
                yield start, batch.column(0)
                start += batch.num_rows

    return ArrowTable(source, role, rows, names, batches)


def hub_table(source: DataSource, role: str) -> ArrowTable:
    """A split of a data set on the hub, ``hf://org/name:configuration``; DataError as above."""
    datasets: Any = _imported("datasets", source, role)
    datasets.disable_progress_bars()
    place, _, configuration = source.path.removeprefix(HUB).partition(":")
    with foreign(f"{role}: split '{source.split_name}' of {source.path} cannot be read", DataError):
        split = datasets.load_dataset(place, configuration or None, split=source.split_name)
        names = {
            name: list(getattr(getattr(feature, "feature", feature), "names", None) or []) or None
            for name, feature in split.features.items()
        }

    def batches(column: str, first: int) -> Batches:
        values = split.select_columns([column]).with_format("arrow")
        for start in range(first, len(split), _HUB_ROWS):
            yield start, values[start : start + _HUB_ROWS][column].combine_chunks()

    return ArrowTable(source, role, len(split), names, batches)


def _batch_rows(groups: list[Any], by_reference: bool) -> int:
    """Rows of a batch, so that it stays small whatever the values are."""
    most = max((group.total_byte_size for group in groups), default=0)
    rows = min((group.num_rows for group in groups), default=0)
    fit = _BATCH_BYTES * rows // max(most, 1) if by_reference else _REPEATED_BYTES // max(most, 1)
    return min(max(fit, 1), _MOST_ROWS)


def _expanded(part: Any) -> int:
    """Bytes of an Arrow array with every reference replaced by what it refers to."""
    from pyarrow import DictionaryArray, compute

    if not isinstance(part, DictionaryArray):
        return int(part.nbytes)
    try:
        lengths = compute.binary_length(part.dictionary)
    except (NotImplementedError, ValueError):  # no texts: as small as their references
        return int(part.nbytes)
    return int(compute.sum(lengths.take(part.indices)).as_py() or 0)


def _features(schema: Any) -> Mapping[str, Any]:
    """What ``datasets`` has written of the columns of a parquet file; nothing, where it has not."""
    written = (schema.metadata or {}).get(b"huggingface")
    try:
        return dict(json.loads(written)["info"]["features"]) if written else {}
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}


def _class_names(feature: Any) -> list[str] | None:
    """The names in a feature, or in what it is a list of."""
    if isinstance(feature, list) and len(feature) == 1:  # an older form
        feature = feature[0]
    if isinstance(feature, Mapping):
        feature = feature.get("feature") or feature
    names = feature.get("names") if isinstance(feature, Mapping) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return names or None


def _imported(module: str, source: DataSource, role: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise DataError(
            f"{role}: {source.path} is read by the library '{module.partition('.')[0]}', which is "
            "not installed; install it with: pip install 'tintray[data]'"
        ) from error
