"""What tintray stands on, looked at one by one: versions, store, database, Ray. Changes nothing.

Of a cluster that jobs are submitted to, its nodes look too: see ``reach``.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from tintray.errors import NotFoundError, TintrayError
from tintray.jobs.config.settings import chosen, chosen_address
from tintray.jobs.engine.backend import open_backend
from tintray.jobs.queue.ray_jobs import RayJobs
from tintray.jobs.upkeep.reach import reached
from tintray.jobs.upkeep.results import Check, Diagnosis
from tintray.jobs.upkeep.stores import check_catalog
from tintray.storage.artifacts.store import open_store
from tintray.storage.artifacts.urls import local_folder

PYTHON = (3, 11)
_RAY_PLAN = 128 * 2**20  # bytes of shared memory: the least that Ray takes is below


def diagnose(
    *, store: str | None = None, catalog: str | None = None, address: str | None = None
) -> Diagnosis:
    """Look at everything that a job needs; whatever is wrong comes with its fix.

    ``address`` is that of a Ray cluster's dashboard, by default the one that jobs are submitted to;
    where there is none, a cluster is started on this machine, and stopped.
    """
    store, catalog = chosen(store, catalog)
    cluster = chosen_address(address, None)
    checks = [
        *versions(),
        _checked("store", lambda: _store(store)),
        _checked("database", lambda: _database(catalog)),
    ]
    if cluster is None:
        checks.append(_checked("ray", _ray))
    else:
        checks += _of_cluster(cluster, address is not None, store, catalog)
    return Diagnosis(all(check.ok for check in checks), checks)


def _checked(name: str, look: Callable[[], Check | str]) -> Check:
    try:
        found = look()
    except TintrayError as error:
        return Check.failed(name, str(error))
    return Check(name, True, found) if isinstance(found, str) else found


def versions() -> Iterator[Check]:
    """Python, and every package that tintray requires, beside the version that it requires."""
    found = platform.python_version()
    wanted = ".".join(map(str, PYTHON))
    fix = None if sys.version_info >= PYTHON else f"install Python {wanted} or newer"
    yield Check("python", fix is None, found, fix)
    for text in requires("tintray") or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement)


def _package(requirement: Requirement) -> Check:
    fix = f"pip install '{requirement}'"
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return Check(requirement.name, False, "not installed", fix)
    fits = requirement.specifier.contains(found, prereleases=True)
    return Check(requirement.name, fits, found, None if fits else fix)


def _store(url: str) -> Check | str:
    folder = local_folder(url)
    if folder is not None and not folder.exists():
        if _may_make(folder):
            return f"{folder} is not there yet; the first job makes it"
        fix = "give this user the right to make it, or name another store"
        return Check("store", False, f"the folder {folder} cannot be made", fix)
    store = open_store(url)
    store.check_writable()
    return f"{store.url} can be written and read"


def _database(url: str) -> Check | str:
    try:
        report = check_catalog(url)
    except NotFoundError as error:
        if not _can_be_made(url):
            raise
        return str(error).partition(";")[0] + "; the first job makes it"
    if report.problems:
        return Check.failed("database", f"{report.catalog}: {report.problems[0]}")
    idle = len(report.idle_jobs)
    beside = f"; {idle} unfinished jobs that nobody works on" if idle else ""
    return f"{report.catalog}, schema {report.schema}{beside}"


def _can_be_made(url: str) -> bool:
    """Whether a catalog that is not there yet can be created by the first job."""
    file = url.partition("?")[0].removeprefix("sqlite:///")
    if file == url:
        return True  # a database that answered, and has no tables yet
    return _may_make(Path(file).absolute())


def _may_make(path: Path) -> bool:
    """Whether this user may make ``path``, and the folders above it that are not there yet."""
    parent = next(place for place in path.parents if place.exists())
    return parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)


def _ray() -> str:
    """Start a cluster here, as a job without an address does."""
    fleet = open_backend(address=None, workers=1, threads=1, plan=_RAY_PLAN)
    try:
        return f"a cluster on this machine has {fleet.size()} CPUs"
    finally:
        fleet.close()


def _of_cluster(address: str, confirmed: bool, store: str, catalog: str) -> list[Check]:
    """The cluster that jobs are submitted to, and what it reaches if it takes one.

    ``confirmed`` if this very call named it.
    """
    try:
        jobs = RayJobs(address, confirmed=confirmed)
        jobs.check_versions()
        return [_answers(jobs), *reached(jobs, store, catalog)]
    except TintrayError as error:
        return [Check.failed("ray", str(error))]


def _answers(jobs: RayJobs) -> Check:
    said = f"the cluster at {jobs.address} answers, with this version of Ray and of Python"
    if not jobs.is_open():
        return Check("ray", True, f"{said}, and wants a token")
    fix = "start it with RAY_AUTH_MODE=token, and set that here too"
    return Check("ray", True, f"{said}, and runs the code of whoever reaches it", fix)
