"""Merges in repositories of the Hugging Face hub.

A push is one commit, so that a repository holds the whole merge or the one before. The token is
found by huggingface_hub (``HF_TOKEN``, or who has logged in) and seen by nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tintray.errors import InputError, IntegrityError, NotFoundError, SpecError, StorageError
from tintray.files import read_bytes, reason
from tintray.jobs.upkeep.results import Shared
from tintray.published.manifest import MANIFEST, MAX_MANIFEST, Manifest
from tintray.published.merge import Merge
from tintray.published.signatures import (
    MAX_SIGNATURES,
    SIGNATURES,
    read_signatures,
    write_signatures,
)
from tintray.seals import unseal
from tintray.storage.secrets import redact

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME = "hf://"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_PLACE = re.compile(rf"hf://(?P<repo>{_PART}/{_PART})(@(?P<revision>[A-Za-z0-9][\w./-]{{0,99}}))?")


def _parse(place: str) -> tuple[str, str | None]:
    found = _PLACE.fullmatch(place)
    if found is None:
        raise SpecError(
            f"'{place}': expected hf://org/name or hf://org/name@revision, a repository of the hub"
        )
    return found["repo"], found["revision"]


@contextmanager
def _failures(place: str, doing: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence, without what it knows of tokens."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise NotFoundError(
            f"{place} is no repository that the hub lets you {doing}; check its name, or set "
            "HF_TOKEN if it is private"
        ) from error
    except errors.HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        if code in (401, 403):
            raise InputError(
                f"{place}: the hub does not let you {doing} ({code}); set HF_TOKEN to a token that "
                "may, or run `hf auth login`"
            ) from error
        raise StorageError(
            f"{place}: the hub failed ({redact(reason(error))}); try again"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise StorageError(f"{place}: HF_HUB_OFFLINE is set; unset it to reach the hub") from error
    except (OSError, ValueError, RuntimeError) as error:
        said = redact(reason(error))
        raise StorageError(f"{place}: the hub could not be reached ({said}); try again") from error


def push(
    merge: Merge, place: str, extra: Mapping[str, bytes], shared: Shared, *, public: bool
) -> Shared:
    """Commit a merge, with ``extra`` files beside it, to a repository, which is made if need be.

    Raises InputError if another merge, or something else, lies there; StorageError if the hub fails
    or has other files than were sent.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repo, revision = _parse(place)
    if revision is not None:
        raise SpecError(f"'{place}': a push goes to the main branch; leave @{revision} out")
    api, manifest = HfApi(), merge.manifest
    signed = read_signatures(merge.signatures(), merge.url)
    there, head = _listing(api, repo, place)
    if head is not None and (lies := _manifest(api, repo, head, place, there)) is not None:
        if lies.name != manifest.name:
            raise InputError(
                f"{place} holds the merge {lies.ref}, expected versions of {manifest.name}; name "
                "another repository"
            )
        if lies.to_json() == manifest.to_json():
            _verify(api, repo, head, manifest, place)
            before = read_signatures(_signatures(api, repo, head, place, there), place)
            if set(signed) <= set(before):
                return shared.done(already=True)
            signed = [*before, *signed]
    if shared.dry_run:
        return shared
    files: dict[str, Path | bytes] = {name: merge.file(name) for name in manifest.files}
    files |= extra
    if signed:
        files[SIGNATURES] = write_signatures(signed)
    adds = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    old = [
        CommitOperationDelete(name)
        for name in there
        if name not in files and name.startswith(("tints/", "configs/", SIGNATURES))
    ]
    with _failures(place, "write to"):
        if head is None:
            api.create_repo(repo, private=not public, exist_ok=True)
        made = api.create_commit(
            repo, [*adds, *old], commit_message=f"{manifest.ref}", parent_commit=head
        )
    _verify(api, repo, made.oid, manifest, place)
    return shared.done()


def _listing(api: HfApi, repo: str, place: str) -> tuple[list[str], str | None]:
    """Names of a repository's files and its last commit; none of one that is not there."""
    try:
        with _failures(place, "read"):
            info = api.model_info(repo)
    except NotFoundError:
        return [], None
    return [file.rfilename for file in info.siblings or []], info.sha


def _manifest(
    api: HfApi, repo: str, revision: str, place: str, there: list[str]
) -> Manifest | None:
    if MANIFEST not in there:
        return None
    data = _content(api, repo, MANIFEST, revision, place, MAX_MANIFEST)
    return Manifest.read(unseal(data, f"{place}/{MANIFEST}"), place)


def _signatures(api: HfApi, repo: str, revision: str, place: str, there: list[str]) -> bytes:
    if SIGNATURES not in there:
        return b""
    return _content(api, repo, SIGNATURES, revision, place, MAX_SIGNATURES)


def _content(api: HfApi, repo: str, name: str, revision: str, place: str, limit: int) -> bytes:
    with _failures(place, "read"):
        path = Path(api.hf_hub_download(repo, name, revision=revision))
    return read_bytes(path, place, limit=limit, error=NotFoundError)


def _verify(api: HfApi, repo: str, revision: str, manifest: Manifest, place: str) -> None:
    """Compare what the hub says of the files with the manifest."""
    found: dict[str, Any] = {}
    with _failures(place, "read"):
        for file in api.get_paths_info(repo, list(manifest.files), revision=revision):
            found[file.path] = file
    for name, entry in manifest.files.items():
        lying = found.get(name)
        lfs, size = getattr(lying, "lfs", None), getattr(lying, "size", None)
        if size != entry.size or (lfs is not None and lfs.sha256 != entry.sha256):
            raise IntegrityError(
                f"{place}/{name} is not what the manifest says: it has {size} bytes, expected "
                f"{entry.size:,} with the sha256 {entry.sha256[:12]}…; push the merge again"
            )


def open_merge(place: str) -> Merge:
    """The merge in a repository; its files are downloaded, and verified, as they are read.

    Raises NotFoundError if there is no such repository, or no merge in it; IntegrityError if a file
    is missing or of another size than the manifest says.
    """
    from huggingface_hub import HfApi

    repo, revision = _parse(place)
    api = HfApi()
    with _failures(place, "read"):
        info = api.model_info(repo, revision=revision)
    there, head = [file.rfilename for file in info.siblings or []], str(info.sha)
    manifest = _manifest(api, repo, head, place, there)
    if manifest is None:
        raise NotFoundError(
            f"{place} holds no merge: it has no {MANIFEST}; check the name, or push one"
        )
    _verify(api, repo, head, manifest, place)

    def fetch(name: str) -> Path:
        with _failures(place, "read"):
            return Path(api.hf_hub_download(repo, name, revision=head)).resolve()

    return Merge(
        *(manifest, fetch, place), signatures=lambda: _signatures(api, repo, head, place, there)
    )
