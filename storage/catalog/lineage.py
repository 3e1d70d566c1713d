"""What the catalog knows of merges and artifacts: versions, parents, files, coefficients."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tintray.errors import NotFoundError, StorageError, nearest
from tintray.storage.artifacts.blobs import BlobRef
from tintray.storage.catalog.states import JobState
from tintray.storage.catalog.tables import (
    Artifact,
    ArtifactUse,
    Base,
    Coefficient,
    Job,
    Merge,
    MergeFile,
)

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

_VERSION = re.compile(r"v[0-9]{1,9}")  # no more digits than the column takes
_BATCH = 500  # values in one statement: SQLite takes a bounded number


@dataclass(frozen=True)
class LayerSummary:
    """The merging coefficients of one layer unit over all tasks."""

    layer: str
    mean: float
    spread: float
    minimum: float
    maximum: float


def insert_missing(session: Session, table: type[Base], rows: list[dict[str, Any]]) -> None:
    """Insert rows, leaving those alone whose primary key is there already."""
    if rows:
        session.execute(_insert(session, table).on_conflict_do_nothing(), rows)


def insert_or_replace(
    session: Session, table: type[Base], rows: list[dict[str, Any]], key: list[str]
) -> None:
    """Insert rows; a row whose ``key`` is there already takes the new values."""
    if not rows:
        return
    statement = _insert(session, table)
    changed = {name: statement.excluded[name] for name in rows[0] if name not in key}
    session.execute(statement.on_conflict_do_update(index_elements=key, set_=changed), rows)


def _insert(session: Session, table: type[Base]) -> sqlite.Insert | postgresql.Insert:
    # Imported for the database at hand: each costs as much as a query, and a list needs neither.
    if session.get_bind().dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


class ParentChangedError(StorageError):
    """A newer version of a merge has come, or is coming, since a change of it began."""


def reserve(
    session: Session, name: str, job_id: str | None, at_least: int, head: int | None = None
) -> int:
    """A version that no other caller gets; the same one again for a job that holds one unused.

    With ``head``, the newest version when the caller began: raises ``ParentChangedError`` if
    there is a newer one by now, or another job is publishing one.
    """
    if head is not None:
        _check_head(session, name, job_id, head)
    held = sa.select(Merge.version).where(
        Merge.name == name, Merge.job_id == job_id, Merge.published_at.is_(None)
    )
    found = session.scalar(held) if job_id is not None else None
    if found is not None:
        return found
    highest = session.scalar(sa.select(sa.func.max(Merge.version)).where(Merge.name == name)) or 0
    version = max(highest + 1, at_least)
    session.add(Merge(**_blank(name, version, job_id)))
    session.flush()
    return version


def _check_head(session: Session, name: str, job_id: str | None, head: int) -> None:
    """Refuse if any other change of the merge was first; changes wait for each other here."""
    at_head = sa.select(Merge.id).where(Merge.name == name, Merge.version == head)
    session.execute(at_head.with_for_update())
    over = [state for state in JobState if state.terminal]
    coming = sa.and_(Merge.published_at.is_(None), Job.state.not_in(over))
    newer = (
        sa.select(Merge.version, Merge.job_id, Merge.published_at)
        .outerjoin(Job, Job.id == Merge.job_id)
        .where(Merge.name == name, Merge.version > head, Merge.removed_at.is_(None))
        .where(sa.or_(Merge.published_at.is_not(None), coming))
        .where(sa.or_(Merge.job_id.is_(None), Merge.job_id != (job_id or "")))
        .order_by(Merge.version.desc())
    )
    found = session.execute(newer).first()
    if found is None:
        return
    verb = "was published" if found.published_at is not None else "is being published"
    by = f" by job {found.job_id}" if found.job_id else ""
    raise ParentChangedError(
        f"{name}/v{found.version} {verb}{by} since this change of {name}/v{head} began; nothing "
        "was published, run it again, or with --rebase to grow from the newest version by itself"
    )


def _blank(name: str, version: int, job_id: str | None) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "name": name,
        "version": version,
        "job_id": job_id,
        "added": [],
        "metrics": {},
        "created_at": now,
    }


def record(
    session: Session,
    name: str,
    version: int,
    values: Mapping[str, Any],
    parent: str | None,
) -> Merge:
    """The row of a published merge; publishing the same manifest twice changes nothing.

    Raises ``StorageError`` if the version is taken by another manifest or another job.
    """
    merge = session.scalar(sa.select(Merge).where(Merge.name == name, Merge.version == version))
    if merge is None:
        merge = Merge(**_blank(name, version, values["job_id"]))
        session.add(merge)
    elif merge.published_at is not None or merge.job_id != values["job_id"]:
        if merge.removed_at is not None:
            raise StorageError(
                f"merge {merge.ref} was removed, and its version is not given again; publish "
                "under another version or name"
            )
        known = (merge.manifest_sha256, merge.url)
        if merge.published_at and known == (values["manifest_sha256"], values["url"]):
            return merge
        raise StorageError(
            f"merge {merge.ref} is already in the catalog, from job {merge.job_id}; a published "
            "merge never changes: publish under another version or name"
        )
    for field, value in values.items():
        setattr(merge, field, value)
    merge.parent_id = find(session, parent).id if parent is not None else None
    merge.published_at = datetime.now(UTC)
    session.flush()
    return merge


def remove(session: Session, name: str, version: int) -> None:
    """Note that a merge is gone; its row stays for those that grew from it. Once is enough."""
    merge = session.scalar(sa.select(Merge).where(Merge.name == name, Merge.version == version))
    if merge is None or merge.removed_at is not None:
        return
    merge.removed_at = datetime.now(UTC)
    session.execute(sa.delete(MergeFile).where(MergeFile.merge_id == merge.id))


def add_files(session: Session, merge: Merge, files: Mapping[str, BlobRef]) -> None:
    """Note which blobs a merge consists of."""
    now = datetime.now(UTC)
    artifacts = {ref.sha256: artifact_row(ref, "merge", {}, now) for ref in files.values()}
    insert_missing(session, Artifact, list(artifacts.values()))
    rows = [{"merge_id": merge.id, "name": n, "sha256": ref.sha256} for n, ref in files.items()]
    insert_missing(session, MergeFile, rows)


def add_coefficients(session: Session, merge: Merge, layers: Iterable[LayerSummary]) -> None:
    """Note the summary of the coefficients, layer by layer."""
    rows = [{"merge_id": merge.id, **layer.__dict__} for layer in layers]
    insert_missing(session, Coefficient, rows)


def forget_uses(session: Session, job_id: str, hashes: Iterable[str]) -> set[str]:
    """Note that a job needs some artifacts no more; returns those that are now forgotten.

    What another job or a merge has used, or what is pinned, stays known.
    """
    gone = sorted(hashes)
    forgotten: set[str] = set()
    for start in range(0, len(gone), _BATCH):
        batch = gone[start : start + _BATCH]
        mine = sa.and_(ArtifactUse.job_id == job_id, ArtifactUse.sha256.in_(batch))
        session.execute(sa.delete(ArtifactUse).where(mine))
        used = sa.select(ArtifactUse.sha256).union(sa.select(MergeFile.sha256))
        loose = sa.and_(
            Artifact.sha256.in_(batch), Artifact.pinned_at.is_(None), Artifact.sha256.not_in(used)
        )
        forgotten |= set(
            session.scalars(sa.delete(Artifact).where(loose).returning(Artifact.sha256))
        )
    return forgotten


def artifact_row(ref: BlobRef, kind: str, meta: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The columns of a new artifact."""
    return {
        "sha256": ref.sha256,
        "size": ref.size,
        "kind": kind,
        "meta": dict(meta),
        "created_at": now,
    }


def published(session: Session) -> list[Merge]:
    """All published merges, oldest first."""
    order = (Merge.published_at, Merge.id)
    return list(session.scalars(_published().order_by(*order)))


def _published() -> sa.Select[Merge]:
    return sa.select(Merge).where(Merge.published_at.is_not(None), Merge.removed_at.is_(None))


def find(session: Session, reference: str) -> Merge:
    """The merge that ``name`` (its newest version), ``name/v2`` or ``latest`` means.

    Raises ``NotFoundError`` with the nearest merge that there is.
    """
    name, _, version = reference.partition("/")
    query = _published().order_by(Merge.version.desc()).limit(1)
    if reference == "latest":
        query = _published().order_by(Merge.published_at.desc(), Merge.id.desc()).limit(1)
    elif version in ("", "latest"):
        query = query.where(Merge.name == name)
    elif _VERSION.fullmatch(version):
        query = query.where(Merge.name == name, Merge.version == int(version[1:]))
    else:
        query = query.where(sa.false())
    merge = session.scalar(query)
    if merge is None:
        known = published(session)
        if was_removed(session, reference):
            others = ", ".join(other.ref for other in known if other.name == name) or "none"
            raise NotFoundError(f"merge {reference} was removed; of that name there are: {others}")
        names = [merge.ref for merge in known] if version else {merge.name for merge in known}
        hint = nearest(reference, names) if known else "; nothing has been published yet"
        raise NotFoundError(f"there is no merge '{reference}' in the catalog{hint}")
    return merge


def was_removed(session: Session, reference: str) -> bool:
    """Whether there was a merge ``name/v2`` that is gone."""
    merge = _row(session, reference)
    return merge is not None and merge.removed_at is not None


def grew_from(session: Session, reference: str) -> str | None:
    """What the merge ``name/v2`` grew from, as far as it is known; either may be removed."""
    merge = _row(session, reference)
    parent = None if merge is None else session.get(Merge, merge.parent_id or 0)
    return None if parent is None else parent.ref


def children(session: Session, reference: str) -> list[str]:
    """The merges that grew from ``name/v2`` and are there, oldest first."""
    merge = _row(session, reference)
    if merge is None:
        return []
    query = _published().where(Merge.parent_id == merge.id).order_by(Merge.id)
    return [child.ref for child in session.scalars(query)]


def _row(session: Session, reference: str) -> Merge | None:
    """The row of ``name/v2``, whatever became of it."""
    name, _, version = reference.partition("/")
    if not _VERSION.fullmatch(version):
        return None
    query = sa.select(Merge).where(Merge.name == name, Merge.version == int(version[1:]))
    return session.scalar(query)
