"""Handing jobs over to their cluster, in the order of its queue.

Nobody runs the queue. Whoever submits, resumes, watches, lists or ends a job calls
:func:`dispatch`, and :func:`tend` does on and on.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tintray.errors import ClusterError, TintrayError
from tintray.jobs.config.settings import (
    ADDRESS_VARIABLE,
    CATALOG_VARIABLE,
    FACTORIES_VARIABLE,
    LEASE_VARIABLE,
    setting,
    share_factories,
)
from tintray.jobs.queue.ray_jobs import TIMEOUT, RayJobs
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.job_list import JobRow
from tintray.storage.catalog.queue import Claim
from tintray.storage.catalog.states import JobState
from tintray.storage.secrets import has_secret, redact

LOG = "log"
"""The kind of the artifact that keeps what a driver said."""


_TEND_SECONDS = 5.0


def submission_id(job_id: str, attempt: int) -> str:
    """What Ray calls a driver: the job's id, and how often it was handed over."""
    return f"{job_id}-{attempt}"


def dispatch(
    catalog: Catalog,
    catalog_url: str,
    cluster: str,
    *,
    confirmed: bool = False,
    patience: float = TIMEOUT,
) -> list[Claim]:
    """Hand over what may go next to a cluster; returns it. Jobs that it lost go on there first.

    With ``confirmed`` the user has just given the cluster's address: a token may go there.

    Raises ``ClusterError``: the cluster does not take a job; it waits again.
    """
    handed = []
    jobs = RayJobs(cluster, confirmed=confirmed, patience=patience)
    for gone in catalog.queue.lost(cluster):
        # A driver that is cut off or stopped, not dead, would keep its workers' CPUs.
        jobs.stop(submission_id(gone.job_id, gone.attempt))
        catalog.queue.restart_lost(gone)
    while (claim := catalog.queue.claim(cluster)) is not None:
        name = submission_id(claim.job_id, claim.attempt)
        try:
            # The driver hands over the next job, to the address that was chosen here.
            chosen = {ADDRESS_VARIABLE: jobs.address} if jobs.confirmed else {}
            driver = entrypoint("tintray.jobs.queue.entry", claim.job_id, str(claim.attempt))
            jobs.submit(driver, name, {**environment(catalog_url), **chosen})
        except BaseException as error:
            if not (isinstance(error, ClusterError) and _arrived(jobs, name)):
                catalog.queue.release(claim)
                raise
        catalog.queue.mark_submitted(claim)
        handed.append(claim)
    return handed


def tend(catalog: Catalog, catalog_url: str, say: Callable[[str], None]) -> None:
    """Hand over what may go next to each cluster, every few seconds, for ever.

    What is in the way, be it a catalog that is away, is told once and tried again.
    """
    told: dict[str, str] = {}

    def trying(name: str, work: Callable[..., Iterable[Any]], *args: Any) -> list[Any]:
        try:
            found, told[name] = list(work(*args)), ""
        except TintrayError as error:
            if told.get(name) != str(error):
                say(str(error))
            found, told[name] = [], str(error)
        return found

    while True:
        for cluster in trying("the catalog", catalog.queue.clusters):
            for claim in trying(cluster, dispatch, catalog, catalog_url, cluster):
                say(f"job {claim.job_id} is handed over to {cluster}")
        time.sleep(_TEND_SECONDS)


def mark_exited(catalog: Catalog, job: JobRow) -> bool:
    """Note that a job which was handed over ended before its driver could say so itself.

    Returns whether it did. A cluster that does not answer, or does not know the job, says nothing.
    """
    begun = job.state is not JobState.QUEUED or job.owner is not None
    if begun or job.cluster is None or job.handed_at is None:
        return False
    jobs, name = RayJobs(job.cluster), submission_id(job.id, job.attempt)
    try:
        found = jobs.find(name)
        if found is None or not found.over:
            return False
        log = jobs.logs(name) or found.message
    except ClusterError:
        return False
    said = log.strip().splitlines()
    reason = (
        f"its driver ended on {job.cluster} before it began ({redact(said[-1]) if said else ''}); "
        f"`tintray logs {job.id}` has all that it said"
    )
    return catalog.queue.fail_unstarted(Claim(job.id, job.attempt), reason)


def _arrived(jobs: RayJobs, name: str) -> bool:
    """Whether a driver runs although the answer to its submission was lost."""
    try:
        return jobs.find(name) is not None
    except ClusterError:
        return False


def entrypoint(module: str, *words: str) -> str:
    """The command line of a module of tintray on the nodes of a cluster."""
    chosen = setting("python")
    python = sys.executable if chosen is None else chosen.value
    return shlex.join([python, "-m", module, *words])


def environment(catalog_url: str) -> Mapping[str, str]:
    """What the driver must know of this side; a password never goes this way.

    With one in the catalog's URL the nodes need TINTRAY_CATALOG, or PGPASSWORD, of their own.
    """
    lease = setting("lease_seconds")
    told = {
        CATALOG_VARIABLE: "" if has_secret(catalog_url) else catalog_url,
        LEASE_VARIABLE: lease.value if lease else "",
        FACTORIES_VARIABLE: share_factories(),
    }
    return {name: value for name, value in told.items() if value}
