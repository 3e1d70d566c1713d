"""Submit a job to a cluster, stop it, resume it, start it over: what changes a queue."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tintray.errors import (
    ClusterError,
    InputError,
    LeaseHeldError,
    SpecError,
    StateConflictError,
    StorageError,
)
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.job_file import JobSpec, load_spec
from tintray.jobs.config.quick_checks import check_files
from tintray.jobs.config.settings import chosen_address
from tintray.jobs.events import OnEvent, ignore
from tintray.jobs.queue.handover import dispatch, submission_id
from tintray.jobs.queue.ray_jobs import RayJobs, jobs_address
from tintray.jobs.queue.views import JobStatus, opened, resolve, status_of
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog

PRIORITIES = range(-1000, 1001)
MOST_JOBS = 10_000  # at once, on one cluster
_KEY_BYTES = 200
_STOP_SECONDS = 15.0  # in which a driver that hears the catalog has stopped
_POLL = 0.2


def submit(
    job: JobSpec | Path | str,
    *,
    key: str | None = None,
    priority: int = 0,
    address: str | None = None,
) -> JobStatus:
    """Enter a job, or that of a file, in the queue of a Ray cluster; hand it over if it is next.

    ``key`` is a name of your own for this submission: the same job with the same key is entered
    once. The highest ``priority`` goes first; among equals the oldest. ``address`` is that of the
    cluster's dashboard, such as ``http://head:8265``; left out, that of the job file, else of
    ``TINTRAY_ADDRESS`` or the configuration file.

    Raises ``InputError``: the job file, what it refers to, the store, the catalog or the cluster
    cannot be used, or the key is that of another job. Nothing has been entered then.
    """
    spec = load_spec(Path(job)) if isinstance(job, str | Path) else job
    cluster = _checked(spec, key, priority, address)
    with as_input_error():
        catalog = Catalog.open(spec.catalog)
    with catalog:
        known = None if key is None else _of_key(catalog, key, spec)
        if known is None:
            RayJobs(cluster, confirmed=address is not None).check_versions()
            known = _enter(catalog, spec, cluster, key, priority)
            catalog.queue.set_limit(cluster, None)
        return _dispatched(catalog, spec.catalog, cluster, known, address is not None)


def check(
    spec: JobSpec, *, key: str | None = None, priority: int = 0, address: str | None = None
) -> str:
    """The cluster in whose queue ``submit`` would enter a job; nothing is entered.

    Raises ``InputError`` as ``submit`` does.
    """
    cluster = _checked(spec, key, priority, address)
    RayJobs(cluster, confirmed=address is not None).check_versions()
    with as_input_error():
        open_store(spec.store)
    return cluster


def _checked(spec: JobSpec, key: str | None, priority: int, address: str | None) -> str:
    """The cluster of a submission; refuses what can be told without asking anybody."""
    if key is not None and not (key.isprintable() and 0 < len(key.encode()) <= _KEY_BYTES):
        raise SpecError(f"--key: expected printable text of at most {_KEY_BYTES} bytes")
    if priority not in PRIORITIES:
        least, most = PRIORITIES[0], PRIORITIES[-1]
        raise SpecError(f"--priority: expected a number from {least} to {most}, found {priority}")
    cluster = _cluster(chosen_address(address, spec.cluster.address))
    check_files(spec)
    return cluster


def resume(
    job: str,
    *,
    catalog: str | None = None,
    address: str | None = None,
    on_event: OnEvent | None = None,
    fresh: bool = False,
    dry_run: bool = False,
) -> JobStatus:
    """Let a job that failed, was cancelled or was lost go on from its last checkpoint.

    If ``fresh`` it starts over from its first round, and its checkpoints are dropped. It waits for
    its cluster, or the one at ``address``; a job that was run without one goes on in this process,
    and the call returns when it is over. With ``dry_run`` it stays as it is, and is answered with
    the cluster that it would wait for.

    Raises ``InputError``: the job waits or runs already, or has succeeded; or the cluster does not
    answer.
    """
    with opened(catalog) as (known, url):
        job_id = resolve(known, job)
        change = known.jobs.get(job_id).spec.get("change")
        if change is not None:  # it is made again, from the version that is the newest then
            raise InputError(
                f"job {job_id} was to change {change['of']} ({change['operation']}) and has no "
                "checkpoint to go on from; run the command that it came from again"
            )
        before = known.queue.find(job_id)
        cluster = before.cluster if address is None else address
        if cluster is not None:
            cluster = jobs_address(cluster)
            RayJobs(cluster, confirmed=address is not None).check_versions()
        reason = "started over" if fresh else "resumed"
        try:
            known.queue.requeue(job_id, reason, cluster=cluster, fresh=fresh, dry_run=dry_run)
        except LeaseHeldError as error:
            raise InputError(str(error)) from error
        except StateConflictError as error:
            only = "only a job that failed, was cancelled or was lost can go on"
            raise InputError(f"{error}; {only}") from error
        if dry_run:
            return replace(status_of(known, job_id), cluster=cluster)
        if fresh:
            _discard(known, job_id)
        if cluster is not None:
            known.queue.set_limit(cluster, None)
            return _dispatched(known, url, cluster, job_id, address is not None)
        from tintray.jobs.queue.driving import recorded
        from tintray.jobs.runs.run import continue_job

        continue_job(job_id, known, recorded(known, job_id, url), on_event or ignore)
        return status_of(known, job_id)


def cancel(
    job: str,
    *,
    catalog: str | None = None,
    wait: bool = True,
    discard: bool = False,
    dry_run: bool = False,
) -> JobStatus:
    """Stop a job: one that waits or was lost at once, one that runs at the end of its round.

    Its last checkpoint is kept, so that it can be resumed, unless it is to be ``discard``-ed. With
    ``wait`` the call returns when the job has stopped; with ``dry_run`` at once, and nothing is.

    Raises ``InputError``: the job is over already (and has no checkpoint to discard).
    """
    with opened(catalog) as (known, _):
        job_id = resolve(known, job)
        if discard and not wait:
            raise SpecError("--discard: expected it without --no-wait: it needs the job to be over")
        try:
            state = known.queue.request_stop(job_id, "cancelled on request", dry_run=dry_run)
        except StateConflictError as error:
            if not (discard and known.checkpoints.of(job_id)):
                raise InputError(f"{error}: there is nothing to cancel") from error
            state = known.jobs.get(job_id).state
        if dry_run:
            return status_of(known, job_id)
        if wait and not state.terminal:
            _until_stopped(known, job_id)
        if discard:
            _discard(known, job_id)
        return status_of(known, job_id)


def set_limit(
    max_jobs: int,
    *,
    address: str | None = None,
    catalog: str | None = None,
    dry_run: bool = False,
) -> str:
    """Let a cluster run this many jobs at once, from now on; its address."""
    if not 1 <= max_jobs <= MOST_JOBS:
        raise SpecError(f"--max-jobs: expected 1 to {MOST_JOBS:,}, found {max_jobs}")
    with opened(catalog) as (known, url):
        cluster = _cluster(chosen_address(address, None))
        if not dry_run:
            known.queue.set_limit(cluster, max_jobs)
            with suppress(ClusterError):  # whoever watches a job that waits hands it over
                dispatch(known, url, cluster, confirmed=address is not None)
        return cluster


# Entering


def _cluster(address: str | None) -> str:
    if address is None:
        raise SpecError(
            "no cluster to submit to: name the dashboard of one with --address, TINTRAY_ADDRESS or "
            "`tintray init`; `tintray run` needs none"
        )
    return jobs_address(address)


def _enter(catalog: Catalog, spec: JobSpec, cluster: str, key: str | None, priority: int) -> str:
    with as_input_error():
        open_store(spec.store).check_writable()
    queued = {"cluster": cluster, "key": key, "digest": spec.submission_hash()}
    try:
        return catalog.jobs.create(
            spec.name, spec.record(), str(spec.store), priority=priority, **queued
        )
    except StorageError:
        # Another submission with the same key was first: then it is that job.
        found = None if key is None else _of_key(catalog, key, spec)
        if found is None:
            raise
        return found


def _of_key(catalog: Catalog, key: str, spec: JobSpec) -> str | None:
    """The job that was submitted with a key, if it is the same job."""
    found = catalog.queue.by_key(key)
    if found is None or found.digest == spec.submission_hash():
        return None if found is None else found.id
    from tintray.jobs.queue.differences import changed_fields

    fields = changed_fields(found.spec, spec.record())
    first = f"{fields[0].field}: {fields[0].one} then, {fields[0].other} now" if fields else "other"
    more = f" and {len(fields) - 1} more" if len(fields) > 1 else ""
    raise InputError(
        f"the key {key!r} is that of job {found.id}, and the job file was changed since "
        f"({first}{more}); submit it with another key"
    )


def _dispatched(
    catalog: Catalog, url: str, cluster: str, job_id: str, confirmed: bool
) -> JobStatus:
    """Hand over what may go, and tell of a job; one that the cluster does not take yet waits."""
    try:
        dispatch(catalog, url, cluster, confirmed=confirmed)
    except ClusterError as error:
        waits = f"{error}; `tintray watch {job_id}` hands it over when it can be"
        return replace(status_of(catalog, job_id), waits=waits)
    return status_of(catalog, job_id)


# Stopping


def _until_stopped(catalog: Catalog, job_id: str) -> None:
    """Wait until a job has stopped; where the catalog does not reach its driver, signal it."""
    patience, signalled = time.monotonic() + _STOP_SECONDS, False
    while True:
        row = catalog.queue.find(job_id)
        if row.state.terminal or row.lost:
            return
        if time.monotonic() > patience:
            if signalled or row.cluster is None:
                raise StorageError(
                    f"job {job_id} was asked to stop and has not yet ({row.state}, "
                    f"{row.owner}); `tintray status {job_id}` tells when it does"
                )
            RayJobs(row.cluster).stop(submission_id(job_id, row.attempt))
            patience, signalled = time.monotonic() + _STOP_SECONDS, True
        time.sleep(_POLL)


def _discard(catalog: Catalog, job_id: str) -> None:
    from tintray.jobs.engine.fit_checkpoints import delete_blobs

    gone = catalog.checkpoints.drop(job_id)
    delete_blobs(open_store(catalog.jobs.get(job_id).store_url), gone)
