"""Looking after a store and its catalog: list, verify, pin, collect, remove, copy, upgrade."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tintray.errors import InputError, NotFoundError, StorageError, nearest
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.settings import chosen
from tintray.jobs.engine.finding import load_merge, locate, store_of
from tintray.jobs.runs.catalog_entries import enter
from tintray.jobs.upkeep.databases import check_catalog as check_catalog
from tintray.jobs.upkeep.databases import forget_rounds as forget_rounds
from tintray.jobs.upkeep.databases import relocate_store as relocate_store
from tintray.jobs.upkeep.databases import upgrade_catalog as upgrade_catalog
from tintray.jobs.upkeep.results import (
    ArtifactLine,
    Copied,
    DamageLine,
    GarbageLine,
    GarbageReport,
    Removed,
    VerifyReport,
)
from tintray.jobs.upkeep.signing import carry
from tintray.storage.artifacts.aliases import MARK, aliases_of, read_alias
from tintray.storage.artifacts.blobs import fetch_blob, is_blob
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.publish import (
    MergeRef,
    list_merges,
    parse_merge_url,
    publish_merge,
    read_manifest,
)
from tintray.storage.artifacts.store import open_store
from tintray.storage.artifacts.verify import verify_merge, verify_store
from tintray.storage.catalog import collect
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.tables import Artifact, Merge

DAY = 86400.0


@contextmanager
def opened(store: str, catalog: str) -> Iterator[tuple[ArtifactStore, Catalog]]:
    """A store and its catalog, for the length of a block.

    Raises ``InputError`` if one of them cannot be used as it was named.
    """
    with as_input_error():
        found, known = open_store(store), Catalog.open(catalog, create=False)
    with known:
        with as_input_error():
            next(iter(found.list("merges/")), None)
        yield found, known


# Artifacts


def list_artifacts(
    *, store: str | None = None, catalog: str | None = None, kind: str | None = None
) -> list[ArtifactLine]:
    """Every blob that the catalog or the store knows, oldest first; those of a kind if given."""
    store, catalog = chosen(store, catalog)
    with opened(store, catalog) as (place, known):
        there = {name: entry for entry in place.list("blobs/") if (name := is_blob(entry.key))}
        users = known.artifacts.users()
        found = known.artifacts.all()
    lines = [_line(item, users.get(item.sha256, set()), item.sha256 in there) for item in found]
    unknown = sorted(there.keys() - {item.sha256 for item in found})
    lines += [ArtifactLine(name, "unknown", there[name].size, None, [], True) for name in unknown]
    lines = [line for line in lines if kind in (None, line.kind)]
    if kind is not None and not lines:
        kinds = sorted({item.kind for item in found})
        raise NotFoundError(
            f"there is no artifact of the kind '{kind}'{nearest(kind, kinds)}; there are "
            f"{', '.join(kinds) or 'none at all'}"
        )
    return lines


def _line(item: Artifact, users: set[str], in_store: bool) -> ArtifactLine:
    created = item.created_at.isoformat(timespec="seconds")
    return ArtifactLine(item.sha256, item.kind, item.size, created, sorted(users), in_store)


def verify(
    *, store: str | None = None, catalog: str | None = None, merge: str | None = None
) -> VerifyReport:
    """Read every artifact of a store, or of one merge, and compare it with its hash."""
    store, catalog = chosen(store, catalog)
    if merge is not None:
        return _verify_merge(merge, catalog)
    with opened(store, catalog) as (place, known):
        users = known.artifacts.users()
        here = f"{place.url}/merges/"
        mine = [item for item in known.merges.all() if (item.url or "").startswith(here)]
        manifests = {
            MergeRef(item.name, item.version).manifest_key: item.manifest_sha256 or ""
            for item in mine
        }
        expected = {ref.sha256 for item in mine for ref in known.merges.files(item).values()}
        result = verify_store(place, expected, manifests)
    lines = [DamageLine(d.key, d.problem, _users_of(d.key, users)) for d in result.damaged]
    return VerifyReport(place.url, result.artifacts, result.size, lines)


def _verify_merge(merge: str, catalog: str) -> VerifyReport:
    with as_input_error():
        url = locate(merge, catalog)
        place, ref = parse_merge_url(url)
        with _if_there(catalog) as known:
            entry = _entry(known, ref, url)
        result = verify_merge(place, ref, None if entry is None else entry.manifest_sha256)
    lines = [DamageLine(d.key, d.problem, [f"merge {ref}"]) for d in result.damaged]
    return VerifyReport(place.url, result.artifacts, result.size, lines)


def _users_of(key: str, users: dict[str, set[str]]) -> list[str]:
    sha256 = is_blob(key.removesuffix(".blocks"))
    if sha256 is not None:
        return sorted(users.get(sha256, set()))
    parts = key.split("/")
    return [f"merge {parts[1]}/{parts[2]}"] if parts[0] == "merges" else []


def pin(
    sha256: str, *, catalog: str | None = None, pinned: bool = True, dry_run: bool = False
) -> ArtifactLine:
    """Keep an artifact, named by the first digits of its hash, from gc; or no longer.

    Raises ``NotFoundError``, ``InputError`` if no artifact, or more than one, begins so.
    """
    _, catalog = chosen(None, catalog)
    with as_input_error():
        known = Catalog.open(catalog, create=False)
    with known:
        found = [item for item in known.artifacts.all() if item.sha256.startswith(sha256)]
        if len(sha256) < 6 or len(found) > 1:
            raise InputError(
                f"artifact '{sha256}': expected six or more digits of a sha256 that only one "
                f"artifact begins with, found {len(found)} that do"
            )
        if not found:
            raise NotFoundError(
                f"there is no artifact that begins with '{sha256}' in the catalog {known.url}; "
                "`tintray artifacts ls` lists them"
            )
        if not dry_run:
            known.artifacts.pin(found[0].sha256, pinned)
        users = known.artifacts.users(found[0].sha256).get(found[0].sha256, set())
        return _line(found[0], users, True)


# Garbage


def collect_garbage(
    *, store: str | None = None, catalog: str | None = None, age: float = DAY, delete: bool = False
) -> GarbageReport:
    """Find what nobody needs and is older than ``age`` seconds, and ``delete`` it if asked to."""
    store, catalog = chosen(store, catalog)
    with opened(store, catalog) as (place, known):
        sweep = (collect.collect if delete else collect.plan)(place, known, age)
    return GarbageReport(
        store=place.url,
        dry_run=not delete,
        garbage=[GarbageLine(item.key, item.size, item.reason) for item in sweep.garbage],
        garbage_bytes=sum(item.size for item in sweep.garbage),
        kept=sweep.kept,
        kept_bytes=sweep.kept_bytes,
        young=sweep.young,
        young_bytes=sweep.young_bytes,
    )


# Merges


def remove_merge(merge: str, *, catalog: str | None = None, dry_run: bool = False) -> Removed:
    """Take a merge out of its store and its catalog; its blobs are left to the next collection.

    The manifest goes first: from then on there is no such merge. One that was removed half way is
    removed wholly by trying again. With ``dry_run`` it stays, and how many of its bytes nobody else
    needs is not known.
    """
    _, catalog = chosen(None, catalog)
    with as_input_error():
        url = locate(merge, catalog)
        place, ref = parse_merge_url(url)
        keys = [entry.key for entry in place.list(f"{ref.key}/")]
        _check_no_alias(place, ref)
    sizes = _sizes(place, ref)
    with _if_there(catalog) as known:
        entry = _entry(known, ref, url)
        if not keys and entry is None:
            hint = nearest(str(ref), map(str, list_merges(place)))
            raise NotFoundError(f"merge {ref} is not published in {place.url}{hint}")
        children = [] if known is None else known.merges.children(str(ref))
        if dry_run:
            return Removed(str(ref), url, 0, children, dry_run=True)
        for key in sorted(keys, key=lambda key: key != ref.manifest_key):
            place.delete(key)
        if known is None:
            return Removed(str(ref), url, sum(sizes.values()))
        if entry is not None:
            known.merges.remove(ref.name, ref.version)
        unneeded = sizes.keys() - known.artifacts.needed()
    return Removed(str(ref), url, sum(sizes[sha256] for sha256 in unneeded), children)


def _check_no_alias(store: ArtifactStore, ref: MergeRef) -> None:
    for alias in aliases_of(store, ref.name):
        if read_alias(store, ref.name, alias) == ref:
            raise InputError(
                f"merge {ref} is what {ref.name}{MARK}{alias} means; let the alias mean another "
                f"version (tintray alias {ref.name}{MARK}{alias} VERSION) or remove it first"
            )


def _sizes(store: ArtifactStore, ref: MergeRef) -> dict[str, int]:
    """Sizes of the blobs of a merge; none if its manifest is gone or damaged."""
    try:
        files = read_manifest(store, ref)["files"]
    except (NotFoundError, StorageError):
        return {}
    return {file["sha256"]: file["size"] for file in files.values()}


@contextmanager
def _if_there(catalog: str) -> Iterator[Catalog | None]:
    known = None
    with suppress(NotFoundError), as_input_error():
        known = Catalog.open(catalog, create=False)
    with known or nullcontext():
        yield known


def _entry(catalog: Catalog | None, ref: MergeRef, url: str) -> Merge | None:
    """What a catalog has of this very merge; its folder may be written as a path or as a URL."""
    if catalog is None:
        return None
    with suppress(NotFoundError):
        found = catalog.merges.find(str(ref))
        if found.url is not None:
            (one, first), (other, second) = parse_merge_url(found.url), parse_merge_url(url)
            return found if (one.url, first) == (other.url, second) else None
    return None


def copy_merge(
    merge: str,
    destination: str,
    *,
    catalog: str | None = None,
    destination_catalog: str | None = None,
    dry_run: bool = False,
) -> Copied:
    """Copy a merge to another store: every file verified here and there, the manifest last.

    A copy that was broken off goes on where it was, and one that is there already is left as it
    is. ``destination_catalog`` is where the copy is entered, if anywhere. With ``dry_run`` all is
    looked at and nothing is written.
    """
    _, catalog = chosen(None, catalog)
    with as_input_error():
        url = locate(merge, catalog)
        opened_merge = load_merge(url)
        manifest = opened_merge.manifest
        ref = MergeRef(manifest.name, manifest.version)
        target = open_store(destination)
        root = store_of(url, "")  # none of a folder that was copied out of a store
        if root and open_store(root).url == target.url:
            raise InputError(f"merge {ref} is in {target.url} already; name another store")
        size = sum(file.size for file in manifest.files.values())
        if dry_run:
            to = f"{target.url}/{ref.key}"
            files = len(manifest.files)
            return Copied(str(ref), url, to, files, size, destination_catalog, dry_run=True)
        target.check_writable()
        known = None if destination_catalog is None else Catalog.open(destination_catalog)
    contents = {name: opened_merge.file(name) for name in manifest.files}

    def read_back() -> None:
        """Compare the hash of what was written before a manifest says that it is there."""
        for sha256 in {file.sha256 for file in manifest.files.values()}:
            with TemporaryDirectory(prefix="tintray-") as folder:
                fetch_blob(target, sha256, Path(folder))

    copied = publish_merge(
        target, ref.name, contents, manifest.to_json(), version=ref.version, confirm=read_back
    )
    carry(opened_merge, (target, ref.signatures_key))
    if known is not None:
        with known:
            enter(known, target, manifest, opened_merge.coefficients)
    return Copied(str(ref), url, copied, len(contents), size, None if known is None else known.url)
