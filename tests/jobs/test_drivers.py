"""Drivers that go away: whoever looks starts the next, and the one before writes nothing more."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import tintray
from tests.fake_head import fake_head
from tests.growing import hashes
from tests.tiny_zoo import TinyZoo
from tintray.errors import AwayError
from tintray.jobs import api
from tintray.jobs.engine.finding import load_merge
from tintray.jobs.queue.driving import drive
from tintray.jobs.runs import methods
from tintray.storage.artifacts.folder import FolderStore
from tintray.storage.catalog.catalog import Catalog

LEASE = "5"


def until(what: Callable[[], Any]) -> None:
    give_up = time.monotonic() + 120
    while not what():
        assert time.monotonic() < give_up
        time.sleep(0.1)


def stop_for_a_while(driver: subprocess.Popen[str], catalog: Path) -> None:
    """Stop it where it writes nothing: who stops amid a write keeps a SQLite file locked."""
    while True:
        driver.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, driver.pid, os.WSTOPPED)
        with closing(sqlite3.connect(catalog, timeout=1)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                driver.send_signal(signal.SIGCONT)
                time.sleep(0.01)
            else:
                return


@pytest.fixture
def drivers() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that end with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_a_driver_waits_for_a_store_that_goes_away_before_it_computes(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store, once it was found to be writable; then where the base is read from."""
    away = {"check_writable": [False, True], "load_base_model": [True]}

    def failing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def do(*args: Any) -> Any:
            if away[name] and away[name].pop(0):
                raise AwayError("no answer")
            return call(*args)

        return do

    spec = tiny.spec(tmp_path, ("two",), fit={"rounds": 1})
    monkeypatch.setenv("TINTRAY_CATALOG", spec.catalog)
    with fake_head() as (address, requests):
        job = tintray.submit(spec, address=address)
        (entry,) = (each["entrypoint"] for each in requests if "entrypoint" in each)
        for owner, name in ((FolderStore, "check_writable"), (methods, "load_base_model")):
            monkeypatch.setattr(owner, name, failing(name, getattr(owner, name)))
        drive(job.id, int(entry.split()[-1]))
        assert job.status().state == "succeeded"


@pytest.mark.slow
def test_a_job_goes_on_with_the_next_driver_and_the_one_before_is_fenced(
    tiny: TinyZoo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    drivers: list[subprocess.Popen[str]],
) -> None:
    """The first is told to go (its machine is taken away), the second only stopped for a while."""
    fit = {"rounds": 150, "checkpoint_every": 20}
    undisturbed = api.run(tiny.spec(tmp_path / "a", fit=fit))
    spec = tiny.spec(tmp_path / "b", fit=fit)
    monkeypatch.setenv("TINTRAY_LEASE_SECONDS", LEASE)
    monkeypatch.setenv("TINTRAY_CATALOG", spec.catalog)
    with fake_head() as (address, requests), Catalog.open(spec.catalog) as catalog:

        def handed_over() -> list[str]:
            return [each["entrypoint"] for each in requests if "entrypoint" in each]

        def next_driver() -> subprocess.Popen[str]:
            """The one that was handed over last, in the middle of its fit."""
            job_id, attempt = handed_over()[-1].split()[-2:]
            module = "tintray.jobs.queue.driving"
            command = [sys.executable, "-m", module, job_id, attempt]
            drivers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            round_ = getattr(catalog.jobs.last_round(job_id), "round", 0)
            until(lambda: getattr(catalog.jobs.last_round(job_id), "round", 0) > round_)
            return drivers[-1]

        job = tintray.submit(spec, address=address)
        next_driver().send_signal(signal.SIGTERM)
        drivers[0].wait(60)
        assert catalog.queue.find(job.id).lost
        (line,) = tintray.list_jobs(catalog=spec.catalog)
        assert line.state == "queued" and "(1 of 10)" in line.reason
        second = next_driver()
        stop_for_a_while(second, Path(spec.catalog.removeprefix("sqlite:///")))
        until(lambda: catalog.queue.find(job.id).lost)
        found = job.status()
        assert (found.state, found.restarts, len(handed_over())) == ("queued", 2, 3)
        third = next_driver()
        assert third.wait(120) == 0
        before = [(event.to_state, event.reason) for event in catalog.jobs.events(job.id)]
        second.send_signal(signal.SIGCONT)
        said, _ = second.communicate(timeout=60)
        assert second.returncode == 1 and "no longer ours" in said
        assert before == [(e.to_state, e.reason) for e in catalog.jobs.events(job.id)]
        (merge,) = catalog.merges.all()
        assert merge.ref == "tiny/v1" and catalog.checkpoints.of(job.id) == []
    assert hashes(merge.url) == hashes(undisturbed.url)
    notices = load_merge(merge.url).manifest.notices
    assert [notice for notice in notices if "goes on with a new driver" in notice] == [
        f"its driver was lost while fitting: the job goes on with a new driver ({n} of 10)"
        for n in (1, 2)
    ]
