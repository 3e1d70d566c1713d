"""Which form a data set has: npz, csv, json, parquet, a folder of images, or the hub.

What needs no library of its own (npz, csv, json, images) is read without one; parquet needs
pyarrow, and the hub needs ``datasets``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tintray.data.arrays import ArrayTable
from tintray.data.arrow import HUB, hub_table, parquet_table
from tintray.data.images import ImageFolder
from tintray.data.source import DataSource
from tintray.data.table import Table
from tintray.data.texts import TextTable
from tintray.errors import DataError
from tintray.files import foreign

_TEXTS = (".csv", ".tsv", ".json", ".jsonl")


def open_table(source: DataSource, role: str) -> Table:
    """Open a split, whatever form it has; no example is read.

    Raises DataError if the place, the split or the form cannot be read.
    """
    if source.path.startswith(HUB):
        return hub_table(source, role)
    path = Path(source.path)
    with foreign(f"{role}: {path} cannot be opened", DataError):
        if not path.exists():
            raise DataError(f"{role}: the data file {path} does not exist")
        if path.is_dir():
            return ImageFolder(source, role)
        if not path.is_file():
            raise DataError(f"{role}: {path} is no regular file; expected one, or a folder")
    if path.suffix.lower() == ".npz":
        return ArrayTable(source, role)
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if path.suffix.lower() != ".parquet" and suffix not in _TEXTS:
        raise DataError(
            f"{role}: {path} is of no known form; expected .npz, .parquet, .csv, .tsv, .json, "
            ".jsonl (these four also as .gz), a folder of images, or hf://org/name"
        )
    if source.split_name != "train":
        raise DataError(
            f"{role}: {path} holds one table, which is called 'train'; found split "
            f"'{source.split_name}', name the file that has it, or a slice such as 'train[80%:]'"
        )
    return TextTable(source, role, suffix) if suffix in _TEXTS else parquet_table(source, role)


def plain(value: Any) -> Any:
    """A value as JSON types, for hashing."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
