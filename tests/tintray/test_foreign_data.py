"""Data that strangers wrote: within the budgets, below its folder, and an answer or a DataError."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
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
from PIL import Image

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


def npz_bytes(compressed: bool = False, **arrays: Any) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def csv_bytes(delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["text", "label"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def parquet_bytes(rows: dict[str, Any], **options: Any) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.table(rows), file, **options)
    return file.getvalue()


def image_bytes(form: str, mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, form)
    return file.getvalue()


ARRAYS = {"x_train": PIXELS, "y_train": np.arange(6) % 3, "class_names": np.array(["a", "b", "c"])}
LINES = "\n".join(json.dumps(row) for row in ROWS).encode()
FORMS: dict[str, bytes] = {
    "d.npz": npz_bytes(**ARRAYS),
    "deflated.npz": npz_bytes(compressed=True, **ARRAYS),
    "d.csv": csv_bytes(),
    "d.tsv": csv_bytes("\t"),
    "d.json": json.dumps(ROWS).encode(),
    "d.jsonl": LINES,
    "d.jsonl.gz": gzip.compress(LINES),
    "d.csv.gz": gzip.compress(csv_bytes()),
    "d.parquet": parquet_bytes({k: [row[k] for row in ROWS] for k in ROWS[0]}),
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
            whole = (
                whole[:at] + bytes([whole[at] ^ (1 << draw(st.integers(0, 7)))]) + whole[at + 1 :]
            )
        elif kind == "piece":
            whole = whole[:at] + draw(st.sampled_from(PIECES)) + whole[at + min(size, 8) :]
        elif kind == "repeat":
            whole = whole[: at + size] + whole[at:]
        else:
            whole = whole[:at] + (whole[at + size :] if kind == "cut" else b"")
    return whole


def _digest(order: DataSource) -> str:
    return read_examples(order, "tasks.x.pool").digest()


def answers_to(path: Path, limits: Limits = SMALL) -> Iterator[str]:
    """What reading a file in every way gives: a sentence, or nothing where it is read."""
    for split in ("train", "train[:3]", "train[50%:]"):
        order = DataSource(str(path), split, limits=limits)
        known = Answers(3, {"a": 0})
        calls: list[Callable[[], Any]] = [
            partial(_digest, order),
            partial(class_names, order, "tasks.x.pool"),
            partial(extent, order),
            *(
                partial(kind.read_labels, order, [0, 1], known, "tasks.x.test")
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
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
        (b"x" * 20_000, "header of 'x_train' has 20,000 bytes"),
    ],
)
def test_what_an_array_promises_is_checked_before_it_is_read(
    tmp_path: Path, text: bytes, words: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_examples(DataSource(archive(tmp_path / "d.npz", text)), "x")
    assert words in str(caught.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_arrays_that_numpy_does_not_write_are_refused(tmp_path: Path, method: int) -> None:
    path = archive(tmp_path / "d.npz", header("(2, 4, 4)"), bytes(32), method)
    with pytest.raises(DataError, match=r"'x_train\.npy' is compressed by method"):
        read_examples(DataSource(path), "x")


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "d.npz", header("(2, 4, 4)"), bytes(32))
    with zipfile.ZipFile(path, "a") as whole, pytest.warns(UserWarning, match="Duplicate"):
        whole.writestr("x_train.npy", b"")
    with pytest.raises(DataError, match="2 arrays called 'x_train'"):
        read_examples(DataSource(path), "x")


BOMB = 8 * MIB


def bombs(folder: Path) -> Iterator[Path]:
    """Files of some kilobytes that unpack to 8 MiB."""
    yield Path(
        archive(
            folder / "d.npz", header(f"({BOMB // 64}, 8, 8)"), bytes(BOMB), zipfile.ZIP_DEFLATED
        )
    )
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
    (folder / "d.parquet").write_bytes(parquet_bytes({"text": ["a" * 20] * (BOMB // 20)}))
    yield folder / "d.parquet"
    pyarrow = pytest.importorskip("pyarrow")
    repeated = pyarrow.DictionaryArray.from_arrays([0] * 2000, ["a" * 40_000])
    (folder / "d.repeated.parquet").write_bytes(parquet_bytes({"text": repeated}))
    yield folder / "d.repeated.parquet"
    (folder / "images").mkdir()
    for number in range(12):
        (folder / "images" / f"{number}.png").write_bytes(image_bytes("PNG", size=(199, 200)))
    yield folder / "images"
    (folder / "pixels").mkdir()
    (folder / "pixels" / "0.png").write_bytes(image_bytes("PNG", size=(2000, 2000)))
    yield folder / "pixels"


def test_what_unpacks_beyond_a_budget_is_refused_and_the_budget_named(tmp_path: Path) -> None:
    paths = list(bombs(tmp_path))
    for path in paths:
        assert path.is_dir() or path.stat().st_size < MIB, path
        with pytest.raises(
            DataError, match=r"max_((pool|text|line|image)_(bytes|pixels)|examples)"
        ) as caught:
            read_examples(DataSource(str(path), limits=SMALL), "tasks.x.pool")
        assert str(path) in str(caught.value)


def test_a_slice_takes_what_it_reads_not_what_the_file_holds(tmp_path: Path) -> None:
    for path in bombs(tmp_path):
        if path.name.startswith(("rows", "d.")) or path.name == "images":
            for split in ("train[:5]", "train[2:5]"):
                order = DataSource(str(path), split, limits=SMALL)
                assert len(read_examples(order, "x")) == (5 if split == "train[:5]" else 3)
    (tmp_path / "d.jsonl").write_bytes(LINES + b"\nthis is no JSON")
    assert len(read_examples(DataSource(str(tmp_path / "d.jsonl"), "train[:6]"), "x")) == 6


# -- which files -----------------------------------------------------------------------------------


def test_image_files_are_regular_and_lie_below_the_data(tmp_path: Path) -> None:
    inside, outside = tmp_path / "data", tmp_path / "other"
    inside.mkdir()
    outside.mkdir()
    for folder in (inside, outside):
        (folder / "a.png").write_bytes(image_bytes("PNG"))
    os.mkfifo(inside / "pipe.png")
    (inside / "link.png").symlink_to(outside / "a.png")
    (inside / "good.png").symlink_to("a.png")
    listener = socket.socket(socket.AF_UNIX)
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
    listener.close()


@pytest.mark.parametrize("make", ["pipe", "socket", "device"])
@pytest.mark.parametrize("suffix", [".npz", ".csv", ".json.gz", ".parquet"])
def test_data_is_a_regular_file_or_a_folder(tmp_path: Path, make: str, suffix: str) -> None:
    path = tmp_path / f"d{suffix}"
    if make == "pipe":
        os.mkfifo(path)
    elif make == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="no regular file"):
        read_examples(DataSource(str(path)), "x")


# -- good input ------------------------------------------------------------------------------------

TEXTS = ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb\x0cc", "a\rb", "\ufeffa", "a\nb", "a\x1cb"]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json"])
def test_texts_keep_every_character(tmp_path: Path, form: str, start: str, ends: str) -> None:
    path = tmp_path / f"d.{form}"
    text = io.StringIO()
    if form in ("csv", "tsv"):
        writer = csv.writer(
            text,
            delimiter="," if form == "csv" else "\t",
            lineterminator=ends,
            quoting=csv.QUOTE_ALL,
        )
        writer.writerows([["text"], *([one] for one in TEXTS)])
    elif form == "json":
        json.dump([{"text": one} for one in TEXTS], text, ensure_ascii=False, indent=1)
    else:
        lines = [json.dumps({"text": one}, ensure_ascii=False) for one in TEXTS]
        text.write("".join(line + ends for line in lines))
    path.write_bytes((start + text.getvalue()).encode())
    assert read_examples(DataSource(str(path)), "x").columns["text"] == TEXTS


def test_long_texts_are_read(tmp_path: Path) -> None:
    long = "word " * 60_000
    (tmp_path / "d.csv").write_text(f"text\n{long}\n")
    (tmp_path / "d.json").write_text(json.dumps([{"text": long + str(n)} for n in range(9)]))
    assert read_examples(DataSource(str(tmp_path / "d.csv")), "x").columns["text"] == [long]
    found = read_examples(DataSource(str(tmp_path / "d.json"), "train[3:5]"), "x")
    assert found.columns["text"] == [f"{long}3", f"{long}4"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    content = "text\nnaïve\n".encode(encoding)
    (tmp_path / "d.csv").write_bytes(content)
    words = {"utf-16": "UTF-16; expected UTF-8", "latin-1": "'utf-8' codec can't decode"}
    with pytest.raises(DataError, match=words.get(encoding, "no column of inputs|utf-8")):
        read_examples(DataSource(str(tmp_path / "d.csv")), "x")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text,text\na,b\n")
    with pytest.raises(DataError, match="two columns are called 'text'"):
        read_examples(DataSource(str(tmp_path / "d.csv")), "x")


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "channels last": lambda x: x,
    "channels first": lambda x: np.moveaxis(x, -1, 1),
    "fortran": np.asfortranarray,
    "int64": lambda x: x.astype(np.int64),
    "big-endian": lambda x: x.astype(">u2"),
    "float 0 to 255": lambda x: x.astype(np.float32),
    "float 0 to 1": lambda x: x.astype(np.float32) / 255,
    "half, 0 to 1, channels first": lambda x: np.moveaxis((x / 255).astype(np.float16), -1, 1),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_every_layout_are_the_same(tmp_path: Path, name: str, channels: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, (4, 7, 9, channels), dtype=np.uint8)
    path = tmp_path / "d.npz"
    np.savez(path, x_train=LAYOUTS[name](data), y_train=np.arange(4))
    for split, part in {"train": slice(None), "train[1:3]": slice(1, 3)}.items():
        found = read_examples(DataSource(str(path), split), "x").columns["image"]
        assert found.dtype == np.uint8
        assert np.array_equal(found, data[part] if channels == 3 else data[part, ..., 0])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 3, 5, 3), np.uint8), "either the second or the last"),
        (np.zeros((2, 1, 5, 1), np.uint8), "either the second or the last"),
        (np.zeros((2, 5, 5, 4), np.uint8), "expected uint8 images"),
        (np.zeros((2, 5), np.uint8), "expected uint8 images"),
        (np.zeros((2, 5, 5), bool), "expected uint8 images"),
        (np.ones((2, 5, 5), np.int64), "0 to 255"),
        (np.full((2, 5, 5), 0.5003), "0 to 255"),
        (np.full((2, 5, 5), np.nan), "0 to 255"),
        (np.full((2, 5, 5), 300), "0 to 255"),
        (np.full((2, 5, 5), -1.0), "0 to 255"),
    ],
)
def test_images_of_uncertain_meaning_are_refused(tmp_path: Path, array: Any, words: str) -> None:
    np.savez(tmp_path / "d.npz", x_train=array)
    with pytest.raises(DataError, match=words):
        read_examples(DataSource(str(tmp_path / "d.npz")), "x")


def test_names_from_data_cannot_reach_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"\x1b[31mred": 1}))
    np.savez(tmp_path / "d.npz", **{"x_tr\x1b[2J": PIXELS})
    for name in ("d.jsonl", "d.npz"):
        with pytest.raises(DataError) as caught:
            read_examples(DataSource(str(tmp_path / name)), "x")
        assert r"\x1b[" in str(caught.value)


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl", "d.json", "d.parquet", "d.npz"])
def test_one_example_is_enough_and_none_is_refused(tmp_path: Path, name: str) -> None:
    rows: dict[int, bytes] = {
        count: {
            "d.csv": b"text\n" + b"a\n" * count,
            "d.jsonl": b'{"text": "a"}\n' * count,
            "d.json": json.dumps([{"text": "a"}] * count).encode(),
            "d.parquet": parquet_bytes({"text": ["a"] * count}),
            "d.npz": npz_bytes(x_train=PIXELS[:count]),
        }[name]
        for count in (0, 1)
    }
    path = tmp_path / name
    path.write_bytes(rows[1])
    assert len(read_examples(DataSource(str(path)), "x")) == 1
    path.write_bytes(rows[0])
    with pytest.raises(DataError, match="empty"):
        read_examples(DataSource(str(path)), "x")
