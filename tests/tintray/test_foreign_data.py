"""Data that strangers wrote: within the budgets, below its folder, and an answer or a DataError."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_files import image_bytes, npz_bytes, parquet_bytes, table_bytes
from tintray.data.counting import extent
from tintray.data.labels import Answers, class_names
from tintray.data.reading import read_examples
from tintray.data.source import DataSource
from tintray.errors import DataError
from tintray.limits import Limits
from tintray.tasks.registry import KINDS

MIB = 1 << 20
SMALL = Limits(
    max_pool_bytes=MIB,
    max_examples=20_000,
    max_text_bytes=MIB,
    max_line_bytes=50_000,
    max_image_bytes=100_000,
    max_image_pixels=40_000,
)
ROWS = [{"text": f"a text, {n}\nof {'é' * n}", "label": n % 3} for n in range(6)]
PIXELS = np.arange(6 * 5 * 4 * 3, dtype=np.uint8).reshape(6, 5, 4, 3)


ARRAYS = {"x_train": PIXELS, "y_train": np.arange(6) % 3, "class_names": np.array(["a", "b", "c"])}
LINES = "\n".join(json.dumps(row) for row in ROWS).encode()
FORMS: dict[str, bytes] = {
    "d.npz": npz_bytes(**ARRAYS),
    "deflated.npz": npz_bytes(compressed=True, **ARRAYS),
    **{
        f"d.{form}": table_bytes(f"d.{form}", ROWS)
        for form in ("csv", "tsv", "json", "jsonl", "jsonl.gz", "csv.gz", "parquet")
    },
    **{
        f"images/{mode}.{form.lower()}": image_bytes(form, mode)
        for form, modes in {
            "PNG": ("RGB", "P", "LA", "I;16"),
            "JPEG": ("L", "CMYK"),
            "GIF": ("P",),
            "BMP": ("RGB",),
            "WEBP": ("RGBA",),
            "TIFF": ("RGB", "F"),
        }.items()
        for mode in modes
    },
}
PIECES = [
    *(b"\0", b"\xff" * 8, b"\xed\xa0\x80", b"\\ud800", b"\x1b[31m", b"\r", b'"', b"[" * 3000),
    *(b"1e400", b"NaN", b"9" * 5000, b"null", b"{}", b"(9223372036854775807,)", b"|O", b"\n\n"),
    *(b"a" * 60_000, b"\xff\xff\xff\x7f", b"\xef\xbb\xbf", b"\xff\xfe", b"'descr'", b",,,,"),
]  # fmt: skip


@st.composite
def mutated(draw: Any, whole: bytes) -> bytes:
    """Some bytes cut, flipped, repeated, or replaced by what tends to hurt."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(whole)))
        size = draw(st.integers(0, 8) | st.integers(0, len(whole)))
        kind = draw(st.sampled_from(["cut", "end", "flip", "repeat", "piece"]))
        if kind == "flip" and at < len(whole):
            flipped = bytes([whole[at] ^ (1 << draw(st.integers(0, 7)))])
            whole = whole[:at] + flipped + whole[at + 1 :]
        elif kind == "piece":
            whole = whole[:at] + draw(st.sampled_from(PIECES)) + whole[at + min(size, 8) :]
        elif kind == "repeat":
            whole = whole[: at + size] + whole[at:]
        else:
            whole = whole[:at] + (whole[at + size :] if kind == "cut" else b"")
    return whole


def answers_to(path: Path, limits: Limits = SMALL) -> Iterator[str]:
    """What reading a file in every way gives: a sentence, or nothing where it is read."""
    for split in ("train", "train[:3]", "train[50%:]"):
        source, answers = DataSource(str(path), split, limits=limits), Answers(3, {"a": 0})
        calls: list[Callable[[], Any]] = [
            lambda s=source: read_examples(s, "tasks.x.pool").digest(),
            lambda s=source: class_names(s, "tasks.x.pool"),
            lambda s=source: extent(s),
            *(
                partial(kind.read_labels, source, [0, 1], answers, "tasks.x.test")
                for kind in KINDS.values()
            ),
        ]
        for call in calls:
            try:
                call()
            except DataError as error:
                yield str(error)


@pytest.mark.filterwarnings("ignore")  # of Pillow, about damaged files
@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=20)
@given(st.data())
def test_damaged_files_are_read_or_refused_in_one_sentence(name: str, data: Any) -> None:
    """Whatever numpy, zipfile, csv, json, pyarrow and Pillow raise; within the budgets."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data.draw(mutated(FORMS[name])))
        whole = path if path.parent == Path(folder) else path.parent
        for sentence in answers_to(whole):
            assert sentence.startswith("tasks.x.")
            assert sentence.isprintable()
            assert len(sentence) <= 500


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["\ud800", 10**400, float("nan"), "²", "--1", b"x".decode(), -0.0]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


names = st.sampled_from(["text", "label", "tokens", "messages", "image"])


@settings(max_examples=100)
@given(st.lists(st.dictionaries(names, values), min_size=1, max_size=3))
def test_values_of_any_type_are_read_or_refused_in_one_sentence(rows: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.json"
        path.write_text(json.dumps(rows))
        for sentence in answers_to(path):
            assert sentence.startswith("tasks.x.")
            assert sentence.isprintable()


# -- budgets ---------------------------------------------------------------------------------------


def archive(
    path: Path, header: bytes, content: bytes = b"", method: int = zipfile.ZIP_STORED
) -> str:
    """An npz file of one array with a header of one's own."""
    with zipfile.ZipFile(path, "w", method) as whole:
        start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        whole.writestr("x_train.npy", start + content)
    return str(path)


def header(shape: str, descr: str = "|u1") -> bytes:
    return f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()


HEADERS = [
    (header("(400000000, 8, 8)"), "promises uint8 [400000000, 8, 8]"),
    (header("(400000000, 0)"), "is empty"),
    (header("(2305843009213693951,)", "<U0"), "is empty"),
    (header("(99999999999999999999999,)"), "the shape"),
    (header("()"), "the shape []"),
    (header("(-1, 8)"), "the shape"),
    (header("(2,)", "|O"), "is of object"),
    (header("(2,)", "<M8[s]"), "is of datetime64[s]"),
    (header("(2,)").replace(b"'|u1'", b"[('a', '<u4')]"), "plain numbers or texts"),
    (b"(" * 9000, "plain arrays"),
    (b"x" * 20_000, "array header, expected 20000 bytes"),
]
IMAGES = [
    (np.zeros((2, 3, 5, 3), np.uint8), "either the second or the last"),
    (np.zeros((2, 1, 5, 1), np.uint8), "either the second or the last"),
    (np.zeros((2, 5, 5, 4), np.uint8), "uint8 [2, 5, 5, 4]; expected uint8 images"),
    (np.zeros((2, 5), np.uint8), "uint8 [2, 5]; expected uint8 images"),
    (np.zeros((2, 5, 5), bool), "expected uint8 images"),
    (np.zeros((2, 4, 4)), "float64 [2, 4, 4]; expected uint8"),
    (np.zeros((0, 4, 4), np.uint8), "is empty; expected at least one"),
    (np.zeros((2, 0, 4), np.uint8), "is empty"),
    (np.array([{"a": 1}], dtype=object), "cannot be read"),
    (np.ones((2, 5, 5), np.int64), "0 to 255"),
    (np.full((2, 5, 5), 0.5003), "0 to 255"),
    (np.full((2, 5, 5), np.nan), "0 to 255"),
    (np.full((2, 5, 5), 300), "0 to 255"),
    (np.full((2, 5, 5), -1.0), "0 to 255"),
]
WHOLE = npz_bytes(x_train=np.random.default_rng(0).integers(0, 256, (50, 16, 16), dtype=np.uint8))
TABLES: list[tuple[str, bytes, str]] = [
    *(("d.npz", npz_bytes(x_train=array), words) for array, words in IMAGES),
    ("d.npz", npz_bytes(x_test=PIXELS), "no array 'x_train'; its splits are test"),
    ("d.npz", npz_bytes(), "no array 'x_train'; its splits are none"),
    ("d.npz", b"", "cannot be read as an npz file"),
    ("d.npz", b"PK\x03\x04 broken", "cannot be read as an npz file"),
    ("d.npz", b"\x93NUMPY", "cannot be read as an npz file"),
    ("d.npz", WHOLE[: len(WHOLE) // 2], "cannot be read as an npz file"),
    ("d.npz", WHOLE[:-10], "cannot be read as an npz file"),
    ("d.npz", WHOLE[:9000] + b"\0" + WHOLE[9001:], "cannot be read as an npz file"),
    ("d.json", b'[{"a": 1}]', "no column of inputs; it has a, expected one called image"),
    ("d.json", b'[{"text": 3}]', "example 1 has 3 in 'text', not a text"),
    ("d.json", b'[{"text": ""}]', "example 1 has '' in 'text', not a text"),
    ("d.json", b"[1]", "cannot be read as"),
    ("d.jsonl", b"{}\n{", "cannot be read as"),
    ("d.csv", b"a,b\n1\n", "cannot be read as"),
    ("d.csv", b"text,text\na,b\n", "two columns are called 'text'"),
    ("d.csv", "text\nna\u00efve\n".encode("utf-16"), "UTF-16; expected UTF-8"),
    ("d.csv", "text\nna\u00efve\n".encode("utf-16-le"), "utf-8"),
    ("d.csv", "text\nna\u00efve\n".encode("latin-1"), "'utf-8' codec can't decode"),
    ("d.xls", b"", "is of no known form; expected .npz"),
    ("d.jsonl", json.dumps({"\x1b[31mred": 1}).encode(), r"\x1b[31mred"),
    ("d.npz", npz_bytes(**{"x_tr\x1b[2J": PIXELS}), r"\x1b["),  # none can reach a terminal
]


@pytest.mark.parametrize(("name", "content", "words"), TABLES)
def test_what_is_no_data_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"^tasks\.x\.pool: .*{tmp_path / name}") as caught:
        read_examples(DataSource(str(tmp_path / name)), "tasks.x.pool")
    assert words in str(caught.value)


def test_arrays_that_numpy_does_not_write_are_refused_before_they_are_read(tmp_path: Path) -> None:
    for text, words in HEADERS:
        with pytest.raises(DataError, match=re.escape(words)):
            read_examples(DataSource(archive(tmp_path / "d.npz", text)), "x")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = archive(tmp_path / "d.npz", header("(2, 4, 4)"), bytes(32), method)
        with pytest.raises(DataError, match=r"'x_train\.npy' is compressed by method"):
            read_examples(DataSource(path), "x")
    path = archive(tmp_path / "d.npz", header("(2, 4, 4)"), bytes(32))
    with zipfile.ZipFile(path, "a") as whole, pytest.warns(UserWarning, match="Duplicate"):
        whole.writestr("x_train.npy", b"")
    with pytest.raises(DataError, match="2 arrays called 'x_train'"):
        read_examples(DataSource(path), "x")


BOMB = 8 * MIB


def bombs(folder: Path) -> Iterator[Path]:
    """Files of some kilobytes that unpack to 8 MiB."""
    whole = header(f"({BOMB // 64}, 8, 8)"), bytes(BOMB), zipfile.ZIP_DEFLATED
    yield Path(archive(folder / "d.npz", *whole))
    packed = {
        "line.csv.gz": b"text\n" + b"a" * BOMB,
        "quoted.csv.gz": b'text\n"' + b"a\n" * (BOMB // 2),
        "columns.csv.gz": b"," * BOMB,
        "rows.csv.gz": b"text\n" + b"aaaaaaaa\n" * (BOMB // 9),
        "line.jsonl.gz": b'{"text": "' + b"a" * BOMB,
        "blank.csv.gz": b"text\n" + b"\n" * 100_000,
        "rows.jsonl.gz": b'{"text": "a"}\n' * (BOMB // 14),
        "blank.jsonl.gz": b" " * BOMB,
        "line.json.gz": b'[{"text": "' + b"a" * BOMB,
        "rows.json.gz": b"[" + b'{"text":"a"},' * (BOMB // 13),
        "lists.json.gz": b'[{"text": [' + b"[]," * (BOMB // 3),
    }
    for name, content in packed.items():
        (folder / name).write_bytes(gzip.compress(content, 1))
        yield folder / name
    pyarrow = pytest.importorskip("pyarrow")
    repeated = pyarrow.DictionaryArray.from_arrays([0] * 2000, ["a" * 40_000])
    for name, texts in (("d", ["a" * 20] * (BOMB // 20)), ("d.repeated", repeated)):
        (folder / f"{name}.parquet").write_bytes(parquet_bytes({"text": texts}))
        yield folder / f"{name}.parquet"
    for name, count, size in (("images", 12, (199, 200)), ("pixels", 1, (2000, 2000))):
        (folder / name).mkdir()
        for number in range(count):
            (folder / name / f"{number}.png").write_bytes(image_bytes("PNG", size=size))
        yield folder / name


def test_what_unpacks_beyond_a_budget_is_refused_and_the_budget_named(tmp_path: Path) -> None:
    for path in bombs(tmp_path):
        assert path.is_dir() or path.stat().st_size < MIB, path
        words = rf"{path}.*max_((pool|text|line|image)_(bytes|pixels)|examples)"
        with pytest.raises(DataError, match=words):
            read_examples(DataSource(str(path), limits=SMALL), "tasks.x.pool")


def test_a_slice_takes_what_it_reads_not_what_the_file_holds(tmp_path: Path) -> None:
    for path in bombs(tmp_path):
        if path.name.startswith(("rows", "d.")) or path.name == "images":
            for split in ("train[:5]", "train[2:5]"):
                order = DataSource(str(path), split, limits=SMALL)
                assert len(read_examples(order, "x")) == (5 if split == "train[:5]" else 3)
    table = tmp_path / "d.jsonl"
    table.write_bytes(LINES + b"\nthis is no JSON")
    assert len(read_examples(DataSource(str(table), "train[:6]"), "x")) == 6
    table.write_bytes(LINES)
    for split, words in (("test", "one table, .* found split 'test'"), ("train[20:]", "is empty")):
        with pytest.raises(DataError, match=words):
            read_examples(DataSource(str(table), split), "x")


# -- which files -----------------------------------------------------------------------------------


def test_image_files_are_regular_and_lie_below_the_data(tmp_path: Path) -> None:
    inside, outside = tmp_path / "data", tmp_path / "other"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(image_bytes("PNG"))
    os.mkfifo(inside / "pipe.png")
    (inside / "link.png").symlink_to(outside / "a.png")
    (inside / "good.png").symlink_to("a.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(inside / "socket.png"))
    table = inside / "d.jsonl"

    def read(name: str, limits: Limits = SMALL) -> Any:
        table.write_text(json.dumps({"image": name}))
        return read_examples(DataSource(str(table), limits=limits), "x")

    for name in ("a.png", "good.png", "./a.png", "../data/a.png", str(inside / "a.png")):
        assert len(read(name)) == 1
    refused = ("pipe.png", "socket.png", "link.png", "../other/a.png", str(outside / "a.png"), ".",
               "/dev/zero", "/dev/stdin", "/proc/self/environ", "none.png", "", "a\0.png",
               "x" * 5000)  # fmt: skip
    for name in refused:
        with pytest.raises(DataError, match="cannot be read"):
            read(name)
    assert len(read("../other/a.png", replace(SMALL, data_roots=(str(outside),)))) == 1
    for name in ("pipe.png", "link.png"):
        folder = tmp_path / name.removesuffix(".png")
        folder.mkdir()
        (inside / name).rename(folder / name)
        with pytest.raises(DataError, match=rf"1 of 1 examples of .*{name}"):
            read_examples(DataSource(str(folder)), "x")


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".json.gz", ".parquet"])
def test_data_is_a_regular_file_or_a_folder(tmp_path: Path, suffix: str) -> None:
    pipe, bound, device = (tmp_path / f"{name}{suffix}" for name in ("pipe", "socket", "device"))
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(bound))
    for path in (pipe, bound, device):
        with pytest.raises(DataError, match="no regular file"):
            read_examples(DataSource(str(path)), "x")
