"""``tintray check``, which a pipeline asks, and ``tintray alias``, by which it tells others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import tintray
from tests.answers import call
from tests.conftest import Published
from tests.jobs.test_cli_tables import TASK
from tests.tiny_zoo import TinyZoo
from tintray.errors import InputError
from tintray.jobs.results import TaskResult
from tintray.jobs.runs.gate import judge
from tintray.storage.artifacts.store import open_store


def task(name: str = "a", **fields: Any) -> TaskResult:
    return dataclasses.replace(TASK, name=name, **fields)


GOOD = task("good", merged=0.94, expert=0.95, normalised=0.99)
UNLABELLED = task("bare", metric="agreement", merged=0.97, expert=None, normalised=None,
                  agreement=0.97)  # fmt: skip
WRONG = task("far", metric="degrees", merged=11.0, expert=10.0, normalised=10 / 11,
             lower_is_better=True)  # fmt: skip


@pytest.mark.parametrize(
    ("tasks", "asked", "problems"),
    [
        ([GOOD], {"min_kept": 0.98, "max_loss": 1.0}, []),
        ([GOOD], {"max_loss": 0.9}, ["good loses 1.0 points, 0.9 are allowed"]),
        ([GOOD], {"min_kept": 0.995}, ["kept 99.0 %, the least is 99.5 %"]),
        ([GOOD, UNLABELLED], {"min_kept": 0.98, "max_loss": 3.0}, []),
        ([UNLABELLED], {"max_loss": 2.0}, ["bare loses 3.0 points, 2 are allowed"]),
        ([WRONG], {"max_loss": 10.0}, []),
        ([WRONG], {"max_loss": 9.0}, ["far loses 10.0 %, 9 are allowed"]),
        ([task(merged=1.0), GOOD], {"max_loss": 1.0}, []),  # better than its expert
        ([dataclasses.replace(GOOD, at_chance=True)], {"min_kept": 0.5},
         ["kept an unknown share, the least is 50.0 %"]),
    ],
)  # fmt: skip
def test_what_is_asked_of_a_merge(
    tasks: list[TaskResult], asked: Mapping[str, float], problems: list[str]
) -> None:
    report = judge("x/v1", tasks, **asked)
    assert (list(report.problems), report.passed) == (problems, not problems)


def test_a_merge_is_held_to_another_one() -> None:
    before = [GOOD, task("gone")]
    after = [dataclasses.replace(GOOD, merged=0.935), task("new", merged=0.1)]
    report = judge("x/v2", after, max_loss=0.1, against="x/v1", before=before)
    assert report.problems == ["good loses 0.5 points, 0.1 are allowed", "gone is gone"]
    assert [check.task for check in report.tasks] == ["good"]
    other = dataclasses.replace(GOOD, metric="agreement")
    with pytest.raises(InputError, match="measured by agreement before and by accuracy now"):
        judge("x/v2", [GOOD], max_loss=1, against="x/v1", before=[other])


def test_the_exit_code_is_what_a_pipeline_goes_by(published: Published) -> None:
    kept = published.summary.normalised_accuracy
    assert kept is not None
    good = call("check", published.folder, "--min-kept", "0.01", "--max-loss", "100")
    assert good.code == 0 and "passed" in good.out and good.err == ""
    bad = call("check", published.folder, "--max-loss", "0", "--json")
    assert bad.code == 1 and '"passed": false' in bad.out
    assert call("check", published.folder).code == 2
    assert call("check", published.folder, "--min-kept", "98").code == 2
    measured = call("check", published.folder, "--min-kept", "0.01", "--measure", "--json")
    assert measured.document["kept"] == pytest.approx(judge("x", published.summary.tasks).kept)


@pytest.fixture
def store(tiny: TinyZoo, tmp_path: Path) -> Path:
    """A store with two versions of a merge."""
    spec = tiny.spec(tmp_path / "store", tasks=("two", "three", "four"), fit={"rounds": 1})
    for _ in range(2):
        tintray.run(spec)
    return tmp_path / "store"


def test_an_alias_is_understood_wherever_a_merge_is_named(store: Path, tiny: TinyZoo) -> None:
    place = ("--store", store)
    made = call("alias", "tiny@production", "v1", *place, "--json").document
    assert made == [{"alias": "tiny@production", "merge": "tiny/v1", "before": None}]
    for name in ("tiny@production", f"{store}/merges/tiny@production"):
        assert tintray.load(name, store=str(store)).ref == "tiny/v1"
        assert call("show", name, *place, "--json").document["version"] == "v1"
    assert "tiny/v1" in call("history", "tiny@production", *place).out
    call("alias", "tiny@production", "v2", *place)
    less = call("remove-task", "tiny@production", "four", *place, "--json").document
    assert (less["version"], less["parent"]) == ("v3", "tiny/v2")
    assert tintray.load("tiny@production", store=str(store)).ref == "tiny/v2"  # it stays
    against = ("--max-loss", "100", "--against", "tiny@production")
    assert "four is gone" in call("check", "tiny/v3", *against, *place).out


def test_an_alias_is_set_listed_and_removed_and_guards_what_it_means(store: Path) -> None:
    place = ("--store", store)
    assert "no alias yet" in call("alias", "tiny", *place).err
    tried = call("alias", "tiny@canary", "v2", "--dry-run", *place, "--json").document
    assert tried[0]["merge"] == "tiny/v2"
    assert call("alias", "tiny", *place, "--json").document == []
    for alias, version in (("production", "v1"), ("canary", "v2")):
        assert call("alias", f"tiny@{alias}", version, *place).code == 0
    lines = call("alias", "tiny", *place, "--json").document
    assert [(line["alias"], line["merge"]) for line in lines] == [
        ("tiny@canary", "tiny/v2"), ("tiny@production", "tiny/v1")]  # fmt: skip
    assert "is what tiny@canary means" in call("delete", "tiny/v2", *place).sentence
    assert call("alias", "tiny@canary", "--remove", *place, "--json").document[0]["merge"] is None
    assert call("delete", "tiny/v2", *place).code == 0
    sentences = {
        ("show", "tiny@prodution"): "did you mean 'production'?",
        ("alias", "tiny@production", "v9"): "merge tiny/v9 is not published",
        ("alias", "tiny@a b", "v1"): "alias: expected letters, digits",
        ("alias", "tiny@latest", "v1"): "alias: expected",
        ("alias", "tinny@production", "v1"): "did you mean 'tiny'?",
        ("alias", "tiny", "v1"): "expected tiny@ALIAS",
        ("alias", "tiny@other", "--remove"): "has no alias 'other'",
    }
    for words, sentence in sentences.items():
        assert sentence in call(*words, *place).sentence, words
    assert call("alias", "tiny@production", "v1", "--remove", *place).code == 2
    folder = open_store(store)
    folder.put("aliases/tiny/production", b"{}", overwrite=True)
    assert "truncated or altered" in call("show", "tiny@production", *place).err
