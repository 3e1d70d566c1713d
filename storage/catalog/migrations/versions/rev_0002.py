"""Merges can be removed: the row stays, so that no version is given twice and lineage holds."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the moment of removal."""
    op.add_column("merges", sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True))
