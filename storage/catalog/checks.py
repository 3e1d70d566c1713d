"""Checks of merges: what new examples of their tasks were found to be, by time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tintray.errors import StorageError
from tintray.storage.catalog.database import Repository
from tintray.storage.catalog.tables import Check, Merge
from tintray.storage.secrets import scrub


@dataclass(frozen=True)
class KnownCheck:
    """One check of a task, as it was entered."""

    merge: str  # "name/v3"
    task: str
    at: datetime
    found: Mapping[str, Any]


class Checks(Repository):
    """The checks that a catalog knows."""

    def record(self, merge: Merge, task: str, at: datetime, found: Mapping[str, Any]) -> None:
        """Enter what was found of a task of a merge."""
        row = Check(merge_id=merge.id, task=task, at=at, found=scrub(dict(found)))
        with self._write() as session:
            self._need_table(session)
            session.add(row)

    def all(self, name: str, task: str | None = None) -> list[KnownCheck]:
        """The checks of all versions of a merge by name, or those of one task; oldest first."""
        query = sa.select(Check, Merge).join(Merge).where(Merge.name == name)
        if task is not None:
            query = query.where(Check.task == task)
        with self._read() as session:
            self._need_table(session)
            rows = session.execute(query.order_by(Check.at, Check.id))
            return [KnownCheck(merge.ref, of.task, of.at, of.found) for of, merge in rows]

    def _need_table(self, session: Session) -> None:
        if not sa.inspect(session.connection()).has_table(Check.__tablename__):
            raise StorageError(
                f"the catalog {self.url} has no table of checks yet; run `tintray db upgrade`"
            )
