"""A job that loses what it needs goes on by itself, to the same merge."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch

from tests.gate import Gate
from tests.growing import GrowingStore, hashes
from tests.tiny_zoo import TinyZoo
from tintray.errors import (
    AwayError,
    AwayInputError,
    CancelledError,
    DataError,
    FitError,
    IntegrityError,
    LeaseLostError,
    LostError,
    NoMemoryError,
    PreemptedError,
    RefusedError,
    RefusedInputError,
    StorageError,
)
from tintray.jobs import api
from tintray.jobs.engine.worker import Worker
from tintray.jobs.events import PhaseStarted, RoundDone
from tintray.jobs.runs.recovery import AWAY_SECONDS, Recovery, cause_of
from tintray.storage.artifacts.folder import FolderStore
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.jobs import Jobs
from tintray.storage.catalog.states import JobState

FIT = {"rounds": 6, "groups": 2, "checkpoint_every": 2, "correction_lr": 1e-3}


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (LostError("a worker died"), "lost"),
        (PreemptedError("a node was drained"), "preempted"),
        (NoMemoryError("no memory"), "memory"),
        (MemoryError(), "memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory"),
        (AwayError("no answer"), "away"),
        (StorageError("full"), "bug"),
        (IntegrityError("another hash"), "damaged"),
        (RefusedError("403"), "refused"),
        (LeaseLostError("another owner"), "stopped"),
        (CancelledError("stopped"), "stopped"),
        (AwayInputError("no answer"), "away"),
        (RefusedInputError("403"), "refused"),
        (DataError("no column"), "input"),
        (FitError("not finite"), "bug"),
        (KeyError("x"), "bug"),
    ],
)
def test_why_a_job_failed_decides_what_can_be_done(error: BaseException, cause: str) -> None:
    assert cause_of(error) == cause
    remedy = Recovery(restarts=1).remedy(error)
    assert (remedy is not None) == (cause not in ("stopped", "input", "bug"))
    assert Recovery(restarts=0).remedy(error) is None


def test_what_may_be_done_is_bounded() -> None:
    recovery = Recovery(restarts=3, away=0.0)
    first = recovery.remedy(NoMemoryError("no memory; use less"))
    assert first is not None and "use less" not in first.reason
    assert recovery.remedy(NoMemoryError("still none")) is None, "halved once"
    assert recovery.remedy(AwayError("no answer")) is None, "no time left to wait"
    assert [recovery.remedy(LostError("died")) is None for _ in range(3)] == [False, False, True]
    for error in (IntegrityError("another hash"), RefusedError("403")):
        again = [Recovery(restarts=9, repeats=n).remedy(error) for n in range(3)]
        assert [remedy is None for remedy in again] == [False, False, True], "two times more"
    with pytest.raises(AwayError):
        recovery.wait(lambda: _raise(AwayError("no answer")), lambda: None)


def test_a_job_that_gets_further_may_wait_as_long_as_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("tintray.jobs.runs.recovery.time.sleep", slept.append)

    def fail(recovery: Recovery, place: tuple[int, int]) -> None:
        recovery.reached(place)
        assert recovery.remedy(AwayError("no answer")) is not None
        recovery.wait(lambda: None)

    recovery = Recovery(restarts=9)
    for place in ((1, 0), (1, 0), (1, 0)):
        fail(recovery, place)
    assert slept == [1.0, 2.0], "longer each time where it gets no further"
    assert recovery.away == AWAY_SECONDS - 3.0
    fail(recovery, (3, 20))
    assert recovery.away == AWAY_SECONDS and len(slept) == 2
    fail(recovery, (3, 10))
    assert slept[2:] == [1.0], "rounds that it had computed before are no progress"
    assert recovery.used == 5, "restarts are counted all along"


def test_each_checkpoint_of_a_fit_is_further_than_all_before(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is away three times in one fit, each time after another checkpoint."""
    places: list[tuple[int, int]] = []
    plain = Recovery.reached

    def reached(self: Recovery, place: tuple[int, int]) -> None:
        places.append(place)
        plain(self, place)
        assert self.waits == 0

    def listen(event: Any) -> None:
        if isinstance(event, RoundDone) and event.round == (3, 5, 7)[len(places) % 3]:
            raise AwayError("no answer")

    monkeypatch.setattr(Recovery, "reached", reached)
    fit = {**FIT, "rounds": 8}
    undisturbed = api.run(tiny.spec(tmp_path / "a", fit=fit))
    summary = api.run(tiny.spec(tmp_path / "b", fit=fit), on_event=listen)
    assert hashes(summary.url) == hashes(undisturbed.url)
    assert [round_ for _, round_ in places] == [2, 4, 6]


def _raise(error: Exception) -> None:
    raise error


def once_at(round_: int, do: Callable[[], None]) -> tuple[list[Any], Callable[[Any], None]]:
    """What a job tells, and a listener that does something once, in a round."""
    told: list[Any] = []

    def listen(event: Any) -> None:
        again = any(isinstance(e, RoundDone) and e.round == round_ for e in told)
        told.append(event)
        if isinstance(event, RoundDone) and event.round == round_ and not again:
            do()

    return told, listen


def workers() -> Iterator[int]:
    """Processes of Ray's workers below this one."""
    parents, hosts = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if (path / "cmdline").read_bytes().startswith(b"ray::_Host"):
                hosts.append(int(path.name))
        except OSError:
            continue
    for process in hosts:
        above = process
        while above > 1 and above != os.getpid():
            above = parents.get(above, 1)
        if above == os.getpid():
            yield process


@pytest.mark.slow
def test_a_worker_that_is_killed_is_started_again(tiny: TinyZoo, tmp_path: Path) -> None:
    undisturbed = api.run(tiny.spec(tmp_path / "a", fit=FIT))
    told, listen = once_at(4, lambda: os.kill(next(workers()), signal.SIGKILL))
    spec = tiny.spec(tmp_path / "b", fit=FIT, cluster={"workers": 2})
    summary = api.run(spec, on_event=listen)
    assert hashes(summary.url) == hashes(undisturbed.url)
    rounds = [event.round for event in told if isinstance(event, RoundDone)]
    assert rounds in ([1, 2, 3, 4, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]), "from its last checkpoint"
    phases = [event.phase for event in told if isinstance(event, PhaseStarted)]
    assert phases.count("planning") == 2
    assert any("goes on with new workers" in notice for notice in summary.notices)
    with Catalog.open(spec.catalog, create=False) as catalog:
        (job,) = catalog.jobs.all()
        assert job.state == "succeeded"
        reasons = [event.reason for event in catalog.jobs.events(job.id)]
    assert sum("died" in reason for reason in reasons) == 1


def test_without_memory_half_as_many_examples_are_computed_at_once(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that can take no more than eight examples at once."""
    plain, sizes = Worker.step, []

    def step(self: Worker, *args: Any) -> Any:
        sizes.append(self._config.settings.micro_batch)
        if sizes[-1] > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(self, *args)

    monkeypatch.setattr(Worker, "step", step)
    summary = api.run(tiny.spec(tmp_path, fit={**FIT, "micro_batch": 16}))
    assert set(sizes) == {16, 8} and sizes.count(16) == 1
    assert any("half the examples at once" in notice for notice in summary.notices)
    with pytest.raises(torch.OutOfMemoryError):
        api.run(tiny.spec(tmp_path / "b", fit={**FIT, "micro_batch": 64}))


@pytest.mark.slow
def test_a_database_that_is_away_is_waited_for(
    tiny: TinyZoo, tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than a single connection waits."""
    plain = Catalog.open
    monkeypatch.setattr(Catalog, "open", lambda url, create=True: plain(url, create, patience=0.5))
    undisturbed = api.run(tiny.spec(tmp_path / "a", fit=FIT))
    url = sa.make_url(postgres_url)
    assert url.host is not None and url.port is not None
    with Gate(url.host, url.port) as gate:

        def cut() -> None:
            gate.shut()
            threading.Timer(3.0, gate.open).start()

        _, listen = once_at(3, cut)
        through = url.set(host="127.0.0.1", port=gate.port)
        catalog = through.render_as_string(hide_password=False)
        summary = api.run(tiny.spec(tmp_path / "b", fit=FIT, catalog=catalog), on_event=listen)
    assert hashes(summary.url) == hashes(undisturbed.url)
    assert any("goes on once that can be used" in notice for notice in summary.notices)


def test_a_change_waits_for_the_store_of_its_parent(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away when the job looks for what its parent was published with."""
    store = GrowingStore(tiny.copy(tmp_path / "zoo"), tmp_path / "store")
    store.run("two", "three", "four")
    plain, left = FolderStore.exists, ["away", "away"]

    def exists(self: FolderStore, key: str) -> bool:
        if left and any(isinstance(event, PhaseStarted) for event in store.events[told:]):
            left.pop()
            raise AwayError("no answer")
        return plain(self, key)

    told = len(store.events)
    monkeypatch.setattr(FolderStore, "exists", exists)
    store.remove("four")
    assert not left
    reasons = [str(event) for event in store.events if "goes on once that can be" in str(event)]
    assert len(reasons) == 2


def test_a_job_that_is_published_is_not_begun_again(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalog has heard that it succeeded, and its answer was lost."""
    plain = Jobs.transition

    def cut(self: Jobs, job_id: str, from_state: JobState, to: JobState, *a: Any, **o: Any) -> None:
        plain(self, job_id, from_state, to, *a, **o)
        if to is JobState.SUCCEEDED:
            raise AwayError("no answer")

    monkeypatch.setattr(Jobs, "transition", cut)
    spec = tiny.spec(tmp_path, fit=FIT)
    assert api.run(spec).version == "v1"
    with Catalog.open(spec.catalog, create=False) as catalog:
        assert [job.state for job in catalog.jobs.all()] == ["succeeded"]
        assert len(catalog.merges.all()) == 1
