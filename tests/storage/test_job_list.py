"""The list of jobs without SQLAlchemy: the same rows, and no guess where it cannot tell."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.drivers import ask
from tintray.storage.catalog.job_list import select_jobs
from tintray.storage.catalog.merge_list import read_merges, read_names
from tintray.storage.catalog.states import JobState
from tintray.storage.catalog.tables import Lease
from tintray.storage.catalog.waiting import positions


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
    rows = {row.name: row for row in ask(catalog_url, select_jobs) or ()}
    assert {name: row.id for name, row in rows.items()} == ids
    assert [name for name, row in rows.items() if row.lost] == ["lost", "waiting"]
    fitting = rows["fitting"]
    assert (fitting.round, fitting.rounds, fitting.owner) == (2, 30, "somebody")
    assert rows["failed"].round is None
    for query in ((None,), (1,), (None, [JobState.FAILED]), (None, []), (None, None, "done")):
        named: Any = dict(zip(("limit", "states", "name"), query, strict=False))
        assert ask(catalog_url, partial(select_jobs, **named)) == catalog.queue.listing(
            **{"limit": None, **named}
        )


def test_where_jobs_stand_is_what_the_queue_says(catalog: Catalog, catalog_url: str) -> None:
    """One cluster runs a job and is handed another; on the other one jobs of two ranks wait."""
    for cluster, most in (("busy", 2), ("full", 1)):
        catalog.queue.set_limit(cluster, most)
    ids = [
        catalog.jobs.create(f"{cluster}-{n}", {}, "store", cluster=cluster, priority=n % 2)
        for cluster in ("busy", "full")
        for n in range(4)
    ]
    for cluster in ("busy", "busy", "full"):
        assert catalog.queue.claim(cluster) is not None
    catalog.leases.acquire(ids[1], "somebody", 60)
    alive, limits = catalog.queue.listing(None), {"busy": 2, "full": 1}
    told = positions(alive, limits, datetime.now(UTC))
    rows = {row.id: row for row in alive}
    assert told == {i: place for i in ids if (place := catalog.queue.position(rows[i])) is not None}
    assert len(told) == len(ids) - 1


def test_merges_are_those_that_the_catalog_knows(catalog: Catalog, catalog_url: str) -> None:
    for name, parent in (("a", None), ("a", "a/v1"), ("b", None)):
        version = catalog.merges.reserve(name)
        metrics = {"tasks": 2, "average": 0.5}
        catalog.merges.record(name, version, f"file:///{name}", parent=parent, metrics=metrics,
                              added=["x"])  # fmt: skip
    catalog.merges.reserve("c")  # not published
    rows = read_merges(catalog_url)
    assert rows == catalog.merges.listing() and rows is not None
    assert [(f"{row.name}/v{row.version}", row.parent) for row in rows] == [
        ("b/v1", None), ("a/v2", "a/v1"), ("a/v1", None)]  # fmt: skip
    assert (rows[0].metrics, rows[0].added) == ({"tasks": 2, "average": 0.5}, ["x"])
    catalog.merges.remove("b", 1)
    assert read_names(catalog_url, "merge") == ["a"]
    assert read_names(catalog_url, "version") == ["a/v2", "a/v1"]
    assert read_names("sqlite:////nowhere/catalog.db", "merge") == []


def test_what_it_cannot_read_is_left_to_the_catalog(tmp_path: Path) -> None:
    assert ask(f"sqlite:///{tmp_path}/absent.db", select_jobs) is None
    assert not (tmp_path / "absent.db").exists()
    (tmp_path / "noise.db").write_bytes(b"no database at all" * 100)
    assert ask(f"sqlite:///{tmp_path}/noise.db", select_jobs) is None
    assert ask("postgresql+psycopg://nobody@127.0.0.1:1/none", select_jobs) is None
    assert ask("mysql://somewhere/else", select_jobs) is None
    url = f"sqlite:///{tmp_path}/catalog.db"
    Catalog.open(url).close()
    assert ask(url, select_jobs) == []
    for version in ("0001", "9999"):
        with closing(sqlite3.connect(tmp_path / "catalog.db")) as connection, connection:
            connection.execute("UPDATE tintray_schema SET version_num = ?", (version,))
        assert ask(url, select_jobs) is None


def test_it_does_not_import_sqlalchemy() -> None:
    code = (
        "import sys, tintray.jobs.queue.views, tintray.jobs.cli.queue_tables\n"
        "import tintray.jobs.runs.merge_list, tintray.jobs.cli.list_tables\n"
        "import tintray.jobs.cli, tintray.jobs.config.reference\n"
        "heavy = {'sqlalchemy', 'torch', 'numpy', 'pydantic', 'boto3', 'yaml'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
