"""The version of a catalog's tables: created when there are none, refused when they do not fit.

Alembic is imported only when there is something to migrate; opening a current catalog is one query.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tintray.errors import NotFoundError, StorageError
from tintray.storage.catalog.engine import failures, writing
from tintray.storage.catalog.migrations import REVISIONS, USABLE
from tintray.storage.catalog.tables import Base
from tintray.storage.secrets import shown_catalog

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "tintray_schema"
_PATIENCE = 60.0  # seconds that an upgrade tries to get at tables that clients use
_LOCKED = ("55P03", "40P01")  # what PostgreSQL calls a lock that was not to be had, and a deadlock
_LOCK = 0x74696E74  # any number that is ours: the key of PostgreSQL's advisory lock


def found_revision(connection: sa.Connection) -> str | None:
    """The version of the tables in this database, or None if there are none."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    row = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).first()
    return None if row is None else str(row[0])


def ensure_schema(engine: sa.Engine, create: bool) -> None:
    """Accept a schema that can be used, create a missing one if ``create``, refuse every other.

    Raises ``NotFoundError`` if there is no catalog and none may be created, and
    ``StorageError`` for a schema that is older or newer than this code.
    """
    where = shown_catalog(engine.url)
    with failures(where), engine.connect() as connection:
        found = found_revision(connection)
    if found is not None:
        if found not in USABLE:
            raise StorageError(f"the catalog {where} has {version_problem(found)}")
        return
    if not create:
        raise NotFoundError(f"the database {where} holds no catalog yet; run a job with it first")
    upgrade_schema(engine)


def upgrade_schema(engine: sa.Engine) -> tuple[str | None, str]:
    """Bring the tables to this code's version; returns the versions before and after.

    One transaction: it happens wholly or not at all, and only once if several try. Clients may work
    meanwhile: it waits for their transactions, and they for it. Raises ``StorageError`` if the
    schema is newer than this code, or clients hold its tables all the time.
    """
    give_up = time.monotonic() + _PATIENCE
    while True:
        try:
            return _upgrade(engine)
        except StorageError as error:
            # Whoever waits longer than this for a table could wait for somebody who waits for us.
            code = getattr(getattr(error.__cause__, "orig", None), "sqlstate", None)
            if code not in _LOCKED or time.monotonic() > give_up:
                raise
        time.sleep(0.1)


def _upgrade(engine: sa.Engine) -> tuple[str | None, str]:
    where = shown_catalog(engine.url)
    with failures(where), engine.connect() as connection, writing(connection).begin():
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            connection.execute(sa.text("SET LOCAL lock_timeout = '500ms'"))
        found = found_revision(connection)  # only now: another process may just have done it
        if found is not None and found not in REVISIONS:
            raise StorageError(f"the catalog {where} has {version_problem(found)}")
        if found != REVISIONS[-1]:
            from alembic import command

            if found is None:
                Base.metadata.create_all(connection)
            (command.stamp if found is None else command.upgrade)(
                alembic_config(connection), "head"
            )
    return found, REVISIONS[-1]


def version_problem(found: str) -> str | None:
    """What is wrong with tables of this version, and what to do; None if they fit this code."""
    needed = REVISIONS[-1]
    if found == needed:
        return None
    if found in REVISIONS:
        less = "has more in" if found in USABLE else "needs"
        return f"schema version {found}, this tintray {less} {needed}; run `tintray db upgrade`"
    return (
        f"schema version {found}, which is newer than this tintray knows (up to {needed}); "
        "upgrade tintray"
    )


def alembic_config(connection: sa.Connection | None = None) -> Config:
    """Alembic's configuration: the migrations that are packaged with the code."""
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "tintray.storage.catalog:migrations")
    return config
