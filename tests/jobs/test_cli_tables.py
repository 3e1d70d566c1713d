"""The tables: what a reader learns from them, on a terminal, in a log and as JSON."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from tintray.jobs.cli.list_tables import print_listing
from tintray.jobs.cli.queue_tables import print_jobs
from tintray.jobs.cli.tables import (
    count,
    print_comparison,
    print_next,
    print_summary,
    print_validation,
    write_json,
)
from tintray.jobs.display.terminal import open_console
from tintray.jobs.display.times import moment
from tintray.jobs.queue.views import JobLine
from tintray.jobs.results import (
    CompareRow,
    CompareTable,
    MergeSummary,
    TaskResult,
    ValidationReport,
)
from tintray.jobs.runs.merge_list import MergeListing

TASK = TaskResult(
    name="mnist",
    kind="classification",
    metric="accuracy",
    merged=0.76,
    expert=0.95,
    agreement=0.77,
    normalised=0.8,
    tint_parameters=1930,
    tint_bytes=7720,
    tint_bits=32,
    test_examples=2000,
    selected_fraction=0.875,
)
SUMMARY = MergeSummary(
    name="ten-scripts",
    version="v3",
    url="file:///data/with spaces and [brackets]/" + "long/" * 30 + "merges/ten-scripts/v3",
    job_id="ten-scripts-1",
    created="2026-01-02T03:04:05+00:00",
    site="head",
    tasks=[TASK, dataclasses.replace(TASK, name="svhn", merged=0.9, expert=None, normalised=None)],
    average=0.83,
    expert_average=0.95,
    normalised_accuracy=0.8,
    backbone_parameters=1_200_000,
    tint_parameters_per_task={"mnist": 1930, "svhn": 1930},
    tint_share=1930 / 1_200_000,
    tint_bytes=8000,
    tint_bytes_share=1930 / 1_200_000,
    head_parameters=3860,
    rounds=300,
    seconds={"preparing": 12.0, "fitting": 170.0},
    peak_memory_mib=812.4,
    parent="ten-scripts/v2",
)


def text(render: Callable[[Any, Console], None], result: object) -> str:
    stream = io.StringIO()
    render(result, open_console(stream))
    return stream.getvalue()


def row(table: str, name: str) -> list[str]:
    """The words of the line that begins with ``name``."""
    return next(line.split() for line in table.splitlines() if line.split()[:1] == [name])


def test_summary_tells_what_was_kept_and_what_it_cost() -> None:
    table = text(print_summary, SUMMARY)
    percent = "95.0 % 76.0 % 80.0 % 77.0 % 87.5 % 1,930"
    assert " ".join(row(table, "mnist")) == f"mnist {percent}"
    assert row(table, "svhn")[1:3] == ["-", "90.0"]
    for words in (
        "ten-scripts/v3   2 tasks, tint layer at head, 300 rounds, grown from ten-scripts/v2",
        "accuracy 83.0 %; the separate experts' 95.0 %",
        "80.0 % of the experts' accuracy (normalised accuracy)",
        "1.2 M parameters; 2 separate models hold 2.4 M (2.0 times as many)",
        "0.16 % of the backbone's 1.2 M parameters more, in 7.8 KiB",
        "3 min 02 s (preparing 12 s, fitting 2 min 50 s)",
        "812 MiB at most",
        SUMMARY.url,
    ):
        assert words in table
    alone = dataclasses.replace(SUMMARY, method="iso_c", rounds=0, parent=None)
    said = "ten-scripts/v3   2 tasks, merged by iso_c, nothing learned\n"
    assert said in text(print_summary, alone)
    assert max(len(line.rstrip()) for line in table.splitlines()[1:4]) <= 80  # a terminal


def test_colour_only_where_it_is_wanted_and_broken_lines_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for width in (40, 80):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(width))
        table = text(print_summary, SUMMARY)
        assert SUMMARY.url in table  # it can be copied
        assert "\x1b[1m" in table
    monkeypatch.delenv("FORCE_COLOR")
    table = text(print_summary, SUMMARY)
    assert "\x1b" not in table
    assert table.isascii()


def test_metrics_that_are_no_shares_are_shown_as_they_are() -> None:
    task = dataclasses.replace(TASK, metric="degrees", merged=12.5, expert=11.25)
    table = text(print_summary, dataclasses.replace(SUMMARY, tasks=[task, TASK], average=None))
    assert "degrees    11.25    12.5" in table
    assert "\naverage" not in table  # of degrees and a share there is no mean
    far = dataclasses.replace(SUMMARY, tasks=[task], average=12.5, expert_average=11.25)
    assert "average   degrees 12.5; the separate experts' 11.25" in text(print_summary, far)


def test_comparison_has_a_column_for_each_method() -> None:
    methods = {"experts": 0.95, "average": 0.5, "merge": 0.76}
    rows = [CompareRow(name, "mnist", "accuracy", value) for name, value in methods.items()]
    rows.append(CompareRow("merge", "svhn", "accuracy", 0.5))
    table = text(
        print_comparison,
        CompareTable("x/v1", rows, {"experts": 0.95, "merge": 0.63}, {"merge": 0.8}, 0.25),
    )
    for line in (
        *("task experts average merge", "mnist 95.0 % 50.0 % 76.0 %", "svhn - - 50.0 %"),
        *("average 95.0 % - 63.0 %", "of experts - - 80.0 %"),
    ):
        assert row(table, line.split()[0]) == line.split()
    assert "0.25" in table


@pytest.mark.parametrize(
    ("zone", "written", "said"),
    [
        ("Europe/Berlin", "2026-01-02T03:04:05+00:00", "2026-01-02 04:04:05+01:00"),
        ("Asia/Kolkata", "2026-01-02T23:04:05", "2026-01-03 04:34:05+05:30"),  # no offset: UTC
        ("UTC", "2026-01-02T03:04:05-08:00", "2026-01-02 11:04:05+00:00"),
        ("America/New_York", "0001-01-01T00:00:00+00:00", "0001-01-01T00:00:00+00:00"),
        ("UTC", "yesterday", "yesterday"),
    ],
)
def test_moments_are_in_the_zone_of_whoever_reads(
    zone: str, written: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert moment(written) == said
    finally:
        monkeypatch.undo()
        time.tzset()


def test_listing_has_a_line_for_each_merge() -> None:
    bare = MergeListing("old", "v1", "/x", "2026-01-02T03:04:05+00:00")
    new = dataclasses.replace(bare, name="new", tasks=8, average=0.5, method="ties")
    table, at = text(print_listing, [bare, new]), moment(bare.created)
    assert " ".join(row(table, "old/v1")) == f"old/v1 {at} - - - - - -"
    assert " ".join(row(table, "new/v1")) == f"new/v1 {at} ties - 8 50.0 % - -"


def test_a_line_that_is_too_long_wraps_and_what_it_holds_is_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare = MergeListing("a-merge", "v1", "/x", "2026-01-02T03:04:05+00:00", site="x" * 90, tasks=8)
    short, long = (text(print_listing, [bare] * count).splitlines() for count in (3, 300))
    assert [line.rstrip() for line in long[:4]] == [line.rstrip() for line in short]
    assert len(long) == 301
    job = JobLine(
        *(
            "a-job",
            "it",
            "failed",
            "it had to be\x1b[2J " + "long " * 40,
            "2026-01-02T03:04:05+00:00",
        ),
        *("2026-01-02T03:04:05+00:00", 0, None),
    )
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    drawn = text(print_jobs, [job] * 300)
    assert "\x1b[31mfailed\x1b[0m" in drawn and "\x1b[2J" not in drawn
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in drawn.splitlines()]
    assert all(len(line) <= 80 for line in lines)
    assert sum(line.count("long") for line in lines) == 300 * 40  # nothing of it is lost


def test_validation_tells_sizes_and_notices() -> None:
    report = ValidationReport("x", ["a"], 1000, 7, "head", {"a": 5}, notices=["mind [this]"])
    report = dataclasses.replace(report, max_seconds=90)
    table = text(print_validation, report)
    assert "90 s for each pool or test set is what max_seconds allows" in table
    assert row(table, "a") == ["a", "5", "0.50", "%"]
    assert "1 k parameters in 7 layer units" in table
    assert "note: mind [this]" in table


def test_next_commands_are_lines_to_copy() -> None:
    table = text(print_next, {"tintray show 'a [b]'": "again", "tintray list": "all"})
    assert "  tintray show 'a [b]'   again\n  tintray list           all\n" in table


def test_json_has_every_field_and_no_number_that_json_lacks() -> None:
    stream = io.StringIO()
    write_json(dataclasses.replace(SUMMARY, average=math.nan, expert_average=math.inf), stream)
    found = json.loads(stream.getvalue(), parse_constant=pytest.fail)
    assert set(found) == {field.name for field in dataclasses.fields(MergeSummary)}
    assert (found["average"], found["expert_average"]) == (None, None)
    assert found["normalised_accuracy"] == 0.8
    assert found["tasks"][0] == dataclasses.asdict(TASK)
    assert stream.getvalue().endswith("}\n")


def test_json_of_several_is_one_list() -> None:
    for names in (["ü"], []):
        stream = io.StringIO()
        write_json([MergeListing(name, "v1", "/x", "now") for name in names], stream)
        assert stream.getvalue().isascii()
        assert [merge["name"] for merge in json.loads(stream.getvalue())] == names


@pytest.mark.parametrize(
    ("parameters", "words"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (1_234_567, "1.23 M"), (7_000_000_000, "7 G")],
)
def test_counts(parameters: int, words: str) -> None:
    assert count(parameters) == words
