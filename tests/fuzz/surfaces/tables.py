"""Texts in rows: csv, tsv, json and jsonl, packed and not."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import raw, trees
from tests.fuzz.surface import Bench, Drive, Drives, Files, Surface
from tests.fuzz.surfaces.reading import examples, fit_job, pool

_CSV = 'text,label\nw1 w2 w3,0\n"w4, w5",1\nw6 w7,2\nw8 w9 w1,one\n'
_ROWS: list[dict[str, Any]] = [
    {"text": "w1 w2 w3", "label": 0},
    {"text": "w4 w5", "label": 1},
    {"text": "w6", "label": "two"},
]
_WORDS: list[dict[str, Any]] = [
    {"tokens": ["w1", "w2"], "tags": [0, 1]},
    {"tokens": ["w3"], "tags": ["two"]},
]
_TALKS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]}
]
_VALUES: list[dict[str, Any]] = [
    {"sentence1": "w1", "sentence2": "w2", "score": 0.5},
    {"sentence1": "w3", "sentence2": "w4", "score": 1},
]
_TEXTS = tuple(text for text in trees.ODD if isinstance(text, str))


def _first(bench: Bench) -> str:
    return next(path.name for path in sorted(bench.folder.iterdir()) if path.name.startswith("t."))


def _read(kind: str = "classification", **fields: Any) -> Drive:
    return lambda bench: examples(_first(bench), kind, **fields)(bench)


def _prepared(bench: Bench) -> None:
    """The texts as tokens, as a job prepares them."""
    pool(_first(bench), "text/expert", "language_modelling")(bench)


def _validated(bench: Bench) -> None:
    fit_job(bench, bench.fixtures / "text/expert", _first(bench), text=True)


# -- csv -------------------------------------------------------------------------------------------


def _csv_seeds(_: Path) -> list[Files]:
    return [
        {"t.csv": _CSV.encode()},
        {"t.tsv": _CSV.replace(",", "\t").replace('"w4\t w5"', "w4").encode()},
        {"t.csv.gz": gzip.compress(_CSV.encode())},
        {"t.csv": b'\xef\xbb\xbf"text","label"\r\n"a\r\nb","1"\r\n'},
    ]


def _csv(rng: Random, files: Files, _: Sequence[Files]) -> Files:
    name = next(iter(files))
    action = rng.randrange(20)
    if action == 0:
        return {"t.csv.gz": raw.gzip_bomb(rng.choice((1, 50, 1500, 3000)), _CSV.encode())}
    text = _CSV
    if action == 1:
        text = "text,label\n" + "w," * rng.choice((10, 10_000, 100_000)) + "\n"
    if action == 2:
        text = f"text,label\n{'w' * rng.choice((131_071, 131_073, 2_000_000))},1\n" * 2
    if action == 3:
        text = f"text,label\n{'w,1' * 1}\n" * rng.choice((1, 300, 3000))
    if action == 4:
        text = ",".join(f"c{n}" for n in range(rng.choice((0, 1, 3000)))) + "\n1\n"
    data = raw.damaged_text(rng, text, _TEXTS) if action > 4 else text.encode()
    if action > 17:
        data = raw.damaged(rng, data)
    return {name: raw.packed(rng, data) if name.endswith(".gz") else data}


_ROWS_AS_TEXT: Drives = {"examples": (60, _read())}
_ROWS_AS_TEXT |= {"slice": (15, _read(split="train[1:]", max_bad=3)), "tokens": (22, _prepared)}
CSV = Surface("csv", 8, _csv_seeds, _csv, {**_ROWS_AS_TEXT, "validate": (3, _validated)})

# -- json ------------------------------------------------------------------------------------------

_SHAPES = {"rows": _ROWS, "words": _WORDS, "talks": _TALKS, "values": _VALUES}
_KINDS = ("classification", "multi_label", "regression", "token_classification", "seq2seq")


def _json_seeds(_: Path) -> list[Files]:
    lines = "".join(json.dumps(row) + "\n" for row in _ROWS).encode()
    return [
        {"t.json": json.dumps(_ROWS).encode()},
        {"t.jsonl": lines},
        {"t.jsonl.gz": gzip.compress(lines)},
        {"t.json": json.dumps(_ROWS, indent=2).encode()},
    ]


def _json(rng: Random, files: Files, _: Sequence[Files]) -> Files:
    name = next(iter(files))
    if rng.random() < 0.02:
        return {"t.jsonl.gz": raw.gzip_bomb(rng.choice((1, 50, 1500, 3000)), b'{"text": "w1"}\n')}
    rows = rng.choice(list(_SHAPES.values()))
    if "jsonl" in name:
        chosen = rng.randrange(len(rows))
        data = b"".join(
            trees.as_json(rng, trees.damaged(rng, row) if number == chosen else row).replace(
                b"\n", b" "
            )
            + b"\n"
            for number, row in enumerate(rows)
        )
    else:
        data = trees.as_json(rng, trees.damaged(rng, rows))
    if rng.random() < 0.25:
        data = raw.damaged_text(rng, data.decode("utf-8", "surrogatepass"))
    if rng.random() < 0.05:
        data = raw.damaged(rng, data)
    return {name: raw.packed(rng, data) if name.endswith(".gz") else data}


def _own_kind(bench: Bench) -> None:
    """Read as the kind of task that its columns are for."""
    text = (bench.folder / _first(bench)).read_bytes()
    named = {b"tokens": "token_classification", b"score": "regression", b"answer": "seq2seq"}
    _read(next((kind for mark, kind in named.items() if mark in text), "classification"))(bench)


_DRIVES: Drives = {"examples": (40, _read()), "own kind": (20, _own_kind)}
_DRIVES |= {"some bad": (15, _read(split="train[:2]", max_bad=2)), "tokens": (22, _prepared)}
JSON = Surface("json", 8, _json_seeds, _json, {**_DRIVES, "validate": (3, _validated)})
