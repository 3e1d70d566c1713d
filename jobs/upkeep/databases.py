"""Upgrade and check a catalog's database, from outside of ``Catalog``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from tintray.errors import InputError, NotFoundError, StorageError
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.settings import chosen, located
from tintray.jobs.upkeep.results import DatabaseReport, ForgottenRounds, Relocated, SchemaChange
from tintray.storage.artifacts.publish import MergeRef, list_merges
from tintray.storage.artifacts.store import canonical_url, open_store
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.database import prepare_folder
from tintray.storage.catalog.drivers import through
from tintray.storage.catalog.engine import failures, make_engine, parse_catalog_url
from tintray.storage.catalog.job_list import select_jobs
from tintray.storage.catalog.migrations import REVISIONS
from tintray.storage.catalog.schema import (
    VERSION_TABLE,
    found_revision,
    upgrade_schema,
    version_problem,
)
from tintray.storage.catalog.states import ALIVE
from tintray.storage.catalog.tables import Base
from tintray.storage.secrets import shown_catalog, shown_url

_LONGEST = 1e9  # seconds back from now; more is before any job


def upgrade_catalog(catalog: str | None = None, *, dry_run: bool = False) -> SchemaChange:
    """Bring a catalog's tables to this version of tintray, or create them.

    Raises ``InputError`` if the database cannot be used or is newer.
    """
    if dry_run:
        try:
            found = check_catalog(catalog)
        except NotFoundError:
            where = shown_url(chosen(None, catalog)[1])
            return SchemaChange(where, None, REVISIONS[-1], dry_run=True)
        return SchemaChange(found.catalog, found.schema, found.needed, dry_run=True)
    with as_input_error(), _engine(catalog, create=True) as engine:
        before, after = upgrade_schema(engine)
        return SchemaChange(shown_catalog(engine.url), before, after)


def check_catalog(catalog: str | None = None) -> DatabaseReport:
    """Look whether a catalog's database is sound, and its tables those of this tintray.

    Raises ``NotFoundError`` if there is no catalog there.
    """
    with as_input_error(), _engine(catalog, create=False) as engine:
        where, needed = shown_catalog(engine.url), REVISIONS[-1]
        with failures(where), engine.connect() as connection:
            found = found_revision(connection)
            if found is None:
                raise NotFoundError(
                    f"the database {where} holds no catalog yet; run `tintray db upgrade`"
                )
            if problem := version_problem(found):
                return DatabaseReport(where, found, needed, {}, [f"it has {problem}"], [])
            problems, lost = list(_damage(connection)), []
            try:
                lost = [
                    job.id for job in select_jobs(through(connection), states=ALIVE) if job.lost
                ][::-1]
            except StorageError as error:  # a row that no job can be
                problems.append(str(error))
            return DatabaseReport(where, found, needed, _rows(connection), problems, lost)


def forget_rounds(
    catalog: str | None = None, *, age: float, dry_run: bool = False
) -> ForgottenRounds:
    """Forget the rounds, but the last, of jobs that have been over for ``age`` seconds."""
    with as_input_error(), Catalog.open(chosen(None, catalog)[1], create=False) as known:
        before = datetime.now(UTC) - timedelta(seconds=min(age, _LONGEST))
        return ForgottenRounds(
            known.url, known.jobs.forget_rounds(before, dry_run=dry_run), dry_run
        )


def relocate_store(
    before: str, store: str, catalog: str | None = None, *, dry_run: bool = False
) -> Relocated:
    """Tell a catalog that a store lies at another place now, as after a backup was restored.

    Raises ``NotFoundError``: the catalog knows nothing in ``before``; ``InputError``: the merges
    that it knows there are not in ``store``.
    """
    with as_input_error(), Catalog.open(chosen(None, catalog)[1], create=False) as known:
        old, new = open_store(located("store", before)).url, open_store(store)
        forms = [url for url in known.artifacts.store_urls() if canonical_url(url) == old]
        if not forms:
            raise NotFoundError(
                f"the catalog {known.url} knows no merge and no job of {old}; `tintray list` shows "
                "where merges lie"
            )
        at_old = [row for row in known.merges.listing() if row.url and _lies_in(row.url, forms)]
        wanted = [MergeRef(row.name, row.version) for row in at_old]
        if missing := sorted(set(wanted) - set(list_merges(new))):
            raise InputError(
                f"{new.url} lacks {len(missing)} of the {len(wanted)} merges that the catalog "
                f"knows in {old}, such as {missing[0]}; restore the whole store first"
            )
        for form in () if dry_run else forms:
            known.merges.relocate(form, new.url)
        return Relocated(known.url, old, new.url, len(wanted), dry_run)


def _lies_in(url: str, stores: Sequence[str]) -> bool:
    return url.rpartition("/merges/")[0] in stores


@contextmanager
def _engine(catalog: str | None, create: bool) -> Iterator[sa.Engine]:
    url = parse_catalog_url(chosen(None, catalog)[1])
    prepare_folder(url, create)
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
