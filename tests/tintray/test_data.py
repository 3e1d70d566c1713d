"""Data in every form that people have: the same examples, whatever the file."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tintray.data.labels import Answers
from tintray.data.reading import read_examples
from tintray.data.source import DataSource
from tintray.errors import DataError
from tintray.tasks.classes import CLASSIFICATION
from tintray.tasks.registry import find_kind

ROWS = [{"text": f"text {n}", "label": n % 3} for n in range(10)]


def write_csv(path: Path, delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def write_lines(path: Path) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    if path.suffix == ".gz":
        with gzip.open(path, "wt") as file:
            file.write(text)
    else:
        path.write_text(text)
    return path


def write_json(path: Path) -> Path:
    path.write_text(json.dumps(ROWS))
    return path


def write_parquet(path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).to_parquet(path)
    return path


FORMS = {
    "d.csv": write_csv,
    "d.tsv": lambda path: write_csv(path, "\t"),
    "d.jsonl": write_lines,
    "d.jsonl.gz": write_lines,
    "d.json": write_json,
    "d.parquet": write_parquet,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    order = DataSource(str(FORMS[name](tmp_path / name)), "train[20%:8]")
    examples = read_examples(order, "x")
    assert examples.columns == {"text": [row["text"] for row in ROWS[2:8]]}
    labels = CLASSIFICATION.read_labels(order, examples.rows, Answers(3), "x")
    assert labels.tolist() == [row["label"] for row in ROWS[2:8]]


def test_columns_go_by_their_names_or_by_the_job(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"review": "good", "stars": "high"}) + "\n")
    order = DataSource(str(path), columns={"text": "review", "label": "stars"})
    assert read_examples(order, "x").columns == {"text": ["good"]}
    labels = CLASSIFICATION.read_labels(order, [0], Answers(2, {"low": 0, "high": 1}), "x")
    assert labels.tolist() == [1]
    with pytest.raises(DataError, match=r"'high', which is no class .* it has cold, hot"):
        CLASSIFICATION.read_labels(order, [0], Answers(2, {"cold": 0, "hot": 1}), "x")
    with pytest.raises(DataError, match=r"no column 'rview'.*did you mean 'review'"):
        read_examples(DataSource(str(path), columns={"text": "rview"}), "x")


def image_folder(folder: Path) -> Path:
    for split, count in (("train", 4), ("test", 2)):
        for number, name in enumerate(("cat", "dog")):
            below = folder / split / name
            below.mkdir(parents=True)
            for index in range(count):
                pixels = np.full((6, 5, 3), 50 * number + index, np.uint8)
                Image.fromarray(pixels).save(below / f"{index}.png")
    return folder


def test_a_folder_of_images(tmp_path: Path) -> None:
    order = DataSource(str(image_folder(tmp_path)), "test")
    examples = read_examples(order, "x")
    assert examples.columns["image"][:, 0, 0, 0].tolist() == [0, 1, 50, 51]
    answers = Answers(2, {"dog": 0, "cat": 1})
    assert CLASSIFICATION.read_labels(order, examples.rows, answers, "x").tolist() == [
        1,
        1,
        0,
        0,
    ]


def test_unreadable_images_are_named_counted_and_bounded(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    broken = folder / "train" / "cat" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "train" / "dog" / "2.png")
    with pytest.raises(DataError, match=r"2 of 8 examples .* max_bad allows 1; .*cat/1\.png"):
        read_examples(DataSource(str(folder), max_bad=1), "x")
    order = DataSource(str(folder), max_bad=2)
    examples = read_examples(order, "x")
    assert examples.rows.tolist() == [0, 2, 3, 4, 5, 7]
    assert "mode I;16 (more than 8 bits per pixel); convert it" in examples.unreadable[1]
    labels = CLASSIFICATION.read_labels(order, examples.rows, Answers(2), "x")
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


BAD = {
    "no column": ([{"a": 1}], r"no column of inputs; it has a, expected one called image"),
    "a number for a text": ([{"text": 3}], "example 1 has 3 in 'text', not a text"),
    "an empty text": ([{"text": ""}], "example 1 has '' in 'text', not a text"),
}


@pytest.mark.parametrize(("rows", "words"), BAD.values(), ids=BAD.keys())
def test_texts_that_are_none_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], words: str
) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=words):
        read_examples(DataSource(str(path)), "tasks.x.pool")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for name, content in {"d.csv": "a,b\n1\n", "d.jsonl": "{}\n{", "d.json": "[1]"}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=rf"{name} cannot be read as"):
            read_examples(DataSource(str(tmp_path / name)), "x")
    (tmp_path / "d.xls").write_text("")
    with pytest.raises(DataError, match=r"d\.xls is of no known form; expected \.npz"):
        read_examples(DataSource(str(tmp_path / "d.xls")), "x")
    write_json(tmp_path / "d.json")
    with pytest.raises(DataError, match=r"holds one table, .* found split 'test'"):
        read_examples(DataSource(str(tmp_path / "d.json"), "test"), "x")
    with pytest.raises(DataError, match=r"'train\[20:\]' of .* is empty"):
        read_examples(DataSource(str(tmp_path / "d.json"), "train[20:]"), "x")


def npz(path: Path, **arrays: Any) -> DataSource:
    np.savez(path, x_train=np.zeros((2, 4, 4, 3), np.uint8), **arrays)
    return DataSource(str(path), ignore=9)


def test_labels_of_other_kinds(tmp_path: Path) -> None:
    maps = np.array([[[0, 1], [2, 9]]] * 2)
    order = npz(tmp_path / "segments.npz", y_train=maps)
    found = find_kind("segmentation").read_labels(order, [1], Answers(3), "x")
    assert found.tolist() == [[[0, 1], [2, -100]]]
    with pytest.raises(DataError, match=r"label 2; .* has 2 classes"):
        find_kind("segmentation").read_labels(order, [1], Answers(2), "x")
    order = npz(tmp_path / "many.npz", y_train=np.array([[1, 0, 1], [0, 0, 0]]))
    found = find_kind("multi_label").read_labels(order, [0, 1], Answers(3), "x")
    assert torch.equal(found, torch.tensor([[1.0, 0, 1], [0, 0, 0]]))
    order = npz(tmp_path / "values.npz", y_train=np.array([0.5, 2.0]))
    assert find_kind("regression").read_labels(order, [1, 0], Answers(1), "x").tolist() == [
        [2.0],
        [0.5],
    ]
    with pytest.raises(DataError, match="answers with 2 numbers"):
        find_kind("regression").read_labels(order, [1], Answers(2), "x")


def test_class_numbers_of_the_data_go_by_their_names(tmp_path: Path) -> None:
    """A data set and a head that number the same classes differently are put right by name."""
    names = np.array(["cat", "dog"])
    order = npz(tmp_path / "named.npz", y_train=np.array([0, 1]), class_names=names)
    answers = Answers(2, {"dog": 0, "cat": 1})
    assert CLASSIFICATION.read_labels(order, [0, 1], answers, "x").tolist() == [1, 0]
    assert CLASSIFICATION.read_labels(order, [0, 1], Answers(2), "x").tolist() == [
        0,
        1,
    ]


def test_a_sample_is_spread_evenly_over_the_split(tmp_path: Path) -> None:
    """Of data sorted by class, every class is there."""
    path = write_lines(tmp_path / "d.jsonl")
    order = DataSource(str(path), "train[2:]", sample=4)
    examples = read_examples(order, "x")
    assert examples.rows.tolist() == [2, 4, 6, 8]
    assert examples.columns["text"] == ["text 2", "text 4", "text 6", "text 8"]
    assert CLASSIFICATION.read_labels(order, examples.rows, Answers(3), "x").tolist() == [
        2,
        1,
        0,
        2,
    ]
    assert len(read_examples(DataSource(str(path), sample=99), "x")) == 10
    prefixed = read_examples(DataSource(str(path), sample=1, prefix="summarize: "), "x")
    assert prefixed.columns["text"] == ["summarize: text 0"]


def test_what_datasets_knows_of_its_columns(tmp_path: Path, monkeypatch: Any) -> None:
    """Images in a parquet file are decoded as asked for; tags go by their names, as classes do."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = datasets.ClassLabel(names=["cat", "dog"])
    images = [Image.new("RGB", (4, 3), (10 * n, 0, 0)) for n in range(4)]
    columns = {"img": images, "kind": [0, 1, 1, 0]}
    features = datasets.Features({"img": datasets.Image(), "kind": names})
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "images.parquet")
    order = DataSource(
        str(tmp_path / "images.parquet"), sample=2, columns={"image": "img", "label": "kind"}
    )
    examples = read_examples(order, "x")
    assert examples.columns["image"][:, 0, 0, 0].tolist() == [0, 20]
    answers = Answers(2, {"dog": 0, "cat": 1})
    labels = CLASSIFICATION.read_labels(order, examples.rows, answers, "x")
    assert labels.tolist() == [1, 0]
    tagged = {"tokens": [["a", "b"], ["c"]], "ner_tags": [[0, 1], [1]]}
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(names)}
    )
    datasets.Dataset.from_dict(tagged, features).to_parquet(tmp_path / "tags.parquet")
    order = DataSource(str(tmp_path / "tags.parquet"))
    found = find_kind("token_classification").read_labels(order, [0, 1], answers, "x")
    assert [row.tolist() for row in found] == [[1, 0], [0]]
