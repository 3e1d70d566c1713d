"""A merge beside every merging method: who is in the table, at which scale, and the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Published
from tests.tiny_zoo import TASKS, TinyZoo
from tintray.errors import InputError
from tintray.jobs import api
from tintray.jobs.cli import main
from tintray.jobs.config.job_file import parse_spec
from tintray.jobs.events import Notice, ignore
from tintray.jobs.results import CompareTable
from tintray.jobs.runs.compare import choose
from tintray.merging import methods

LEARNED = ("adamerging", "adamerging task", "surgery")


@pytest.fixture(scope="module")
def table(published: Published) -> CompareTable:
    spec = published.spec
    return api.compare("tiny", store=spec.store, catalog=spec.catalog, methods=["all"])


def values(table: CompareTable, method: str) -> dict[str, float]:
    return {row.task: row.value for row in table.rows if row.method == method}


def test_every_method_that_can_merge_so_many_is_in_the_table(table: CompareTable) -> None:
    fitting = [name for name, known in methods().items() if known.most is None]
    expected = {name.replace("_", " ") for name in fitting} | {"experts", "merge", *LEARNED}
    assert {row.method for row in table.rows} == expected
    assert all(values(table, method).keys() == set(TASKS) for method in expected)
    assert table.averages.keys() == table.normalised.keys() == expected


def test_scales_are_told_of_methods_that_have_one(table: CompareTable) -> None:
    tuned = {n.replace("_", " ") for n, known in methods().items() if known.tuned} | {*LEARNED}
    assert table.scales["adamerging"] == table.scales["task arithmetic"]
    assert table.scales.keys() == tuned
    assert table.best_scale == table.scales["task arithmetic"]


@pytest.mark.parametrize("name", ["average", "regmean", "emr", "model_stock"])
def test_a_rival_without_a_scale_is_what_its_job_publishes(
    tiny: TinyZoo, published: Published, table: CompareTable, name: str
) -> None:
    section = tiny.job(Path(published.spec.store), merge={"method": name}) | {"name": "rival"}
    alone = api.run(parse_spec(section, folder=tiny.folder))
    found = {task.name: task.merged for task in alone.tasks}
    assert values(table, name.replace("_", " ")) == pytest.approx(found)


def test_a_rival_at_its_scale_is_what_its_job_publishes(
    tiny: TinyZoo, published: Published, table: CompareTable
) -> None:
    merge = {"method": "ties", "scale": table.scales["ties"]}
    section = tiny.job(Path(published.spec.store), merge=merge) | {"name": "rival"}
    alone = api.run(parse_spec(section, folder=tiny.folder))
    assert values(table, "ties") == pytest.approx({t.name: t.merged for t in alone.tasks})


def test_all_leaves_out_what_cannot_merge_so_many() -> None:
    told: list[Any] = []
    assert "slerp" not in choose(["all"], 4, told.append)
    assert [event.text for event in told if isinstance(event, Notice)] == [
        "'slerp' merges 2 experts, not 4: left out"
    ]
    assert "slerp" in choose(["all"], 2, ignore)


@pytest.mark.parametrize(
    ("name", "said"), [("tise", "did you mean 'ties'?"), ("slerp", "at most 2 experts, found 4")]
)
def test_a_rival_that_cannot_be_is_refused(name: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        choose(["ties", name], 4, ignore)
    assert said in str(caught.value)


def call(published: Published, *args: str) -> int:
    spec = published.spec
    return main(["compare", "tiny", "--store", spec.store, "--catalog", spec.catalog, *args])


def test_the_command_makes_a_table_and_a_plot(
    published: Published, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    plot = tmp_path / "methods.svg"
    names = "average,ties,magmax,emr,iso_c"
    assert call(published, "--methods", names, "--plot", str(plot)) == 0
    shown = capfd.readouterr().out
    assert all(name in shown for name in ("experts", "iso c", "worst task"))
    assert plot.read_text().startswith("<?xml")


def test_the_command_writes_json(published: Published, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(published, "--methods", "ties", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert found["scales"].keys() == {"ties"}
    assert found["averages"].keys() == {"experts", "ties", "merge"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--plot", "out.gif"], "ending in .png, .svg, .pdf"),
        (["--plot", "no/such/out.svg"], "does not exist"),
        (["--methods", "tise"], "did you mean 'ties'?"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(
    published: Published, args: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(published, *args) == 2
    assert said in capfd.readouterr().err
