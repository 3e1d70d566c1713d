"""Merges: their versions, parents, files and coefficients."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tintray.errors import NotFoundError, ParentChangedError, StorageError, nearest
from tintray.storage.artifacts.blobs import BlobRef
from tintray.storage.artifacts.urls import check_name
from tintray.storage.catalog.artifacts import KnownArtifact, enter_artifacts
from tintray.storage.catalog.database import Repository, insert_missing
from tintray.storage.catalog.drivers import through
from tintray.storage.catalog.leases import fence
from tintray.storage.catalog.merge_list import MergeRow, select_merges, select_tree
from tintray.storage.catalog.states import OVER
from tintray.storage.catalog.tables import Artifact, Coefficient, Job, Merge, MergeFile
from tintray.storage.secrets import scrub, shown_url

_VERSION = re.compile(r"v[0-9]{1,9}")  # no more digits than the column takes
_TRIES = 100


@dataclass(frozen=True)
class LayerSummary:
    """The merging coefficients of one layer unit over all tasks."""

    layer: str
    mean: float
    spread: float
    minimum: float
    maximum: float


class Merges(Repository):
    """The merges that a catalog knows."""

    def reserve(
        self, name: str, job_id: str | None = None, *, at_least: int = 1, head: int | None = None
    ) -> int:
        """A version number for ``publish_merge`` that nobody else gets.

        ``at_least`` is for a store that has merges which this catalog does not know. A job that
        asks again after it was restarted gets the number that it holds, whatever ``at_least``: it
        may have published under it without having entered it here. ``head`` is for a child: the
        newest version when its job began; ``ParentChangedError`` if there is
        a newer one, or one on its way.
        """
        check_name(name, "merge name")
        for _ in range(_TRIES):
            try:
                with self._write() as session:
                    return _reserve(session, name, job_id, at_least, head)
            except StorageError as error:
                # The unique constraint chose another client; the next number is free.
                if not isinstance(error.__cause__, sa.exc.IntegrityError):
                    raise
        raise StorageError(f"merge {name}: no version could be reserved in {self.url}; try again")

    def record(
        self,
        name: str,
        version: int,
        url: str,
        job_id: str | None = None,
        parent: str | None = None,
        manifest_sha256: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        *,
        added: Iterable[str] = (),
        files: Mapping[str, BlobRef] | None = None,
        coefficients: Iterable[LayerSummary] = (),
        token: int | None = None,
    ) -> Merge:
        """Enter a merge once its manifest is in the store; entering it again changes nothing.

        ``parent`` is a reference such as ``name/v2``; ``added`` names the tasks that the parent has
        not. Raises ``StorageError`` if the version is taken by another manifest or another job.
        """
        values = {
            "url": shown_url(url),
            "job_id": job_id,
            "manifest_sha256": manifest_sha256,
            "metrics": scrub(dict(metrics or {})),
            "added": list(added),
        }
        with self._write() as session:
            if job_id is not None:
                fence(session, job_id, token)
            merge = _publish(session, name, version, values, parent)
            refs = (files or {}).items()
            enter_artifacts(session, (KnownArtifact(ref, "merge") for _, ref in refs))
            rows = [{"merge_id": merge.id, "name": n, "sha256": ref.sha256} for n, ref in refs]
            insert_missing(session, MergeFile, rows)
            layers = [{"merge_id": merge.id, **asdict(layer)} for layer in coefficients]
            insert_missing(session, Coefficient, layers)
            return merge

    def all(self, name: str | None = None) -> list[Merge]:
        """All published merges, or those of a name; oldest first."""
        query = _published() if name is None else _published().where(Merge.name == name)
        return self._list(query.order_by(Merge.published_at, Merge.id))

    def listing(self) -> list[MergeRow]:
        """All published merges as lists show them, the newest first."""
        with self._read() as session:
            return select_merges(through(session.connection()))

    def tree(self, name: str) -> list[MergeRow]:
        """The merges of a name and all that they grew from, oldest first."""
        with self._read() as session:
            return select_tree(through(session.connection()), name)

    def find(self, reference: str) -> Merge:
        """The merge that ``name`` (its newest version), ``name/v2`` or ``latest`` means.

        Raises ``NotFoundError`` with the nearest merge that there is.
        """
        with self._read() as session:
            return _find(session, reference)

    def of_job(self, job_id: str) -> str | None:
        """The merge that a job has published, ``name/v1``; also if it was removed since."""
        published = sa.and_(Merge.job_id == job_id, Merge.published_at.is_not(None))
        return next((merge.ref for merge in self._list(sa.select(Merge).where(published))), None)

    def parent(self, reference: str) -> Merge | None:
        """What the merge ``name/v2`` grew from, as far as it is known; either may be removed."""
        with self._read() as session:
            merge = _row(session, reference)
            return None if merge is None else session.get(Merge, merge.parent_id or 0)

    def children(self, reference: str) -> list[str]:
        """The merges that grew from ``name/v2`` and are there, oldest first."""
        with self._read() as session:
            merge = _row(session, reference)
            query = _published().where(Merge.parent_id == (merge.id if merge else 0))
            return [child.ref for child in session.scalars(query.order_by(Merge.id))]

    def remove(self, name: str, version: int) -> None:
        """Note that a merge is gone from its store; its version is never given again.

        Its row stays for those that grew from it.
        """
        with self._write() as session:
            merge = _row(session, f"{name}/v{version}")
            if merge is not None and merge.removed_at is None:
                merge.removed_at = datetime.now(UTC)
                session.execute(sa.delete(MergeFile).where(MergeFile.merge_id == merge.id))

    def relocate(self, before: str, after: str) -> None:
        """Note that a store, written as ``before``, is at the URL ``after`` now, with all in it."""
        inside = Merge.url.startswith(f"{before}/merges/", autoescape=True)
        moved = sa.literal(after).concat(sa.func.substr(Merge.url, len(before) + 1))
        with self._write() as session:
            session.execute(sa.update(Merge).where(inside).values(url=moved))
            mine = sa.update(Job).where(Job.store_url == before)
            session.execute(mine.values(store_url=after))

    def files(self, merge: Merge) -> dict[str, BlobRef]:
        """The blobs that a merge consists of, by file name."""
        query = (
            sa.select(MergeFile.name, Artifact.sha256, Artifact.size)
            .join(Artifact)
            .where(MergeFile.merge_id == merge.id)
        )
        with self._read() as session:
            return {row.name: BlobRef(row.sha256, row.size) for row in session.execute(query)}

    def coefficients(self, merge: Merge) -> list[Coefficient]:
        """The summary of a merge's coefficients, by layer."""
        query = sa.select(Coefficient).where(Coefficient.merge_id == merge.id)
        return self._list(query.order_by(Coefficient.layer))


def _reserve(
    session: Session, name: str, job_id: str | None, at_least: int, head: int | None
) -> int:
    if head is not None:
        _check_head(session, name, job_id, head)
    of_name = sa.select(sa.func.max(Merge.version)).where(Merge.name == name)
    held = of_name.where(Merge.job_id == job_id, Merge.published_at.is_(None))
    if job_id is not None and (found := session.scalar(held)) is not None:
        return found
    version = max((session.scalar(of_name) or 0) + 1, at_least)
    session.add(_blank(name, version, job_id))
    session.flush()
    return version


def _check_head(session: Session, name: str, job_id: str | None, head: int) -> None:
    """Refuse if any other change of the merge was first; changes wait for each other here."""
    at_head = sa.select(Merge.id).where(Merge.name == name, Merge.version == head)
    session.execute(at_head.with_for_update())
    coming = sa.and_(Merge.published_at.is_(None), Job.state.not_in(OVER))
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


def _blank(name: str, version: int, job_id: str | None) -> Merge:
    now = datetime.now(UTC)
    return Merge(name=name, version=version, job_id=job_id, added=[], metrics={}, created_at=now)


def _publish(
    session: Session, name: str, version: int, values: dict[str, Any], parent: str | None
) -> Merge:
    merge = _row(session, f"{name}/v{version}")
    if merge is None:
        merge = _blank(name, version, values["job_id"])
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
    merge.parent_id = _find(session, parent).id if parent is not None else None
    merge.published_at = datetime.now(UTC)
    session.flush()
    return merge


def _published() -> sa.Select[Merge]:
    return sa.select(Merge).where(Merge.published_at.is_not(None), Merge.removed_at.is_(None))


def _find(session: Session, reference: str) -> Merge:
    name, _, version = reference.partition("/")
    order: sa.UnaryExpression[Any] = Merge.version.desc()
    query = _published().where(Merge.name == name)
    if reference == "latest":
        query, order = _published(), Merge.published_at.desc()
    elif version not in ("", "latest"):
        number = int(version[1:]) if _VERSION.fullmatch(version) else None
        query = query.where(Merge.version == number)
    query = query.order_by(order, Merge.id.desc()).limit(1)
    if (merge := session.scalar(query)) is not None:
        return merge
    raise NotFoundError(_unknown(session, reference))


def _unknown(session: Session, reference: str) -> str:
    """What to say of a reference that names no merge; rows are not read, as there may be many."""
    name = reference.partition("/")[0]
    gone = _row(session, reference)
    there = sa.and_(Merge.published_at.is_not(None), Merge.removed_at.is_(None))
    numbers = sa.select(Merge.version).where(there, Merge.name == name)
    of_name = [
        f"{name}/v{number}"
        for number in session.scalars(numbers.order_by(Merge.published_at, Merge.id))
    ]
    if gone is not None and gone.removed_at is not None:
        others = ", ".join(of_name) or "none"
        return f"merge {reference} was removed; of that name there are: {others}"
    if of_name:
        hint = nearest(reference, of_name)
    else:
        names = list(session.scalars(sa.select(Merge.name).where(there).distinct()))
        hint = nearest(name, names) if names else "; nothing has been published yet"
    return f"there is no merge '{reference}' in the catalog{hint}"


def _row(session: Session, reference: str) -> Merge | None:
    """The row of ``name/v2``, whatever became of it."""
    name, _, version = reference.partition("/")
    if not _VERSION.fullmatch(version):
        return None
    at = sa.and_(Merge.name == name, Merge.version == int(version[1:]))
    return session.scalar(sa.select(Merge).where(at))
