"""What ``import tintray`` hands out: merges and jobs as objects."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tintray
from tests.conftest import Published
from tests.tiny_zoo import TASKS, TinyZoo
from tintray.jobs.cli import main
from tintray.published.manifest import Manifest

ROOT = Path(__file__).parents[1]
PREDICT = """
import sys
for name in ("tintray.jobs", "tintray.storage", "ray", "sqlalchemy", "boto3", "botocore", "click"):
    sys.modules[name] = None  # whoever imports it fails
import torch, tintray
merge = tintray.load(sys.argv[1])
print(merge.for_task("two")(pixel_values=torch.zeros(1, 3, 16, 16)).logits.shape, merge)
"""


@pytest.fixture
def merge(tiny: TinyZoo, tmp_path: Path) -> tintray.Merge:
    return tintray.run(tiny.spec(tmp_path / "store", tasks=TASKS[:2], fit={"rounds": 2}))


def test_a_local_merge_is_loaded_without_jobs_and_stores(published: Published) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, str(published.folder)],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    said = "torch.Size([1, 2]) <Merge tiny/v1: 4 tasks (two, three, five, four), "
    assert done.stdout.startswith(said)


def test_a_merge_is_loaded_by_folder_url_and_name(merge: tintray.Merge, tmp_path: Path) -> None:
    place = {"store": str(tmp_path / "store")}
    folder = tmp_path / "store" / "merges" / merge.ref
    for name in (folder, str(folder), folder.as_uri(), "tiny", "tiny/v1"):
        assert tintray.load(name, **place).manifest == merge.manifest
    with pytest.raises(tintray.NotFoundError, match="did you mean 'tiny'"):
        tintray.load("tiny2", **place)


def test_a_merge_can_be_measured_grown_and_deleted(merge: tintray.Merge, tiny: TinyZoo) -> None:
    assert [task.name for task in merge.evaluate().tasks] == list(merge.tasks) == ["two", "three"]
    assert {row.method for row in merge.compare(["average"]).rows} >= {"merge", "average"}
    less = merge.remove(["two"])
    assert (less.ref, less.tasks, less.manifest.parent) == ("tiny/v2", ("three",), "tiny/v1")
    back = less.rollback()
    assert (back.ref, back.tasks) == ("tiny/v3", merge.tasks)
    assert [version.ref for version in back.history()] == ["tiny/v1", "tiny/v2", "tiny/v3"]
    assert [task.change for task in merge.diff(less).tasks] == ["removed", "same"]
    assert less.delete().merge == "tiny/v2"
    with pytest.raises(tintray.NotFoundError):
        tintray.load(less.url)


def test_a_merge_shows_its_tasks(published: Published) -> None:
    document = tintray.load(published.folder).manifest.to_json()
    document["job"]["merge"]["method"] = "<b>tint"
    shown = tintray.Merge(Manifest.read(document, "x"), Path, "x")._repr_html_()
    assert shown.count('class="strip"') == len(TASKS)
    assert "tiny/v1</h2>" in shown and "merged by &lt;b&gt;tint; 4 rounds" in shown


def test_a_job_is_held_by_its_object(merge: tintray.Merge, tmp_path: Path) -> None:
    catalog = f"sqlite:///{tmp_path}/store/catalog.db"
    job = tintray.job(catalog=catalog)
    assert job.id == merge.manifest.job_id == tintray.job(job.id[:8], catalog=catalog).id
    assert (job.status().state, job.wait(1).merge) == ("succeeded", "tiny/v1")
    assert job.result().manifest == merge.manifest
    assert "published as tiny/v1" in "".join(job.logs())
    assert repr(job) == (f"<Job {job.id}: tiny, succeeded (published as tiny/v1)>")
    assert job._repr_html_().startswith(f"<table><caption>Job {job.id}")
    with pytest.raises(tintray.InputError, match="there is nothing to cancel"):
        job.cancel()
    gone = tintray.Job("none", catalog=catalog)
    assert "there is no job" in repr(gone) and "there is no job" in gone._repr_html_()


def test_a_job_that_failed_gives_its_reason(tiny: TinyZoo, tmp_path: Path) -> None:
    spec = tiny.spec(tmp_path / "store", tasks=TASKS[:2])

    def stop(event: object) -> None:
        raise tintray.FitError("enough")

    with pytest.raises(tintray.FitError, match="enough"):
        tintray.run(spec, on_event=stop)
    with pytest.raises(tintray.TintrayError, match="is failed: enough; resume"):
        tintray.job(catalog=spec.catalog).result()


def test_every_command_is_a_call(capsys: pytest.CaptureFixture[str]) -> None:
    """The tables of docs/jobs.md name each command, and each call in them exists."""
    from tintray.jobs.queue import submission, views
    from tintray.jobs.upkeep import doctor, setup, stores

    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", (ROOT / "docs/jobs.md").read_text(), re.M)
    commands = {word for cell, _ in rows for word in re.findall(r"`([a-z-]+)", cell)}
    assert main(["--help"]) == 0
    offered = set(re.findall(r"^  ([a-z][a-z-]*)  ", capsys.readouterr().out, re.M))
    assert offered and offered - {"version"} <= commands
    objects = {"tintray": tintray, "job": tintray.Job, "merge": tintray.Merge, "views": views,
               "submission": submission, "setup": setup, "doctor": doctor}  # fmt: skip
    calls = [call for _, cell in rows for call in re.findall(r"`([a-z_.]+)", cell)]
    for owner, _, name in (call.rpartition(".") for call in calls):
        assert owner.startswith("tintray.") or hasattr(objects.get(owner, stores), name), name
