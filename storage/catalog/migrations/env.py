"""Run by Alembic: applies the migrations inside the transaction that the caller has opened."""

from __future__ import annotations

from alembic import context

from tintray.storage.catalog.schema import VERSION_TABLE
from tintray.storage.catalog.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
