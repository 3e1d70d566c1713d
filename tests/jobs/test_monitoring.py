"""Is it still good: checks of new examples, what they are compared with, and their history."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tintray
from tests import sorts
from tests.answers import call
from tests.growing import GrowingStore
from tests.sorts import SORTS, make_zoo, write_yaml
from tests.tiny_zoo import TEST, TinyZoo, more
from tintray.jobs.watching.advice import advice
from tintray.published.files import reference_file
from tintray.references.estimates import Estimate
from tintray.references.reference import Reference
from tintray.references.two_samples import Difference


@pytest.fixture(scope="module")
def first(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> GrowingStore:
    """A merge of three tasks, and nothing else; only to be copied."""
    grown = GrowingStore(tiny, tmp_path_factory.mktemp("watched"))
    grown.run("three", "five", "four", fit={"rounds": 20})
    return grown


@pytest.fixture
def grown(first: GrowingStore, tmp_path: Path) -> GrowingStore:
    return first.copy(tmp_path / "store")


@pytest.fixture
def new(tmp_path: Path) -> Iterator[Any]:
    """Writes new examples of a task, changed perhaps; gives the file's name with its split."""

    def write(task: str, change: Any = None, examples: int = 100) -> str:
        arrays = more(task, examples, seed=1)
        images = arrays["x_test"]
        name = tmp_path / f"{task}-new.npz"
        np.savez(name, **arrays | {"x_test": images if change is None else change(images)})
        return f"{name}#test"

    return write


def darkened(images: Any) -> Any:
    return images // 8


def test_new_examples_are_compared_and_the_check_is_remembered(
    grown: GrowingStore, new: Any
) -> None:
    ask = ("monitor", "tiny", "--task", "five", *grown.words, "--data")
    alike = call(*ask, new("five"), "--json")
    found = alike.document
    assert (found["merge"], found["task"], found["drifted"]) == ("tiny/v1", "five", False)
    assert (found["examples"], found["known"], found["advice"]) == (100, TEST, [])
    assert {of["of"] for of in found["differences"]} == {
        "confidence", "entropy", "classes", "features", "brightness", "contrast", "sharpness",
    }  # fmt: skip
    assert found["estimate"]["metric"] == "accuracy" and 0 <= found["elsewhere"] <= 1
    assert call(*ask, new("five", darkened), "--dry-run").code == 6  # and is in no history
    differs = call(*ask, new("five", darkened), "--expert")
    assert differs.code == 6 and "differs" in differs.out and "by expert" in differs.out
    past = call("monitor", "tiny", "--history", *grown.words, "--json").document
    assert [check["drifted"] for check in past] == [False, True]
    assert past[0] == found and past[1]["disagreement"]["value"] < 1
    assert (
        call("monitor", "tiny", "--task", "three", "--history", *grown.words, "--json").document
        == []
    )
    assert "five-new.npz" in call("monitor", "tiny/v1", "--history", *grown.words).out


def test_what_they_are_compared_with_comes_and_goes_with_a_task(grown: GrowingStore) -> None:
    def references(summary: Any) -> dict[str, str]:
        files = grown.hashes(summary)
        return {name: of for name, of in files.items() if name.startswith("references/")}

    before = references(grown.summary)
    assert before.keys() == {reference_file(name) for name in ("three", "five", "four")}
    added = references(grown.add("two"))
    assert before.items() < added.items() and reference_file("two") in added
    refreshed = references(grown.refresh("five"))
    changed = {name for name, of in added.items() if refreshed[name] != of}
    assert changed == {reference_file("five")}
    removed = references(grown.remove("three"))
    assert removed.keys() == refreshed.keys() - {reference_file("three")}
    surgery = references(grown.run("two", "five", merge={"method": "surgery"}))
    assert surgery.keys() == {reference_file("two"), reference_file("five")}


@pytest.mark.parametrize("name", ["dense", "language", "lora", "batch norm", "own backbones"])
def test_what_is_noted_while_merging_is_noted_of_any_sort_of_merge(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very examples that a merge was measured on do not differ from themselves."""
    monkeypatch.setattr(sorts, "EXAMPLES", 20)
    sort = SORTS[name]
    zoo = make_zoo(sort.zoo, tmp_path / "zoo")
    assert (
        call("run", write_yaml(tmp_path / "job.yaml", sort.job(zoo, tmp_path / "store"))).code == 0
    )
    for task in ("one", "two"):
        ask = ("monitor", "tiny", "--task", task, "--store", tmp_path / "store", "--json", "--data")
        told = call(*ask, sort.task(zoo, task)["test"]["path"])
        assert "measured now" not in told.err
        for of in told.document["differences"]:
            assert of["value"] == pytest.approx(0, abs=5e-3) and of["p"] > 0.5, of


def test_a_merge_without_references_is_measured_or_refused(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: Any
) -> None:
    zoo = tiny.copy(tmp_path / "zoo")
    with_them = GrowingStore(zoo, tmp_path / "new")
    with_them.run("five", "four", fit={"rounds": 20})
    old = GrowingStore(zoo, tmp_path / "old")
    with monkeypatch.context() as patch:
        patch.setattr(Reference, "of", classmethod(lambda cls, *_: None))
        assert not any(
            "references/" in name
            for name in old.hashes(old.run("five", "four", fit={"rounds": 20}))
        )
    for task in ("five", "four"):
        ask = ("monitor", "tiny", "--task", task, "--data", new(task), "--json")
        one, again, first = (call(*ask, *of.words) for of in (old, old, with_them))
        assert "is measured now" in one.err and "measured now" not in again.err
        figures = [json.loads(of.out)["differences"] for of in (one, again, first)]
        assert figures[0] == figures[1]
        for here, there in zip(figures[0], figures[2], strict=True):
            assert here["value"] == pytest.approx(there["value"], abs=0.02)
    gone = GrowingStore(zoo, tmp_path / "gone")
    with monkeypatch.context() as patch:
        patch.setattr(Reference, "of", classmethod(lambda cls, *_: None))
        gone.run("five")
    zoo.replace_arrays("five", x_test=None, y_test=None)
    said = call("monitor", "tiny", "--task", "five", "--data", new("five"), *gone.words).sentence
    assert (
        "without what new examples are compared with" in said
        and "refresh-task tiny/v1 five" in said
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "fife", "--data", "x.npz"], r"has no task 'fife' \(did you mean 'five'?"),
        (["--task", "five", "--data", "nowhere.npz"], "--data nowhere.npz"),
        (["--task", "five"], "--data is missing"),
        (["--data", "x.npz"], "--task is missing"),
        (["--task", "five", "--data", "few"], "--data .*expected 16 examples or more, found 9"),
        (["--history", "--task", "five"], "there is no merge 'tyni'.*did you mean 'tiny"),
    ],
)
def test_what_cannot_be_checked_is_said(
    grown: GrowingStore, new: Any, words: list[str], said: str
) -> None:
    words = [new("five", examples=9) if word == "few" else word for word in words]
    merge = "tyni" if "--history" in words else "tiny"
    refused = call("monitor", merge, *words, *grown.words)
    assert refused.code == 2 and "Traceback" not in refused.err
    assert re.search(said, refused.err), refused.err


def test_a_merge_that_the_catalog_does_not_know_is_checked_all_the_same(
    grown: GrowingStore, new: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "copied"
    tintray.load("tiny", **grown.place).export(None, folder)
    told = call("monitor", folder, "--task", "five", "--data", new("five"), "--json", *grown.words)
    assert told.document["drifted"] is False and "in no history" in told.err


def test_a_catalog_that_is_not_upgraded_has_no_history(grown: GrowingStore, new: Any) -> None:
    with closing(sqlite3.connect(grown.store / "catalog.db")) as catalog:
        catalog.executescript("DROP TABLE checks; UPDATE tintray_schema SET version_num = '0004'")
    ask = ("monitor", "tiny", *grown.words)
    told = call(*ask, "--task", "five", "--data", new("five"))
    assert told.code == 0 and "in no history" in told.err and "`tintray db upgrade`" in told.err
    assert "run `tintray db upgrade`" in call(*ask, "--history").err
    assert call("db", "upgrade", *grown.words).code == 0
    assert call(*ask, "--task", "five", "--data", new("five")).code == 0
    assert len(call(*ask, "--history", "--json").document) == 1


def test_what_to_do_depends_on_what_differs() -> None:
    def said(*of: str, lost: float = 0.0, elsewhere: float = 0.0) -> str:
        differences = [Difference(name, "", 0.5, 0.001, 0.004) for name in of]
        estimate = Estimate("accuracy", 0.9, 0.9 - lost, 0.04, "")
        return " ".join(advice("m/v1", "t", differences, 0.05, estimate, elsewhere))

    assert said() == ""
    assert "keep watching" in said("features")
    assert "changed its mix" in said("classes")
    assert "changed its mix" not in said("classes", "sharpness")
    assert "refresh-task m/v1 t" in said("features", lost=0.1)
    assert "route them away" in said("features", elsewhere=0.5)
