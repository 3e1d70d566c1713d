"""The list of jobs without SQLAlchemy: the same rows, and no guess where it cannot tell."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.job_list import read_jobs
from tintray.storage.catalog.states import JobState
from tintray.storage.catalog.tables import Lease


def fill(catalog: Catalog) -> dict[str, str]:
    """Jobs of every sort that a list tells apart; ids by name."""
    names, spec = ("waiting", "fitting", "lost", "failed", "done"), {"fit": {"rounds": 30}}
    ids = {name: catalog.jobs.create(name, spec, "file:///store") for name in names}
    for name, owner in (("fitting", "somebody"), ("lost", "gone")):
        catalog.leases.acquire(ids[name], owner, 60)
        catalog.jobs.transition(ids[name], JobState.QUEUED, JobState.FITTING, "begins")
    with catalog.database.write() as session:
        lease = session.get_one(Lease, ids["lost"])
        assert lease.expires_at is not None
        lease.expires_at -= timedelta(hours=1)
    catalog.jobs.transition(ids["failed"], JobState.QUEUED, JobState.FAILED, "a worker died")
    catalog.jobs.transition(ids["done"], JobState.QUEUED, JobState.SUCCEEDED, "published")
    catalog.jobs.record_rounds(ids["fitting"], {1: {"loss": 1.0}, 2: {"loss": 0.5}})
    return ids


def test_it_sees_what_the_catalog_lists(catalog: Catalog, catalog_url: str) -> None:
    ids = fill(catalog)
    rows = {row.name: row for row in read_jobs(catalog_url) or ()}
    assert {name: row.id for name, row in rows.items()} == ids
    assert [name for name, row in rows.items() if row.lost] == ["lost", "waiting"]
    fitting = rows["fitting"]
    assert (fitting.round, fitting.rounds, fitting.owner) == (2, 30, "somebody")
    assert rows["failed"].round is None
    for query in ((None,), (1,), (None, [JobState.FAILED]), (None, []), (None, None, "done")):
        named: Any = dict(zip(("limit", "states", "name"), query, strict=False))
        assert read_jobs(catalog_url, **named) == catalog.queue.listing(**{"limit": None, **named})


def test_what_it_cannot_read_is_left_to_the_catalog(tmp_path: Path) -> None:
    assert read_jobs(f"sqlite:///{tmp_path}/absent.db") is None
    assert not (tmp_path / "absent.db").exists()
    (tmp_path / "noise.db").write_bytes(b"no database at all" * 100)
    assert read_jobs(f"sqlite:///{tmp_path}/noise.db") is None
    assert read_jobs("postgresql+psycopg://nobody@127.0.0.1:1/none") is None
    assert read_jobs("mysql://somewhere/else") is None
    url = f"sqlite:///{tmp_path}/catalog.db"
    Catalog.open(url).close()
    assert read_jobs(url) == []
    for version in ("0001", "9999"):
        with closing(sqlite3.connect(tmp_path / "catalog.db")) as connection, connection:
            connection.execute("UPDATE tintray_schema SET version_num = ?", (version,))
        assert read_jobs(url) is None


def test_it_does_not_import_sqlalchemy() -> None:
    code = (
        "import sys, tintray.jobs.queue.views, tintray.jobs.cli.queue_tables;"
        "print('sqlalchemy' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
