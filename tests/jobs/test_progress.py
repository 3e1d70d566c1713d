"""The progress display: what it says, what it costs, and what it leaves behind."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator

import pytest
from rich.console import Console

from tintray.jobs.display.live import frame, live
from tintray.jobs.display.progress import MAX_TASKS, PlainProgress, Tracker, watch
from tintray.jobs.display.times import duration
from tintray.jobs.events import (
    Evaluated,
    Event,
    Notice,
    OnEvent,
    PhaseStarted,
    Published,
    RoundDone,
    TaskPrepared,
    TintLearned,
)

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-7]|9[0-7]|38;[0-9;]+)m")


def round_done(
    number: int, rounds: int = 100, tasks: int = 2, seconds: float | None = None
) -> RoundDone:
    names = [f"task{index}" for index in range(tasks)]
    shares = dict.fromkeys(names, 0.5), dict.fromkeys(names, 0.75)
    return RoundDone(number, rounds, 1 / number, *shares, seconds or number * 0.5)


def job(rounds: int = 100, tasks: int = 2) -> Iterator[Event]:
    yield PhaseStarted("preparing", f"{tasks} experts")
    for index in range(tasks):
        yield TaskPrepared(f"task{index}", index + 1, tasks, 2.0, cached=index == 0)
    yield PhaseStarted("fitting", f"{rounds} rounds")
    for number in range(1, rounds + 1):
        yield round_done(number, rounds, tasks)
    yield PhaseStarted("evaluating")
    yield Notice("a task has no test set")
    for index in range(tasks):
        yield Evaluated(f"task{index}", "accuracy", 0.5, 0.75)
    yield PhaseStarted("publishing")
    yield Published("/store/merges/x/v1")


def plain(events: Iterable[Event]) -> list[str]:
    stream = io.StringIO()
    on_event = PlainProgress(stream)
    for event in events:
        on_event(event)
    return stream.getvalue().splitlines()


def tracked(*events: Event) -> Tracker:
    tracker = Tracker()
    for event in events:
        tracker.take(event)
    return tracker


def drawn(*events: Event, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True)
    with console.capture() as capture:
        console.print(frame(tracked(*events)))
    return capture.get()


# Plain lines


def test_plain_lines_tell_the_whole_job() -> None:
    lines = plain(job())
    assert lines[0] == "preparing: 2 experts"
    assert "  1/2 tasks: task0 found in the store" in lines
    assert "  2/2 tasks: task1 in 2.0 s" in lines
    assert "note: a task has no test set" in lines
    assert "  task1: accuracy 0.500 (expert 0.750)" in lines
    assert lines[-1] == "published at /store/merges/x/v1"


@pytest.mark.parametrize("rounds", [1, 2, 7, 100, 1234])
def test_rounds_are_told_first_last_and_every_tenth(rounds: int) -> None:
    told = [line.split(":")[0] for line in plain(job(rounds)) if line.startswith("  round")]
    assert (told[0], told[-1]) == (f"  round 1/{rounds}", f"  round {rounds}/{rounds}")
    assert min(rounds, 10) <= len(set(told)) == len(told) <= 11


def test_slow_rounds_are_told_once_a_minute() -> None:
    now = 0.0
    stream = io.StringIO()
    on_event = PlainProgress(stream, clock=lambda: now)
    for number in range(1, 100):
        now = 7.0 * number
        on_event(round_done(number, 100_000))
    told = [int(line.split("/")[0].split()[1]) for line in stream.getvalue().splitlines()]
    assert told == list(range(1, 100, 9))  # nine rounds are the first that take a minute


def test_many_tasks_do_not_flood_a_log() -> None:
    for tasks, lines in ((MAX_TASKS, MAX_TASKS), (200, 11)):
        told = [line for line in plain(job(tasks=tasks)) if " tasks: " in line]
        assert len(told) == lines
        assert told[-1].startswith(f"  {tasks}/{tasks}")


def test_plain_rounds_name_the_worst_task() -> None:
    event = RoundDone(50, 100, 0.25, {"a": 0.9, "b": 0.5}, {"a": 1.0, "b": 0.5}, 25.0)
    assert plain([PhaseStarted("fitting"), event]) == [
        "fitting",
        "  round 50/100: loss 0.250, agreement 0.700, worst b 0.500, kept 75%, 25 s",
    ]


def test_a_merge_that_grows_tells_of_each_tint_layer() -> None:
    learned = [TintLearned("old", 1, 2, 4.0, None), TintLearned("new", 2, 2, 12.0, 0.875)]
    assert plain([PhaseStarted("fitting"), *learned])[1:] == [
        "  1/2 tasks: old, tint learned in 4.0 s",
        "  2/2 tasks: new, tint learned in 12 s, agreement 0.875",
    ]
    assert "2 of 2 tint layers learned" in drawn(PhaseStarted("fitting"), *learned)
    many = [TintLearned(f"t{n}", n, 200, 1.0, 0.9) for n in range(1, 201)]
    assert len(plain([PhaseStarted("fitting"), *many])) == 12


# The tracker


def test_time_left_goes_by_the_recent_pace_and_by_rounds_of_this_run() -> None:
    slow_start = (10.0 * min(number, 20) + max(0, number - 20) for number in range(1, 101))
    rounds = [round_done(n, 200, seconds=at) for n, at in enumerate(slow_start, 1)]
    assert tracked(*rounds).seconds_left() == pytest.approx(100.0)
    resumed = round_done(501, 600, seconds=1.0), round_done(502, 600, seconds=2.0)
    assert tracked(resumed[0]).seconds_left() is None
    assert tracked(*resumed).seconds_left() == pytest.approx(98.0)


def test_agreement_is_smoothed_and_remembers_tasks_of_other_rounds() -> None:
    seen = ({"a": 1.0}, {"b": 0.5}, {"a": 0.0})
    tracker = tracked(*(RoundDone(n, 9, 1.0, s, s, float(n)) for n, s in enumerate(seen, 1)))
    assert tracker.agreement == pytest.approx({"a": 0.9, "b": 0.5})
    assert tracker.worst(1) == [("b", 0.5)]
    assert "0.000" in drawn(PhaseStarted("fitting"), RoundDone(1, 2, 0.0, {}, {}, 0.0))


# The live display


def test_live_shows_stage_rounds_loss_and_each_task_or_the_worst_of_many() -> None:
    text = drawn(PhaseStarted("fitting", "2 tasks"), round_done(10), round_done(20))
    for word in ("fitting", "2 tasks", "20/100", "loss", "kept 75%", "40 s left", "task0", "task1"):
        assert word in text
    agreement = {f"task{index}": index / 50 for index in range(50)}
    text = drawn(PhaseStarted("fitting"), RoundDone(1, 2, 1.0, agreement, agreement, 1.0))
    assert "worst 3 of 50" in text
    assert "task0" in text
    assert "task49" not in text
    assert len(text.splitlines()) < 10


@pytest.mark.parametrize("width", [20, 40, 80])
def test_live_draws_every_stage_of_a_job_in_narrow_terminals(width: int) -> None:
    events = list(job(5, 3))
    for count in range(len(events) + 1):
        lines = ESCAPE.sub("", drawn(*events[:count], width=width)).splitlines()
        assert lines and max(map(len, lines)) <= width
    assert any(line.startswith("task2") for line in lines)


def test_an_event_costs_a_few_calls_however_long_the_fit_is() -> None:
    """It is noted; what is drawn is drawn now and then, by a thread of its own."""
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with live(console) as on_event:
        for each in (on_event, PlainProgress(io.StringIO())):
            short, long = calls_per_event(each, 50), calls_per_event(each, 500)
            assert long < min(1.5 * short, 4 * 300)


def calls_per_event(on_event: OnEvent, rounds: int) -> float:
    """How many functions this thread calls for a round of 300 tasks: a few for each task."""
    on_event(PhaseStarted("fitting"))
    events = [round_done(number, rounds, tasks=300) for number in range(1, rounds + 1)]
    calls = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        for event in events:
            on_event(event)
    finally:
        sys.setprofile(None)
    return calls / rounds


def test_live_stays_on_the_screen_when_the_job_fails() -> None:
    def screen(fails: bool) -> str:
        stream = io.StringIO()
        console = Console(file=stream, width=80, force_terminal=True, no_color=True)
        try:
            with live(console) as on_event:
                on_event(PhaseStarted("fitting"))
                if fails:
                    raise RuntimeError
        except RuntimeError:
            pass
        return stream.getvalue()

    erase_line = "\x1b[2K"
    assert not screen(fails=True).rstrip("\n").endswith(erase_line)
    assert screen(fails=True).count(erase_line) < screen(fails=False).count(erase_line)


# The choice between them


def test_no_terminal_gets_plain_lines() -> None:
    stream = io.StringIO()
    with watch(stream) as on_event:
        on_event(PhaseStarted("fitting", "now"))
    assert stream.getvalue() == "fitting: now\n"


SCRIPT = """
from tintray.jobs.events import *
from tintray.jobs.display.progress import watch
with watch() as on_event:
    on_event(PhaseStarted("fitting", "now"))
    on_event(RoundDone(1, 10, 0.5, {"mnist": 0.5}, {"mnist": 1.0}, 1.0))
    print("from a library")
"""


@pytest.mark.parametrize(
    ("environment", "live_display", "colour"),
    [({}, True, True), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, False, False)],
)
def test_a_terminal_gets_the_live_display(
    environment: dict[str, str], live_display: bool, colour: bool
) -> None:
    text = on_a_terminal({"TERM": "xterm-256color", **environment})
    assert ("mnist     0.500" in ESCAPE.sub("", text)) == live_display
    assert ("round 1/10:" in text) != live_display
    assert ("\x1b[?25l" in text) == live_display  # the cursor is hidden while it draws
    assert ("\x1b[?25h" in text) == live_display  # and shown again
    assert bool(COLOUR.search(text)) == colour
    assert "from a library" in text


def on_a_terminal(environment: dict[str, str]) -> str:
    """What SCRIPT writes to a terminal."""
    master, slave = pty.openpty()
    names = ("NO_COLOR", "FORCE_COLOR", "TERM", "TTY_COMPATIBLE", "COLUMNS")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        **dict.fromkeys(("stdin", "stdout", "stderr"), slave),
        env={**inherited, **environment},
    )
    os.close(slave)
    written = b""
    try:
        while chunk := os.read(master, 4096):
            written += chunk
    except OSError:  # the terminal is gone with the process
        pass
    finally:
        os.close(master)
    assert process.wait(timeout=30) == 0
    return written.decode()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"),
     (3599.7, "1 h 00 min"), (7800, "2 h 10 min")],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
