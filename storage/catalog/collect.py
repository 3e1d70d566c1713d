"""Garbage collection of a store: list it, ask the catalog what is needed, delete the rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from re import fullmatch

from tintray.errors import InputError, IntegrityError, NotFoundError
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.publish import MANIFEST
from tintray.storage.artifacts.records import fetch_record
from tintray.storage.artifacts.store import canonical_url
from tintray.storage.artifacts.sweep import Garbage, Inventory, Sweep, is_ours, plan_sweep
from tintray.storage.catalog.catalog import Catalog

_THREADS = 8


def take_inventory(store: ArtifactStore) -> Inventory:
    """List a store, and read its manifests and cache records."""
    leftovers = tuple(store.leftovers())
    entries = tuple(entry for entry in store.list() if is_ours(entry.key))
    manifests = [e.key for e in entries if fullmatch(rf"merges/[^/]*/[^/]*/{MANIFEST}", e.key)]
    records = [e.key for e in entries if fullmatch(r"cache/[^/]*/[^/]*\.json", e.key)]
    with ThreadPoolExecutor(_THREADS) as pool:
        texts = pool.map(lambda key: _text(store, key), manifests)
        named = pool.map(lambda key: _named(store, key), records)
        return Inventory(
            entries,
            leftovers,
            {key: text for key, text in zip(manifests, texts, strict=True) if text is not None},
            dict(zip(records, named, strict=True)),
        )


def _text(store: ArtifactStore, key: str) -> str | None:
    try:
        return store.get(key).decode(errors="replace")
    except NotFoundError:  # removed since it was listed
        return None


def _named(store: ArtifactStore, key: str) -> str | None:
    try:
        return str(fetch_record(store, key).get("sha256"))
    except (NotFoundError, IntegrityError, KeyError):
        return None


def plan(store: ArtifactStore, catalog: Catalog, age: float) -> Sweep:
    """What a collection would delete now; nothing is touched.

    ``age`` is in seconds: what was written or used later than that ago stays. Raises
    ``InputError`` if the catalog knows nothing of the store: then it is another store's.
    """
    _check_pair(store, catalog)
    now = time.time()
    inventory = take_inventory(store)  # before the catalog is asked: a later use is then seen
    return plan_sweep(inventory, catalog.artifacts.needed(), now - age)


def collect(
    store: ArtifactStore,
    catalog: Catalog,
    age: float,
    on_delete: Callable[[Garbage], object] = lambda _: None,
) -> Sweep:
    """Delete what :func:`plan` finds, each after a last look; returns what was deleted.

    An artifact that was used meanwhile is spared. May be stopped at any moment and run again.
    """
    planned = plan(store, catalog, age)
    deleted: list[Garbage] = []
    try:
        for item in planned.garbage:
            if _still_garbage(store, catalog, item):
                (store.discard if item.leftover else store.delete)(item.key)
                deleted.append(item)
                on_delete(item)
    finally:
        catalog.artifacts.forget(item.sha256 for item in deleted if item.sha256 is not None)
    spared = len(planned.garbage) - len(deleted)
    freed = sum(item.size for item in deleted)
    total = planned.kept_bytes + sum(item.size for item in planned.garbage)
    kept = {"kept": planned.kept + spared, "kept_bytes": total - freed}
    return replace(planned, garbage=tuple(deleted), **kept)


def _still_garbage(store: ArtifactStore, catalog: Catalog, item: Garbage) -> bool:
    """Whether nobody has written, used or begun to need it since the store was listed."""
    if item.leftover:
        return True
    found = store.stat(item.key)
    if found is None or found.modified > item.modified:
        return False
    return item.sha256 is None or not catalog.artifacts.users(item.sha256)


def _check_pair(store: ArtifactStore, catalog: Catalog) -> None:
    if store.url not in map(canonical_url, catalog.artifacts.store_urls()):
        raise InputError(
            f"the catalog {catalog.url} knows no job and no merge of the store {store.url}, so it "
            "cannot tell what is needed there; name the store's own catalog with --catalog"
        )
