"""The catalog: what is known of jobs, models, merges and artifacts, and the truth about each.

Whoever works on a job holds its lease. Transactions are short: SQLite writers wait for each other
in turn.
"""

from __future__ import annotations

from typing import Self

from tintray.storage.catalog.artifacts import Artifacts
from tintray.storage.catalog.checkpoints import Checkpoints
from tintray.storage.catalog.checks import Checks
from tintray.storage.catalog.database import Database
from tintray.storage.catalog.inputs import Inputs
from tintray.storage.catalog.jobs import Jobs
from tintray.storage.catalog.leases import Leases
from tintray.storage.catalog.merges import Merges
from tintray.storage.catalog.queue import Queue


class Catalog:
    """A connection pool to the catalog; safe to share between threads, cheap to open.

    Open one per process with :meth:`open`, and close it or use it as a context manager. Each of
    its parts changes the database in transactions of its own.
    """

    def __init__(self, database: Database):
        self.url = database.url  # without a password
        self.database = database
        self.jobs = Jobs(database)
        self.leases = Leases(database)
        self.queue = Queue(database)
        self.inputs = Inputs(database)
        self.merges = Merges(database)
        self.artifacts = Artifacts(database)
        self.checkpoints = Checkpoints(database)
        self.checks = Checks(database)

    @classmethod
    def open(cls, url: str, create: bool = True, *, patience: float = 20.0) -> Self:
        """Open the catalog at ``sqlite:///path`` or ``postgresql+psycopg://user@host/name``.

        With ``create``, an absent SQLite file and absent tables are made. Later operations wait up
        to ``patience`` seconds for a server that has gone away (it restarts, or fails over).
        Raises ``SpecError`` for a URL that is none,
        ``StorageError`` for a database that cannot be used or whose schema
        does not fit, and ``NotFoundError`` if there is none.
        """
        return cls(Database.open(url, create, patience))

    def close(self) -> None:
        """Close all connections."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
