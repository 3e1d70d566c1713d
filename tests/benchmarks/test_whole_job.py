"""What is run first on a machine with a GPU, in small: it must not fail there for a trifle."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import labels, whole_job


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    found: dict[str, float] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.slow
def test_a_whole_job_is_timed_beside_what_it_must_cost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--tasks", "2", "--images", "40", "--rounds", "2", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["whole_job", *small])
    monkeypatch.setattr(whole_job, "TEST", 20)
    whole_job.main()
    found = last_line(capsys)
    phases = ("planning", "preparing", "fitting", "evaluating", "publishing")
    assert found["whole"] == pytest.approx(sum(found[phase] for phase in phases), abs=0.1)
    assert 1 < found["least_over_bare"] < found["whole_over_bare"]


def test_self_labels_are_timed_beside_bare_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["labels", "--examples", "16"])
    labels.main()
    assert last_line(capsys)["labels_over_bare"] > 0
