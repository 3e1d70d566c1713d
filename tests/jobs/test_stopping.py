"""A job that is told to stop does so at the end of its round, with a checkpoint to go on from."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import tintray
from tests.tiny_zoo import TinyZoo
from tintray.errors import CancelledError
from tintray.jobs.cli import main
from tintray.jobs.events import PhaseStarted
from tintray.jobs.runs import stopping
from tintray.jobs.runs.job_run import JobRun
from tintray.jobs.runs.stopping import Stopper
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.states import JobState


@pytest.mark.parametrize(
    ("how", "code", "reason"),
    [
        ("request", 3, "cancelled on request"),
        (signal.SIGTERM, 3, "stopped by SIGTERM"),
        (signal.SIGINT, 130, "interrupted from the keyboard"),
    ],
)
def test_a_stop_keeps_a_checkpoint(
    tiny: TinyZoo,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    how: Any,
    code: int,
    reason: str,
) -> None:
    """A fit without end, in this process."""
    job = tiny.copy(tmp_path / "zoo").job_file(tmp_path / "store", fit={"rounds": 1_000_000})
    catalog = f"sqlite:///{tmp_path}/store/catalog.db"
    ended = threading.Event()
    stopped: list[str] = []

    def stop() -> None:
        """Stop the job as soon as it has done a round; or end with it."""
        while not ended.wait(0.1):
            try:
                status = tintray.job(catalog=catalog).status()
            except tintray.TintrayError:  # there is no catalog, or no job, yet
                continue
            if status.state == "fitting" and status.round:
                if how == "request":
                    stopped.append(tintray.job(status.id, catalog=catalog).cancel().state)
                else:
                    os.kill(os.getpid(), how)
                return

    stopping_it = threading.Thread(target=stop)
    stopping_it.start()
    try:
        found_code = main(["run", str(job)])
    finally:
        ended.set()
        stopping_it.join()
    out, err = capfd.readouterr()
    assert (found_code, out) == (code, ""), err
    assert stopped == (["cancelled"] if how == "request" else [])
    assert "Traceback" not in err
    assert not list((tmp_path / "store").glob("merges/**/*"))
    if how == signal.SIGINT:
        assert err.strip().splitlines()[-1] == "interrupted"
    status = tintray.job(catalog=catalog).status()
    assert (status.state, status.reason, status.owner) == ("cancelled", reason, None)
    assert status.checkpoint == status.round  # that of the round at which it stopped
    assert f"checkpoint after round {status.checkpoint}" in err
    assert f"tintray resume {status.id}" in status.next


def test_a_round_that_takes_too_long_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "GRACE", 0.3)
    with Stopper() as stopper, pytest.raises(CancelledError, match="enough"), stopper.at("round"):
        threading.Timer(0.1, stopper.request, ["enough"]).start()
        time.sleep(30)
        pytest.fail("it was not broken off")


def test_what_has_no_rounds_stops_at_once_and_publishing_never() -> None:
    with Stopper() as stopper:
        with stopper.at("never"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            assert not stopper.asked
        with pytest.raises(CancelledError, match="stopped by SIGTERM"), stopper.at("now"):
            pytest.fail("a stop that was asked for before takes effect at the start")
    with Stopper() as stopper, pytest.raises(CancelledError), stopper.at("now"):
        threading.Timer(0.1, stopper.request, ["enough"]).start()
        time.sleep(30)


def test_ctrl_c_for_the_second_time_does_not_wait() -> None:
    with Stopper() as stopper, pytest.raises(KeyboardInterrupt), stopper.at("round"):
        os.kill(os.getpid(), signal.SIGINT)
        assert stopper.asked
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)


def test_handlers_are_given_back_and_other_threads_only_ask() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stopper():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    said: list[str] = []

    def elsewhere() -> None:
        with Stopper() as stopper, stopper.at("round"):
            stopper.request("enough")
            said.append(f"{stopper.asked} {signal.getsignal(signal.SIGTERM) == before}")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert said == ["True True"]


def test_a_stop_that_a_library_takes_for_its_own_failure_is_a_stop(tmp_path: Path) -> None:
    """transformers turns whatever is raised while it makes a tensor into a ValueError."""
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.db") as catalog:
        for stops, expected in ((True, CancelledError), (False, ValueError)):
            job_id = catalog.jobs.create("one", {}, "file:///store")
            run = JobRun(job_id, catalog, lambda _: None)
            with pytest.raises(expected), run.running():
                try:
                    if stops:
                        os.kill(os.getpid(), signal.SIGTERM)
                    raise OSError("a file was cut short")
                except Exception as error:
                    raise ValueError("cannot make a tensor") from error
            state = JobState.CANCELLED if stops else JobState.FAILED
            assert catalog.jobs.get(job_id).state is state


PHASES = ("planning", "preparing", "fitting", "evaluating", "publishing")
# A request in the rounds of a fit is heard after them, if they are as few as here.
STOPS = [(phase, how) for phase in PHASES for how in ("signal", "request")]
STOPS.remove(("fitting", "request"))


@pytest.mark.parametrize(("phase", "how"), STOPS)
def test_a_stop_in_any_phase_is_a_cancelled_job(
    tiny: TinyZoo, tmp_path: Path, phase: str, how: str
) -> None:
    """While it is being published it is not stopped any more."""
    spec = tiny.spec(tmp_path / "store", tasks=("two", "three"), fit={"rounds": 2})
    stopped = "stopped by SIGTERM" if how == "signal" else "cancelled on request"

    def stop(event: object) -> None:
        if not (isinstance(event, PhaseStarted) and event.phase == phase):
            return
        if how == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            tintray.job(catalog=spec.catalog).cancel(wait=False)
            if phase != "publishing":
                time.sleep(30)  # until the lease's next beat has heard of it

    if phase == "publishing":
        assert tintray.run(spec, on_event=stop).ref == "tiny/v1"
        expected = ("succeeded", "published as tiny/v1", None)
    else:
        with pytest.raises(CancelledError, match=stopped):
            tintray.run(spec, on_event=stop)
        expected = ("cancelled", stopped, None)
    status = tintray.job(catalog=spec.catalog).status()
    assert (status.state, status.reason, status.owner) == expected
