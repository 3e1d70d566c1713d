"""The plan of a job: sizes and times that its run then confirms, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

import tintray
from tests.tiny_zoo import POOL, TASKS, TinyZoo
from tintray.jobs.engine import resources
from tintray.jobs.runs.pilot import expected_agreement
from tintray.storage.catalog.catalog import Catalog


def test_a_plan_says_what_is_there_and_writes_nothing(tiny: TinyZoo, tmp_path: Path) -> None:
    spec = tiny.spec(tmp_path / "store")
    before = tintray.plan(spec, seconds=0.2)
    assert list(tmp_path.iterdir()) == []
    assert (before.tasks, before.rounds, before.fits, before.problem) == (4, 4, True, None)
    assert (before.cached_labels, before.cached_vectors) == (0, 0)
    models = sum(path.stat().st_size for path in tiny.folder.glob("*/model.safetensors"))
    data = sum(path.stat().st_size for path in tiny.folder.glob("*.npz"))
    assert before.read_bytes == models + data
    assert before.memory_bytes >= before.worker_bytes + before.shard_bytes
    # Forward and backward through a transformer: six operations for each number and token, nearly.
    tokens, examples = 17, 4 * 4 * 6
    assert 3 < before.flops / (before.parameters * tokens * examples) < 9
    assert all(seconds > 0 for seconds in before.seconds.values())
    tintray.run(spec)
    after = tintray.plan(spec, seconds=0.2)
    assert (after.cached_labels, after.cached_vectors) == (4, 4)
    assert after.seconds["preparing"] == 0.0
    # What the store has is the bound, but for names and shapes in the files' headers.
    used = sum(path.stat().st_size for path in (tmp_path / "store" / "blobs").rglob("*"))
    assert 0.2 < before.write_bytes / used < 1.5


def test_a_job_that_does_not_fit_is_said_not_to_and_why(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tintray.jobs.engine.in_process.available_memory", lambda: 2**20)
    report = tintray.plan(tiny.spec(tmp_path), seconds=0.2)
    assert not report.fits
    assert report.problem is not None and "memory" in report.problem
    assert report.memory_bytes > report.available_bytes == 2**20
    assert resources.available_memory() > 2**20


def test_a_pilot_runs_a_part_and_leaves_nothing(tiny: TinyZoo, tmp_path: Path) -> None:
    spec = tiny.spec(tmp_path / "store", fit={"rounds": 300})
    with Catalog.open(f"sqlite:///{tmp_path}/other.db") as catalog:
        report = tintray.plan(spec, pilot=True, seconds=0.2)
        assert catalog.jobs.all() == []
    pilot = report.pilot
    assert pilot is not None
    assert (list(pilot.tasks), pilot.rounds) == (list(TASKS), 40)
    assert pilot.examples >= POOL
    assert 0 < pilot.agreement <= pilot.expected_agreement <= 1
    assert pilot.expected_seconds >= sum(report.seconds.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.db"]


def test_agreement_is_extrapolated_by_its_trend_and_never_beyond_one() -> None:
    rising = [0.5 + 0.05 * n for n in range(8)]
    assert 0.9 < expected_agreement(rising, 0.85, 10) < 0.95
    assert expected_agreement(rising, 0.85, 10**6) == 1.0
    assert expected_agreement(rising, 0.85, 8) == 0.85
    falling = rising[::-1]
    assert expected_agreement(falling, 0.5, 100) == 0.5  # a pilot that got worse promises nothing
    assert expected_agreement([0.5, 0.6], 0.6, 100) == 0.6
