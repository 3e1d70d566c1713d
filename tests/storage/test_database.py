"""The catalog's database: schema versions, URLs that are wrong, many clients at once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa

from tintray.errors import InputError, NotFoundError, SpecError, StateConflictError, StorageError
from tintray.jobs.upkeep.databases import check_catalog, upgrade_catalog
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.engine import _TURN_MILLISECONDS, failures
from tintray.storage.catalog.migrations import REVISIONS
from tintray.storage.catalog.schema import alembic_config
from tintray.storage.catalog.states import JobState

WAY = list(JobState)[:7]  # from queued to succeeded


def test_upgrading_makes_the_tables_of_the_models_once(catalog_url: str) -> None:
    changes = [upgrade_catalog(catalog_url), upgrade_catalog(catalog_url)]
    last = REVISIONS[-1]
    assert [(change.before, change.after) for change in changes] == [(None, last), (last, last)]
    found = check_catalog(catalog_url)
    assert (found.schema, found.problems, found.idle_jobs) == (last, [], [])


def test_the_known_revisions_are_those_of_the_migrations() -> None:
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(alembic_config())
    assert tuple(step.revision for step in script.walk_revisions())[::-1] == REVISIONS


def test_a_schema_that_is_newer_or_older_is_refused_with_what_to_do(catalog_url: str) -> None:
    def become(version: str) -> None:
        with catalog.database.write() as session:
            session.execute(sa.text(f"UPDATE tintray_schema SET version_num = '{version}'"))

    with Catalog.open(catalog_url) as catalog:
        become("0002")
        with pytest.raises(StorageError, match=r"version 0002, .* run `tintray db upgrade`"):
            Catalog.open(catalog_url)
        become("9999")
    for use, error in ((Catalog.open, StorageError), (upgrade_catalog, InputError)):
        with pytest.raises(error, match=r"version 9999, which is newer .* upgrade tintray"):
            use(catalog_url)


def test_many_may_create_the_same_catalog_at_once(catalog_url: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="catalog"):
        Catalog.open(catalog_url, create=False)
    assert list(tmp_path.iterdir()) == []

    def create(number: int) -> str:
        with Catalog.open(catalog_url) as catalog:
            return catalog.jobs.create(f"job-{number}", {}, "file:///store")

    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(create, range(4)))
    with Catalog.open(catalog_url, create=False) as catalog:
        assert {job.id for job in catalog.jobs.all()} == made


def test_opening_a_current_catalog_does_not_import_alembic(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/catalog.db"
    Catalog.open(url).close()
    code = (
        "import sys; from tintray.storage.catalog.catalog import Catalog;"
        f"Catalog.open({url!r}).close(); print('alembic' in sys.modules, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "expected sqlite:///path or postgresql"),
        ("catalog.db", "expected sqlite:///path or postgresql"),
        ("sqlit:///catalog.db", r"found 'sqlit://' \(did you mean 'sqlite'\?"),
        ("mysql://me:hunter2@host/db", "found 'mysql://'"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("postgresql://me:hunter2@host:port/db", "expected sqlite:///path or postgresql"),
    ],
)
def test_a_url_that_is_none_is_refused_and_its_password_not_repeated(
    url: str, problem: str
) -> None:
    with pytest.raises(SpecError, match=problem) as raised:
        Catalog.open(url)
    assert "hunter2" not in str(raised.value)


def test_what_is_no_database_or_cannot_be_made_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("this is not a database" * 100)
    for path, problem in {
        file: rf"{file} cannot be used: .*; name another file",
        file / "catalog.db": rf"cannot be created: .* \({file}\)",
        tmp_path: "check that its folder exists",
    }.items():
        with pytest.raises(StorageError, match=problem):
            Catalog.open(f"sqlite:///{path}")


@pytest.mark.parametrize(
    ("said", "advice"),
    [("disk I/O error", "check its disk, and that"), ("something new", "check its file")],
)
def test_no_server_is_named_where_there_is_none(said: str, advice: str) -> None:
    with pytest.raises(StorageError) as raised, failures("sqlite:////x.db"):
        raise sa.exc.OperationalError("SELECT 1", {}, sqlite3.OperationalError(said))
    expected = f"the catalog sqlite:////x.db cannot be used: {said}; {advice}"
    assert str(raised.value).startswith(expected)
    assert "server" not in str(raised.value)


def test_a_catalog_that_is_held_too_long_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tintray.storage.catalog.engine.BUSY_SECONDS", 0.2)
    url = f"sqlite:///{tmp_path}/catalog.db"
    with Catalog.open(url) as catalog, closing(sqlite3.connect(tmp_path / "catalog.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="another process held it"):
            catalog.jobs.create("ten", {}, "file:///store")
        assert catalog.jobs.all() == []  # reading goes on


def test_a_writer_waits_for_one_that_takes_several_turns(tmp_path: Path) -> None:
    turns = 4 * _TURN_MILLISECONDS / 1000
    with (
        Catalog.open(f"sqlite:///{tmp_path}/catalog.db") as catalog,
        closing(sqlite3.connect(tmp_path / "catalog.db", check_same_thread=False)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(turns, other.rollback).start()
        began = time.monotonic()
        job = catalog.jobs.create("ten", {}, "file:///store")
        assert time.monotonic() - began > turns / 2
        assert [found.id for found in catalog.jobs.all()] == [job]


def test_wrong_credentials_and_names_are_sentences_without_the_password(
    postgres_url: str,
) -> None:
    host = postgres_url.rpartition("@")[2]
    database = host.rpartition("/")[2]
    cases = {
        postgres_url.replace("open-sesame", "hunter2"): "check the user and the password",
        postgres_url.replace(database, "nowhere"): "create the database, or correct its name",
        f"postgresql://me:hunter2@127.0.0.1:1/{database}": "check host and port",
        f"postgresql://me:hunter2@no.such.host.invalid/{database}": "check the host name",
    }
    for url, advice in cases.items():
        with pytest.raises(StorageError, match=f"cannot be used: .*; {advice}") as raised:
            Catalog.open(url)
        assert "hunter2" not in str(raised.value)
        assert "open-sesame" not in str(raised.value)


def test_a_catalog_on_a_server_hides_its_password_and_needs_no_driver(postgres_url: str) -> None:
    with Catalog.open(postgres_url.replace("+psycopg", "")) as catalog:
        assert catalog.jobs.all() == []
        assert catalog.url.startswith("postgresql") and "open-sesame" not in catalog.url


def test_a_connection_that_the_server_dropped_is_replaced(postgres_url: str) -> None:
    with Catalog.open(postgres_url) as catalog, Catalog.open(postgres_url) as other:
        job_id = catalog.jobs.create("ten", {}, "file:///store")
        others = "datname = current_database() AND pid != pg_backend_pid()"
        end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
        with other.database.read() as session:
            session.execute(sa.text(end))
        assert catalog.jobs.get(job_id).state is JobState.QUEUED


@pytest.mark.slow
def test_racing_clients_lose_no_update(catalog_url: str) -> None:
    clients, jobs = 8, 6
    with Catalog.open(catalog_url) as catalog:
        ids = [catalog.jobs.create("race", {}, "file:///store") for _ in range(jobs)]

    def work(client: int) -> int:
        won = 0
        with Catalog.open(catalog_url) as own:
            for job_id in ids:
                for before, after in pairwise(WAY):
                    with suppress(StateConflictError):
                        own.jobs.transition(job_id, before, after, f"client {client}")
                        won += 1
        return won

    with ThreadPoolExecutor(clients) as pool:
        won = sum(pool.map(work, range(clients)))
    with Catalog.open(catalog_url) as catalog:
        assert won == jobs * (len(WAY) - 1)
        for job_id in ids:
            events = catalog.jobs.events(job_id)
            assert [event.to_state for event in events] == WAY
            assert [event.from_state for event in events] == [None, *WAY[:-1]]


@pytest.mark.slow
def test_processes_share_a_catalog(catalog_url: str) -> None:
    code = (
        "import sys; from tintray.storage.catalog.catalog import Catalog\n"
        "with Catalog.open(sys.stdin.readline().strip()) as catalog:\n"
        "    for number in range(20):\n"
        "        catalog.jobs.record_rounds(catalog.jobs.all()[0].id, {number: {'loss': 1.0}})\n"
        "        catalog.jobs.create('ten', {}, 'file:///store')\n"
    )
    with Catalog.open(catalog_url) as catalog:
        catalog.jobs.create("ten", {}, "file:///store")
        workers = [
            subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        for worker in workers:
            worker.communicate(catalog_url + "\n", timeout=60)
        assert [worker.returncode for worker in workers] == [0, 0, 0]
        assert len(catalog.jobs.all()) == 1 + 3 * 20
