"""Names and places as they are typed or found: URLs, keys, names, sizes, references."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import raw, trees
from tests.fuzz.surface import Bench, Drive, Drives, Files, Surface
from tintray.data.source import DataSource
from tintray.errors import SpecError
from tintray.jobs.config import locations, settings
from tintray.jobs.config.documents import Document
from tintray.limits import memory_bytes
from tintray.storage import secrets
from tintray.storage.artifacts import urls
from tintray.storage.artifacts.publish import parse_merge_url
from tintray.storage.catalog.engine import parse_catalog_url

_FILE = "text.json"
_SOUND = (
    *("tintray-data", "/data/store", "file:///data/store", "s3://bucket/prefix"),
    *("sqlite:///catalog.db", "postgresql+psycopg://user:secret@host:5432/name?sslmode=require"),
    *("merges/a/v1/manifest.json", "s3://bucket/prefix/merges/a/v1", "ten-scripts/v2", "latest"),
    *("train[:500]", "test[50%:]", "2GiB", "google/vit-base-patch16-224", "hf://org/name:config"),
    *("postgresql://u@h/d", "7d", "density=0.2", "http://head:8265"),
    *("https://user:pass@head/x?token=abc", "[::1]:8265", "name-1.2_x"),
)
_SNIPPETS = (
    *("://", ":", "/", "//", "@", "?", "#", "%", "%00", "%2e%2e", "..", "../", "[", "]", "\\", "="),
    "&",
    *("a" * 300, "password=x", " ", "\n", "é", "１", "٣", "-", "v", "v0", "99999999999999999999"),
    "%zz",
    *trees.UGLY[:9],
)


def _seeds(_: Path) -> list[Files]:
    return [{_FILE: json.dumps(text).encode()} for text in _SOUND]


def _mutate(rng: Random, files: Files, _: Sequence[Files]) -> Files:
    text = json.loads(files[_FILE])
    if rng.random() < 0.15:
        text = rng.choice(trees.PLACES + trees.UGLY)
    if rng.random() < 0.95:
        text = raw.damaged_text(rng, text, _SNIPPETS).decode("utf-8", "surrogateescape")
    return {_FILE: json.dumps(text).encode()}


def _text(bench: Bench) -> str:
    found: str = json.loads((bench.folder / _FILE).read_text())
    return found


def _readers(folder: Path) -> tuple[Callable[[str], Any], ...]:
    sections = {"fit": {"rounds": 1}, "tasks": [{"name": "a"}]}
    return (
        urls.parse_store_url,
        urls.local_folder,
        urls.check_key,
        urls.check_name,
        secrets.redact,
        secrets.shown_url,
        lambda text: secrets.scrub({"a": [text, {text: 1}]}),
        lambda text: secrets.shown_catalog(parse_catalog_url(text)),
        parse_merge_url,
        lambda text: settings.chosen(text, None),
        lambda text: settings.chosen(None, text),
        lambda text: settings.chosen_destination(text, text),
        _in_a_sentence(lambda text: locations.model_location(text, folder)),
        _in_a_sentence(lambda text: locations.data_location(text, folder)),
        _in_a_sentence(memory_bytes),
        lambda text: DataSource("x", text).rows(10, "data"),
        lambda text: Document("x", sections).override(text),
    )


def _in_a_sentence(read: Callable[[str], object]) -> Callable[[str], object]:
    """A reader whose callers make a sentence of a ValueError, as it says."""

    def reader(text: str) -> None:
        try:
            read(text)
        except ValueError as error:
            raise SpecError(f"x: {error}") from error

    return reader


def _read(bench: Bench) -> None:
    """Each reader of names by itself; which of them accept a text is not asked here."""
    bench.each(*[partial(reader, _text(bench)) for reader in _readers(bench.folder)])


def _option(words: str) -> Drive:
    """The text as an option, or an argument, of a command."""

    def drive(bench: Bench) -> None:
        text = _text(bench).replace("\0", "")
        if "postgres" not in text and not text.startswith("s3:"):  # these are looked up there
            bench.command(*[text if word == "TEXT" else word for word in words.split()])

    return drive


_OPTIONS = {
    "list --store TEXT": 3,
    "ps --catalog TEXT": 3,
    "show TEXT": 3,
    "status TEXT": 1,
    "merge a b --base c --method ties --output o --memory TEXT": 1,
    "gc --older-than TEXT": 1,
}
_DRIVES: Drives = {"read": (88, _read)}
_DRIVES |= {words: (share, _option(words)) for words, share in _OPTIONS.items()}
SURFACE = Surface("urls-and-names", 8, _seeds, _mutate, _DRIVES, confined=False)
