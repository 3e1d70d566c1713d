"""Catalogs as they grow old: upgraded while clients work, pruned, backed up, restored elsewhere."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import threading
import zipfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa

import tintray
from tests.answers import call
from tests.conftest import Published
from tests.postgres_server import programs
from tintray.errors import TintrayError
from tintray.jobs.upkeep.databases import check_catalog, upgrade_catalog
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.migrations import REVISIONS
from tintray.storage.catalog.states import JobState
from tintray.storage.catalog.tables import Base, Job

RELEASE = Path(__file__).parents[1] / "data" / "release-0.1.0.zip"
SINCE = {"jobs": "ix_jobs_name_created_at", "merges": "ix_merges_parent_id"}
LATER = "checks"
"""Indexes and a table that 0.1.0 had not."""
CLIENTS, EACH = 4, 12
WAY = list(JobState)[:7]  # from queued to succeeded


def as_of_0_1_0(url: str, folder: Path) -> list[str]:
    """Make the catalog that 0.1.0 wrote, in a database of either kind; the ids of its jobs."""
    file = folder / "catalog" / "catalog.db"
    file.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(file)) as known:
        known.executescript(zipfile.ZipFile(RELEASE).read("catalog.sql").decode())
        jobs = [row[0] for row in known.execute("SELECT id FROM jobs ORDER BY id")]
    if not url.startswith("sqlite"):
        source, target = sa.create_engine(f"sqlite:///{file}"), sa.create_engine(url)
        with source.connect() as reading, target.begin() as writing:
            tables = [table for table in Base.metadata.sorted_tables if table.name != LATER]
            Base.metadata.create_all(writing, tables)
            for index in SINCE.values():
                writing.exec_driver_sql(f"DROP INDEX {index}")
            writing.exec_driver_sql("CREATE TABLE tintray_schema (version_num VARCHAR(32))")
            writing.exec_driver_sql("INSERT INTO tintray_schema VALUES ('0003')")
            for table in tables:
                if rows := [dict(row) for row in reading.execute(sa.select(table)).mappings()]:
                    writing.execute(sa.insert(table), rows)
            for name in ("events", "merges"):  # rows that came with their numbers
                counter = f"pg_get_serial_sequence('{name}', 'id')"
                writing.exec_driver_sql(f"SELECT setval({counter}, 1000)")
        source.dispose(), target.dispose()
    return jobs


def test_an_old_catalog_is_upgraded_while_clients_work(catalog_url: str, tmp_path: Path) -> None:
    before = as_of_0_1_0(catalog_url, tmp_path)
    assert "run `tintray db upgrade`" in check_catalog(catalog_url).problems[0]
    clients = [Catalog.open(catalog_url) for _ in range(CLIENTS)]  # it can be used as it is
    done: list[str] = []
    errors: list[Exception] = []

    def work(catalog: Catalog) -> None:
        try:
            done.extend(drive(catalog) for _ in range(EACH))
        except Exception as error:  # noqa: BLE001 - whatever reaches a client is a failure
            errors.append(error)

    threads = [threading.Thread(target=work, args=(catalog,)) for catalog in clients]
    for thread in threads:
        thread.start()
    while len(done) < CLIENTS and not errors:
        threads[0].join(0.01)
    change = upgrade_catalog(catalog_url)
    assert len(done) < CLIENTS * EACH, "they had ended before the upgrade"
    for thread in threads:
        thread.join()
    for catalog in clients:
        catalog.close()
    assert not errors
    assert (change.before, change.after) == ("0003", REVISIONS[-1])
    found = check_catalog(catalog_url)
    assert (found.schema, found.problems) == (REVISIONS[-1], [])
    with Catalog.open(catalog_url) as catalog:
        assert {job.id for job in catalog.jobs.all()} == {*before, *done}
        for job_id in done:
            assert [event.to_state for event in catalog.jobs.events(job_id)] == WAY
            assert catalog.jobs.last_round(job_id) is not None


def drive(catalog: Catalog) -> str:
    """What a driver writes of a job."""
    job_id = catalog.jobs.create("worked-on", {}, "file:///store")
    token = catalog.leases.acquire(job_id, "somebody", 60)
    for one, other in pairwise(WAY):
        catalog.jobs.transition(job_id, one, other, "it goes on", token=token)
        catalog.leases.renew(job_id, token, 60)
    catalog.jobs.record_rounds(job_id, {0: {"loss": 1.0}}, token=token)
    catalog.leases.release(job_id, token)
    return job_id


def test_an_upgrade_gives_way_to_who_holds_a_table(postgres_url: str, tmp_path: Path) -> None:
    """It waits for a long transaction without keeping others out of the table, then goes on."""
    as_of_0_1_0(postgres_url, tmp_path)
    holder = sa.create_engine(postgres_url)
    upgrade = threading.Thread(target=upgrade_catalog, args=(postgres_url,))
    with holder.connect() as writing, writing.begin():
        writing.execute(sa.text("UPDATE jobs SET reason = reason"))
        upgrade.start()
        upgrade.join(1.2)  # it has given up and tried again by now
        assert upgrade.is_alive()
        with holder.connect() as other, other.begin():
            other.execute(sa.text("SET LOCAL statement_timeout = '5s'"))
            assert other.scalar(sa.text("SELECT COUNT(*) FROM jobs"))
    upgrade.join(30)
    holder.dispose()
    assert check_catalog(postgres_url).problems == []


def test_rounds_of_jobs_that_are_long_over_are_forgotten_but_the_last(catalog_url: str) -> None:
    with Catalog.open(catalog_url) as catalog:
        old, new, running = (catalog.jobs.create(name, {}, "x") for name in ("a", "b", "c"))
        for job_id in (old, new, running):
            catalog.jobs.record_rounds(job_id, {n: {"loss": float(n)} for n in range(5)})
            if job_id != running:
                catalog.jobs.transition(job_id, JobState.QUEUED, JobState.FAILED, "it had to")
        with catalog.database.write() as session:
            past = datetime.now(UTC) - timedelta(days=100)
            session.execute(sa.update(Job).where(Job.id != new).values(updated_at=past))
        words = ("db", "prune", "--catalog", catalog_url, "--json")
        assert call(*words, "--dry-run").document["rounds"] == 4
        assert call(*words, "--older-than", "200d").document["rounds"] == 0
        assert call(*words).document["rounds"] == 4
        assert [row.round for row in catalog.jobs.rounds(old)] == [4]
        assert [len(catalog.jobs.rounds(job)) for job in (new, running)] == [5, 5]


@pytest.fixture
def lived_in(published: Published, catalog_url: str, tmp_path: Path) -> Path:
    """A store with a merge, whose catalog is at ``catalog_url``."""
    store = tmp_path / "store"
    words = ("copy", published.folder, store, "--dest-catalog", catalog_url)
    assert call(*words).code == 0
    return store


def backed_up(url: str, folder: Path) -> Path:
    """A backup as docs/storage.md says, while a client writes."""
    copy, over = folder / "backup", threading.Event()

    def write() -> None:
        with Catalog.open(url) as catalog:
            while not over.is_set():
                drive(catalog)

    client = threading.Thread(target=write)
    client.start()
    try:
        if url.startswith("sqlite"):
            place = url.removeprefix("sqlite:///")
            with closing(sqlite3.connect(place)) as source, closing(sqlite3.connect(copy)) as made:
                source.backup(made)  # what `.backup` of the sqlite3 shell calls
        else:
            run("pg_dump", "--no-owner", "--file", copy, "--dbname", plain(url))
    finally:
        over.set()
        client.join()
    return copy


def restored(copy: Path, url: str, folder: Path) -> str:
    """The backup in a place of its own; its URL."""
    if url.startswith("sqlite"):
        shutil.copy(copy, folder / "restored.db")
        return f"sqlite:///{folder}/restored.db"
    base, _, name = plain(url).rpartition("/")
    run("psql", "--quiet", "--command", f'CREATE DATABASE "r{name}"', "--dbname", plain(url))
    place = ("--dbname", f"{base}/r{name}")
    run("psql", "--quiet", "--set", "ON_ERROR_STOP=1", "--file", copy, *place)
    return f"{url.rpartition('/')[0]}/r{name}"


def plain(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


def run(program: str, *words: object) -> None:
    command = [str(programs() / program), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_backup_is_restored_elsewhere_and_its_merges_open(
    lived_in: Path, catalog_url: str, tmp_path: Path
) -> None:
    copy = backed_up(catalog_url, tmp_path)
    elsewhere = Path(shutil.copytree(lived_in, tmp_path / "elsewhere"))
    before = tintray.load("tiny", catalog=catalog_url)
    url = restored(copy, catalog_url, tmp_path)
    empty = call("db", "relocate", lived_in, "--store", tmp_path / "empty", "--catalog", url)
    assert "lacks 1 of the 1 merges" in empty.sentence
    shutil.rmtree(lived_in)
    words = ("db", "relocate", lived_in, "--store", elsewhere, "--catalog", url, "--json")
    assert call(*words, "--dry-run").document["merges"] == 1
    with pytest.raises(TintrayError):
        tintray.load("tiny", catalog=url)
    assert call(*words).document["merges"] == 1
    assert check_catalog(url).problems == []
    merge = tintray.load("tiny", catalog=url)
    assert merge.url.removeprefix("file://").startswith(f"{elsewhere}/")
    assert merge.manifest == before.manifest and merge.for_task(merge.tasks[0])
    verified = call("artifacts", "verify", "--store", elsewhere, "--catalog", url, "--json")
    assert verified.document["damaged"] == []
    assert "knows no merge and no job" in call(*words).sentence
