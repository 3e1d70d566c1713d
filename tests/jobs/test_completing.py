"""What a shell is offered, and what a narrow terminal is shown."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from rich.console import Console

from tests.answers import call
from tests.conftest import Published
from tintray.jobs.cli import cli
from tintray.jobs.cli.list_tables import print_listing
from tintray.jobs.cli.queue_tables import print_jobs
from tintray.jobs.config.fit_sections import GrowthSpec
from tintray.jobs.display.times import moment
from tintray.jobs.queue.views import list_jobs
from tintray.jobs.runs.merge_list import MergeListing
from tintray.merging import methods
from tintray.storage.artifacts.aliases import set_alias
from tintray.storage.artifacts.publish import MergeRef
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.states import JobState


def offered(words: str) -> list[str]:
    """What is offered for the last of the words."""
    *before, typed = words.split(" ")
    shell = ShellComplete(cli, {}, "tintray", "_TINTRAY_COMPLETE")
    return [item.value for item in shell.get_completions(before, typed)]


def test_names_of_ones_own_are_offered(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = published.spec.catalog
    assert offered(f"show --catalog {catalog} ti") == ["tiny"]
    assert offered(f"show --store {published.spec.store} tiny/") == ["tiny/v1"]
    monkeypatch.setenv("TINTRAY_CATALOG", str(catalog))
    assert offered("status ") == ["latest", published.summary.job_id]
    assert offered("remove-task tiny t") == ["three", "two"]
    assert offered("export tiny --task f") == ["five", "four"]
    assert offered("show other") == []
    assert offered("artifacts verify t") == ["tiny"]
    assert offered("ps --name ") == ["tiny"]
    monkeypatch.setenv("TINTRAY_CATALOG", "mysql://nowhere")
    assert offered("show t") == []


def test_aliases_are_offered_where_the_store_is_a_folder(
    published: Published, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = shutil.copytree(published.folder.parents[2], tmp_path / "store")
    monkeypatch.setenv("TINTRAY_STORE", str(store))
    set_alias(open_store(str(store)), MergeRef("tiny", 1), "production")
    assert offered("show tiny@") == ["tiny@production"]
    assert offered("serve tiny@x") == offered("show ../tiny@") == []
    monkeypatch.setenv("TINTRAY_STORE", "s3://nowhere")
    assert offered("show tiny@") == []


def test_fields_of_a_jobs_own_tasks_are_offered(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("tasks: [{name: digits}, {name: letters}, {name: 3}, 4]")
    assert offered(f"run {job} --set tasks.digits.e") == ["tasks.digits.expert="]
    assert "tasks.letters.pool.split=" in offered(f"plan {job} --set tasks.")
    assert offered(f"run {tmp_path}/none.yaml --set tasks.") == []
    assert offered("add-task tiny job.yaml --set ") == [
        f"growth.{field}=" for field in GrowthSpec.model_fields
    ]


def test_methods_and_fields_are_offered() -> None:
    assert set(methods()) <= set(offered("methods "))
    assert offered("compare tiny --methods iso_ct") == ["iso_cts"]
    assert offered("fields fit.r") == ["fit.rounds"]
    assert offered("run job.yaml --set tint.b") == ["tint.budget=", "tint.bits="]
    assert offered("fields configuration.st") == ["configuration.store"]


def shown(width: int, print_: object, rows: object) -> list[str]:
    """The lines of a table on a terminal that wide."""
    assert callable(print_)
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    print_(rows, console)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_narrow_terminals_show_what_matters_most_and_wide_ones_all() -> None:
    line = MergeListing("ten-scripts", "v12", "x", "2026-01-02T03:04:05", tasks=10, average=0.85,
                        site="prompt (rank 8), head", normalised_accuracy=0.97, method="tint",
                        parent="ten-scripts/v11")  # fmt: skip
    narrow, wide = (shown(width, print_listing, [line]) for width in (60, 200))
    assert narrow[1].split() == ["ten-scripts/v12", "tint", "10", "85.0", "%", "97.0", "%"]
    assert max(map(len, narrow)) <= 60
    assert all(word in wide[1] for word in ("prompt", "ten-scripts/v11", moment(line.created)))


def test_a_pipe_gets_every_value_whole_in_a_line(tmp_path: Path) -> None:
    url, reason = f"sqlite:///{tmp_path}/catalog.db", "a worker said so " * 50
    with Catalog.open(url) as catalog:
        job = catalog.jobs.create("one", {}, "store")
        catalog.jobs.transition(job, JobState.QUEUED, JobState.FAILED, reason)
    lines = call("ps", "--catalog", url).out.splitlines()
    assert len(lines) == 2 and lines[1].rstrip().endswith(reason.strip())


def test_a_list_of_jobs_says_why_each_waits(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/catalog.db"
    with Catalog.open(url) as catalog:
        catalog.queue.set_limit("http://head:8265", 1)
        for name in ("one", "two", "three"):
            catalog.jobs.create(name, {}, "store", cluster="http://head:8265")
        assert catalog.queue.claim("http://head:8265") is not None
    told = {job.name: job.waits or "" for job in list_jobs(catalog=url)}
    assert told["one"].endswith("its driver is starting")
    assert told["two"] == "http://head:8265 runs 1 of 1 jobs at once; it goes next"
    assert told["three"] == "http://head:8265 runs 1 of 1 jobs at once; 1 go before it"
    assert list_jobs(catalog=url, name="three")[0].waits == told["three"]
    lines = shown(60, print_jobs, list_jobs(catalog=url))
    assert max(map(len, lines)) <= 60 and "1 go before it" in " ".join(" ".join(lines).split())
