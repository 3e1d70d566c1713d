"""Files of examples in every form, as bytes."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image


def npz_bytes(compressed: bool = False, **arrays: Any) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def parquet_bytes(rows: dict[str, Any]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.table(rows), file)
    return file.getvalue()


def image_bytes(form: str, mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, form)
    return file.getvalue()


def table_bytes(name: str, rows: Sequence[dict[str, Any]], *, ends: str = "\r\n") -> bytes:
    """Rows as a csv, tsv, json, jsonl or parquet file, compressed where its name ends in .gz."""
    form = name.removesuffix(".gz").rpartition(".")[2]
    if form == "parquet":
        return parquet_bytes({key: [row[key] for row in rows] for key in rows[0]})
    text = io.StringIO()
    if form in ("csv", "tsv"):
        style: Any = {"delimiter": "," if form == "csv" else "\t", "lineterminator": ends}
        writer = csv.DictWriter(text, list(rows[0]), quoting=csv.QUOTE_ALL, **style)
        writer.writeheader()
        writer.writerows(rows)
    elif form == "json":
        json.dump(rows, text, ensure_ascii=False, indent=1)
    else:
        text.write("".join(json.dumps(row, ensure_ascii=False) + ends for row in rows))
    content = text.getvalue().encode()
    return gzip.compress(content) if name.endswith(".gz") else content
