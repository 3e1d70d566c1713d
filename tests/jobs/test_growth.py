"""A merge grows: what stays the same, what the guard refuses, what is told of bad input."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import tintray
from tests.answers import call
from tests.growing import EASY, QUICK, GrowingStore
from tests.tiny_zoo import TinyZoo
from tintray.errors import (
    CheckpointError,
    DataError,
    GuardError,
    InputError,
    NotFoundError,
    ParentChangedError,
    SpecError,
)
from tintray.jobs import api
from tintray.jobs.cli import main
from tintray.jobs.engine.coordinator import Coordinator
from tintray.jobs.engine.tint_worker import TintWorkerPool
from tintray.jobs.events import PhaseStarted
from tintray.jobs.results import MergeSummary
from tintray.jobs.runs import fitting, guard
from tintray.jobs.runs import grow as growth
from tintray.jobs.runs.history import diff_merges, rollback
from tintray.storage.artifacts.publish import parse_merge_url, read_manifest
from tintray.tasks.evaluation import TaskScore


def manifest(summary: MergeSummary) -> dict[str, Any]:
    return read_manifest(*parse_merge_url(summary.url))


def hashes(summary: MergeSummary) -> dict[str, str]:
    return {name: ref["sha256"] for name, ref in manifest(summary)["files"].items()}


def save_altered(expert: Path, name: str, change: Callable[[str, torch.Tensor], Any]) -> Path:
    """A copy of an expert beside it, or itself, each of its tensors changed."""
    tensors = load_file(expert / "model.safetensors")
    other = expert.with_name(name)
    if other != expert:
        shutil.copytree(expert, other)
    changed = {key: change(key, tensor).contiguous() for key, tensor in tensors.items()}
    save_file(changed, other / "model.safetensors", metadata={"format": "pt"})
    return other


def begun(zoo: TinyZoo, store: Path, *tasks: str, **sections: Any) -> GrowingStore:
    found = GrowingStore(zoo, store)
    found.run(*tasks, **sections)
    return found


@pytest.fixture
def grown(tiny: TinyZoo, tmp_path: Path) -> GrowingStore:
    return begun(tiny.copy(tmp_path / "zoo"), tmp_path / "store", "two", "three")


def test_a_tint_leaves_the_backbone_and_every_old_task_bit_for_bit(grown: GrowingStore) -> None:
    before = hashes(grown.summary)
    child = grown.add("five", "four")
    after = hashes(child)
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {"coefficients.safetensors"} | {
        name for name in after if "/five" in name or "/four" in name
    }
    assert child.parent == "tiny/v1"
    rows = tintray.load(child.url).coefficients
    assert not rows[2:].any() and rows[:2].all()
    pixels = torch.randn(2, 3, 16, 16)
    old, new = tintray.load(grown.summary.url), tintray.load(child.url)
    for task in ("two", "three"):
        answers = [merge.for_task(task)(pixel_values=pixels).logits for merge in (old, new)]
        assert torch.equal(*answers)
    assert new.for_task("five")(pixel_values=pixels).logits.shape == (2, 5)


@pytest.mark.parametrize("mode", ["coefficients", "joint"])
def test_old_experts_are_not_needed(grown: GrowingStore, mode: str) -> None:
    for name in ("two", "three"):
        shutil.rmtree(grown.zoo.folder / name)
    child = grown.add("five", mode=mode)
    found = manifest(child)
    assert found["change"]["mode"] == mode
    assert {task["task"] for task in found["change"]["guard"]["tasks"]} == {"two", "three"}
    old, new = tintray.load(grown.summary.url), tintray.load(child.url)
    assert new.coefficients[2].any()
    assert torch.equal(new.coefficients[:2], old.coefficients) == (mode == "coefficients")
    assert not torch.equal(
        new.tint("two")["classifier.weight"], old.tint("two")["classifier.weight"]
    )
    table = api.evaluate("tiny", **grown.place)
    assert [task.merged for task in table.tasks] == [task.merged for task in child.tasks]


@pytest.mark.parametrize("mode", ["tint", "coefficients"])
def test_removing_what_came_last_gives_the_merge_before(grown: GrowingStore, mode: str) -> None:
    one = grown.add("five", mode=mode)
    grown.add("four", mode=mode)
    back = grown.remove("four")
    assert hashes(back) == hashes(one)
    assert [task.merged for task in back.tasks] == [task.merged for task in one.tasks]


def test_the_guard_adds_up_what_changes_one_after_another_take(
    grown: GrowingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = [grown.summary]

    def worse(crew: Any, names: Any, theta: Any) -> list[TaskScore]:
        known = {task["name"]: task["score"] for task in manifest(parents[-1])["tasks"]}
        lost = [
            TaskScore(**score | {"merged": score["merged"] - 0.009})
            for name in names
            if (score := known.get(name))
        ]
        new = [name for name in names if name not in known]
        return lost + [TaskScore(name, "accuracy", 0.9, 1.0, 0.9, 48) for name in new]

    monkeypatch.setattr(TintWorkerPool, "evaluate", worse)
    point = (*QUICK, "growth.target=0.01", "growth.tolerance=1")
    parents.append(grown.add("five", mode="coefficients", overrides=point))
    entry = manifest(parents[-1])["tasks"][0]
    assert entry["fitted"]["version"] == "tiny/v1"
    assert entry["fitted"]["value"] == manifest(grown.summary)["tasks"][0]["score"]["merged"]
    with pytest.raises(GuardError, match=r"loses 1\.8 points since tiny/v1 .*tolerance is 1 "):
        grown.add("four", mode="coefficients", overrides=point)


def test_growing_goes_by_the_fit_of_the_merges_job(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    class Heard(Coordinator):
        def __init__(self, *given: Any, **options: Any) -> None:
            made.append(options)
            super().__init__(*given, **options)

    fit = {"rounds": 4, "warmup": 2, "updates": "in_turn", "tasks_per_round": 2}
    stopping = {"patience": 1, "min_delta": 1.0}  # more than agreement can grow: at once
    grown = begun(
        *(tiny.copy(tmp_path / "zoo"), tmp_path / "store", "two", "three"),
        fit=fit | stopping,
    )
    monkeypatch.setattr(fitting, "Coordinator", Heard)
    events: list[Any] = []
    rounds = (*EASY, "growth.coefficient_rounds=8")
    grown.add("five", mode="joint", overrides=rounds, on_event=events.append)
    (options,) = made
    assert options["in_turn"] and len(options["sampled"](0)) == 2
    rates = [options["coefficient_lr"](round_) for round_ in range(8)]
    assert max(rates) == rates[3] > rates[0]  # warms up for as large a part of its rounds
    assert any("ended after round 2" in str(event) for event in events)


def test_what_a_merge_keeps_or_lacks_is_said_in_its_result(
    tiny: TinyZoo, tmp_path: Path, capfd: Any
) -> None:
    grown = begun(
        *(tiny.copy(tmp_path / "zoo"), tmp_path / "store", "two", "three", "five"),
        fit={"correction_lr": 1e-3},
    )
    assert not grown.summary.notices
    events: list[Any] = []
    child = grown.remove("five", on_event=events.append)
    (notice,) = child.notices
    assert "correction that tasks learned together stays" in notice and "from five too" in notice
    assert notice in " ".join(map(str, events))
    where = grown.words
    far = ["--set", "growth.target=1", "--set", "growth.rounds=1", "--mode", "tint"]
    capfd.readouterr()
    assert main(["add-task", "tiny", str(grown.file("four")), *far, *where]) == 0
    said = "note: only the mode 'tint' was tried, and it is not enough: four agrees"
    assert said in capfd.readouterr().out
    found = manifest(api.show("tiny", **grown.place))
    assert notice in found["notices"]  # of children too
    assert set(found["correction_from"]) == {"two", "three", "five"}


def test_removing_subtracts_a_task_exactly(grown: GrowingStore) -> None:
    """θ is that of base and task vectors without the removed one, whatever the order of adding."""
    grown.add("five", mode="coefficients")
    left = grown.remove("two")
    merge = tintray.load(left.url)
    assert merge.tasks == ("three", "five")
    vectors = {
        task["name"]: tintray.load(left.url).manifest and task["task_vector"]
        for task in manifest(left)["tasks"]
    }
    store = grown.store / "blobs"
    base = load_file(grown.zoo.folder / "base" / "model.safetensors")
    read = {name: load_file(store / sha[:2] / sha) for name, sha in vectors.items()}
    for column, unit in enumerate(merge.manifest.units):
        name = unit.name
        if name not in base:  # spelt otherwise on disk
            continue
        expected = base[name].double()
        for row, task in enumerate(merge.tasks):
            expected = expected + merge.coefficients[row, column].double() * read[task][name]
        torch.testing.assert_close(merge.backbone[name].double(), expected, rtol=1e-6, atol=1e-7)


def test_the_guard_refuses_what_harms_an_old_task(grown: GrowingStore) -> None:
    strict = (*QUICK, "growth.tolerance=0", "fit.coefficient_lr=1")
    with pytest.raises(SpecError, match="expected a field of 'growth'"):
        grown.add("five", mode="coefficients", overrides=strict)
    fit = {"coefficient_lr": 2.0}
    wild = begun(grown.zoo, grown.store.with_name("wild"), "two", "three", fit=fit)
    with pytest.raises(GuardError, match=r"nothing was published.*loses \d+\.\d points"):
        wild.add("five", mode="coefficients", overrides=(*QUICK, "growth.tolerance=0"))
    assert [merge.version for merge in api.list_merges(**wild.place)] == ["v1"]


def test_auto_takes_the_cheapest_way_that_is_enough_and_says_why_not(
    grown: GrowingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []
    cheap = grown.add("five", mode="auto", on_event=events.append)
    assert manifest(cheap)["change"]["mode"] == "tint"
    hard = (*QUICK, "growth.target=1", "growth.tolerance=100")
    monkeypatch.setattr(guard, "WORTH", -1)  # whatever little a way gains, the next is tried
    child = grown.add("four", mode="auto", overrides=hard, on_event=events.append)
    change = manifest(child)["change"]
    assert [tried["mode"] for tried in change["attempts"]] == ["tint", "coefficients", "joint"]
    assert "agrees with its expert on" in change["attempts"][0]["short"]
    notices = " ".join(str(event) for event in events)
    assert "'tint' is not enough" in notices
    assert "no way is enough" in notices or change["agreement"]["four"] == 1


def test_auto_goes_no_further_when_the_costlier_way_gains_too_little(
    grown: GrowingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []
    few = (*QUICK, "growth.target=1")
    monkeypatch.setattr(guard, "WORTH", 100)
    child = grown.add("four", mode="auto", overrides=few, on_event=events.append)
    change = manifest(child)["change"]
    assert change["mode"] == "tint"
    assert [tried["abandoned"] for tried in change["attempts"]] == [False, True]
    assert "'coefficients' has hardly gained; takes 'tint'" in " ".join(map(str, events))
    assert child.tasks[0].merged == grown.summary.tasks[0].merged


def test_refresh_takes_another_expert_and_another_pool(grown: GrowingStore) -> None:
    pool = grown.zoo.arrays("three")
    np.savez(grown.zoo.folder / "more.npz", **{**pool, "x_train": pool["x_train"][:30]})
    child = grown.refresh("three", pool=str(grown.zoo.folder / "more.npz"))
    before, after = manifest(grown.summary), manifest(child)
    assert after["tasks"][1]["pool"]["examples"] == 30
    assert after["files"]["backbone.safetensors"] == before["files"]["backbone.safetensors"]
    assert after["files"]["tints/three.safetensors"] != before["files"]["tints/three.safetensors"]
    assert after["files"]["tints/two.safetensors"] == before["files"]["tints/two.safetensors"]

    other = save_altered(grown.zoo.folder / "three", "three-2", lambda n, t: t * 1.01)
    third = grown.refresh("three", expert=str(other), mode="coefficients")
    now = manifest(third)["tasks"][1]
    assert now["expert"]["source"] == str(other)
    assert now["expert"]["sha256"] != after["tasks"][1]["expert"]["sha256"]
    assert now["task_vector"] != after["tasks"][1]["task_vector"]
    assert now["pool"]["examples"] == 30


def test_twenty_tasks_are_added_in_one_job(grown: GrowingStore) -> None:
    twenty = [grown.zoo.task("five" if n % 2 else "four") | {"name": f"task{n}"} for n in range(20)]
    path = grown.zoo.folder / "twenty.yaml"
    path.write_text(yaml.safe_dump(twenty))
    before = len(tintray.list_jobs(catalog=grown.place["catalog"]))
    child = growth.add("tiny", [path], mode="tint", overrides=("growth.rounds=1",), **grown.place)
    assert (child.version, child.parent, len(child.tasks)) == ("v2", "tiny/v1", 22)
    assert len(tintray.list_jobs(catalog=grown.place["catalog"])) == before + 1


def test_a_change_that_came_second_is_told_and_can_be_rebased(grown: GrowingStore) -> None:
    def meanwhile(event: Any) -> None:
        if isinstance(event, PhaseStarted) and event.phase == "fitting" and not came:
            came.append(grown.add("four"))

    came: list[MergeSummary] = []
    with pytest.raises(ParentChangedError, match=r"tiny/v2 was published by job tiny-.*--rebase"):
        grown.add("five", on_event=meanwhile)
    assert [merge.version for merge in api.list_merges(**grown.place)] == ["v2", "v1"]
    came.clear()
    grown.remove("four")
    child = grown.add("five", on_event=meanwhile, rebase=True)
    assert child.parent == "tiny/v4"
    assert tintray.load(child.url).tasks == ("two", "three", "four", "five")


def test_the_tree_the_difference_and_the_way_back(grown: GrowingStore, capfd: Any) -> None:
    one = grown.add("five")
    grown.add("four", mode="coefficients")
    where = grown.words
    assert main(["rollback", "tiny", "--to", "v2", *where]) == 0
    back = api.show("tiny", **grown.place)
    assert (back.version, back.parent, hashes(back)) == ("v4", "tiny/v3", hashes(one))
    capfd.readouterr()
    assert main(["history", "tiny", *where]) == 0
    told = capfd.readouterr().out
    assert [line.split("tiny/")[1].split()[:2] for line in told.splitlines()] == [
        ["v1", "merged"],
        ["v2", "add"],
        ["v3", "add"],
        ["v4", "rollback"],
    ]
    found = diff_merges("tiny/v2", "tiny/v3", catalog=grown.place["catalog"])
    assert {task.task: task.change for task in found.tasks} == {
        "two": "changed",
        "three": "changed",
        "five": "changed",
        "four": "added",
    }
    assert any(layer.backbone > 0 and layer.coefficients > 0 for layer in found.layers)
    same = diff_merges("tiny/v1", "tiny/v2", catalog=grown.place["catalog"])
    assert same.same_backbone and not any(layer.backbone for layer in same.layers)
    with pytest.raises(NotFoundError, match="did not grow from tiny/v9; it grew from"):
        rollback("tiny", "v9", **grown.place)


def test_a_version_that_was_removed_is_named_and_passed_over(grown: GrowingStore) -> None:
    """Its children are whole; what came before it can still be rolled back to."""
    where = grown.words
    one, three = grown.add("five"), grown.add("four")
    assert call("delete", "tiny/v2", *where, "--json").document["children"] == ["tiny/v3"]
    assert call("artifacts", "verify", "tiny/v3", *where, "--json").document["damaged"] == []
    assert call("show", "tiny/v3", *where, "--json").document["parent"] == one.name + "/v2"
    gone = "merge tiny/v2 was removed; of that name there are: tiny/v1, tiny/v3"
    catalog = where[2:]
    for words in (
        *(("show", "tiny/v2", *where), ("eval", "tiny/v2", *where), ("delete", "tiny/v2", *where)),
        *(("rollback", "tiny/v2", *where), ("diff-merges", "tiny/v1", "tiny/v2", *catalog)),
    ):
        assert gone in call(*words).sentence
    for back in ((), ("--to", "v2")):
        assert (
            "tiny/v2, which tiny/v3 grew from, was removed; it grew from tiny/v2 (removed), "
            "tiny/v1; --to tiny/v1 goes back" in call("rollback", "tiny", *back, *where).sentence
        )
    said = call("rollback", "tiny", "--to", "v9", *where).sentence
    assert "it grew from tiny/v2 (removed), tiny/v1" in said
    back = call("rollback", "tiny", "--to", "v1", *where, "--json").document
    assert (back["version"], back["parent"]) == ("v4", "tiny/v3")
    assert hashes(api.show("tiny/v4", **grown.place)) == hashes(grown.summary)
    tree = {v["ref"]: v for v in call("history", "tiny", *where, "--json").document}
    assert [v for v, found in tree.items() if found["removed"]] == ["tiny/v2"]
    assert tree["tiny/v3"]["parent"] == "tiny/v2"
    assert three.version == "v3"
    # what was merged in v1 is still known as such, behind the version that is gone
    assert call("remove-task", "tiny/v3", "four", *where, "--json").document["version"] == "v5"
    assert call("delete", "tiny/v1", *where, "--json").document["children"] == []
    assert "none of them is left" in call("rollback", "tiny/v3", *where).sentence


def test_bad_input_is_told_in_a_sentence_and_nothing_is_published(grown: GrowingStore) -> None:
    with pytest.raises(SpecError, match="task 'two' is in tiny/v1 already"):
        grown.add("two")
    with pytest.raises(NotFoundError, match="has no task 'tow'; did you mean 'two'"):
        grown.remove("tow")
    with pytest.raises(InputError, match="would have no task left"):
        grown.remove("two", "three")
    with pytest.raises(SpecError, match="exprt' is not a field"):
        path = grown.file("five")
        path.write_text(path.read_text().replace("expert", "exprt"))
        growth.add("tiny", [path], **grown.place)
    assert [merge.version for merge in api.list_merges(**grown.place)] == ["v1"]


def test_what_is_gone_is_named_before_anything_is_computed(grown: GrowingStore) -> None:
    labels = manifest(grown.summary)["tasks"][0]["pool"]["labels"]
    (grown.store / "blobs" / labels[:2] / labels).unlink()
    with pytest.raises(NotFoundError, match=r"self-labels of task 'two' of tiny/v1 .* are gone"):
        grown.add("five", mode="joint")
    assert grown.add("five", mode="tint").version == "v2"  # which needs nothing of old tasks
    tint = hashes(grown.summary)["tints/two.safetensors"]
    lost = grown.store / "blobs" / tint[:2] / tint
    lost.rename(lost.with_name("away"))
    events: list[Any] = []
    with pytest.raises(NotFoundError, match=r"tints/two\.safetensors of tiny/v2 .* copy it back"):
        grown.add("four", mode="tint", on_event=events.append)
    assert not events  # nothing was computed
    lost.with_name("away").rename(lost)
    other = grown.zoo.arrays("three")["x_test"]
    grown.zoo.replace_arrays("three", x_test=other[::-1])
    with pytest.raises(DataError, match=r"tasks\.three\.test: .* is not what the merge was publi"):
        grown.remove("two")  # the guard would compare with figures on other examples
    (grown.zoo.folder / "three.npz").unlink()
    with pytest.raises(DataError, match=r"tasks\.three\.pool: the data file .* does not exist"):
        grown.remove("two")


def test_an_unsure_expert_and_one_of_another_base_are_refused(grown: GrowingStore) -> None:
    five = grown.zoo.folder / "five"
    unsure = save_altered(five, "unsure", lambda n, t: t * 0.01 if n.startswith("class") else t)
    with pytest.raises(CheckpointError, match="unsure of nearly every example of its pool"):
        growth.add("tiny", [grown.file("five", expert=str(unsure))], **grown.place)
    torch.manual_seed(7)
    save_altered(five, "five", lambda _, t: torch.randn_like(t) * 0.2 if t.ndim > 1 else t)
    with pytest.raises(CheckpointError, match="was not fine-tuned from the base of this merge"):
        grown.add("five")
    assert [merge.version for merge in api.list_merges(**grown.place)] == ["v1"]
