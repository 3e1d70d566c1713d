"""Merges can be removed: the row stays, so that no version is given twice and lineage holds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the moment of removal."""
    op.add_column("merges", sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Drop it: removed merges would be listed again."""
    op.drop_column("merges", "removed_at")
