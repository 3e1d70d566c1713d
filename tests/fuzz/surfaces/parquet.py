"""Tables of columns: files that are cut and altered, and columns of every type."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pyarrow.parquet

from tests.fuzz import raw, trees
from tests.fuzz.surface import Files, Surface
from tests.fuzz.surfaces.images import png
from tests.fuzz.surfaces.reading import examples

_DATA = "t.parquet"
_IMAGE = png(16, 16)
_NAMES = (
    *("text", "label", "image", "tokens", "messages", "text_pair", "score", "mask", "tags", ""),
    *trees.UGLY[:7],
)


def _table(
    columns: dict[str, Any], metadata: dict[str, str] | None = None, **options: Any
) -> bytes:

    table = pyarrow.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata(metadata)
    held = io.BytesIO()
    pyarrow.parquet.write_table(table, held, **options)
    return held.getvalue()


def _seeds(_: Path) -> list[Files]:
    image = {"bytes": _IMAGE, "path": "a.png"}
    kinds = {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    noted = {"huggingface": json.dumps({"info": {"features": kinds}})}
    return [
        {_DATA: _table({"text": ["w1 w2", "w3"], "label": [0, 1]})},
        {_DATA: _table({"image": [image] * 3, "label": [0, 1, 2]}, noted)},
        {_DATA: _table({"tokens": [["w1", "w2"], ["w3"]], "label": [1, 2]}, compression="gzip")},
    ]


def _mutate(rng: Random, files: Files, seeds: Sequence[Files]) -> Files:
    if rng.random() < 0.4:
        return {_DATA: raw.damaged(rng, files[_DATA], [seed[_DATA] for seed in seeds])}
    length = rng.choice((1, 2, 3, 3, 3, 0))
    names = ["label"] if rng.random() < 0.8 else []
    names += [rng.choice(_NAMES) for _ in range(rng.choice((1, 1, 2)))]
    columns = {_encodable(name): _column(rng, name, length) for name in dict.fromkeys(names)}
    metadata = {"huggingface": _features(rng, list(columns))} if rng.random() < 0.4 else None
    try:
        packing = rng.choice(("none", "snappy", "gzip", "zstd"))
        data = _table(columns, metadata, compression=packing)
    except Exception:  # noqa: BLE001 - pyarrow does not write every such column
        data = raw.damaged(rng, files[_DATA])
    return {_DATA: raw.damaged(rng, data, times=1) if rng.random() < 0.1 else data}


def _encodable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()


def _column(rng: Random, name: str, length: int) -> Any:
    image = rng.choice(({"bytes": _IMAGE, "path": None}, {"bytes": None, "path": "/dev/zero"}))
    kinds: tuple[Any, ...] = (
        *(["w1 w2"], [0], [2], [1.5], [float("nan")], [True], [None], [b"\xff\x00"], [_IMAGE]),
        *([["w1"]], [[0, 1]], [[[1.0, 2.0]]], [{"a": 1}], [image], [{"bytes": b"x", "path": "x"}]),
        *([date(2020, 1, 1)], [datetime(2020, 1, 1)], [Decimal("1.5")], [2**63 - 1], [[]]),
        *([[None]], [[{"role": "user", "content": "w1"}]], [["\x1b[31m"]], ["\x1b[31m"]),
        *(["\u202e"], [""], [{"bytes": None, "path": None}], [{"path": "../../../outside/secret"}]),
        ["x" * 100_000],
    )
    if name in ("text", "label", "image") and rng.random() < 0.4:
        kinds = {"text": (["w1"],), "label": ([1], ["two"]), "image": ([image],)}[name]
    value = rng.choice(kinds)[0]
    values = [value] * length
    if length > 1 and rng.random() < 0.2:
        values[0] = None
    array = pyarrow.array(values)
    if rng.random() < 0.15:
        try:
            return array.dictionary_encode()
        except pyarrow.ArrowException:
            return array
    return array


def _features(rng: Random, names: Sequence[str]) -> str:
    """What the datasets library notes about columns, damaged."""
    kinds: tuple[Any, ...] = (
        {"_type": "Image"},
        {"dtype": "string", "_type": "Value"},
        {"names": ["zero", "one", "two"], "_type": "ClassLabel"},
        {"feature": {"dtype": "int64", "_type": "Value"}, "_type": "Sequence"},
        {"_type": "Audio"},
        {"_type": "Pdf"},
        {"shape": [2, 2], "dtype": "float32", "_type": "Array2D"},
        {"_type": "subprocess.Popen"},
    )
    tree = {"info": {"features": {name: rng.choice(kinds) for name in names}}}
    if rng.random() < 0.6:
        tree = trees.damaged(rng, tree)
    return trees.as_json(rng, tree).decode("utf-8", "replace")


_DRIVES = {
    "examples": (80, examples(_DATA)),
    "some bad": (10, examples(_DATA, split="train[:2]", max_bad=2)),
    "words": (5, examples(_DATA, "token_classification")),
    "segments": (3, examples(_DATA, "segmentation")),
}
SURFACE = Surface("parquet", 6, _seeds, _mutate, _DRIVES)
