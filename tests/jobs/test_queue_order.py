"""Twenty jobs on a cluster whose drivers are threads of this process: none is lost or run twice."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import tintray
from tests.fake_head import VERSIONS, Answers, serving
from tests.tiny_zoo import TinyZoo
from tintray.jobs.queue import driving, entry
from tintray.jobs.queue.submission import set_limit
from tintray.jobs.runs import methods
from tintray.jobs.runs import run as driver
from tintray.storage.catalog.catalog import Catalog


class ThreadHead(ThreadingHTTPServer):
    """Ray's Jobs API, as far as a queue asks for it; drivers wait until ``begin`` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.begin = threading.Event()
        self.drivers: dict[str, threading.Thread] = {}

    def drive(self, job_id: str, attempt: int) -> None:
        """What the entry point's two processes do."""
        self.begin.wait(60)
        entry._settle(job_id, attempt, driving.drive(job_id, attempt), "")

    def start(self, body: dict[str, Any]) -> None:
        job_id, attempt = shlex.split(body["entrypoint"])[-2:]
        name = body["submission_id"]
        assert name not in self.drivers  # Ray refuses a name that it has had
        thread = threading.Thread(target=self.drive, args=(job_id, int(attempt)))
        self.drivers[name] = thread
        thread.start()


class _Handler(Answers):
    server: ThreadHead

    def get(self) -> None:
        if "metadata" in self.path:
            return self.answer(200, {"data": VERSIONS})
        thread = self.server.drivers.get(self.path.rpartition("/")[2])
        status = "RUNNING" if thread and thread.is_alive() else "SUCCEEDED"
        return self.answer(200, {"status": status, "message": ""})

    def post(self) -> None:
        body = self.body()
        if "submission_id" in body:
            self.server.start(body)
        self.answer(200, {})


@pytest.fixture
def head() -> Iterator[ThreadHead]:
    server = ThreadHead()
    with serving(server):
        yield server
    for thread in server.drivers.values():
        thread.join(60)


def test_twenty_jobs_go_by_priority_and_none_is_lost_or_run_twice(
    head: ThreadHead, tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitted at once, behind one that runs, to a cluster that then runs two at a time."""
    catalog = f"sqlite:///{tmp_path}/catalog.db"
    fit = {"rounds": 1, "batch_size": 2}
    spec = tiny.spec(tmp_path / "store", ("two",), fit=fit, catalog=catalog)
    monkeypatch.setenv("TINTRAY_CATALOG", catalog)
    monkeypatch.setattr("tintray.jobs.queue.following.POLL", 0.05)
    one_at_a_time = threading.Lock()

    def alone(call: Callable[..., Any], *args: Any) -> Any:
        with one_at_a_time:  # transformers loads no two models at once in one process
            return call(*args)

    for module, name in ((methods, "resolve_job"), (driver, "carry_on")):
        monkeypatch.setattr(module, name, partial(alone, getattr(module, name)))
    first = tintray.submit(spec, address=head.address, priority=1000)

    def submit(number: int) -> tintray.Job:
        return tintray.submit(spec, address=head.address, priority=number % 5)

    with ThreadPoolExecutor(4) as pool:
        jobs = list(pool.map(submit, range(19)))
    assert len(head.drivers) == 1
    set_limit(2, address=head.address)
    assert len(head.drivers) == 2
    head.begin.set()
    ends = [job.wait(200) for job in (first, *jobs)]
    assert [job.state for job in ends] == ["succeeded"] * 20
    assert sorted(job.merge for job in ends) == sorted(f"tiny/v{n}" for n in range(1, 21))
    with Catalog.open(catalog) as known:
        assert [known.leases.current(job.id).token for job in ends] == [1] * 20  # begun once each
        claimed = {job.id: known.jobs.get(job.id).handed_at for job in ends}
    priority = {job.id: job.priority for job in ends}
    order = [priority[job] for job in sorted(claimed, key=lambda job: claimed[job])]
    assert order == sorted(order, reverse=True)
