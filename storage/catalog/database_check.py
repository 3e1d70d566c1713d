"""Upgrade and check a catalog's database, from outside of ``Catalog``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import sqlalchemy as sa

from tintray.errors import NotFoundError, StorageError
from tintray.storage.catalog.database import prepare_folder
from tintray.storage.catalog.engine import failures, make_engine, parse_catalog_url
from tintray.storage.catalog.job_list import jobs_of
from tintray.storage.catalog.migrations import REVISIONS
from tintray.storage.catalog.schema import (
    VERSION_TABLE,
    found_revision,
    upgrade_schema,
    version_problem,
)
from tintray.storage.catalog.states import JobState
from tintray.storage.catalog.tables import Base
from tintray.storage.secrets import shown_catalog

_ALIVE = [state for state in JobState if not state.terminal]


@dataclass(frozen=True)
class DatabaseState:
    """What a look into a catalog's database found."""

    url: str  # without a password
    found: str  # version of its tables
    needed: str = REVISIONS[-1]  # the version that this code works with
    rows: dict[str, int] = field(default_factory=dict)  # table -> rows
    problems: tuple[str, ...] = ()  # sentences, each with what to do
    idle: tuple[str, ...] = ()  # jobs that are not over and that nobody works on


def upgrade(url: str) -> tuple[str | None, str]:
    """Bring a catalog's tables to this code's version, or create them; versions before and after.

    Raises ``StorageError`` if the database cannot be used or is newer.
    """
    parsed = parse_catalog_url(url)
    prepare_folder(parsed, create=True)
    with _engine(parsed) as engine:
        return upgrade_schema(engine)


def check(url: str) -> DatabaseState:
    """Look whether a catalog's database is sound and its tables are this code's.

    Raises ``NotFoundError`` if there is no catalog there.
    """
    parsed = parse_catalog_url(url)
    where = shown_catalog(parsed)
    prepare_folder(parsed, create=False)
    with _engine(parsed) as engine, failures(where), engine.connect() as connection:
        found = found_revision(connection)
        if found is None:
            raise NotFoundError(
                f"the database {where} holds no catalog yet; run `tintray db upgrade`"
            )
        if problem := version_problem(found):
            return DatabaseState(where, found, problems=(f"it has {problem}",))
        problems = list(_damage(connection))
        lost: list[str] = []
        try:
            lost = [job.id for job in jobs_of(connection, states=_ALIVE) if job.lost]
        except StorageError as error:  # a row that no job can be
            problems.append(str(error))
        return DatabaseState(
            where,
            found,
            rows=_rows(connection),
            problems=tuple(problems),
            idle=tuple(reversed(lost)),
        )


@contextmanager
def _engine(url: sa.URL) -> Iterator[sa.Engine]:
    engine = make_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


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
