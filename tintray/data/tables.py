"""Tables of examples, column by column: npz, csv, json, parquet, folders of images, the hub.

A table gives only the columns that are asked for. What needs no library of its own (npz, csv, json,
images) is read without one; parquet and the hub are read through ``datasets``.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from tintray.data.order import LABEL, DataOrder
from tintray.errors import DataError, nearest

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
_HUB = "hf://"


@dataclass(frozen=True)
class Table:
    """A split: the names of its columns, how many rows it has, and a way to read one column.

    What is read is an array, a list, or a column that ``datasets`` keeps on disk: ``pick`` takes
    rows of any of them.
    """

    columns: list[str]
    rows: int
    read: Callable[[str], Any]
    class_names: list[str] | None = None
    shown: Mapping[str, str] = field(default_factory=dict)  # how messages call a column

    def name(self, column: str) -> str:
        """How messages call a column."""
        return self.shown.get(column, column)


def open_table(order: DataOrder, role: str) -> Table:
    """Open a split, whatever form it has.

    Raises
    ------
    DataError
        If the place, the split or the form cannot be read.
    """
    if order.path.startswith(_HUB):
        return _datasets_table(order, role, order.path.removeprefix(_HUB))
    path = Path(order.path)
    if path.is_dir():
        return _image_folder(order, path, role)
    if not path.exists():
        raise DataError(f"{role}: the data file {path} does not exist")
    name = path.name.removesuffix(".gz")
    suffix = Path(name).suffix.lower()
    if suffix == ".npz":
        return _npz(order, path, role)
    if suffix == ".parquet":
        _one_split(order, path, role)
        return _datasets_table(order, role, "parquet", data_files=str(path))
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".json": _json_rows, ".jsonl": _json_rows}
    if suffix not in readers:
        raise DataError(
            f"{role}: {path} is of no known form; expected .npz, .parquet, .csv, .tsv, .json, "
            ".jsonl (these five also as .gz), a folder of images, or hf://org/name"
        )
    _one_split(order, path, role)
    try:
        rows = readers[suffix](path)
    except (OSError, EOFError, UnicodeDecodeError, ValueError, csv.Error, zlib.error) as error:
        raise DataError(f"{role}: {path} cannot be read as {suffix[1:]} ({error})") from error
    return _of_rows(rows, path, role)


def _one_split(order: DataOrder, path: Path, role: str) -> None:
    if order.split_name != "train":
        raise DataError(
            f"{role}: {path} holds one table, which is called 'train'; found split "
            f"'{order.split_name}', name the file that has it, or a slice such as 'train[80%:]'"
        )


# -- npz -------------------------------------------------------------------------------------------


def _npz(order: DataOrder, path: Path, role: str) -> Table:
    split = order.split_name
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays.files)
            classes = [str(n) for n in arrays["class_names"]] if "class_names" in names else None
    except (OSError, ValueError, EOFError, AttributeError, BadZipFile, zlib.error) as error:
        raise _unreadable(path, role, error) from error
    key = f"x_{split}"
    if key not in names:
        splits = sorted(name.removeprefix("x_") for name in names if name.startswith("x_"))
        raise DataError(
            f"{role}: {path} has no array '{key}'; its splits are {', '.join(splits) or 'none'}"
            f"{nearest(key, names)}"
        )
    called = {"x": "image", "y": "label"}
    below = {name.removesuffix(f"_{split}"): name for name in names if name.endswith(f"_{split}")}
    columns = {called.get(name, name): array for name, array in below.items()}

    def read(column: str) -> Any:
        return read_array(path, columns[column], role)

    return Table(list(columns), _length(path, key, role), read, classes, columns)


def read_array(path: Path, key: str, role: str) -> Any:
    """One array of an npz file, checked as it is read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[key]
    except (OSError, ValueError, EOFError, AttributeError, BadZipFile, zlib.error) as error:
        raise _unreadable(path, role, error) from error


def _length(path: Path, key: str, role: str) -> int:
    try:
        return (*npz_shape(path, key), 0)[0]
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise _unreadable(path, role, error) from error


def npz_shape(path: Path, key: str) -> tuple[int, ...]:
    """The shape of one array of an npz file, from its header.

    Raises
    ------
    KeyError
        If there is no such array.
    OSError, ValueError, BadZipFile, zlib.error
        If the file or the header cannot be read.
    """
    with ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            return tuple(np.lib.format.read_array_header_1_0(file)[0])
        return tuple(np.lib.format.read_array_header_2_0(file)[0])


def _unreadable(path: Path, role: str, error: Exception) -> DataError:
    return DataError(f"{role}: {path} cannot be read as an npz file of plain arrays ({error})")


# -- rows of text ----------------------------------------------------------------------------------


def _open_text(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    tab = ".tsv" in path.suffixes
    with _open_text(path) as file:
        rows = list(csv.DictReader(file, delimiter="\t" if tab else ",", strict=True))
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"line {number} has another number of fields than the first")
    return [dict(row) for row in rows]


def _json_rows(path: Path) -> list[dict[str, Any]]:
    with _open_text(path) as file:
        text = file.read()
    if text.lstrip().startswith("["):
        rows = json.loads(text)
    else:
        rows = []
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected one object per example")
    return list(rows)


def _of_rows(rows: list[dict[str, Any]], path: Path, role: str) -> Table:
    columns = list(rows[0]) if rows else []

    def read(column: str) -> Any:
        for number, row in enumerate(rows, start=1):
            if column not in row:
                raise DataError(f"{role}: example {number} of {path} has no '{column}'")
        return [row[column] for row in rows]

    return Table(columns, len(rows), read)


# -- folders of images -----------------------------------------------------------------------------


def _image_folder(order: DataOrder, folder: Path, role: str) -> Table:
    """``folder/<split>/<class>/…``, or ``folder/<class>/…`` where there is one split only."""
    splits = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if order.split_name in splits:
        folder = folder / order.split_name
    elif order.split_name != "train":
        raise DataError(
            f"{role}: the folder {folder} has no split '{order.split_name}'; it has "
            f"{', '.join(splits) or 'no folders'}{nearest(order.split_name, splits)}"
        )
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not files:
        raise DataError(
            f"{role}: the folder {folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    parents = [file.relative_to(folder).parts[:-1] for file in files]
    classes = sorted({parts[0] for parts in parents if parts})
    columns: dict[str, Callable[[], Sequence[Any]]] = {"image": lambda: files}
    if classes and all(parents):
        columns["label"] = lambda: [parts[0] for parts in parents]
    return Table(list(columns), len(files), lambda name: columns[name](), classes or None)


# -- what the datasets library reads ---------------------------------------------------------------


def _datasets_table(order: DataOrder, role: str, name: str, **options: Any) -> Table:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{role}: {order.path} is read by the library 'datasets', which is not installed; "
            "install it with: pip install 'tintray[data]'"
        ) from error
    from datasets.exceptions import DatasetGenerationError
    from huggingface_hub.errors import HfHubHTTPError

    datasets.disable_progress_bars()
    place, _, configuration = name.partition(":")
    try:
        found = datasets.load_dataset(
            place, configuration or None, split=order.split_name, **options
        )
    except (
        *(OSError, ValueError, KeyError, RuntimeError, DatasetGenerationError, HfHubHTTPError),
    ) as error:
        cause = error.__cause__ or error
        raise DataError(
            f"{role}: split '{order.split_name}' of {order.path} cannot be read "
            f"({str(cause).strip().splitlines()[0] if str(cause).strip() else repr(cause)})"
        ) from error
    column = order.column(LABEL, list(found.column_names), role)
    label = found.features.get(column)
    label = getattr(label, "feature", label)  # of a list of labels: what each of them is
    return Table(
        list(found.column_names),
        len(found),
        lambda column: _undecoded(found, column),
        list(getattr(label, "names", None) or []) or None,
    )


def _undecoded(found: Any, column: str) -> Any:
    """A column whose images stay files or bytes: they are decoded, in parallel, by whoever asks."""
    import datasets

    if isinstance(found.features[column], datasets.Image):
        found = found.cast_column(column, datasets.Image(decode=False))
    return found[column]


def pick(values: Any, rows: Sequence[int] | NDArray[Any]) -> Any:
    """The values at ``rows`` of what a table's column was read as; others are not read."""
    if isinstance(values, np.ndarray):
        return values[np.asarray(rows)]
    if isinstance(values, list | tuple):
        return [values[row] for row in rows]
    return list(values[[int(row) for row in rows]])


def plain(value: Any) -> Any:
    """A value as JSON types, for hashing."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
