"""Aliases: names such as ``production`` for a version of a merge, kept in its store.

An alias is the one thing in a store that changes: a small sealed record, replaced at once.
"""

from __future__ import annotations

from tintray.errors import IntegrityError, NotFoundError, nearest
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.publish import MergeRef, list_merges
from tintray.storage.artifacts.records import fetch_record, seal
from tintray.storage.artifacts.urls import check_name

MARK = "@"


def split_alias(reference: str) -> tuple[str, str] | None:
    """The merge's name, or ``<store>/merges/<name>``, and the alias in a reference; None: none.

    Raises ``SpecError`` for an alias that cannot be one.
    """
    before, mark, last = reference.rstrip("/").rpartition("/")
    name, at, alias = last.rpartition(MARK)
    if not at or not name or (mark and not before.endswith("/merges")):
        return None
    check_name(name, "merge name")
    return f"{before}{mark}{name}", check_name(alias, "alias")


def set_alias(store: ArtifactStore, ref: MergeRef, alias: str, *, dry_run: bool = False) -> None:
    """Let an alias mean a version, whatever it meant before; with ``dry_run`` only check it.

    Raises ``NotFoundError`` if that version is not published in the store.
    """
    if not store.exists(ref.manifest_key):
        hint = nearest(str(ref), map(str, list_merges(store)))
        raise NotFoundError(f"merge {ref} is not published in {store.url}{hint}")
    key = _key(ref.name, alias)
    if not dry_run:
        store.put(key, seal({"version": ref.version}, f"the alias {key}"), overwrite=True)


def remove_alias(store: ArtifactStore, name: str, alias: str) -> None:
    """Forget an alias; ``NotFoundError`` if there is none."""
    read_alias(store, name, alias)
    store.delete(_key(name, alias))


def read_alias(store: ArtifactStore, name: str, alias: str) -> MergeRef:
    """The version that an alias means; ``NotFoundError`` names the nearest alias."""
    key = _key(name, alias)
    try:
        version = fetch_record(store, key).get("version")
    except NotFoundError:
        known = aliases_of(store, name)
        raise NotFoundError(
            f"{name} has no alias '{alias}' in {store.url}{nearest(alias, known)}; "
            f"`tintray alias {name}{MARK}{alias} v1` sets one"
        ) from None
    if type(version) is not int or not 0 < version < 10**9:
        raise IntegrityError(f"{key} in {store.url} names no version; set the alias anew")
    return MergeRef(name, version)


def aliases_of(store: ArtifactStore, name: str) -> list[str]:
    """The aliases of a merge, by name."""
    below = _key(name, "")
    return [entry.key.removeprefix(below) for entry in store.list(below)]


def _key(name: str, alias: str) -> str:
    if alias:
        check_name(alias, "alias")
    return f"aliases/{check_name(name, 'merge name')}/{alias}"
