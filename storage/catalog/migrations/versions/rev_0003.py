"""A queue for each cluster, requests to stop a job, and checkpoints to resume it from."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add what the queue knows of a job, the clusters, and the checkpoints."""
    for column in (
        sa.Column("priority", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("key", sa.String(length=200), nullable=True),
        sa.Column("digest", sa.String(length=64), nullable=True),
        sa.Column("cluster", sa.String(length=500), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("handed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stop_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stop_reason", sa.Text(), nullable=True),
    ):
        op.add_column("jobs", column)
    op.create_index("ix_jobs_key", "jobs", ["key"], unique=True)
    op.create_index("ix_jobs_created_at", "jobs", ["created_at"])
    op.create_table(
        "clusters",
        sa.Column("address", sa.String(length=500), nullable=False),
        sa.Column("max_jobs", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("address", name="pk_clusters"),
    )
    op.create_table(
        "checkpoints",
        sa.Column("job_id", sa.String(length=120), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("parts", sa.JSON(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_checkpoints_job_id_jobs"),
        sa.PrimaryKeyConstraint("job_id", "round", name="pk_checkpoints"),
    )
