"""Arrays: archives that lie, headers that lie, arrays that are no images."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np

from tests.fuzz import raw
from tests.fuzz.surface import Files, Surface
from tests.fuzz.surfaces.reading import examples, pool, validated

_DATA = "data.npz"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_TYPES = (
    *("|u1", "<i8", "<f4", "<f8", "|O", "|S5", "<U7", "<U9999", "|b1", "<c16", ">i2", "<M8[ns]"),
    *("|V8", "[('a', '<i4'), ('b', '|O')]", "x", "", "<f99", "|u1\\x1b[31m", "()"),
)
_SHAPES = (
    *("()", "(0,)", "(1,)", "(4,)", "(-1,)", "(4, 16, 16, 3)", "(4, 0, 16)", "(4, 16, 16)"),
    *("(99999999999,)", "(9223372036854775807, 2)", "(1000000, 1000000)", "(4.5,)", "('a',)"),
    *("(4, 3, 16, 16)", "(2147483648,)", "4", "(" * 400, "(True,)", "(1,) * 10**9"),
    *("(700_000_000,)", "(10**9, 10**9)"),
)
_NAMES = (
    *("x_train.npy", "x_train", "y_train.npy", "x_test.npy", "class_names.npy", "../x_train.npy"),
    *("/x_train.npy", "x_train.npy\x1b[31m", "", "x_\ud7ff.npy", "x_train.npy/", "a" * 3000),
)


def _seeds(_: Path) -> list[Files]:
    random = np.random.default_rng(0)
    names = np.array(["zero", "one", "two"])
    labels = np.array([0, 1, 2, 1])
    images = random.integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    found = []
    for save, arrays in (
        (np.savez, {"x_train": images, "y_train": labels, "class_names": names}),
        (np.savez, {"x_train": images[..., 0], "y_train": labels}),
        (np.savez_compressed, {"x_train": images, "y_train": labels.astype(np.uint8)}),
        (np.savez_compressed, {"x_train": images, "y_train": names[labels]}),
    ):
        held = io.BytesIO()
        save(held, **arrays)
        found.append({_DATA: held.getvalue()})
    return found


def _mutate(rng: Random, files: Files, seeds: Sequence[Files]) -> Files:
    data = files[_DATA]
    action = rng.randrange(8)
    if action == 0:
        return {_DATA: raw.damaged(rng, data, [seed[_DATA] for seed in seeds])}
    if action == 1:
        return {_DATA: _bomb(rng)}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(members))
        name, content = members[at]
        other = rng.random() < 0.8
        members[at] = (name, _array(rng, content)) if other else (rng.choice(_NAMES), content)
    if action == 2:
        members.append(rng.choice(members))
    if action == 3:
        del members[rng.randrange(len(members))]
    packed = _zipped(members, rng.choice(_METHODS))
    return {_DATA: raw.damaged(rng, packed) if action == 4 else packed}


def _zipped(members: Sequence[tuple[str, bytes]], method: int) -> bytes:
    held = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(held, "w", method) as archive:
        warnings.simplefilter("ignore")  # a name may be there twice
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name or "x"), content, method)
    return held.getvalue()


def _array(rng: Random, content: bytes) -> bytes:
    """An .npy file with another header, or another body."""
    if rng.random() < 0.25:
        return raw.damaged(rng, content)
    if rng.random() < 0.2:
        held = io.BytesIO()
        kind = rng.choice((np.float64, np.int64, np.uint8, np.bool_, np.complex64, "S3", "U4"))
        shape = rng.choice(((), (0,), (4,), (4, 2), (4, 16, 16), (4, 3, 16, 16), (4, 1, 1, 1, 1)))
        np.save(held, np.full(shape, rng.choice((0, 1, 7))).astype(kind))
        return held.getvalue()
    body = content[10 + struct.unpack("<H", content[8:10])[0] :] if len(content) > 10 else b""
    return header(rng.choice(_TYPES), rng.choice(_SHAPES), rng) + body


def header(kind: str, shape: str, rng: Random) -> bytes:
    """The beginning of an .npy file that says so."""
    quoted = kind if kind.startswith("[") else f"'{kind}'"
    order = rng.choice(("False", "False", "True", "None", "1"))
    text = f"{{'descr': {quoted}, 'fortran_order': {order}, 'shape': {shape}, }}"
    odd = (
        *(text + "\x00", "{" * 300, "[" * 20_000, text[:-9], "a" * 70_000, ""),
        text + "  # \x1b[31m",
    )
    encoded = (rng.choice(odd) if rng.random() < 0.1 else text).encode("latin1", "replace")
    version = rng.choice((b"\x01\x00",) * 6 + (b"\x02\x00", b"\x03\x00", b"\x07\x00"))
    wide = "<H" if version == b"\x01\x00" else "<I"
    length = len(encoded) if rng.random() < 0.95 else rng.choice((0, 5, 65_535, 2**31))
    if wide == "<H":
        length = min(length, 65_535)
    return b"\x93NUMPY" + version + struct.pack(wide, length) + encoded


def _bomb(rng: Random) -> bytes:
    """An archive of a few kilobytes whose array takes up to two gigabytes."""
    mebibytes = rng.choice((1, 2, 1500, 2500))
    rows = mebibytes * 2**20 // (16 * 16 * 3)
    start = header("|u1", f"({rows}, 16, 16, 3)", Random(1))
    body = raw.zeros_deflated(mebibytes)
    # One stored block with the header goes before the zeros.
    packed = b"\x00" + struct.pack("<HH", len(start), len(start) ^ 0xFFFF) + start + body
    size = len(start) + mebibytes * 2**20 + 1
    said = rng.choice((size, size, 100, 2**32 - 2))
    name = b"x_train.npy"
    fields = struct.pack("<HHHHHIII", 20, 0, 8, 0, 0, 0, len(packed), said)
    local = b"PK\x03\x04" + fields + struct.pack("<HH", len(name), 0) + name
    tail = struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    central = b"PK\x01\x02" + struct.pack("<H", 20) + fields + tail
    offset = len(local) + len(packed)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), offset, 0)
    return local + packed + central + end


_DRIVES = {
    "examples": (70, examples(_DATA)),
    "slice": (10, examples(_DATA, split="train[1:3]")),
    **{kind: (5, examples(_DATA, kind)) for kind in ("multi_label", "depth")},
    "pool": (8, pool(_DATA)),
    "validate": (2, validated(_DATA)),
}
SURFACE = Surface("npz", 10, _seeds, _mutate, _DRIVES)
