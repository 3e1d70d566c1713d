"""The tasks of the text zoo: real data sets, read from a folder that the user has.

NAME_train.jsonl.gz, NAME_test.jsonl.gz     lines of {"text": …, "label": 0 … C-1}
NAME_labels.json                            the names of the C answers
"""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from tintray.errors import InputError

TASKS = ("subj", "cr", "trec6", "sst2", "ag_news", "sms_spam", "clickbait", "banking77")


@dataclass(frozen=True)
class Texts:
    """One split: texts, and the index of each one's answer."""

    texts: list[str]
    labels: list[int]


def data_files(folder: Path, name: str) -> tuple[Path, ...]:
    """A task's files.

    Raises
    ------
    InputError
        Naming the first that is missing.
    """
    parts = ("train.jsonl.gz", "test.jsonl.gz", "labels.json")
    files = tuple(folder / f"{name}_{part}" for part in parts)
    for file in files:
        if not file.is_file():
            raise InputError(
                f"the text zoo needs {file.name}, which is not in '{folder}'; name the folder that "
                "has it with --data"
            )
    return files


def read_texts(path: Path) -> Texts:
    """The lines of one file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return Texts([row["text"] for row in rows], [int(row["label"]) for row in rows])


def read_class_names(path: Path) -> list[str]:
    """The names of the answers, in the order of their indices."""
    return [str(name) for name in json.loads(path.read_text(encoding="utf-8"))]


def data_hash(folder: Path, names: tuple[str, ...]) -> str:
    """The sha256 of everything that a zoo with these tasks is trained and tested on."""
    digest = hashlib.sha256()
    for name in names:
        for file in data_files(folder, name):
            digest.update(file.name.encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
