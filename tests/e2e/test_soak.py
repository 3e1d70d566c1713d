"""Nothing grows while rounds and jobs go by; ``make soak`` does the same for longer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.soak import Sample, soak, trend

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


@pytest.mark.slow
def test_rounds_and_jobs_leave_nothing_behind() -> None:
    found = soak(count=30, jobs_in_row=6, jobs_queued=0)
    assert [part.part for part in found] == [
        *("rounds in this process", "rounds on Ray", "jobs in this process")
    ]
    assert {part.part: part.grown for part in found if part.grown} == {}
