"""Find a published merge by what a user calls it, and open it."""

from __future__ import annotations

from pathlib import Path

from tintray.errors import IntegrityError, NotFoundError
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.settings import share_factories
from tintray.jobs.config.signing import check_if_required
from tintray.jobs.engine.sources import cache_folder
from tintray.published.manifest import MANIFEST, Manifest
from tintray.published.merge import Merge, open_folder
from tintray.published.signatures import MAX_SIGNATURES, digest
from tintray.seals import unseal
from tintray.storage.artifacts.aliases import read_alias, split_alias
from tintray.storage.artifacts.blobs import BlobRef, fetch_blob
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.publish import MergeRef, parse_merge_url, read_manifest
from tintray.storage.artifacts.store import open_store
from tintray.storage.artifacts.urls import local_folder


def locate(merge: str, catalog_url: str) -> str:
    """The URL or folder of a merge: a folder, a URL, or a reference in the catalog.

    ``NAME@ALIAS``, also at the end of a URL, is the version that the alias means now.
    """
    if _is_folder(merge):
        return merge
    if (aliased := split_alias(merge)) is not None:
        root = merges_root(aliased[0], catalog_url)
        with as_input_error():
            ref = read_alias(open_store(root), aliased[0].rpartition("/")[2], aliased[1])
        return f"{root}/{ref.key}"
    if "://" in merge or merge.startswith((".", "/", "~")):
        return merge
    return _known(merge, catalog_url)


def merges_root(merge: str, catalog_url: str) -> str:
    """The store that a merge lies in, by its name or by ``<store>/merges/<name>``."""
    root, mark, _ = merge.rpartition("/merges/")
    return root if mark else _known(merge, catalog_url).rpartition("/merges/")[0]


def _is_folder(merge: str) -> bool:
    try:
        return "://" not in merge and (Path(merge).expanduser() / MANIFEST).is_file()
    except (OSError, RuntimeError):  # too long for a path: a name; nobody's home
        return False


def _known(name: str, catalog_url: str) -> str:
    # SQLAlchemy takes half a second, which workers, and whoever names a folder, need not wait for.
    from tintray.storage.catalog.catalog import Catalog

    with as_input_error(), Catalog.open(catalog_url, create=False) as catalog:
        found = catalog.merges.find(name)
    assert found.url is not None, "find_merge gives published merges"
    return found.url


def load_merge(
    url: str, factory: str | None = None, *, require_signed: bool | None = None
) -> Merge:
    """Open a merge at a folder or a URL; files are read, and verified, as they are needed.

    ``factory`` is one that the caller lets run, beside those that the configuration allows. Left
    out, the settings say whether it has to be signed.
    """
    share_factories()
    if (folder := local_folder(url)) is not None:
        found = open_folder(folder, lambda data: unseal(data, f"{folder}/{MANIFEST}"), factory)
    else:
        store, ref = parse_merge_url(url)
        with as_input_error():
            manifest = manifest_of(store, ref)
        files, cache = blobs_of(manifest), cache_folder()
        found = Merge(
            *(manifest, lambda name: fetch_blob(store, files[name], cache), url, factory),
            signatures=lambda: signatures_at(store, ref.signatures_key),
        )
    check_if_required(found, require_signed)
    return found


def reopen_merge(url: str, known: str, factory: str | None = None) -> Merge:
    """Open a merge again in another process; ``known`` is ``digest`` of the one that was opened.

    Who opened it has looked whether it is signed. Raises IntegrityError if another lies there now.
    """
    found = load_merge(url, factory, require_signed=False)
    if digest(found.manifest) != known:
        raise IntegrityError(
            f"{url} is not the merge any more that was opened there: its manifest was replaced; "
            "start again, and see who writes to that store"
        )
    return found


def signatures_at(store: ArtifactStore, key: str) -> bytes:
    """What a store has as ``signatures.json`` at a key; none where it has none."""
    try:
        with as_input_error():
            return store.get(key, 0, MAX_SIGNATURES + 1)
    except NotFoundError:
        return b""


def manifest_of(store: ArtifactStore, ref: MergeRef) -> Manifest:
    """The manifest of a published merge; ``NotFoundError`` names the nearest."""
    return Manifest.read(read_manifest(store, ref), f"{store.url}/{ref.key}")


def blobs_of(manifest: Manifest) -> dict[str, BlobRef]:
    """A merge's files as artifacts, by their names."""
    return {name: BlobRef(file.sha256, file.size) for name, file in manifest.files.items()}


def store_of(url: str, default: str) -> str:
    """The artifact store that a merge lies in; ``default`` for a folder that was copied out."""
    root, mark, _ = url.rstrip("/").rpartition("/merges/")
    return root if mark else default
