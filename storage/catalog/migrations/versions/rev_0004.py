"""Jobs are found by their name, and merges by what they grew from, however many there are."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the indexes."""
    op.create_index("ix_jobs_name_created_at", "jobs", ["name", "created_at"])
    op.create_index("ix_merges_parent_id", "merges", ["parent_id"])
