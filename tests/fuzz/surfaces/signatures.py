"""Signatures beside a merge, and what a user's settings name: public keys, a private one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from tests.fuzz import raw, trees
from tests.fuzz.surface import Bench, Files, Surface
from tintray.published.merge import signatures_in
from tintray.published.signatures import (
    SIGNATURES,
    PublicKey,
    Signature,
    read_private,
    read_signatures,
    read_trusted,
    write_signatures,
)

_KEYS, _PRIVATE = "trusted", "key"
_ODD = ("ssh-ed25519", "ssh-rsa AAAA", "AAAA", "=", "é", "\0" * 32, "A" * 5000)
_PEM = b"""\
-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f
-----END PRIVATE KEY-----
"""


def _seeds(_: Path) -> list[Files]:
    keys = [PublicKey(bytes([number]) * 32, f"name {number}") for number in range(3)]
    signed = write_signatures(Signature(key.raw, bytes(64)) for key in keys)
    listed = "# trusted\n" + "".join(f"{key.line}\n" for key in keys)
    return [{SIGNATURES: signed, _KEYS: listed.encode(), _PRIVATE: _PEM}]


def _mutate(rng: Random, files: Files, _: Sequence[Files]) -> Files:
    if rng.random() < 0.5:
        tree = trees.damaged(rng, json.loads(files[SIGNATURES]), _ODD)
        return {**files, SIGNATURES: trees.as_json(rng, tree)}
    name = rng.choice(list(files))
    return {**files, name: raw.damaged(rng, files[name], list(files.values()))}


def _signatures(bench: Bench) -> None:
    found = read_signatures(signatures_in(bench.folder), "it")
    for one in found:
        print(PublicKey(one.key).fingerprint)


def _trusted(bench: Bench) -> None:
    for key in read_trusted(bench.content(_KEYS).decode("utf-8", "replace"), _KEYS):
        print(key.fingerprint)


def _private(bench: Bench) -> None:
    read_private(bench.content(_PRIVATE), _PRIVATE)


_DRIVES = {"signatures": (60, _signatures), "trusted": (25, _trusted), "private": (15, _private)}
SURFACE = Surface("signatures", 4, _seeds, _mutate, _DRIVES, folder=True)
