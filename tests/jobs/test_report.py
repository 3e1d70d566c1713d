"""The report on a merge: what it tells, and how it looks in a real browser."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import tintray
from tests.answers import call
from tests.browser import CHROMIUM, OVERLAPS, Page, browser, screenshots
from tests.conftest import Published
from tests.tiny_zoo import TASKS, TinyZoo
from tintray.jobs.watching.page import page
from tintray.jobs.watching.report import Learning, Report, report
from tintray.published.manifest import MANIFEST, Manifest
from tintray.storage.artifacts.records import seal

HOSTILE = "</title></style></svg><script>document.title = 'taken'</script><img src=x onerror=1>|`"
SIZES = [(width, dark) for width in (360, 1440) for dark in (False, True)]


@pytest.fixture(scope="module")
def measured(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A merge that grew, with all that can be measured of it."""
    folder = tmp_path_factory.mktemp("report")
    merge = tintray.run(tiny.spec(folder / "store", fit={"rounds": 6})).remove(["four"])
    merge.report(folder / "report.html", measure=True)
    return report(merge.url, store=str(folder / "store"))


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if not CHROMIUM:
        pytest.skip("there is no Chromium here")
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def many(known: Report, tasks: int = 200, layers: int = 60, rounds: int = 300) -> Report:
    """The report of a merge of so many tasks, with names as long as people make them."""
    merge = known.merge
    lines = [
        replace(merge.tasks[n % 3], name=f"task-{n:03}-{'of-somebody-' * (n % 4)}") for n in
        range(tasks)
    ]  # fmt: skip
    names = [line.name for line in lines]
    curve = [1 - 0.9 / (1 + n / 40) for n in range(rounds)]
    assert known.comparison is not None and known.conflicts is not None
    own = {"tint_parameters_per_task": dict.fromkeys(names, 4000), "tasks": lines}
    return replace(
        known,
        merge=replace(merge, **own),
        worst=names[0],
        origins=[replace(known.origins[0], task=name) for name in names],
        layers=[f"model.decoder.layers.{n}" for n in range(layers)],
        coefficients=[[(n - m) / tasks for m in range(layers)] for n in range(tasks)],
        conflicts=replace(
            known.conflicts,
            tasks=names,
            effects=[[math.sin(n * m) for m in range(tasks)] for n in range(tasks)],
            groups=[names[::2], names[1::2]],
        ),
        learning=Learning(range(1, rounds + 1), curve, dict.fromkeys(names, curve), {}),
        comparison=replace(
            known.comparison,
            rows=[replace(row, task=name) for row in known.comparison.rows[::3] for name in names],
        ),
    )


@pytest.mark.parametrize("count", [3, 200])
def test_the_page_in_a_browser(count: int, measured: Report, tab: Page, tmp_path: Path) -> None:
    """By day and by night, on a phone and on a laptop: at once, whole, and from one file."""
    path, shots = tmp_path / "report.html", screenshots(tmp_path)
    path.write_text(page(measured if count == 3 else many(measured)), encoding="utf-8")
    assert path.stat().st_size < 5e6
    for width, dark in SIZES:
        tab.requests.clear()
        assert tab.open(path, width, dark=dark) < 2
        tab.screenshot(shots / f"report-{count}-{width}-{'dark' if dark else 'light'}.png")
        assert tab.evaluate(OVERLAPS) == []
        assert tab.requests == [path.as_uri()]
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") is not dark
        tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert tab.evaluate(OVERLAPS) == []
    tab.emulate("print", dark=True)
    assert tab.evaluate(OVERLAPS) == []
    tab.pdf(shots / f"report-{count}.pdf")


def test_the_page_shows_what_was_measured(measured: Report, tab: Page, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page(measured), encoding="utf-8")
    tab.open(path, 1440)
    marks = "[...document.querySelectorAll('.rows .mark')].map(one => one.className.baseVal)"
    found = [name.removeprefix("mark ") for name in tab.evaluate(marks)]
    assert {name: found.count(name) for name in found} == dict.fromkeys(
        ("expert", "merge", "average", "task-arithmetic"), 3
    )
    text = tab.evaluate("document.body.innerText")
    assert measured.worst and f"worst task: {measured.worst}" in text
    assert "grown" in text and "tiny/v1 merged; 4 tasks" in text.replace("\n", " ")
    cells = tab.evaluate("[...document.querySelectorAll('.map .number')].map(e => e.textContent)")
    assert cells[:2] == [f"{value:.2f}" for value in measured.coefficients[0][:2]]


def test_names_of_strangers_stay_text(published: Published, tab: Page, tmp_path: Path) -> None:
    shutil.copytree(published.folder, tmp_path / "merge")
    document = json.loads((tmp_path / "merge/manifest.json").read_text())
    for unit in document["units"]:
        unit["name"] = HOSTILE + unit["name"]
    for task in document["tasks"]:
        task["expert"] |= {"source": HOSTILE, "doubt": HOSTILE, "base_similarity": 10**400}
        task["score"]["calibration"] = {"merged": {"histogram": HOSTILE, "ece": HOSTILE}}
    document["seconds"] = {HOSTILE: 1.0}
    document |= {"notices": [HOSTILE, "\u202egnorw"], "precision": HOSTILE, "site": HOSTILE}
    document["job"]["merge"]["method"] = document["base"]["source"] = HOSTILE
    manifest = Manifest.read(document, "x").to_json()  # it is none that would be refused
    (tmp_path / "merge" / MANIFEST).write_bytes(seal(manifest, MANIFEST))
    path = tmp_path / "report.html"
    answer = call("report", tmp_path / "merge", "-o", path)
    assert answer.code == 0, answer.err
    tab.open(path, 360)
    assert tab.evaluate("document.title") == "tiny/v1: report"
    assert tab.evaluate("document.querySelectorAll('script, img').length") == 0
    assert tab.evaluate("document.body.innerText").count("<script>") == 5
    assert "\u202e" not in path.read_text(encoding="utf-8")
    written = call("report", tmp_path / "merge", "--format", "md").out
    assert "| `</title>" in written and "\u202e" not in written


def test_forms(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = published.folder.parents[2]
    page_ = call("report", "tiny", "--store", store)
    assert page_.out == f"{tmp_path / 'tiny-v1.html'}\n"
    document = call("report", "tiny/v1", "--store", store, "--format", "json").document
    assert document["merge"]["tasks"] == published.summary.to_json()["tasks"]
    assert len(document["coefficients"]) == len(document["origins"]) == len(TASKS)
    assert document["learning"]["rounds"] == [1, 2, 3, 4]
    written = call("report", "tiny", "--store", store, "-o", "report.md")
    assert Path(written.out.strip()).read_text().startswith("# tiny/v1\n")
    for task in published.summary.tasks:
        assert f"| {task.name} | {task.metric} | " in Path("report.md").read_text()


def test_a_folder_that_no_catalog_knows(published: Published, tmp_path: Path) -> None:
    shutil.copytree(published.folder, tmp_path / "merge")
    found = report(str(tmp_path / "merge"), store=str(tmp_path / "none"))
    assert found.learning is None and [version.ref for version in found.versions] == ["tiny/v1"]
    curves, comparison, fights = found.missing
    assert curves.startswith("curves and earlier versions: ") and found.comparison is None
    assert "tintray compare tiny/v1" in comparison and "tintray conflicts tiny/v1" in fights
    assert page(found)


def test_where_it_cannot_be_written(published: Published, tmp_path: Path) -> None:
    place = ("--store", published.folder.parents[2])
    missing = call("report", "tiny", *place, "--measure", "-o", tmp_path / "no/report.html")
    assert f"the folder {tmp_path / 'no'} does not exist" in missing.sentence
    assert "found the folder" in call("report", "tiny", *place, "-o", tmp_path).sentence
    assert "did you mean 'tiny'" in call("report", "tiny2", *place).sentence
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_adds_to_those_before(tiny: TinyZoo, tmp_path: Path) -> None:
    merge = tintray.run(tiny.spec(tmp_path / "store", tasks=TASKS[:2]))
    for methods in (["average"], ["ties"]):
        merge.compare(methods)
    known = report(merge.url).comparison
    assert known is not None
    assert {row.method for row in known.rows} == {"experts", "merge", "average", "ties"}
    assert set(known.normalised) == {"experts", "merge", "average", "ties"}
