"""What jobs were given, as the catalog knows it: models, pools and tasks, by their content."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from tintray.storage.catalog.database import Repository, insert_missing, insert_or_replace
from tintray.storage.catalog.tables import Model, Pool, Task
from tintray.storage.secrets import shown_url


@dataclass(frozen=True)
class KnownModel:
    """A pretrained model (``base``) or an ``expert``, by the hash of its weights."""

    sha256: str
    kind: str
    source: str
    parameters: int
    base_sha256: str | None = None  # what an expert was fine-tuned from


@dataclass(frozen=True)
class KnownPool:
    """An adaptation pool, by the hash of its examples."""

    sha256: str
    source: str
    examples: int
    split: str | None = None


@dataclass(frozen=True)
class KnownTask:
    """A task of a job: its expert and its pool, by their hashes."""

    name: str
    kind: str
    expert_sha256: str | None = None
    pool_sha256: str | None = None


class Inputs(Repository):
    """The models, pools and tasks that a catalog knows."""

    def record(
        self,
        job_id: str,
        models: Iterable[KnownModel],
        pools: Iterable[KnownPool],
        tasks: Sequence[KnownTask],
    ) -> None:
        """Know what a job was given, a base before its experts.

        A model or pool that is known stays as it is; a task of the job takes the new values.
        """
        rows = [{"job_id": job_id, **asdict(task), "meta": {}} for task in tasks]
        with self._write() as session:
            insert_missing(session, Model, [_described(model) for model in models])
            insert_missing(session, Pool, [_described(pool) for pool in pools])
            insert_or_replace(session, Task, rows, ["job_id", "name"])

    def tasks(self, job_id: str) -> list[Task]:
        """The tasks of a job, by name."""
        return self._list(sa.select(Task).where(Task.job_id == job_id).order_by(Task.name))


def _described(known: KnownModel | KnownPool) -> dict[str, Any]:
    source, now = shown_url(known.source), datetime.now(UTC)
    return {**asdict(known), "source": source, "meta": {}, "created_at": now}
