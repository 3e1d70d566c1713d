"""What a person, or whoever sets their environment, configures: config.toml and TINTRAY_*."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from unittest import mock

from tests.fuzz import raw, trees
from tests.fuzz.surface import Bench, Drive, Drives, Files, Surface
from tintray.jobs.config import settings

_FILE, _VARIABLES = "config.toml", "environment.json"
_NAMES = ("store", "catalog", "address", "python", "lease_seconds", "x", "Store", "allowed_modules")
_TEXTS = (
    *("./data", "sqlite:///c.db", "sqlite://", "sqlite:///", "sqlite:////", "sqlite:///:memory:"),
    *("s3://b", "s3://bucket/prefix", "s3://user:pass@bucket/x", "file:///", "file://host/x"),
    *("file://", "mysql://x", "sqlite:///a?b=c", "sqlite:///a%00b", "http://h:8265", "http://[::1"),
    *("h:8265", "ray://h", "auto", "60", "0", "-1", "nan", "inf", "1e999", "6_0", "sixty", "0x10"),
    *(*trees.PLACES, *trees.UGLY),
)
_TOML = (
    *('store = "a"', "store = 1", "store = []", "[store]", "[[store]]", "store.a = 1", 'a."b" = 1'),
    *("lease_seconds = 1e400", "lease_seconds = nan", "lease_seconds = true", "x = 1979-05-27"),
    *("= 1", 'store = """', "a = " + "[" * 1000, "a." * 2000 + "b = 1"),
    *("lease_seconds = " + "9" * 5000, "\x00", 'store = "\\u0000"', 'store = "\\ud800"'),
    *("store = 'a'\nstore = 'b'", "lease_seconds = 0x_1"),
)


def _seeds(_: Path) -> list[Files]:
    sound = 'store = "./data"\ncatalog = "sqlite:///c.db"\nlease_seconds = 30\n'
    address = 'address = "http://head:8265"\npython = "/usr/bin/python3"\n'
    return [
        {_FILE: (sound + address).encode(), _VARIABLES: b"{}"},
        {_FILE: b"", _VARIABLES: json.dumps({"TINTRAY_STORE": "./data"}).encode()},
    ]


def _mutate(rng: Random, files: Files, _: Sequence[Files]) -> Files:
    text = files[_FILE].decode()
    if rng.random() < 0.4:
        text += rng.choice(_TOML) + "\n"
    if rng.random() < 0.5:
        text += f"{rng.choice(_NAMES)} = {json.dumps(rng.choice(_TEXTS))}\n"
    data = (
        raw.damaged_text(rng, text, _TOML)
        if rng.random() < 0.4
        else text.encode("utf-8", "surrogatepass")
    )
    variables = json.loads(files[_VARIABLES])
    for _ in range(rng.choice((0, 1, 1, 2))):
        variables[f"TINTRAY_{rng.choice(_NAMES).upper()}"] = rng.choice(_TEXTS)
    return {_FILE: data, _VARIABLES: json.dumps(variables).encode()}


@contextmanager
def _configured(bench: Bench) -> Iterator[None]:
    known: dict[str, str] = json.loads((bench.folder / _VARIABLES).read_text())
    # What the system itself refuses, or hands over otherwise, is nobody's setting.
    usable = {
        name: text for name, text in known.items() if "\0" not in text and "\ud800" not in text
    }
    with mock.patch.dict(os.environ, {**usable, "TINTRAY_CONFIG": str(bench.folder / _FILE)}):
        yield


def _settings(bench: Bench) -> None:
    """Everything that is asked of them."""
    with _configured(bench):
        bench.each(
            settings.lease_seconds,
            lambda: settings.default_catalog(settings.default_store()),
            lambda: settings.chosen(None, None),
            lambda: settings.chosen_address(None, None),
        )


def _command(words: str) -> Drive:
    def drive(bench: Bench) -> None:
        with _configured(bench):
            bench.command(*words.split())

    return drive


_DRIVES: Drives = {"settings": (88, _settings)}
_DRIVES |= {"list": (5, _command("list")), "ps": (4, _command("ps --json"))}
_DRIVES |= {"init": (3, _command("init --store x --force"))}
SURFACE = Surface("configuration", 6, _seeds, _mutate, _DRIVES, confined=False)
