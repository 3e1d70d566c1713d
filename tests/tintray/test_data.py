"""Data in every form that people have: the same examples, whatever the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data_files import npz_bytes, parquet_bytes, table_bytes
from tintray.data.labels import Answers
from tintray.data.reading import read_examples
from tintray.data.source import DataSource
from tintray.errors import DataError
from tintray.tasks.kinds import KindName
from tintray.tasks.registry import find_kind

ROWS = [{"text": f"text {n}", "label": n % 3} for n in range(10)]
PIXELS = np.arange(6 * 5 * 4 * 3, dtype=np.uint8).reshape(6, 5, 4, 3)
NAMED = Answers(2, {"dog": 0, "cat": 1})


def labels_of(
    source: DataSource, rows: Any, answers: Answers, kind: KindName = "classification"
) -> Any:
    found = find_kind(kind).read_labels(source, rows, answers, "x")
    return [row.tolist() for row in found] if isinstance(found, list) else found.tolist()


def written(path: Path, content: bytes | None = None) -> DataSource:
    path.write_bytes(table_bytes(path.name, ROWS) if content is None else content)
    return DataSource(str(path))


# -- texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl", "d.jsonl.gz", "d.json", "d.parquet"])
def test_every_form_gives_the_same(tmp_path: Path, name: str) -> None:
    source = DataSource(written(tmp_path / name).path, "train[20%:8]")
    examples = read_examples(source, "x")
    assert examples.columns == {"text": [row["text"] for row in ROWS[2:8]]}
    assert labels_of(source, examples.rows, Answers(3)) == [row["label"] for row in ROWS[2:8]]


def test_columns_go_by_their_names_or_by_the_job(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"review": "good", "stars": "high"}))
    source = DataSource(str(path), columns={"text": "review", "label": "stars"})
    assert read_examples(source, "x").columns == {"text": ["good"]}
    assert labels_of(source, [0], Answers(2, {"low": 0, "high": 1})) == [1]
    with pytest.raises(DataError, match=r"'high', which is no class .* it has cold, hot"):
        labels_of(source, [0], Answers(2, {"cold": 0, "hot": 1}))
    with pytest.raises(DataError, match=r"no column 'rview'.*did you mean 'review'"):
        read_examples(DataSource(str(path), columns={"text": "rview"}), "x")


def test_a_sample_is_spread_evenly_over_the_split(tmp_path: Path) -> None:
    """Of data sorted by class, every class is there."""
    path = written(tmp_path / "d.jsonl").path
    source = DataSource(path, "train[2:]", sample=4)
    examples = read_examples(source, "x")
    assert examples.rows.tolist() == [2, 4, 6, 8]
    assert examples.columns["text"] == ["text 2", "text 4", "text 6", "text 8"]
    assert labels_of(source, examples.rows, Answers(3)) == [2, 1, 0, 2]
    assert len(read_examples(DataSource(path, sample=99), "x")) == 10
    prefixed = read_examples(DataSource(path, sample=1, prefix="summarize: "), "x")
    assert prefixed.columns["text"] == ["summarize: text 0"]


TEXTS = ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb\x0cc", "a\rb", "\ufeffa", "a\nb", "a\x1cb"]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("start", [b"", "\ufeff".encode()])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json"])
def test_texts_keep_every_character(tmp_path: Path, form: str, start: bytes, ends: str) -> None:
    content = table_bytes(f"d.{form}", [{"text": one} for one in TEXTS], ends=ends)
    source = written(tmp_path / f"d.{form}", start + content)
    assert read_examples(source, "x").columns["text"] == TEXTS


def test_long_texts_are_read(tmp_path: Path) -> None:
    long = "word " * 60_000
    rows = [{"text": long + str(n)} for n in range(9)]
    for name in ("d.csv", "d.json"):
        path = written(tmp_path / name, table_bytes(name, rows)).path
        examples = read_examples(DataSource(path, "train[3:5]"), "x")
        assert examples.columns["text"] == [f"{long}3", f"{long}4"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", lambda count: b"text\n" + b"a\n" * count),
        ("d.jsonl", lambda count: b'{"text": "a"}\n' * count),
        ("d.json", lambda count: json.dumps([{"text": "a"}] * count).encode()),
        ("d.parquet", lambda count: parquet_bytes({"text": ["a"] * count})),
        ("d.npz", lambda count: npz_bytes(x_train=PIXELS[:count])),
    ],
)
def test_one_example_is_enough_and_none_is_refused(
    tmp_path: Path, name: str, content: Callable[[int], bytes]
) -> None:
    assert len(read_examples(written(tmp_path / name, content(1)), "x")) == 1
    with pytest.raises(DataError, match="empty"):
        read_examples(written(tmp_path / name, content(0)), "x")


# -- images ----------------------------------------------------------------------------------------


def image_folder(folder: Path) -> Path:
    for split, count in (("train", 4), ("test", 2)):
        for number, name in enumerate(("cat", "dog")):
            below = folder / split / name
            below.mkdir(parents=True)
            for index in range(count):
                pixels = np.full((6, 5, 3), 50 * number + index, np.uint8)
                Image.fromarray(pixels).save(below / f"{index}.png")
    return folder


def test_a_folder_of_images_of_which_some_cannot_be_read(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    source = DataSource(str(folder), "test")
    examples = read_examples(source, "x")
    assert examples.columns["image"][:, 0, 0, 0].tolist() == [0, 1, 50, 51]
    assert labels_of(source, examples.rows, NAMED) == [1, 1, 0, 0]
    broken = folder / "train" / "cat" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "train" / "dog" / "2.png")
    with pytest.raises(
        DataError, match=r"1 of 4 ex.*mode I;16 \(more than 8 bits per pixel\); conv"
    ):
        read_examples(DataSource(str(folder), "train[4:]"), "x")
    with pytest.raises(DataError, match=r"2 of 8 examples .* max_bad allows 1; .*cat/1\.png"):
        read_examples(DataSource(str(folder), max_bad=1), "x")
    source = DataSource(str(folder), max_bad=2)
    examples = read_examples(source, "x")
    assert examples.rows.tolist() == [0, 2, 3, 4, 5, 7]
    assert labels_of(source, examples.rows, Answers(2)) == [0, 0, 0, 1, 1, 1]


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


# -- labels ----------------------------------------------------------------------------------------


def test_labels_of_other_kinds_and_by_the_names_of_classes(tmp_path: Path) -> None:
    def npz(labels: Any, **arrays: Any) -> DataSource:
        content = npz_bytes(x_train=PIXELS[:2], y_train=np.array(labels), **arrays)
        return replace(written(tmp_path / "d.npz", content), ignore=9)

    source = npz([[[0, 1], [2, 9]]] * 2)
    assert labels_of(source, [1], Answers(3), "segmentation") == [[[0, 1], [2, -100]]]
    with pytest.raises(DataError, match=r"label 2; .* has 2 classes"):
        labels_of(source, [1], Answers(2), "segmentation")
    source = npz([[1, 0, 1], [0, 0, 0]])
    assert labels_of(source, [0, 1], Answers(3), "multi_label") == [[1, 0, 1], [0, 0, 0]]
    source = npz([0.5, 2.0])
    assert labels_of(source, [1, 0], Answers(1), "regression") == [[2.0], [0.5]]
    with pytest.raises(DataError, match="answers with 2 numbers"):
        labels_of(source, [1], Answers(2), "regression")
    # a data set and a head that number the same classes differently are put right by name
    source = npz([0, 1], class_names=np.array(["cat", "dog"]))
    assert labels_of(source, [0, 1], NAMED) == [1, 0]
    assert labels_of(source, [0, 1], Answers(2)) == [0, 1]


def test_labels_of_any_integer_type_are_read_and_others_refused(tmp_path: Path) -> None:
    def read(labels: Any) -> Any:
        source = written(tmp_path / "d.npz", npz_bytes(x_train=PIXELS[:3], y_train=labels))
        return labels_of(source, range(3), Answers(3))

    for dtype in (np.uint8, np.int32, np.int64):
        assert read(np.array([2, 0, 1], dtype)) == [2, 0, 1]
    for labels, words in (
        ([0, 1, 3], "label 3;.* 3 classes.* 0 to 2"),
        ([0, -1, 2], "label -1.* 0 to 2"),
        ([0, 1], "2 labels.* each of the 3 examples"),
        ([[0], [1], [2]], r"\[3, 1\]"),
        ([0.0, 1.0, 2.0], "float64.* integer"),
    ):
        with pytest.raises(DataError, match=f"'y_train' in .*{words}"):
            read(np.array(labels))


def test_what_datasets_knows_of_its_columns(tmp_path: Path, monkeypatch: Any) -> None:
    """Images in a parquet file are decoded as asked for; tags go by their names, as classes do."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = datasets.ClassLabel(names=["cat", "dog"])
    images = [Image.new("RGB", (4, 3), (10 * n, 0, 0)) for n in range(4)]
    features = datasets.Features({"img": datasets.Image(), "kind": names})
    table = datasets.Dataset.from_dict({"img": images, "kind": [0, 1, 1, 0]}, features)
    table.to_parquet(tmp_path / "images.parquet")
    columns = {"image": "img", "label": "kind"}
    source = DataSource(str(tmp_path / "images.parquet"), sample=2, columns=columns)
    examples = read_examples(source, "x")
    assert examples.columns["image"][:, 0, 0, 0].tolist() == [0, 20]
    assert labels_of(source, examples.rows, NAMED) == [1, 0]
    words = datasets.List(datasets.Value("string"))
    features = datasets.Features({"tokens": words, "ner_tags": datasets.List(names)})
    tagged = {"tokens": [["a", "b"], ["c"]], "ner_tags": [[0, 1], [1]]}
    datasets.Dataset.from_dict(tagged, features).to_parquet(tmp_path / "tags.parquet")
    source = DataSource(str(tmp_path / "tags.parquet"))
    assert labels_of(source, [0, 1], NAMED, "token_classification") == [[1, 0], [0]]
