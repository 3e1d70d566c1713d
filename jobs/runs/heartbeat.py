"""The lease of a running job: a thread renews it, and whoever lost it hears so and stops.

The same thread looks whether somebody asked the job to stop.

A job whose process died lets its lease run out, and another process may take it. A process that
was only slow (suspended, cut off from the database) then finds its own token refused.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Self

from tintray.errors import LeaseLostError, StorageError
from tintray.jobs.config.settings import lease_seconds
from tintray.storage.catalog.catalog import Catalog

POLL = 1.0
"""Seconds between two looks for a request to stop."""

_log = logging.getLogger(__name__)


class Heartbeat:
    """Holds the lease of one job from its construction until the ``with`` block ends.

    ``ttl`` are the seconds that it outlives its last renewal; left out, those of the settings.
    ``on_stop`` is called with the reason, from another thread, when the job is asked to stop.

    Raises LeaseHeldError if another owner works on the job.
    """

    def __init__(
        self,
        catalog: Catalog,
        job_id: str,
        ttl: float | None = None,
        on_stop: Callable[[str], None] = lambda _: None,
    ) -> None:
        ttl = lease_seconds() if ttl is None else ttl
        self._catalog = catalog
        self._job_id = job_id
        self._ttl = ttl
        self._on_stop = on_stop
        self._over = threading.Event()
        self._lost: LeaseLostError | None = None
        self._thread = threading.Thread(target=self._beat, name=f"lease of {job_id}", daemon=True)
        owner = f"{socket.gethostname()} process {os.getpid()} ({uuid.uuid4().hex[:8]})"
        self.token = catalog.leases.acquire(job_id, owner, ttl)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        try:
            self._catalog.leases.release(self._job_id, self.token)
        except StorageError as error:  # it runs out by itself
            _log.warning("the lease of job %s could not be given back: %s", self._job_id, error)

    def check(self) -> None:
        """Raise :class:`LeaseLostError` if a renewal has found the lease gone; asks nobody."""
        if self._lost is not None:
            raise self._lost

    def confirm(self) -> None:
        """Renew now; :class:`LeaseLostError` if the lease has gone to another owner."""
        self._catalog.leases.renew(self._job_id, self.token, self._ttl)

    def _beat(self) -> None:
        renewed = time.monotonic()
        while not self._over.wait(min(POLL, self._ttl / 4)):
            try:
                if time.monotonic() - renewed >= self._ttl / 4:
                    self.confirm()
                    renewed = time.monotonic()
                reason = self._catalog.queue.stop_requested(self._job_id)
                if reason is not None:
                    self._on_stop(reason)
            except LeaseLostError as error:
                self._lost = error
                return
            except StorageError as error:  # the database is away: the lease may still be ours
                _log.warning("the lease of job %s could not be renewed: %s", self._job_id, error)
