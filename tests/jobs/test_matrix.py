"""Every command that takes a merge, on every sort of merge: it answers, and what it says is right.

Each sort is published once; commands grow children of its first version, so that no cell of the
matrix depends on another.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tintray
from tests import peft_models
from tests.answers import Answer, call
from tests.sorts import SORTS, Sort, make_zoo, write_yaml
from tintray.models.calling import answer
from tintray.published.exported import Exported, ExportedTask
from tintray.published.merge import Merge
from tintray.seals import unseal
from tintray.storage.artifacts.records import seal
from tintray.vectors.task_vectors import DOWN, UP

UNCHANGEABLE = ("surgery", "ties", "own backbones")
"""Sorts whose backbone is no sum of task vectors: it cannot be added to, nor a task taken out."""

OF_EACH_KIND = ("block", "lora", "dense", "language", "batch norm")
"""Sorts whose experts answer in all the forms that there are."""


@dataclass(frozen=True)
class Made:
    """A sort of merge, published, with a child that has one task more."""

    label: str
    sort: Sort
    zoo: Path
    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @cached_property
    def job(self) -> Path:
        return write_yaml(self.folder / "job.yaml", self.sort.job(self.zoo, self.store))

    @cached_property
    def third(self) -> Path:
        return write_yaml(self.folder / "three.yaml", self.sort.task(self.zoo, "three"))

    @cached_property
    def published(self) -> dict[str, Any]:
        """What ``run`` said."""
        found: dict[str, Any] = call("run", self.job, "--json").document
        return found

    @cached_property
    def first(self) -> str:
        return f"{self.published['name']}/{self.published['version']}"

    @cached_property
    def child(self) -> str:
        """The merge with ``three``, which came with a tint layer alone."""
        found = self.ask("add-task", self.first, self.third, "--mode", "tint").document
        return f"tiny/{found['version']}"

    def ask(self, *words: object) -> Answer:
        """Run a command on this store, for JSON."""
        command = ["artifacts", "verify"] if words[0] == "verify" else [words[0]]
        return call(*command, *words[1:], "--store", self.store, "--json")

    def load(self, merge: str) -> Merge:
        return tintray.load(str(self.store / "merges" / merge))

    def inputs(self, merge: Merge, task: str) -> dict[str, torch.Tensor]:
        """A batch of a task."""
        if self.sort.zoo in ("sentences", "adapters"):
            processor = merge.processor(task, text=True)
            return dict(processor(["w1 w2 w3", "w4 w5"], padding=True, return_tensors="pt"))
        random = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=random)}

    def answers(self, merge: Merge, task: str) -> torch.Tensor:
        return merge.predict(task, self.inputs(merge, task))

    def answer_alike(self, one: Merge, other: Merge) -> None:
        """Both answer to ``one`` and ``two`` with the same bits."""
        for task in ("one", "two"):
            assert torch.equal(self.answers(one, task), self.answers(other, task))


@pytest.fixture(scope="session")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda name: make_zoo(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="session", params=SORTS.items(), ids=SORTS.keys())
def made(
    request: pytest.FixtureRequest,
    zoos: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Made:
    label, sort = request.param
    if sort.zoo == "adapters":
        pytest.importorskip("peft")
    return Made(label, sort, zoos(sort.zoo), tmp_path_factory.mktemp("sort"))


def scores(tasks: list[dict[str, Any]]) -> dict[str, Any]:
    return {task["name"]: pytest.approx(task["merged"], abs=1e-5) for task in tasks}


def test_validate_and_plan_take_what_run_takes(made: Made) -> None:
    assert call("validate", made.job, "--json").document["tasks"] == ["one", "two"]
    assert call("plan", made.job, "--calibrate", "0.1", "--json").document["fits"]
    assert [task["name"] for task in made.published["tasks"]] == ["one", "two"]


def test_show_and_eval_say_what_the_run_said(made: Made) -> None:
    shown = made.ask("show", made.first).document
    assert shown["tasks"] == made.published["tasks"]
    again = made.ask("eval", made.first).document
    assert {task["name"]: task["merged"] for task in again["tasks"]} == scores(shown["tasks"])


def test_compare(made: Made) -> None:
    table = made.ask("compare", made.first).document
    rows = {(row["method"], row["task"]): row["value"] for row in table["rows"]}
    assert {method for method, _ in rows} == {"experts", "average", "task arithmetic", "merge"}
    merged = {task: value for (method, task), value in rows.items() if method == "merge"}
    assert merged == scores(made.published["tasks"])


def test_explain_tells_of_all_that_a_task_owns(made: Made) -> None:
    found = made.ask("explain", made.first, "--task", "two").document
    merge = made.load(made.first)
    models = {name for name, _ in merge.for_task("two").named_parameters()}
    owned = {name.removesuffix(UP).removesuffix(DOWN) for name in merge.tint("two")}
    assert {drift["tensor"] for drift in found["tensors"]} == owned & models
    learned = any(drift["from_expert"] for drift in found["tensors"])
    assert learned is (made.label not in ("coefficients alone", "adamerging", "surgery", "ties"))
    assert found["features"] and found["changes"]["agreement"] <= 1
    assert found["notes"] and len(found["swaps"]) <= 1


def test_export_of_a_task_loads_and_answers_alike(made: Made, tmp_path: Path) -> None:
    found = made.ask("export", made.first, tmp_path / "model", "--task", "two")
    if made.label == "surgery":
        assert "has a surgery module" in found.sentence
        assert not (tmp_path / "model").exists()
        return
    folder = Path(found.document["path"])
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    loaded = getattr(transformers, name).from_pretrained(folder).eval()
    merge = made.load(made.first)
    with torch.inference_mode():
        found_ = answer(loaded, made.inputs(merge, "two"))
    assert torch.allclose(found_, made.answers(merge, "two"), atol=1e-5)


def test_export_of_all_opens_and_answers_alike(made: Made, tmp_path: Path) -> None:
    folder = made.ask("export", made.first, tmp_path / "whole").document["path"]
    whole, merge = tintray.load(folder), made.load(made.first)
    assert whole.tasks == merge.tasks == ("one", "two")
    made.answer_alike(whole, merge)


def test_a_mixed_batch_answers_as_each_task_alone(made: Made) -> None:
    merge = made.load(made.first)
    given: list[Any] = ["w1 w2 w3", "w4 w5"]
    if made.sort.zoo not in ("sentences", "adapters"):
        random = np.random.default_rng(0)
        given = list(random.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8))
    found = merge.predict_mixed([(task, one) for one in given for task in merge.tasks])
    assert {one.version for one in found} == {"tiny/v1"}
    for number, one in enumerate(found):
        value, task = given[number // 2], merge.tasks[number % 2]
        assert one.task == task
        batch = merge.processor(task)([value], return_tensors="pt")
        alone = merge.predict(task, dict(batch))[0].numpy()
        expected = alone[-1] if one.kind == "language_modelling" else alone
        assert one.values is not None and one.values.shape == expected.shape
        assert np.allclose(one.values, expected, rtol=1e-5, atol=1e-4)
        if one.kind == "classification":
            assert one.label == int(expected.argmax()) and 0 <= one.confidence <= 1


def test_export_as_an_adapter(made: Made, tmp_path: Path) -> None:
    found = made.ask("export", made.first, tmp_path / "adapter", "--adapter")
    if made.sort.zoo == "adapters":
        assert (Path(found.document["path"]) / "adapter_model.safetensors").is_file()
        return
    assert "adapter" in found.sentence
    assert not (tmp_path / "adapter").exists()


def test_export_for_peft(made: Made, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    answered = made.ask("export", made.first, tmp_path / "peft", "--peft")
    refused = {"surgery": "has a surgery module", "own backbones": "export the model of the task"}
    if made.label in refused:
        assert refused[made.label] in answered.sentence
        assert not (tmp_path / "peft").exists()
        return
    tasks = [ExportedTask(**task) for task in answered.document["tasks"]]
    merge, found = made.load(made.first), Exported(**answered.document | {"tasks": tasks})
    peft_models.check(merge, found, made.inputs(merge, "one"))


def test_add_leaves_the_old_tasks_bit_for_bit(made: Made) -> None:
    before, after = made.load(made.first), made.load(made.child)
    assert after.tasks == ("one", "two", "three")
    made.answer_alike(before, after)
    assert made.answers(after, "three").isfinite().all()


@pytest.mark.parametrize("mode", ["auto", "coefficients", "joint"])
def test_add_in_other_ways(made: Made, mode: str) -> None:
    found = made.ask("add-task", made.first, made.third, "--mode", mode)
    if mode != "auto" and made.label in UNCHANGEABLE:
        assert "--mode tint" in found.sentence
        return
    assert [task["name"] for task in found.document["tasks"]] == ["one", "two", "three"]


def test_refresh(made: Made) -> None:
    found = made.ask("refresh-task", made.first, "two").document
    assert [task["name"] for task in found["tasks"]] == ["one", "two"]
    assert made.answers(made.load(f"tiny/{found['version']}"), "two").isfinite().all()


def test_remove_what_was_added_gives_the_first_again(made: Made) -> None:
    found = made.ask("remove-task", made.child, "three").document
    before, after = made.load(made.first), made.load(f"tiny/{found['version']}")
    assert after.tasks == ("one", "two")
    made.answer_alike(before, after)


@pytest.mark.parametrize("tolerance", [0.01, 100])
def test_remove_what_was_merged(made: Made, tolerance: float) -> None:
    setting = f"growth.tolerance={tolerance}"
    found = made.ask("remove-task", made.first, "one", "--set", setting)
    if made.label in UNCHANGEABLE:
        assert f"'{made.published['method']}' merged it" in found.sentence
        return
    if tolerance < 1 and found.code == 1:
        assert "error: nothing was published" in found.err
        return
    assert [task["name"] for task in found.document["tasks"]] == ["two"]


def test_rollback_history_and_diff(made: Made) -> None:
    found = made.ask("rollback", made.child).document
    back = made.load(f"tiny/{found['version']}")
    assert back.manifest.files == made.load(made.first).manifest.files
    assert "grew from no merge" in made.ask("rollback", made.first).sentence
    versions = {version["ref"]: version for version in made.ask("history", "tiny").document}
    assert (versions[made.first]["parent"], versions[made.child]["parent"]) == (None, made.first)
    catalog = f"sqlite:///{made.store}/catalog.db"
    merges = (made.first, made.child)
    difference = call("diff-merges", *merges, "--catalog", catalog, "--json").document
    assert difference["same_backbone"]
    changes = {task["task"]: task["change"] for task in difference["tasks"]}
    assert changes == {"one": "same", "two": "same", "three": "added"}


def test_a_merge_of_version_0_1_0(made: Made, tmp_path: Path) -> None:
    """Its manifest lacks what later versions say; found by its folder, as one that came by mail."""
    folders = {}
    for merge in (made.first, made.child):
        copied = Path(shutil.copytree(made.store / "merges" / merge, tmp_path / merge[-1]))
        path = copied / "manifest.json"
        manifest = unseal(path.read_bytes(), str(path))
        for name in ("correction_from", "notices"):
            manifest.pop(name, None)
        for task in manifest["tasks"]:
            task.pop("fitted", None)
        path.write_bytes(seal(manifest, "manifest.json"))
        folders[merge] = copied
    first, child = folders.values()
    assert made.ask("show", first).document["tasks"] == made.published["tasks"]
    again = made.ask("eval", first).document["tasks"]
    assert {task["name"]: task["merged"] for task in again} == scores(made.published["tasks"])
    assert call("diff-merges", first, child, "--json").document["same_backbone"]
    assert made.ask("show", child).document["parent"] == made.first


def test_a_copy_is_whole(made: Made, tmp_path: Path) -> None:
    copied = Made(made.label, made.sort, made.zoo, tmp_path)
    made.ask("copy", made.child, copied.store)
    assert copied.ask("verify").document["damaged"] == []
    before, after = made.load(made.child), copied.load(made.child)
    here, there = (of.store / "merges" / made.child / "manifest.json" for of in (made, copied))
    assert here.read_bytes() == there.read_bytes()
    made.answer_alike(before, after)
    assert made.ask("verify", made.child).document["damaged"] == []


@pytest.mark.parametrize(
    "made", [(each, SORTS[each]) for each in OF_EACH_KIND], ids=OF_EACH_KIND, indirect=True
)
def test_what_is_found_in_the_store_gives_the_bits_that_were_computed(
    made: Made, tmp_path: Path
) -> None:
    """Self-labels, task vectors and prepared images, in a store that has them already."""
    first = made.load(made.first).manifest
    store = tmp_path / "store"
    shutil.copytree(made.store, store)
    own = ("--set", f"store={store}", "--set", f"catalog=sqlite:///{tmp_path}/catalog.db")
    again = call("run", made.job, "--json", *own).document
    found = tintray.load(str(store / "merges" / again["name"] / again["version"])).manifest
    assert {name: file.sha256 for name, file in found.files.items()} == {
        name: file.sha256 for name, file in first.files.items()
    }
