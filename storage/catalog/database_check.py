"""Upgrade and check a catalog's database, from outside of ``Catalog``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import sqlalchemy as sa

from tintray.errors import NotFoundError
from tintray.storage.catalog.database import prepare_folder
from tintray.storage.catalog.engine import failures, is_absent, make_engine, parse_catalog_url
from tintray.storage.catalog.migrations import REVISIONS
from tintray.storage.catalog.schema import VERSION_TABLE, found_revision, upgrade_schema
from tintray.storage.catalog.states import JobState
from tintray.storage.catalog.tables import Base, Job, Lease
from tintray.storage.secrets import shown_catalog


@dataclass(frozen=True)
class DatabaseState:
    """What a look into a catalog's database found."""

    url: str  # without a password
    found: str  # version of its tables
    needed: str  # the version that this code works with
    rows: dict[str, int] = field(default_factory=dict)  # table -> rows
    problems: tuple[str, ...] = ()  # sentences, each with what to do
    idle: tuple[str, ...] = ()  # jobs that are not over and that nobody works on


def upgrade(url: str) -> tuple[str | None, str]:
    """Bring a catalog's tables to this code's version, or create them; versions before and after.

    Raises ``StorageError`` if the database cannot be used or is newer.
    """
    parsed = parse_catalog_url(url)
    if is_absent(parsed):
        prepare_folder(parsed, create=True)
    with _engine(parsed) as engine:
        return upgrade_schema(engine)


def check(url: str) -> DatabaseState:
    """Look whether a catalog's database is sound and its tables are this code's.

    Raises ``NotFoundError`` if there is no catalog there.
    """
    parsed = parse_catalog_url(url)
    where = shown_catalog(parsed)
    if is_absent(parsed):
        raise NotFoundError(f"there is no catalog {where} yet; run a job with it first")
    with _engine(parsed) as engine, failures(where), engine.connect() as connection:
        found = found_revision(connection)
        if found is None:
            raise NotFoundError(
                f"the database {where} holds no catalog yet; run `tintray db upgrade`"
            )
        state = DatabaseState(where, found, REVISIONS[-1])
        if found != REVISIONS[-1]:
            return DatabaseState(where, found, REVISIONS[-1], problems=(_other_version(state),))
        return DatabaseState(
            where,
            found,
            REVISIONS[-1],
            _rows(connection),
            tuple(_damage(connection)),
            tuple(_idle(connection)),
        )


@contextmanager
def _engine(url: sa.URL) -> Iterator[sa.Engine]:
    engine = make_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def _other_version(state: DatabaseState) -> str:
    if state.found in REVISIONS:
        return (
            f"its schema version {state.found} is older than {state.needed}, which this tintray "
            "needs; run `tintray db upgrade`"
        )
    return (
        f"its schema version {state.found} is newer than {state.needed}, the last that this "
        "tintray knows; upgrade tintray"
    )


def _rows(connection: sa.Connection) -> dict[str, int]:
    return {
        table.name: connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
        for table in Base.metadata.sorted_tables
    }


def _damage(connection: sa.Connection) -> Iterator[str]:
    """Tables that differ from the models, and for a SQLite file what its own checks find."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    options = {"version_table": VERSION_TABLE, "compare_type": True}
    context = MigrationContext.configure(connection, opts=options)
    if compare_metadata(context, Base.metadata):
        yield "its tables are not those of its schema version; restore it from a copy"
    if connection.dialect.name != "sqlite":
        return
    said = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
    if said != ["ok"]:
        yield f"its file is damaged ({said[0]}); restore it from a copy"
    if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
        yield "rows in it refer to rows that are not there; restore it from a copy"


def _idle(connection: sa.Connection) -> Iterator[str]:
    """Jobs that are not over, do not wait for a cluster, and whose lease has run out: lost ones."""
    over = [state for state in JobState if state.terminal]
    held = sa.and_(Lease.owner.is_not(None), Lease.expires_at > datetime.now(UTC))
    waits = sa.and_(Job.state == JobState.QUEUED, Job.cluster.is_not(None))
    query = (
        sa.select(Job.id)
        .outerjoin(Lease, Lease.job_id == Job.id)
        .where(Job.state.not_in(over), sa.not_(sa.func.coalesce(held, sa.false())), sa.not_(waits))
        .order_by(Job.created_at)
    )
    yield from connection.scalars(query)
