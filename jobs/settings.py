"""What holds where neither the job file nor the command line says otherwise.

``TINTRAY_STORE`` and ``TINTRAY_CATALOG`` replace the built-in defaults. Defaults start from the
folder that the user stands in, unlike a job file's relative paths, which start from the job file:
so ``tintray run examples/digits.yaml`` and a plain ``tintray list`` look at the same store.
"""

from __future__ import annotations

import os
from pathlib import Path

from jobs.locations import Location, catalog_location, store_location
from tintray.errors import SpecError

STORE_VARIABLE = "TINTRAY_STORE"
CATALOG_VARIABLE = "TINTRAY_CATALOG"
LEASE_VARIABLE = "TINTRAY_LEASE_SECONDS"
STORE = "./tintray-data"
LEASE_SECONDS = 60.0


def lease_seconds() -> float:
    """How long the lease of a job outlives the last sign of life of the process that runs it.

    Raises
    ------
    SpecError
        ``TINTRAY_LEASE_SECONDS`` is not a positive number.
    """
    written = os.environ.get(LEASE_VARIABLE)
    if not written:
        return LEASE_SECONDS
    try:
        seconds = float(written)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise SpecError(f"{LEASE_VARIABLE}: expected a number of seconds, found {written!r}")
    return seconds


def default_store() -> Location:
    """The artifact store of a job that names none.

    Raises
    ------
    SpecError
        ``TINTRAY_STORE`` is neither a folder nor a URL that a store can have.
    """
    written = os.environ.get(STORE_VARIABLE) or STORE
    try:
        return store_location(written, Path.cwd())
    except ValueError as error:
        raise SpecError(f"{STORE_VARIABLE}: {error}") from error


def default_catalog(store: Location) -> Location:
    """The catalog of a job that names none: ``catalog.db`` in its store, if that is a folder.

    Raises
    ------
    SpecError
        ``TINTRAY_CATALOG`` is not the URL of a database.
    """
    beside = store if store.path else Location(str(Path(STORE).resolve()))
    written = os.environ.get(CATALOG_VARIABLE) or f"sqlite:///{beside}/catalog.db"
    try:
        return catalog_location(written, Path.cwd())
    except ValueError as error:
        raise SpecError(f"{CATALOG_VARIABLE}: {error}") from error


def chosen_destination(store: str, catalog: str | None) -> tuple[Location, Location | None]:
    """The store that something is copied to, and its catalog: ``catalog.db`` in it, if a folder.

    Raises
    ------
    SpecError
        One of them is none.
    """
    field = "DEST"
    try:
        where = store_location(store, Path.cwd())
        field = "--dest-catalog"
        if catalog is not None:
            return where, catalog_location(catalog, Path.cwd())
    except ValueError as error:
        raise SpecError(f"{field}: {error}") from error
    return where, Location(f"sqlite:///{where}/catalog.db") if where.path else None


def chosen(store: str | None, catalog: str | None) -> tuple[Location, Location]:
    """The store and catalog of a command, from its options ``--store`` and ``--catalog``.

    Raises
    ------
    SpecError
        An option, or the environment variable behind it, cannot be one.
    """
    option = "--store"
    try:
        where = store_location(store, Path.cwd()) if store is not None else default_store()
        option = "--catalog"
        if catalog is None:
            return where, default_catalog(where)
        return where, catalog_location(catalog, Path.cwd())
    except ValueError as error:
        raise SpecError(f"{option}: {error}") from error
