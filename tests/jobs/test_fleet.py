"""Members in this process: they answer as those on Ray do, which tests/e2e compares."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from tintray.jobs.fleet import InlineFleet, open_fleet
from tintray.jobs.running.stopping import Stopper

from tintray.errors import CancelledError, DataError, SpecError


class Member:
    def __init__(self, start: float) -> None:
        self.buffer = np.full(3, start, dtype=np.float32)

    def add(self, amount: float) -> np.ndarray:
        self.buffer += amount
        return self.buffer

    def both(self) -> tuple[np.ndarray, int]:
        return self.buffer, torch.get_num_threads()

    def refuse(self) -> None:
        raise DataError("nothing there")


def test_no_workers_means_this_process() -> None:
    assert isinstance(open_fleet(address=None, workers=0, threads=1, plan=0), InlineFleet)


def test_an_answer_outlives_the_next_call() -> None:
    """A buffer that a member writes again is not what it has answered before."""
    fleet = InlineFleet(1)
    member = fleet.spawn(Member, 1.0, threads=1, name="m")
    first, second = member.call("add", 1.0), member.call("add", 1.0)
    pair = member.call("both", returns=2)
    member.call("add", 1.0)
    found = fleet.get([first, second, pair[0]])
    assert [array.tolist() for array in found] == [[2.0] * 3, [3.0] * 3, [3.0] * 3]
    fleet.close()


def test_answers_come_in_order() -> None:
    fleet = InlineFleet(1)
    member = fleet.spawn(Member, 0.0, threads=1, name="m")
    refs = [member.call("add", 1.0) for _ in range(3)]
    assert [(n, value[0]) for n, value in fleet.as_completed(refs)] == [(0, 1), (1, 2), (2, 3)]
    assert fleet.put(refs[0]) is refs[0]
    assert fleet.size() == 1
    fleet.close()


def test_errors_are_the_members_own() -> None:
    fleet = InlineFleet(1)
    with pytest.raises(DataError, match="nothing there"):
        fleet.spawn(Member, 0.0, threads=1, name="m").call("refuse")
    fleet.close()


def test_threads_are_those_asked_for_and_given_back() -> None:
    before = torch.get_num_threads()
    fleet = InlineFleet(before + 1)
    assert fleet.spawn(Member, 0.0, threads=1, name="m").call("both", returns=2)[1] == before + 1
    fleet.close()
    assert torch.get_num_threads() == before


def test_a_cluster_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words are those of Ray's own check, which a process meets when it connects."""
    import ray
    from ray._private.utils import check_version_info

    def init(**_: object) -> None:
        found = {"ray_version": "1.13.0", "python_version": "3.7.1"}
        check_version_info(found, "node 10.0.0.2")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(
        SpecError, match=r"cluster\.address: expected .*Ray: 1\.13\.0.*same on both"
    ):
        open_fleet(address="10.0.0.1:6379", workers=1, threads=1, plan=2**27)


@pytest.mark.parametrize("stopped", [False, True])
def test_ray_leaves_sigterm_to_the_job(monkeypatch: pytest.MonkeyPatch, stopped: bool) -> None:
    """Ray takes SIGTERM when a process connects, and would end the process by it."""
    import ray
    from ray._private.utils import set_sigterm_handler

    undone: list[str] = []

    def init(**_: object) -> None:
        set_sigterm_handler(lambda number, _: exit(number))
        if stopped:
            signal.raise_signal(signal.SIGTERM)
        raise ConnectionError("no cluster")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: undone.append("shut down"))
    with Stopper() as stopper:
        listening = signal.getsignal(signal.SIGTERM)
        with pytest.raises(CancelledError if stopped else SpecError):
            open_fleet(address="10.0.0.1:6379", workers=1, threads=1, plan=2**27)
        assert signal.getsignal(signal.SIGTERM) == listening
        assert stopper.asked == stopped
    assert bool(undone) == stopped
