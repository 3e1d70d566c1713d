"""The catalog's tables as typed SQLAlchemy models; `migrations/` holds the steps to them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

from tintray.storage.catalog import values
from tintray.storage.catalog.states import JobState
from tintray.storage.catalog.values import fits, no_value

Held = TypeVar("Held")


class Checked(TypeDecorator[Held]):
    """A column whose values are looked at as they come: ``shape`` is what ``fits`` knows.

    SQLite keeps anything in any column, and whoever may write its file may have.
    """

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = TypeEngine
    cache_ok = True

    def __init__(self, impl: TypeEngine[Any], shape: Any) -> None:
        self.impl, self._shape = impl, shape

    def result_processor(
        self, dialect: Dialect, coltype: object
    ) -> Callable[[Any], Held | None] | None:
        """Read a value; raises ``StorageError`` for one that cannot be in this column."""
        read = super().result_processor(dialect, coltype)

        def checked(value: Any) -> Held | None:
            if value is None:
                return None
            try:
                found: Held | None = value if read is None else read(value)
            except (ValueError, TypeError, RecursionError) as error:
                raise no_value(value) from error
            if found is None or not fits(found, self._shape):
                raise no_value(value)
            return found

        return checked


class UtcTime(Checked[datetime]):
    """A moment in UTC; SQLite, which knows no time zones, gets and gives it as naive UTC."""

    cache_ok = True  # which SQLAlchemy wants of each class itself

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times; strip the zone where the database cannot keep it."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time in the catalog needs a zone, found {value!r}")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give back UTC whatever the zone of the connection."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class StateType(Checked[JobState]):
    """A job state, stored as its text so that a new state needs no change of a database type."""

    cache_ok = True

    def process_bind_param(self, value: JobState | None, dialect: Dialect) -> str | None:
        """Accept members, and texts that are one."""
        return None if value is None else JobState(value).value

    def process_result_value(self, value: str | None, dialect: Dialect) -> JobState | None:
        """Give back the member."""
        return None if value is None else JobState(value)


def short(length: int) -> Checked[str]:
    """A text of bounded length."""
    return Checked(String(length), str)


LARGE = Checked[int](BigInteger(), int)  # beyond two thousand million
METRICS = Checked[dict[str, Any]](JSON(), values.METRICS)  # of a merge or a round


class Base(DeclarativeBase):
    """What all tables share: readable constraint names and the Python types of columns."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads it once, from the class)
        datetime: UtcTime(DateTime(timezone=True), datetime),
        JobState: StateType(String(16), JobState),
        dict[str, Any]: Checked(JSON(), dict),
        list[str]: Checked(JSON(), [str]),
        str: Checked(Text(), str),
        int: Checked(Integer(), int),
        float: Checked(Double(), values.NUMBER),
    }


class Model(Base):
    """A pretrained model or an expert, known by the hash of its weights."""

    __tablename__ = "models"

    sha256: Mapped[str] = mapped_column(short(64), primary_key=True)
    kind: Mapped[str] = mapped_column(short(16))  # "base" or "expert"
    source: Mapped[str]
    base_sha256: Mapped[str | None] = mapped_column(ForeignKey("models.sha256"))
    parameters: Mapped[int] = mapped_column(LARGE)
    meta: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class Pool(Base):
    """An adaptation pool, known by the hash of its examples."""

    __tablename__ = "pools"

    sha256: Mapped[str] = mapped_column(short(64), primary_key=True)
    source: Mapped[str]
    split: Mapped[str | None] = mapped_column(short(200))
    examples: Mapped[int] = mapped_column(LARGE)
    meta: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class Job(Base):
    """A run that produces a merge. ``state`` changes by compare-and-set only.

    The columns from ``priority`` on are the queue's: see :mod:`tintray.storage.catalog.queue`.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "state", "created_at"),
        Index(None, "name", "created_at"),
        Index("ix_jobs_key", "key", unique=True),
    )

    id: Mapped[str] = mapped_column(short(120), primary_key=True)
    name: Mapped[str] = mapped_column(short(100))
    state: Mapped[JobState]
    reason: Mapped[str]
    spec: Mapped[dict[str, Any]]
    store_url: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(index=True)
    updated_at: Mapped[datetime]
    priority: Mapped[int] = mapped_column(default=0, server_default="0")  # the highest goes first
    key: Mapped[str | None] = mapped_column(short(200))  # the submitter's own
    digest: Mapped[str | None] = mapped_column(short(64))  # of the job file, with its places
    cluster: Mapped[str | None] = mapped_column(short(500))  # None: run where it was started
    attempt: Mapped[int] = mapped_column(default=0, server_default="0")  # times handed over
    handed_at: Mapped[datetime | None]  # the last time; None while it waits
    stop_at: Mapped[datetime | None]  # when it was asked to stop
    stop_reason: Mapped[str | None]


class Cluster(Base):
    """A Ray cluster that jobs are queued for, and how many of them it runs at once."""

    __tablename__ = "clusters"

    address: Mapped[str] = mapped_column(short(500), primary_key=True)
    max_jobs: Mapped[int]


class CheckpointRow(Base):
    """The state of a job at the end of a round; ``sha256`` is that of its manifest.

    ``parts`` are the hashes of the blobs that the manifest names: all that goes when it goes.
    """

    __tablename__ = "checkpoints"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(short(64))
    parts: Mapped[list[str]]
    size: Mapped[int] = mapped_column(LARGE)  # bytes, of all its blobs
    at: Mapped[datetime]


class Task(Base):
    """One task of a job: which expert on which pool."""

    __tablename__ = "tasks"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(short(200), primary_key=True)
    kind: Mapped[str] = mapped_column(short(40))
    expert_sha256: Mapped[str | None] = mapped_column(ForeignKey("models.sha256"))
    pool_sha256: Mapped[str | None] = mapped_column(ForeignKey("pools.sha256"))
    meta: Mapped[dict[str, Any]]


class Event(Base):
    """One change of a job's state, with its time and reason. Never updated."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "job_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    at: Mapped[datetime]
    from_state: Mapped[JobState | None]
    to_state: Mapped[JobState]
    reason: Mapped[str]


class Lease(Base):
    """Who may work on a job until when. ``token`` only grows: it fences off earlier owners."""

    __tablename__ = "leases"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    owner: Mapped[str | None] = mapped_column(short(200))
    token: Mapped[int]
    expires_at: Mapped[datetime | None]


class Round(Base):
    """The metrics of one round of a job; a round repeated after a rewind replaces its row."""

    __tablename__ = "rounds"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    metrics: Mapped[dict[str, Any]] = mapped_column(METRICS)


class Merge(Base):
    """A version of a merge: reserved, then published, perhaps removed; never given twice."""

    __tablename__ = "merges"
    __table_args__ = (UniqueConstraint("name", "version"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(short(100))
    version: Mapped[int]
    url: Mapped[str | None]
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("merges.id"), index=True)
    added: Mapped[list[str]]  # the tasks that this merge has and its parent has not
    manifest_sha256: Mapped[str | None] = mapped_column(short(64))
    metrics: Mapped[dict[str, Any]] = mapped_column(METRICS)
    created_at: Mapped[datetime]
    published_at: Mapped[datetime | None]
    removed_at: Mapped[datetime | None]

    @property
    def ref(self) -> str:
        """The merge's name and version, ``name/v3``."""
        return f"{self.name}/v{self.version}"


class MergeFile(Base):
    """One file of a published merge, and the blob that holds it."""

    __tablename__ = "merge_files"

    merge_id: Mapped[int] = mapped_column(ForeignKey("merges.id"), primary_key=True)
    name: Mapped[str] = mapped_column(short(500), primary_key=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("artifacts.sha256"), index=True)


class Check(Base):
    """What new examples of a task were found to be, beside those that a merge was measured on."""

    __tablename__ = "checks"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    merge_id: Mapped[int] = mapped_column(ForeignKey("merges.id"), index=True)
    task: Mapped[str] = mapped_column(short(200))
    at: Mapped[datetime]
    found: Mapped[dict[str, Any]]


class Coefficient(Base):
    """The merging coefficients of one layer unit, summarised over the tasks."""

    __tablename__ = "coefficients"

    merge_id: Mapped[int] = mapped_column(ForeignKey("merges.id"), primary_key=True)
    layer: Mapped[str] = mapped_column(short(500), primary_key=True)
    mean: Mapped[float]
    spread: Mapped[float]  # standard deviation over the tasks
    minimum: Mapped[float]
    maximum: Mapped[float]


class Artifact(Base):
    """A blob that was written to a store; ``pinned_at`` keeps it from being collected."""

    __tablename__ = "artifacts"

    sha256: Mapped[str] = mapped_column(short(64), primary_key=True)
    size: Mapped[int] = mapped_column(LARGE)
    kind: Mapped[str] = mapped_column(short(40), index=True)
    meta: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    pinned_at: Mapped[datetime | None]


class ArtifactUse(Base):
    """That a job needs an artifact, as long as the job is not over."""

    __tablename__ = "artifact_uses"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(
        ForeignKey("artifacts.sha256"), primary_key=True, index=True
    )
