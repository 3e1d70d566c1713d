"""Names such as ``production`` for versions of a merge: what ``tintray alias`` does."""

from __future__ import annotations

from dataclasses import dataclass

from tintray.errors import InputError, NotFoundError
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.settings import chosen
from tintray.jobs.engine.finding import merges_root
from tintray.jobs.records import Record
from tintray.storage.artifacts.aliases import (
    MARK,
    aliases_of,
    read_alias,
    remove_alias,
    set_alias,
    split_alias,
)
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.publish import MergeRef
from tintray.storage.artifacts.store import open_store
from tintray.storage.artifacts.urls import check_name


@dataclass(frozen=True)
class AliasLine(Record):
    """An alias, and the version that it means; ``before`` is what it meant until now."""

    alias: str  # name@production
    merge: str | None  # name/v3; None: it is removed
    before: str | None = None


def list_aliases(
    merge: str, *, store: str | None = None, catalog: str | None = None
) -> list[AliasLine]:
    """The aliases of a merge, by name; one alone where ``merge`` is ``NAME@ALIAS``."""
    place, name, alias = _find(merge, store, catalog)
    with as_input_error():
        names = aliases_of(place, name) if alias is None else [alias]
        found = [(one, str(read_alias(place, name, one))) for one in names]
    return [AliasLine(f"{name}{MARK}{one}", ref) for one, ref in found]


def change_alias(
    reference: str,
    version: int | None,
    *,
    store: str | None = None,
    catalog: str | None = None,
    dry_run: bool = False,
) -> AliasLine:
    """Let ``NAME@ALIAS`` mean a version of the merge; with None, forget the alias.

    Raises ``InputError``, ``NotFoundError``: the alias cannot be one, or there is no such version.
    """
    place, name, alias = _find(reference, store, catalog)
    if alias is None:
        raise InputError(f"expected {name}{MARK}ALIAS, such as {name}{MARK}production")
    before = None
    with as_input_error():
        try:
            before = str(read_alias(place, name, alias))
        except NotFoundError:
            if version is None:
                raise
        if version is None and not dry_run:
            remove_alias(place, name, alias)
        elif version is not None:
            set_alias(place, MergeRef(name, version), alias, dry_run=dry_run)
    to = None if version is None else str(MergeRef(name, version))
    return AliasLine(f"{name}{MARK}{alias}", to, before)


def _find(
    reference: str, store: str | None, catalog: str | None
) -> tuple[ArtifactStore, str, str | None]:
    """The store that a merge lies in, its name, and the alias if the reference has one."""
    merge, alias = split_alias(reference) or (reference, None)
    name = check_name(merge.rpartition("/")[2], "merge name")
    return open_store(merges_root(merge, chosen(store, catalog)[1])), name, alias
