"""Weights: headers that lie about lengths, types, shapes and offsets."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import raw, trees
from tests.fuzz.fixtures import files_below
from tests.fuzz.surface import Bench, Files, Surface
from tests.fuzz.surfaces.reading import loaded, merged
from tintray.checkpoints.model_folder import open_model_folder
from tintray.merging.files.tensor_files import TensorFiles

_FILE = "model.safetensors"
_ODD = (
    *("F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "f32", "X", [0, 4]),
    *([4, 0], [0, 2**63], [-4, 0], [0, 2**40], [0], [0, 0], [1.0, 4.0], ["0", "4"]),
    *([2**31, 2**31, 2], [-1], [0], [2**63], [1] * 200, [2.0], [True], "pt", {"format": "pt"}),
)


def parts(data: bytes) -> tuple[Any, bytes]:
    """The header and the body of a sound safetensors file."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _whole(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def damaged(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A safetensors file with one or a few lies in it."""
    action = rng.randrange(10)
    if action == 0:
        return raw.damaged(rng, data, others)
    header, body = parts(data)
    if action == 1:
        length = rng.choice((0, 1, 7, 2**31, 2**40, 2**63, 2**64 - 1, 100 << 20))
        return struct.pack("<Q", length) + data[8:]
    if action == 2:
        return data[: rng.randint(0, len(data))]
    if action == 3:
        return data + rng.randbytes(rng.choice((1, 4, 1000)))
    if action == 4:  # numbers that are none, in their places
        body = bytearray(body)
        for _ in range(rng.choice((1, 20))):
            at = rng.randrange(max(1, len(body) - 4)) // 4 * 4
            body[at : at + 4] = struct.pack("<f", rng.choice((float("nan"), float("inf"), 1e38)))
        return _whole(json.dumps(header).encode(), bytes(body))
    if action == 5:
        names = [name for name in header if name != "__metadata__"]
        one, other = header[rng.choice(names)], header[rng.choice(names)]
        offsets = one["data_offsets"], other["data_offsets"]
        other["data_offsets"], one["data_offsets"] = offsets
        return _whole(json.dumps(header).encode(), body)
    text = trees.as_json(rng, trees.damaged(rng, header, _ODD))
    if action == 6:
        text += b" " * rng.choice((1, 8, 5000)) + rng.choice((b"", b"\0", b"x"))
    return _whole(text, body)


def _seeds(fixtures: Path) -> list[Files]:
    known = [files_below(fixtures / folder) for folder in ("zoo/three", "text/expert")]
    return [{name: files[name] for name in ("config.json", _FILE)} for files in known]


def _mutate(rng: Random, files: Files, seeds: Sequence[Files]) -> Files:
    others = [seed[_FILE] for seed in seeds]
    return {**files, _FILE: damaged(rng, files[_FILE], others)}


def _streamed(bench: Bench) -> None:
    """Every tensor, as merging reads them."""
    weights = open_model_folder(bench.folder, role="expert").weights
    with TensorFiles(weights, "expert") as files:
        for name in files.tensors:
            files.whole(name)


def _opened(bench: Bench) -> None:
    open_model_folder(bench.folder, role="expert")


_DRIVES = {"opened": (35, _opened), "streamed": (45, _streamed), "loaded": (15, loaded)}
SURFACE = Surface(
    "safetensors", 10, _seeds, _mutate, {**_DRIVES, "merge": (5, merged)}, folder=True
)
