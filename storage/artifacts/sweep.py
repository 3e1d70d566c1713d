"""What in a store nobody needs: mark from what is known, sweep the rest. Pure; nothing is touched.

Never garbage is: a blob that the catalog or any manifest in the store names, anything younger than
the age limit (somebody may be writing it, or may just have found it), and any key that tintray did
not make.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tintray.storage.artifacts.blobs import is_blob
from tintray.storage.artifacts.protocol import Entry
from tintray.storage.artifacts.publish import MANIFEST

_BLOB = re.compile(r"blobs/([0-9a-f]{2})/(\1[0-9a-f]{62})(\.blocks)?")
_HASH = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_MERGE = re.compile(r"(merges/[^/]+/v[0-9]+)/(.+)", re.DOTALL)


@dataclass(frozen=True)
class Inventory:
    """What lies in a store."""

    entries: tuple[Entry, ...]
    leftovers: tuple[Entry, ...]
    manifests: Mapping[str, str]  # by key: the text, sound or not
    records: Mapping[str, str | None]  # by key: the blob that it names, if it can be read


@dataclass(frozen=True)
class Garbage:
    """Something to delete, and why."""

    key: str
    size: int
    modified: float
    reason: str
    leftover: bool = False

    @property
    def sha256(self) -> str | None:
        """The blob that this is, if it is one."""
        return is_blob(self.key)


@dataclass(frozen=True)
class Sweep:
    """What a collection would delete, in the order in which it may: a record before its blob."""

    garbage: tuple[Garbage, ...]
    kept: int
    kept_bytes: int
    young: int  # of those kept: what nobody needs, and only its age protects
    young_bytes: int


def is_ours(key: str) -> bool:
    """Whether an artifact is one that tintray makes; a catalog may lie beside them."""
    return key.startswith(("blobs/", "cache/", "merges/"))


def plan_sweep(inventory: Inventory, needed: set[str], before: float) -> Sweep:
    """Divide a store into what is needed, what is too young to tell, and what can go.

    ``needed`` are hashes of the blobs that the catalog needs, asked for after the store was listed.
    Only what was written or used ``before``, in seconds since 1970, may go.
    """
    # Every hash in a manifest counts: of its files, and of what it was computed from.
    marked = needed.union(*map(_HASH.findall, inventory.manifests.values()))
    unneeded = list(_loose(inventory))
    for sha256, entries in _by_blob(inventory).items():
        if sha256 not in marked:
            unneeded += _of_blob(entries)
    garbage = tuple(item for item in unneeded if item.modified < before)
    young = [item for item in unneeded if item.modified >= before]
    there = (*inventory.entries, *inventory.leftovers)
    return Sweep(
        garbage=garbage,
        kept=len(there) - len(garbage),
        kept_bytes=sum(found.size for found in there) - sum(item.size for item in garbage),
        young=len(young),
        young_bytes=sum(item.size for item in young),
    )


def _by_blob(inventory: Inventory) -> dict[str, list[Entry]]:
    """Each blob with what goes with it: cache records that name it, the block hashes of 0.1.0."""
    found: dict[str, list[Entry]] = {}
    for entry in inventory.entries:
        blob = _BLOB.fullmatch(entry.key)
        sha256 = blob[2] if blob else inventory.records.get(entry.key)
        if sha256 is not None:
            found.setdefault(sha256, []).append(entry)
    return found


def _of_blob(entries: list[Entry]) -> Iterable[Garbage]:
    """A blob after what goes with it; none of it is older than the youngest of them."""
    there = any(is_blob(entry.key) for entry in entries)
    why = "needed by no merge, job or pin" if there else "its blob is gone"
    youngest = max(entry.modified for entry in entries)
    for entry in sorted(entries, key=lambda entry: is_blob(entry.key) is not None):
        what = "a cached result, " if entry.key.startswith("cache/") else ""
        yield Garbage(entry.key, entry.size, youngest, what + why)


def _loose(inventory: Inventory) -> Iterable[Garbage]:
    """What writers that were killed have left, and records that cannot be read."""
    for left in inventory.leftovers:
        reason = "a write that was broken off"
        yield Garbage(left.key, left.size, left.modified, reason, leftover=True)
    for entry in inventory.entries:
        merge = _MERGE.fullmatch(entry.key)
        if inventory.records.get(entry.key, "") is None:
            reason = "a cached result whose record is damaged"
        elif merge is not None and merge[2].startswith("claims/"):
            reason = "the claim of a publisher that was broken off"
        elif merge is not None and f"{merge[1]}/{MANIFEST}" not in inventory.manifests:
            reason = "part of no published merge"
        else:
            continue
        yield Garbage(entry.key, entry.size, entry.modified, reason)
