"""Drive a job that waited in the catalog: ``python -m tintray.jobs.queue.driving JOB ATTEMPT``."""

from __future__ import annotations

import os
import sys
from functools import partial

from tintray.errors import NotFoundError, TintrayError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.locations import Location
from tintray.jobs.config.settings import CATALOG_VARIABLE, default_catalog, default_store
from tintray.jobs.display.progress import PlainProgress
from tintray.jobs.events import Event, OnEvent
from tintray.jobs.runs.job_run import JobRun
from tintray.jobs.runs.recovery import Recovery, on_what_is_left
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.states import JobState


def main() -> int:
    """Run the job in ``sys.argv`` if it still waits for this very attempt; returns an exit code."""
    job_id, attempt = sys.argv[1], int(sys.argv[2])
    try:
        return drive(job_id, attempt)
    except TintrayError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return 130


def drive(job_id: str, attempt: int) -> int:
    """Run a job that was handed over; 0 also if it is no longer for this attempt to run."""
    patience = Recovery(restarts=1)
    catalog, url = patience.wait(open_catalog)
    with catalog:
        row = patience.wait(lambda: catalog.queue.find(job_id))
        if row.state is not JobState.QUEUED or row.attempt != attempt:
            print(f"nothing to do: job {job_id} is {row.state}, by attempt {row.attempt}")
            return 0
        spec = recorded(catalog, job_id, url)
        progress = _unheard(PlainProgress(sys.stdout))
        run = patience.wait(lambda: JobRun(job_id, catalog, progress, queued=True))
        if spec.cluster.workers != 0:  # the cluster that this process was started on
            spec = spec.changed(cluster={"address": "auto"})
            if run.recovered:  # what has lost a driver may have lost room too
                spec = on_what_is_left(spec, "lost")
        with run.running():
            store = open_store(spec.store)
            patience.wait(store.check_writable, run.stopper.check)
            # Imported under the lease: it takes seconds, on a busy machine more than a minute.
            from tintray.jobs.runs.methods import resolve_job
            from tintray.jobs.runs.run import carry_on

            resolved = patience.wait(partial(resolve_job, spec), run.stopper.check)
            carry_on(run, *resolved, store)
    return 0


def _unheard(progress: OnEvent) -> OnEvent:
    """The same, but that a reader which is gone (its parent was killed) does not end the job."""

    def tell(event: Event) -> None:
        try:
            progress(event)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return tell


def recorded(catalog: Catalog, job_id: str, url: str) -> JobSpec:
    """The job file of a job, as the catalog keeps it, with the catalog that it was found in."""
    spec = JobSpec.from_record(catalog.jobs.get(job_id).spec)
    return spec.changed(catalog=Location(url))


def open_catalog() -> tuple[Catalog, str]:
    """The catalog of this process's environment, and its URL.

    Raises ``NotFoundError``: there is none; a node of a cluster has to be told where it is.
    """
    url = default_catalog(default_store())
    try:
        return Catalog.open(url, create=False), url
    except NotFoundError as error:
        raise NotFoundError(
            f"{error}; on a cluster every node needs {CATALOG_VARIABLE}, a database that it can "
            "reach"
        ) from error


if __name__ == "__main__":
    raise SystemExit(main())
