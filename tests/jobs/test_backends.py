"""Members answer, fail and end in one way, in this process and on Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tintray.errors import CancelledError, DataError, FitError, LostError, SpecError
from tintray.jobs.engine.backend import Backend, Placement, as_argument, open_backend
from tintray.jobs.engine.in_process import InProcessBackend
from tintray.jobs.engine.ray_backend import RayBackend

Array = np.ndarray


@pytest.fixture(autouse=True)
def without_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray turns tokens on for the whole process as soon as it finds one on the machine."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)


class Counter:
    """A member; its answers are the buffer that its next call writes to."""

    def __init__(self, start: float = 0.0, error: Exception | None = None) -> None:
        if error is not None:
            raise error
        self.buffer = np.full(3, start, dtype=np.float32)

    def add(self, amount: float | Array) -> Array:
        self.buffer += amount
        return self.buffer

    def halves(self, error: str = "") -> tuple[list[Array], int]:
        if error:
            raise DataError(error)
        return [self.buffer, self.buffer / 2], torch.get_num_threads()

    def refuse(self, text: str) -> Array:
        raise DataError(text)

    def process(self) -> int:
        return os.getpid()

    def die(self) -> Array:
        os._exit(1)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Backend]:
    """A local Ray for all of them; a backend that finds it running leaves it running."""
    backend = RayBackend(None, 2, 128 * 2**20)
    yield backend
    backend.close()


KINDS = ["in process", *(pytest.param(k, marks=pytest.mark.slow) for k in ("ray", "ray, here"))]


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    on_ray = request.param != "in process" and request.getfixturevalue("ray_cluster")
    backend: Backend = RayBackend(None, 0, 0) if on_ray else InProcessBackend(1)
    yield backend
    backend.close()


@pytest.fixture
def placement(backend: Backend, request: pytest.FixtureRequest) -> Placement:
    return Placement("counter", in_process=request.node.callspec.params["backend"] == "ray, here")


def test_calls_run_in_order_and_an_answer_outlives_the_next(
    backend: Backend, placement: Placement
) -> None:
    member = backend.spawn(placement, Counter, 1.0)
    answers = [member.call(Counter.add, 1.0) for _ in range(3)]
    assert answers[2].result().tolist() == [4.0] * 3
    assert [array[0] for array in backend.get(answers)] == [2.0, 3.0, 4.0]
    seen = dict(backend.as_completed(answers))
    assert {number: array[0] for number, array in seen.items()} == {0: 2.0, 1: 3.0, 2: 4.0}


def test_futures_and_parts_are_arguments(backend: Backend, placement: Placement) -> None:
    one, other = (backend.spawn(placement, Counter, start) for start in (1.0, 10.0))
    shared = as_argument(backend.put(np.ones(3, dtype=np.float32)))
    first = one.call(Counter.add, shared)
    assert other.call(Counter.add, as_argument(first)).result().tolist() == [12.0] * 3
    assert one.call(Counter.add, as_argument(first)).result().tolist() == [4.0] * 3
    large = as_argument(backend.spawn(placement, Counter).call_direct(Counter.add, 2.0))
    assert other.call(Counter.add, large).result().tolist() == [14.0] * 3
    member = backend.spawn(placement, Counter, 1.0)
    parts, threads = member.call_direct_parts(Counter.halves, 2)
    member.call(Counter.add, 1.0)
    sums = [member.call(Counter.add, as_argument(part)) for part in parts]
    assert [array[0] for array in backend.get(sums)] == [3.0, 3.5]
    assert threads.result() == 1


def test_errors_come_with_the_answer_and_go_on(backend: Backend, placement: Placement) -> None:
    """They arrive as what the member raised, with its sentence and nothing of Ray's."""
    member = backend.spawn(placement, Counter)
    refused = member.call(Counter.refuse, "tasks.x: nothing there")
    parts, rest = member.call_direct_parts(Counter.halves, 2, "tasks.x: nothing there")
    later = member.call(Counter.add, 1.0)
    futures = [later, refused, *parts, rest]
    if not placement.in_process:  # whose answers are there before another member is called
        passed_on = backend.spawn(placement, Counter).call(Counter.add, as_argument(refused))
        futures.append(passed_on)
    for failed in futures[1:]:
        with pytest.raises(DataError) as raised:
            failed.result()
        assert str(raised.value) == "tasks.x: nothing there"
    with pytest.raises(DataError):
        backend.get(futures[:2])
    assert later.result().tolist() == [1.0] * 3


def test_a_member_that_cannot_be_constructed_says_why(
    backend: Backend, placement: Placement
) -> None:
    """On purpose: its own sentence; by a bug: the exception. Neither is a worker that died."""
    refused = backend.spawn(placement, Counter, 0.0, SpecError("field: bad"))
    with pytest.raises(SpecError, match="field: bad"):
        backend.ready([refused])
    with pytest.raises(SpecError, match="field: bad"):
        refused.call(Counter.add, 1.0).result()
    broken = backend.spawn(placement, Counter, 0.0, KeyError("of a bug"))
    with pytest.raises(FitError, match=r"could not be started \(KeyError: 'of a bug'\)"):
        backend.ready([broken])
    backend.ready([backend.spawn(placement, Counter)])


def test_members_live_together_or_apart(backend: Backend, placement: Placement) -> None:
    host = backend.spawn(placement, Counter)
    guest = backend.spawn(Placement("guest", colocate_with=host), Counter, 5.0)
    other = backend.spawn(placement, Counter)
    here, beside, apart = backend.get([m.call(Counter.process) for m in (host, guest, other)])
    assert guest.call(Counter.add, 1.0).result()[0] == 6.0
    assert (here == beside) != placement.in_process  # where only the host is in this process
    assert (here == apart) == (placement.in_process or isinstance(backend, InProcessBackend))


def test_guests_are_spread_over_their_hosts_and_let_go_without_them(backend: Backend) -> None:
    hosts = [backend.spawn(Placement("host"), Counter) for _ in range(2)]
    placement = Placement("guest", beside=tuple(hosts))
    with backend.spread(3, placement, Counter, 5.0) as guests:
        processes = backend.get([guest.call(Counter.process) for guest in guests])
        assert processes[0] == processes[2]
        assert processes[:2] == backend.get([host.call(Counter.process) for host in hosts])
    with pytest.raises(FitError, match="dismissed"):
        guests[0].call(Counter.add, 1.0).result()
    assert hosts[0].call(Counter.add, 1.0).result()[0] == 1.0


def test_who_was_dismissed_answers_no_more(backend: Backend, placement: Placement) -> None:
    ended, other = (backend.spawn(placement, Counter) for _ in range(2))
    backend.ready([ended, other])
    for member, end in ((ended, lambda: backend.dismiss([ended])), (other, backend.close)):
        waiting = member.call(Counter.add, as_argument(member.call(Counter.add, 1.0)))
        end()
        if member is ended:
            assert other.call(Counter.add, 1.0).result()[0] == 1.0
        with pytest.raises(FitError):
            [member.call(Counter.add, 1.0).result() for _ in range(2)]
        if not isinstance(backend, RayBackend):  # whose members compute before one asks
            with pytest.raises(FitError, match="dismissed"):
                waiting.result()


@pytest.mark.slow
def test_a_process_that_dies_is_told(ray_cluster: Backend) -> None:
    """So it is where another member waited for what it was to compute."""
    member, other = (ray_cluster.spawn(Placement("counter", 0.5), Counter) for _ in range(2))
    dead = member.call(Counter.die)
    waiting = other.call(Counter.add, as_argument(dead))
    for asked in (dead, waiting):
        with pytest.raises(LostError, match="a worker process died while computing"):
            asked.result()


def test_no_workers_means_this_process_with_the_threads_asked_for() -> None:
    before = torch.get_num_threads()
    backend = open_backend(address=None, workers=0, threads=before + 1, plan=0)
    assert isinstance(backend, InProcessBackend)
    assert backend.size() == 1
    member = backend.spawn(Placement("counter", threads=1), Counter)
    assert member.call(Counter.halves).result()[1] == before + 1
    backend.close()
    assert torch.get_num_threads() == before


def test_a_job_that_is_stopped_stops_whatever_it_waits_for() -> None:
    """A call that is interrupted in this process is not an answer that failed."""

    class Interrupted(Counter):
        def add(self, amount: float | Array) -> Array:
            raise CancelledError("stopped")

    backend = InProcessBackend(1)
    member = backend.spawn(Placement("counter"), Interrupted)
    member.call(Counter.add, 1.0)
    with pytest.raises(CancelledError):
        member.call(Counter.process).result()
    backend.close()
