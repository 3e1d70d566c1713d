"""Where a job is, read past the gates, and how long a fault kept it from getting further."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import psycopg

from tests.chaos.world import World
from tintray.storage.catalog.states import OVER, JobState

Place = tuple[int, int]
"""Phase and round."""

_PHASES = list(JobState)
_SELECT = """
SELECT j.id, j.state, j.reason, l.owner IS NOT NULL AND l.expires_at > CURRENT_TIMESTAMP,
    coalesce((SELECT max(round) FROM rounds WHERE rounds.job_id = j.id), 0)
FROM jobs AS j JOIN leases AS l ON l.job_id = j.id WHERE j.name = %s
ORDER BY j.created_at DESC LIMIT 1
"""


@dataclass
class Progress:
    """Looks all the time; ``passed`` has when each place was first seen."""

    world: World
    name: str
    began: float
    after: str | None = None  # the newest job of this name before, which is another one
    job_id: str | None = None
    state: JobState | None = None
    reason: str = ""
    passed: list[tuple[float, Place]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    @property
    def over(self) -> bool:
        """Whether the job has ended."""
        return self.state in OVER

    @property
    def place(self) -> Place:
        """The furthest that it was."""
        return self.passed[-1][1] if self.passed else (0, 0)

    def close(self) -> None:
        """Look no more."""
        self._over.set()

    def when_beyond(self, place: Place) -> float | None:
        """The moment at which it was first seen further than there."""
        return next((at for at, found in self.passed if found > place), None)

    def _look(self) -> None:
        connection: psycopg.Connection | None = None
        while not self._over.wait(0.1):
            try:
                connection = connection or self.world.postgres.connect()
                row = connection.execute(_SELECT, (self.name,)).fetchone()
            except psycopg.Error:
                connection = None
                continue
            if row is None or row[0] == self.after:
                continue
            self.job_id, self.state, self.reason = row[0], JobState(row[1]), row[2]
            here = (_PHASES.index(self.state), int(row[4]))
            if here > self.place:
                self.passed.append((time.monotonic(), here))


def newest(world: World, name: str) -> str | None:
    """The id of the newest job of a name."""
    with world.postgres.connect() as connection:
        row = connection.execute(_SELECT, (name,)).fetchone()
    return None if row is None else str(row[0])
