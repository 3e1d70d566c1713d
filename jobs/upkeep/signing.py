"""Sign a published merge, and take its signatures along to wherever it goes."""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tintray.errors import InputError, StorageError
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.settings import chosen
from tintray.jobs.config.signing import signing_key, trusted_keys
from tintray.jobs.engine.finding import load_merge, locate, signatures_at
from tintray.jobs.records import Record
from tintray.published.merge import Merge, signatures_in
from tintray.published.signatures import (
    SIGNATURES,
    PublicKey,
    Signature,
    Signer,
    new_key,
    read_signatures,
    sign,
    signers,
    write_signatures,
)
from tintray.storage.artifacts.local import replacing
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.publish import parse_merge_url
from tintray.storage.artifacts.urls import local_folder

_TRIES = 3  # others may sign the same merge at the same time


@dataclass(frozen=True)
class Signed(Record):
    """A merge that has a signature of this user."""

    merge: str  # "name/version"
    url: str
    key: str  # the public key, as a line of a file of trusted keys
    signatures: int  # how many there are now
    already: bool = False  # it was signed by this key before
    dry_run: bool = False


@dataclass(frozen=True)
class NewKey(Record):
    """A pair of keys that was written."""

    path: str  # of the private key
    key: str  # the public one, as a line of a file of trusted keys


def sign_merge(
    merge: str,
    key: Path | None = None,
    *,
    store: str | None = None,
    catalog: str | None = None,
    dry_run: bool = False,
) -> Signed:
    """Sign a merge with the private key in a file, or with that of the settings.

    It may lie in a store, or in a folder that was exported or pulled. Other signatures stay.

    Raises SpecError: there is no key; NotFoundError: there is no such merge; StorageError: the
    signature could not be written.
    """
    private = signing_key(key)
    with as_input_error():
        found = load_merge(locate(merge, chosen(store, catalog)[1]), require_signed=False)
    mine, there = sign(found.manifest, private), read_signatures(found.signatures(), found.url)
    already = mine in there
    if not already:
        there = [*there, mine] if dry_run else add(_beside(found.url), [mine])
    return Signed(
        found.manifest.ref, found.url, PublicKey(mine.key).line, len(there), already, dry_run
    )


Place = Path | tuple[ArtifactStore, str]
"""Where signatures lie, or would: a merge's folder, or a key of a store."""


def _beside(url: str) -> Place:
    if (folder := local_folder(url)) is not None:
        return folder
    store, ref = parse_merge_url(url)
    return store, ref.signatures_key


def add(place: Place, signatures: Sequence[Signature]) -> list[Signature]:
    """Write signatures beside those that are at a place, until all are read back.

    Raises SignatureError: what is there cannot be read; StorageError: it cannot be written.
    """
    where = str(place) if isinstance(place, Path) else f"{place[0].url}/{place[1]}"
    for _ in range(_TRIES):
        there = read_signatures(_read(place), where)
        if set(signatures) <= set(there):
            return there
        content = write_signatures([*there, *signatures])
        if isinstance(place, Path):
            with replacing(place / SIGNATURES) as file:
                file.write(content)
        else:
            place[0].put(place[1], content, overwrite=True)
    raise StorageError(f"{where}: others write signatures there all the time; try again")


def _read(place: Place) -> bytes:
    return signatures_in(place) if isinstance(place, Path) else signatures_at(*place)


def new_pair(path: Path, name: str | None = None) -> NewKey:
    """Write a private key to ``path`` and its public one, with its owner's name, beside it."""
    name = getpass.getuser() if name is None else name.strip()
    if not name.isprintable():
        raise InputError(f"--name: expected a name, found {name!r:.100}")
    made = new_key(path, name)
    return NewKey(str(path), made.line)


def check_new_pair(path: Path) -> Path:
    """The file of the public key that ``new_pair`` would write; raises InputError as it does."""
    beside = path.with_name(f"{path.name}.pub")
    for file in (beside, path):
        if file.exists():
            raise InputError(f"{file} is there already; name a new file")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written; name a folder that is there and is yours")
    return beside


def who_signed(merge: Merge) -> Sequence[Signer]:
    """Who has signed a merge, with the names that the settings have for their keys."""
    content = merge.signatures()
    return signers(merge.manifest, content, trusted_keys(), merge.url) if content else ()


def carry(merge: Merge, place: Place) -> None:
    """Write a merge's signatures to where it is brought, beside those that are there."""
    if found := read_signatures(merge.signatures(), merge.url):
        add(place, found)
