"""Nothing grows while rounds and jobs go by; ``make soak`` does the same for longer."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.soak import Sample, trend
from tests.test_imports import ROOT

AT_REST = Sample(rss=500.0, files=9, threads=2, processes=0, temporary=0, objects=0.0)


@pytest.mark.parametrize(
    ("name", "each"),
    [
        ("rss", 1.0),
        ("files", 1),
        ("threads", 1),
        ("processes", 1),
        ("temporary", 1),
        ("objects", 1),
    ],
)
def test_what_grows_is_seen(name: str, each: float) -> None:
    samples = [replace(AT_REST, **{name: getattr(AT_REST, name) + n * each}) for n in range(50)]
    assert trend("it", 50, 1.0, samples).grown == [name]
    assert trend("it", 50, 1.0, [*samples[:5], *[AT_REST] * 45]).grown == []


def test_what_is_let_go_for_a_moment_has_not_grown() -> None:
    fewer = replace(AT_REST, files=7)
    assert trend("it", 50, 1.0, [*[AT_REST] * 12, fewer, *[AT_REST] * 37]).grown == []


@pytest.mark.slow
def test_rounds_and_jobs_leave_nothing_behind() -> None:
    # In a process of its own: what other tests left in this one comes and goes as it likes.
    command = [sys.executable, "-m", "tests.soak", "--rounds=30", "--jobs=6", "--queued=0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert list(last["steps"].values()) == [30, 30, 6]
    assert last["flat"] is True
