"""Sealed records in a store: what is remembered of results, and of blocks by 0.1.0."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import raw, trees
from tests.fuzz.surface import Bench, Files, Surface
from tintray.seals import unseal
from tintray.storage.artifacts.aliases import aliases_of, read_alias
from tintray.storage.artifacts.cache import lookup
from tintray.storage.artifacts.records import seal
from tintray.storage.artifacts.store import open_store
from tintray.storage.artifacts.verify import verify_store

_CACHE = "store/cache/labels/key.json"
_ALIAS = "store/aliases/tiny/production"
_SIZE = (1 << 20) + 5000
_BIG = b"0123456789abcdef" * (_SIZE // 16) + b"x" * (_SIZE % 16)
_SHA = hashlib.sha256(_BIG).hexdigest()
_BLOB = f"store/blobs/{_SHA[:2]}/{_SHA}"
_BLOCKS = f"{_BLOB}.blocks"
_SMALL = b"a small blob"
_SMALL_SHA = hashlib.sha256(_SMALL).hexdigest()
_SMALL_BLOB = f"store/blobs/{_SMALL_SHA[:2]}/{_SMALL_SHA}"


def sealed(tree: Any, rng: Random) -> bytes:
    """A document that carries the hash of its own text, as somebody who forges one would write."""
    body = {key: value for key, value in tree.items() if key != "sealed_sha256"}
    text = trees.as_json(rng, body)
    if not text.startswith(b"{\n"):
        text = b"{\n  " + text[1:]
    text = text[:-1].rstrip() + b"\n}\n" if text.endswith(b"}") else text + b"\n}\n"
    start = b"{" if text == b"{}\n" else text[:-3] + b","
    return start + b'\n  "sealed_sha256": "' + hashlib.sha256(text).hexdigest().encode() + b'"\n}\n'


def _seeds(_: Path) -> list[Files]:
    blocks = [hashlib.sha256(_BIG[at : at + (1 << 20)]).hexdigest() for at in (0, 1 << 20)]
    record = {"sha256": _SMALL_SHA, "size": len(_SMALL), "meta": {"a": 1}}
    held = {"block_bytes": 1 << 20, "size": _SIZE, "blocks": blocks}
    alias = seal({"version": 3}, "record")
    sealed_ones = {_CACHE: seal(record, "record"), _BLOCKS: seal(held, "record"), _ALIAS: alias}
    return [{**sealed_ones, _SMALL_BLOB: _SMALL}]


def _mutate(rng: Random, files: Files, _: Sequence[Files]) -> Files:
    name = rng.choice((_CACHE, _BLOCKS, _ALIAS))
    if rng.random() < 0.4:
        return {**files, name: raw.damaged(rng, files[name], list(files.values()))}
    tree = trees.damaged(rng, json.loads(files[name]), (_SHA, _SMALL_SHA, "../../x", "0" * 64))
    if not isinstance(tree, dict):
        return {**files, name: trees.as_json(rng, tree)}
    return {**files, name: sealed(tree, rng)}


def _looked_up(bench: Bench) -> None:
    lookup(open_store(bench.folder / "store"), "labels", "key")


def _alias(bench: Bench) -> None:
    store = open_store(bench.folder / "store")
    read_alias(store, "tiny", "production")
    bench.each(*(partial(read_alias, store, "tiny", name) for name in aliases_of(store, "tiny")))


def _unsealed(bench: Bench) -> None:
    for name in (_CACHE, _BLOCKS):
        unseal((bench.folder / name).read_bytes(), name)


def _verified(bench: Bench) -> None:
    kept = bench.folder.parent / "blob"
    if not kept.is_file():
        kept.write_bytes(_BIG)
    os.link(kept, bench.folder / _BLOB)
    verify_store(open_store(bench.folder / "store"))


_DRIVES = {"unsealed": (40, _unsealed), "looked up": (40, _looked_up), "verified": (10, _verified)}
_DRIVES |= {"alias": (15, _alias)}
SURFACE = Surface("sealed-records", 8, _seeds, _mutate, _DRIVES)
