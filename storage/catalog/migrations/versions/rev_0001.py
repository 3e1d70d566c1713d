"""The first catalog: models, pools, jobs with events, leases and rounds, merges, artifacts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create all tables."""
    _create_content()
    _create_jobs()
    _create_job_details()
    _create_merges()


def _create_content() -> None:
    op.create_table(
        "artifacts",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("meta", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("pinned_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("sha256", name="pk_artifacts"),
    )
    op.create_index("ix_artifacts_kind", "artifacts", ["kind"])
    op.create_table(
        "models",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("base_sha256", sa.String(length=64), nullable=True),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("meta", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["base_sha256"], ["models.sha256"], name="fk_models_base_sha256_models"
        ),
        sa.PrimaryKeyConstraint("sha256", name="pk_models"),
    )
    op.create_table(
        "pools",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("split", sa.String(length=200), nullable=True),
        sa.Column("examples", sa.BigInteger(), nullable=False),
        sa.Column("meta", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_pools"),
    )


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=120), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("store_url", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_state_created_at", "jobs", ["state", "created_at"])
    op.create_table(
        "tasks",
        sa.Column("job_id", sa.String(length=120), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("expert_sha256", sa.String(length=64), nullable=True),
        sa.Column("pool_sha256", sa.String(length=64), nullable=True),
        sa.Column("meta", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["expert_sha256"], ["models.sha256"], name="fk_tasks_expert_sha256_models"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_tasks_job_id_jobs"),
        sa.ForeignKeyConstraint(
            ["pool_sha256"], ["pools.sha256"], name="fk_tasks_pool_sha256_pools"
        ),
        sa.PrimaryKeyConstraint("job_id", "name", name="pk_tasks"),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.String(length=120), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("from_state", sa.String(length=16), nullable=True),
        sa.Column("to_state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_events_job_id_jobs"),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_job_id_id", "events", ["job_id", "id"])


def _create_job_details() -> None:
    op.create_table(
        "leases",
        sa.Column("job_id", sa.String(length=120), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=True),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_leases_job_id_jobs"),
        sa.PrimaryKeyConstraint("job_id", name="pk_leases"),
    )
    op.create_table(
        "rounds",
        sa.Column("job_id", sa.String(length=120), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_rounds_job_id_jobs"),
        sa.PrimaryKeyConstraint("job_id", "round", name="pk_rounds"),
    )
    op.create_table(
        "artifact_uses",
        sa.Column("job_id", sa.String(length=120), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_artifact_uses_job_id_jobs"),
        sa.ForeignKeyConstraint(
            ["sha256"], ["artifacts.sha256"], name="fk_artifact_uses_sha256_artifacts"
        ),
        sa.PrimaryKeyConstraint("job_id", "sha256", name="pk_artifact_uses"),
    )
    op.create_index("ix_artifact_uses_sha256", "artifact_uses", ["sha256"])


def _create_merges() -> None:
    op.create_table(
        "merges",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("job_id", sa.String(length=120), nullable=True),
        sa.Column("parent_id", sa.Integer(), nullable=True),
        sa.Column("added", sa.JSON(), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_merges_job_id_jobs"),
        sa.ForeignKeyConstraint(["parent_id"], ["merges.id"], name="fk_merges_parent_id_merges"),
        sa.PrimaryKeyConstraint("id", name="pk_merges"),
        sa.UniqueConstraint("name", "version", name="uq_merges_name_version"),
    )
    op.create_index("ix_merges_job_id", "merges", ["job_id"])
    op.create_table(
        "merge_files",
        sa.Column("merge_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=500), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["merge_id"], ["merges.id"], name="fk_merge_files_merge_id_merges"),
        sa.ForeignKeyConstraint(
            ["sha256"], ["artifacts.sha256"], name="fk_merge_files_sha256_artifacts"
        ),
        sa.PrimaryKeyConstraint("merge_id", "name", name="pk_merge_files"),
    )
    op.create_index("ix_merge_files_sha256", "merge_files", ["sha256"])
    op.create_table(
        "coefficients",
        sa.Column("merge_id", sa.Integer(), nullable=False),
        sa.Column("layer", sa.String(length=500), nullable=False),
        sa.Column("mean", sa.Double(), nullable=False),
        sa.Column("spread", sa.Double(), nullable=False),
        sa.Column("minimum", sa.Double(), nullable=False),
        sa.Column("maximum", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["merge_id"], ["merges.id"], name="fk_coefficients_merge_id_merges"
        ),
        sa.PrimaryKeyConstraint("merge_id", "layer", name="pk_coefficients"),
    )


def downgrade() -> None:
    """Drop all tables."""
    for table in (
        "merge_files",
        "coefficients",
        "merges",
        "artifact_uses",
        "rounds",
        "leases",
        "events",
        "tasks",
        "jobs",
        "pools",
        "models",
        "artifacts",
    ):
        op.drop_table(table)
