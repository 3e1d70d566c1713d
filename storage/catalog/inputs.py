"""What jobs were given, as the catalog knows it: models, pools and tasks, by their content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from tintray.storage.catalog.database import Repository, insert_missing, insert_or_replace
from tintray.storage.catalog.tables import Model, Pool, Task
from tintray.storage.secrets import scrub, shown_url


@dataclass(frozen=True)
class KnownModel:
    """A pretrained model (``base``) or an ``expert``, by the hash of its weights."""

    sha256: str
    kind: str
    source: str
    parameters: int
    base: str | None = None  # of an expert: the hash of what it was fine-tuned from
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KnownPool:
    """An adaptation pool, by the hash of its examples."""

    sha256: str
    source: str
    examples: int
    split: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KnownTask:
    """A task of a job: its expert and its pool, by their hashes."""

    name: str
    kind: str
    expert: str | None = None
    pool: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


class Inputs(Repository):
    """The models, pools and tasks that a catalog knows."""

    def record_models(self, models: Sequence[KnownModel]) -> None:
        """Know some models; one that is known already stays as it is. A base comes first."""
        rows = [
            {
                **_described(model),
                "kind": model.kind,
                "parameters": model.parameters,
                "base_sha256": model.base,
            }
            for model in models
        ]
        with self._write() as session:
            insert_missing(session, Model, rows)

    def record_pools(self, pools: Sequence[KnownPool]) -> None:
        """Know some adaptation pools; one that is known already stays as it is."""
        rows = [
            {**_described(pool), "examples": pool.examples, "split": pool.split} for pool in pools
        ]
        with self._write() as session:
            insert_missing(session, Pool, rows)

    def record_tasks(self, job_id: str, tasks: Sequence[KnownTask]) -> None:
        """Know the tasks of a job; one that is known already takes the new values."""
        rows = [
            {
                "job_id": job_id,
                "name": task.name,
                "kind": task.kind,
                "expert_sha256": task.expert,
                "pool_sha256": task.pool,
                "meta": scrub(dict(task.meta)),
            }
            for task in tasks
        ]
        with self._write() as session:
            insert_or_replace(session, Task, rows, ["job_id", "name"])

    def tasks(self, job_id: str) -> list[Task]:
        """The tasks of a job, by name."""
        query = sa.select(Task).where(Task.job_id == job_id).order_by(Task.name)
        with self._read() as session:
            return list(session.scalars(query))


def _described(known: KnownModel | KnownPool) -> dict[str, Any]:
    return {
        "sha256": known.sha256,
        "source": shown_url(known.source),
        "meta": scrub(dict(known.meta)),
        "created_at": datetime.now(UTC),
    }
