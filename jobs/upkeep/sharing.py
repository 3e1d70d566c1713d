"""Share a merge: push it to a repository of the hub, a bucket or a folder, and pull it from there.

It lies there as an exported merge does: ``manifest.json``, the files that it names, a model card,
and signatures if somebody has signed it.
The manifest is written last, or all in one commit: until then there is no merge.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from tintray.errors import InputError, IntegrityError, NotFoundError
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.settings import chosen
from tintray.jobs.config.signing import check_if_required
from tintray.jobs.engine.finding import load_merge, locate, signatures_at
from tintray.jobs.upkeep import hub
from tintray.jobs.upkeep.results import Shared
from tintray.jobs.upkeep.signing import carry
from tintray.published.card import CARD, model_card
from tintray.published.manifest import MANIFEST, MAX_MANIFEST, Manifest
from tintray.published.merge import Merge, open_folder
from tintray.published.signatures import SIGNATURES
from tintray.seals import seal, unseal
from tintray.storage.artifacts.blobs import BlobRef, hash_stored
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.store import open_store
from tintray.storage.artifacts.urls import local_folder

_KNOWN = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""How the names of a merge's files end; nothing else is pulled."""


def push(
    merge: str,
    destination: str,
    *,
    catalog: str | None = None,
    licence: str | None = None,
    public: bool = False,
    dry_run: bool = False,
) -> Shared:
    """Write a merge, and all that it needs, to ``hf://org/name``, ``s3://bucket`` or a folder.

    What is there already of a push that was broken off is not written again. A new repository of
    the hub is private unless it is to be ``public``; ``licence`` is its hub id, for the card.

    Raises InputError if something else lies there; NotFoundError if there is no such merge;
    StorageError if it cannot be written, or is read back otherwise.
    """
    with as_input_error():
        found = load_merge(locate(merge, chosen(None, catalog)[1]))
    manifest = found.manifest
    text = seal(manifest.to_json(), MANIFEST)
    card = model_card(manifest, licence=licence).encode()
    shared = _shared(found.url, destination, manifest, dry_run=dry_run)
    if destination.startswith(hub.SCHEME):
        extra = {MANIFEST: text, CARD: card}
        return hub.push(found, destination, extra, shared, public=public)
    if public:
        raise InputError(f"{destination} is no repository of the hub, whose --public this is")
    if (folder := local_folder(destination)) is not None:
        return _push_to_folder(found, folder, card, shared)
    with as_input_error():
        store = open_store(destination)
        there = {entry.key for entry in store.list()}
    _check_destination(store, there, manifest)
    if dry_run:
        return shared
    with as_input_error():
        store.check_writable()
    for name, entry in manifest.files.items():
        ref = BlobRef(entry.sha256, entry.size)
        if name not in there or hash_stored(store, name) != ref:
            store.put(name, found.file(name), overwrite=True)
            if hash_stored(store, name) != ref:
                raise IntegrityError(
                    f"{destination}/{name} is read back otherwise than it was written; try again"
                )
    carry(found, (store, SIGNATURES))
    if MANIFEST in there:
        return shared.done(already=True)
    store.put(CARD, card, overwrite=True)
    store.put(MANIFEST, text, overwrite=True)
    return shared.done()


def _shared(url: str, place: str, manifest: Manifest, *, dry_run: bool) -> Shared:
    size = sum(entry.size for entry in manifest.files.values())
    files = sorted([*manifest.files, MANIFEST, CARD])
    return Shared(manifest.ref, url, place, files, size, dry_run=dry_run)


def _push_to_folder(found: Merge, folder: Path, card: bytes, shared: Shared) -> Shared:
    if (folder / MANIFEST).is_file():
        return _already(_opened(folder), found, shared)
    if shared.dry_run:
        return shared
    found.export(None, folder)
    (folder / CARD).write_bytes(card)
    return shared.done()


def _already(there: Merge, merge: Merge, shared: Shared) -> Shared:
    """Refuse another merge that lies in the folder where this one goes; verify this one."""
    if there.manifest.to_json() != merge.manifest.to_json():
        raise InputError(
            f"{there.url} holds the merge {there.manifest.ref}, expected nothing or "
            f"{merge.manifest.ref} itself; name another place"
        )
    for name in merge.manifest.files:
        there.file(name)
    if not shared.dry_run:
        carry(merge, Path(there.url))
    return shared.done(already=True)


def _check_destination(store: ArtifactStore, there: set[str], manifest: Manifest) -> None:
    """Refuse a place in a bucket in which something else lies."""
    if MANIFEST in there:
        lies = Manifest.read(unseal(_manifest_in(store), f"{store.url}/{MANIFEST}"), store.url)
        if lies.to_json() != manifest.to_json():
            raise InputError(
                f"{store.url} holds the merge {lies.ref}, expected nothing or {manifest.ref} "
                "itself; name another place"
            )
    foreign = sorted(there - {*manifest.files, MANIFEST, CARD, SIGNATURES})
    if foreign:
        raise InputError(
            f"{store.url} holds {foreign[0]}, which is no file of {manifest.ref}; name a place in "
            "which nothing else lies, such as a prefix of its own"
        )


def _manifest_in(store: ArtifactStore) -> bytes:
    try:
        return store.get(MANIFEST, 0, MAX_MANIFEST + 1)
    except NotFoundError as error:
        raise NotFoundError(
            f"{store.url} holds no merge: it has no {MANIFEST}; check the place, or push one"
        ) from error


def pull(source: str, directory: Path, *, dry_run: bool = False) -> Shared:
    """Bring a merge from ``hf://org/name[@revision]``, ``s3://bucket/prefix`` or a folder here.

    Every file is compared with its hash in the manifest; the folder appears whole or not at all.
    Of what lies there beside the merge nothing is brought.

    Raises NotFoundError if no merge lies there; InputError if it was not written by tintray, or the
    folder is taken; SignatureError if it is not signed as it has to be; IntegrityError if a file is
    not what its manifest says.
    """
    with TemporaryDirectory(prefix="tintray-") as scratch, as_input_error():
        found = _open(source, Path(scratch))
        check_if_required(found)
        manifest = found.manifest
        _check_names(manifest, source)
        shared = _shared(source, str(directory), manifest, dry_run=dry_run)
        if (directory / MANIFEST).is_file():
            return _already(_opened(directory), found, shared)
        if not dry_run:
            found.export(None, directory)
        return shared if dry_run else shared.done()


def _check_names(manifest: Manifest, source: str) -> None:
    for name in manifest.files:
        if not name.endswith(_KNOWN):
            raise InputError(
                f"{source}: its manifest names the file {name}, expected names that end in "
                f"{', '.join(_KNOWN)}; tintray did not write it, do not use this merge"
            )


def _open(source: str, scratch: Path) -> Merge:
    """A merge as it lies somewhere; its files come here one by one, as they are read."""
    if source.startswith(hub.SCHEME):
        return hub.open_merge(source)
    if (folder := local_folder(source)) is not None:
        return _opened(folder)
    store = open_store(source)
    data = _manifest_in(store)
    manifest = Manifest.read(unseal(data, f"{store.url}/{MANIFEST}"), store.url)
    fetch = _fetcher(store, manifest, scratch)
    return Merge(*(manifest, fetch, store.url), signatures=lambda: signatures_at(store, SIGNATURES))


def _opened(folder: Path) -> Merge:
    return open_folder(folder, lambda data: unseal(data, f"{folder}/{MANIFEST}"))


def _fetcher(store: ArtifactStore, manifest: Manifest, scratch: Path) -> Callable[[str], Path]:
    def fetch(name: str) -> Path:
        found, listed = store.stat(name), manifest.files[name]
        if found is None:
            raise FileNotFoundError(name)
        if found.size != listed.size:  # a larger one would fill the disk
            raise IntegrityError(
                f"{store.url}/{name} has {found.size:,} bytes, its manifest says {listed.size:,}; "
                "push the merge again"
            )
        for path in scratch.iterdir():  # one at a time
            path.unlink()
        return store.fetch(name, scratch / "file")

    return fetch
