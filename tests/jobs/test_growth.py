"""A merge grows: what stays the same, what the guard refuses, what is told of bad input."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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
from tintray.jobs.engine.coordinator import Coordinator
from tintray.jobs.engine.tint_worker import TintWorkerPool
from tintray.jobs.events import PhaseStarted, TintLearned
from tintray.jobs.results import MergeSummary
from tintray.jobs.runs import fitting, guard
from tintray.jobs.runs import grow as growth
from tintray.jobs.runs.merge_difference import diff_merges
from tintray.storage.artifacts.blobs import blob_key
from tintray.tasks.evaluation import TaskScore


def save_altered(expert: Path, name: str, change: Any) -> Path:
    """A copy of an expert beside it, or itself, each of its tensors changed."""
    tensors = load_file(expert / "model.safetensors")
    other = expert.with_name(name)
    if other != expert:
        shutil.copytree(expert, other)
    changed = {key: change(key, tensor).contiguous() for key, tensor in tensors.items()}
    save_file(changed, other / "model.safetensors", metadata={"format": "pt"})
    return other


def begun(tiny: TinyZoo, folder: Path, *more: str, **sections: Any) -> GrowingStore:
    """A merge of ``two`` and ``three``, with a zoo of its own."""
    store = GrowingStore(tiny.copy(folder / "zoo"), folder / "store")
    store.run("two", "three", *more, **sections)
    return store


@pytest.fixture(scope="module")
def first(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> GrowingStore:
    return begun(tiny, tmp_path_factory.mktemp("growth"), fit={"correction_lr": 0})


@pytest.fixture
def grown(first: GrowingStore, tmp_path: Path) -> GrowingStore:
    """A copy of the store; the zoo is shared, nothing of it may be damaged."""
    return first.copy(tmp_path / "store")


def versions(store: GrowingStore) -> list[str]:
    return [merge.version for merge in api.list_merges(**store.place)]


def test_a_tint_leaves_the_backbone_and_every_old_task_bit_for_bit(grown: GrowingStore) -> None:
    child = grown.add("five", "four")
    before, after = grown.hashes(grown.summary), grown.hashes(child)
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {"coefficients.safetensors"} | {
        name for name in after if "/five" in name or "/four" in name
    }
    assert child.parent == "tiny/v1"
    assert len(tintray.list_jobs(catalog=grown.place["catalog"])) == 2  # one for both tasks
    rows = tintray.load(child.url).coefficients
    assert not rows[2:].any() and rows[:2].all()


@pytest.mark.parametrize("mode", ["coefficients", "joint"])
def test_old_experts_are_not_needed(tiny: TinyZoo, tmp_path: Path, mode: str) -> None:
    grown = begun(tiny, tmp_path)
    for name in ("two", "three"):
        shutil.rmtree(grown.zoo.folder / name)
    child = grown.add("five", mode=mode)
    change: Any = grown.manifest(child).change
    assert change.mode == mode
    assert {task["task"] for task in change.guard["tasks"]} == {"two", "three"}
    old, new = tintray.load(grown.summary.url), tintray.load(child.url)
    assert new.coefficients[2].any()
    assert torch.equal(new.coefficients[:2], old.coefficients) == (mode == "coefficients")
    heads = [merge.tint("two")["classifier.weight"] for merge in (old, new)]
    assert not torch.equal(*heads)
    table = api.evaluate("tiny", **grown.place)
    assert [task.merged for task in table.tasks] == [task.merged for task in child.tasks]


@pytest.mark.parametrize("mode", ["tint", "coefficients"])
def test_removing_what_came_last_gives_the_merge_before(grown: GrowingStore, mode: str) -> None:
    one = grown.add("five", mode=mode)
    grown.add("four", mode=mode)
    back = grown.remove("four")
    assert grown.hashes(back) == grown.hashes(one)
    assert [task.merged for task in back.tasks] == [task.merged for task in one.tasks]


def test_the_guard_adds_up_what_changes_one_after_another_take(
    grown: GrowingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = [grown.manifest(grown.summary)]

    def worse(workers: Any, names: Any, theta: Any) -> list[TaskScore]:
        known = {task.name: task.score.merged for task in parents[-1].tasks}
        figures = {name: known[name] - 0.009 if name in known else 0.9 for name in names}
        return [TaskScore(n, "accuracy", figure, 1.0, 0.9, 48) for n, figure in figures.items()]

    monkeypatch.setattr(TintWorkerPool, "evaluate", worse)
    point = (*QUICK, "growth.target=0.01", "growth.tolerance=1")
    parents.append(grown.manifest(grown.add("five", mode="coefficients", overrides=point)))
    fitted = parents[1].tasks[0].fitted
    assert fitted is not None and fitted.version == "tiny/v1"
    assert fitted.value == parents[0].tasks[0].score.merged
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
    grown = begun(tiny, tmp_path, fit=fit | stopping)
    monkeypatch.setattr(fitting, "Coordinator", Heard)
    grown.add("five", mode="joint", overrides=(*EASY, "growth.coefficient_rounds=8"))
    (options,) = made
    assert options["in_turn"] and len(options["draws"].of_round(0)) == 2
    rates = [options["rates"](8).coefficients(round_) for round_ in range(8)]
    assert max(rates) == rates[3] > rates[0]  # warms up for as large a part of its rounds
    assert any("ended after round 2" in str(event) for event in grown.events)


def test_what_a_merge_keeps_or_lacks_is_said_in_its_result(tiny: TinyZoo, tmp_path: Path) -> None:
    grown = begun(tiny, tmp_path, "five", fit={"correction_lr": 1e-3})
    assert not grown.summary.notices
    child = grown.remove("five")
    (notice,) = child.notices
    assert "correction that tasks learned together stays" in notice and "from five too" in notice
    assert notice in " ".join(map(str, grown.events))
    far = ("--set", "growth.target=1", "--set", "growth.rounds=1", "--mode", "tint")
    said = call("add-task", "tiny", grown.file("four"), *far, *grown.words)
    assert said.code == 0
    assert "note: only the mode 'tint' was tried, and it is not enough: four agrees" in said.out
    newest = grown.manifest(api.show("tiny", **grown.place))
    assert notice in newest.notices  # of children too
    assert set(newest.correction_from or ()) == {"two", "three", "five"}


def test_removing_subtracts_a_task_exactly(grown: GrowingStore) -> None:
    """θ is that of base and task vectors without the removed one, whatever the order of adding."""
    grown.add("five", mode="coefficients")
    merge = tintray.load(grown.remove("two").url)
    assert merge.tasks == ("three", "five")
    hashes = [task.task_vector for task in merge.manifest.tasks]
    vectors = [load_file(grown.store / blob_key(sha256)) for sha256 in hashes]
    base = load_file(grown.zoo.folder / "base" / "model.safetensors")
    for column, unit in enumerate(merge.manifest.units):
        name = unit.name
        if name in base:  # others are spelt otherwise on disk
            rows = merge.coefficients[:, column].double()
            parts = [row * vector[name] for row, vector in zip(rows, vectors, strict=True)]
            expected = sum(parts, start=base[name].double())
            found = merge.backbone[name].double()
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_the_guard_refuses_what_harms_an_old_task(tiny: TinyZoo, tmp_path: Path) -> None:
    wild = begun(tiny, tmp_path, fit={"coefficient_lr": 2.0})
    strict = (*QUICK, "growth.tolerance=0")
    with pytest.raises(GuardError, match=r"nothing was published.*loses \d+\.\d points"):
        wild.add("five", mode="coefficients", overrides=strict)
    assert versions(wild) == ["v1"]


def test_auto_takes_the_cheapest_way_that_is_enough_and_says_why_not(
    grown: GrowingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cheap = grown.manifest(grown.add("five", mode="auto"))
    assert cheap.change and cheap.change.mode == "tint"
    hard = (*QUICK, "growth.target=1", "growth.tolerance=100")
    monkeypatch.setattr(guard, "WORTH", -1)  # whatever little a way gains, the next is tried
    change = grown.manifest(grown.add("four", mode="auto", overrides=hard)).change
    assert change is not None
    assert [tried["mode"] for tried in change.attempts] == ["tint", "coefficients", "joint"]
    assert "agrees with its expert on" in change.attempts[0]["short"]
    notices = " ".join(map(str, grown.events))
    assert "'tint' is not enough" in notices
    assert "no way is enough" in notices or change.agreement["four"] == 1


def test_auto_goes_no_further_when_the_costlier_way_gains_too_little(
    grown: GrowingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "WORTH", 100)
    child = grown.add("four", mode="auto", overrides=(*QUICK, "growth.target=1"))
    change = grown.manifest(child).change
    assert change is not None and change.mode == "tint"
    assert [tried["abandoned"] for tried in change.attempts] == [False, True]
    assert "'coefficients' has hardly gained; takes 'tint'" in " ".join(map(str, grown.events))
    assert child.tasks[0].merged == grown.summary.tasks[0].merged


def test_refresh_takes_another_expert_and_another_pool(grown: GrowingStore) -> None:
    pool = grown.zoo.arrays("three")
    np.savez(grown.zoo.folder / "more.npz", **{**pool, "x_train": pool["x_train"][:30]})
    child = grown.refresh("three", pool=str(grown.zoo.folder / "more.npz"))
    before, after = grown.hashes(grown.summary), grown.hashes(child)
    same = {name for name in before if before[name] == after[name]}
    assert {"backbone.safetensors", "tints/two.safetensors"} <= same
    assert "tints/three.safetensors" not in same
    other = save_altered(grown.zoo.folder / "three", "three-2", lambda _, t: t * 1.01)
    again = grown.refresh("three", expert=str(other), mode="coefficients")
    then, now = (grown.manifest(merge).tasks[1] for merge in (child, again))
    assert then.pool.examples == now.pool.examples == 30
    assert now.expert.source == str(other)
    assert now.expert.sha256 != then.expert.sha256 and now.task_vector != then.task_vector


def test_a_change_that_came_second_is_told_and_can_be_rebased(grown: GrowingStore) -> None:
    def meanwhile(event: Any) -> None:
        if isinstance(event, PhaseStarted) and event.phase == "fitting" and not came:
            came.append(grown.add("four"))

    came: list[MergeSummary] = []
    with pytest.raises(ParentChangedError, match=r"tiny/v2 was published by job tiny-.*--rebase"):
        grown.add("five", on_event=meanwhile)
    assert versions(grown) == ["v2", "v1"]
    came.clear()
    grown.remove("four")
    child = grown.add("five", on_event=meanwhile, rebase=True)
    assert child.parent == "tiny/v4"
    assert tintray.load(child.url).tasks == ("two", "three", "four", "five")


def test_the_difference_of_two_merges(grown: GrowingStore) -> None:
    grown.add("five")
    grown.add("four", mode="coefficients")
    moved = diff_merges("tiny/v2", "tiny/v3", catalog=grown.place["catalog"])
    changes = {task.task: task.change for task in moved.tasks}
    assert changes == dict.fromkeys(("two", "three", "five"), "changed") | {"four": "added"}
    assert any(layer.backbone > 0 and layer.coefficients > 0 for layer in moved.layers)


def test_a_version_that_was_removed_is_named_and_passed_over(grown: GrowingStore) -> None:
    """Its children are whole; what came before it can still be rolled back to."""
    where = grown.words
    grown.add("five")
    grown.add("four")
    assert call("delete", "tiny/v2", *where, "--json").document["children"] == ["tiny/v3"]
    assert call("artifacts", "verify", "tiny/v3", *where, "--json").document["damaged"] == []
    assert call("show", "tiny/v3", *where, "--json").document["parent"] == "tiny/v2"
    gone = "merge tiny/v2 was removed; of that name there are: tiny/v1, tiny/v3"
    for command in ("show", "eval", "delete", "rollback"):
        assert gone in call(command, "tiny/v2", *where).sentence
    assert gone in call("diff-merges", "tiny/v1", "tiny/v2", *where[2:]).sentence
    for back in ((), ("--to", "v2")):
        assert (
            "tiny/v2, which tiny/v3 grew from, was removed; it grew from tiny/v2 (removed), "
            "tiny/v1; --to tiny/v1 goes back" in call("rollback", "tiny", *back, *where).sentence
        )
    said = call("rollback", "tiny", "--to", "v9", *where).sentence
    assert "did not grow from tiny/v9; it grew from tiny/v2 (removed), tiny/v1" in said
    back = call("rollback", "tiny", "--to", "v1", *where, "--json").document
    assert (back["version"], back["parent"]) == ("v4", "tiny/v3")
    assert grown.hashes(api.show("tiny/v4", **grown.place)) == grown.hashes(grown.summary)
    tree = {v["ref"]: v for v in call("history", "tiny", *where, "--json").document}
    assert {ref: version["operation"] for ref, version in tree.items()} == dict(
        zip((f"tiny/v{n}" for n in range(1, 5)), ("merged", "add", "add", "rollback"), strict=True)
    )
    assert [ref for ref, version in tree.items() if version["removed"]] == ["tiny/v2"]
    assert tree["tiny/v3"]["parent"] == "tiny/v2"
    # what was merged in v1 is still known as such, behind the version that is gone
    assert call("remove-task", "tiny/v3", "four", *where, "--json").document["version"] == "v5"
    assert call("delete", "tiny/v1", *where, "--json").document["children"] == []
    assert "none of them is left" in call("rollback", "tiny/v3", *where).sentence


def test_bad_input_is_told_in_a_sentence_and_nothing_is_published(grown: GrowingStore) -> None:
    with pytest.raises(SpecError, match="task 'two' is in tiny/v1 already"):
        grown.add("two")
    with pytest.raises(SpecError, match=r"expected a different name .* found 'five', 'five'"):
        grown.add("five", "five")
    with pytest.raises(SpecError, match="expected a field of 'growth'"):
        grown.add("five", overrides=("fit.coefficient_lr=1",))
    with pytest.raises(NotFoundError, match=r"has no task 'tow' \(did you mean 'two'"):
        grown.remove("tow")
    with pytest.raises(NotFoundError, match=r"tiny/v1 has no task 'tow' \(did you mean 'two'"):
        grown.refresh("tow")
    with pytest.raises(InputError, match="would have no task left"):
        grown.remove("two", "three")
    path = grown.file("five")
    path.write_text(path.read_text().replace("expert", "exprt"))
    with pytest.raises(SpecError, match="exprt' is not a field"):
        growth.add("tiny", [path], **grown.place)
    assert versions(grown) == ["v1"]


def test_what_is_gone_is_named_before_anything_is_computed(tiny: TinyZoo, tmp_path: Path) -> None:
    grown = begun(tiny, tmp_path)
    labels = grown.manifest(grown.summary).tasks[0].pool.labels
    (grown.store / blob_key(labels)).unlink()
    with pytest.raises(NotFoundError, match=r"self-labels of task 'two' of tiny/v1 .* are gone"):
        grown.add("five", mode="joint")
    events: list[Any] = []
    five = grown.add(
        "five", mode="tint", on_event=events.append
    )  # which needs nothing of old tasks
    assert five.version == "v2"
    assert [(e.task, e.done, e.total) for e in events if isinstance(e, TintLearned)] == [
        ("five", 1, 1)
    ]
    lost = grown.store / blob_key(grown.hashes(grown.summary)["tints/two.safetensors"])
    lost.rename(lost.with_name("away"))
    events.clear()
    with pytest.raises(NotFoundError, match=r"tints/two\.safetensors of tiny/v2 .* copy it back"):
        grown.add("four", mode="tint", on_event=events.append)
    assert not events  # nothing was computed
    lost.with_name("away").rename(lost)
    grown.zoo.replace_arrays("three", x_test=grown.zoo.arrays("three")["x_test"][::-1])
    with pytest.raises(DataError, match=r"tasks\.three\.test: .* is not what the merge was publi"):
        grown.remove("two")  # the guard would compare with figures on other examples
    (grown.zoo.folder / "three.npz").unlink()
    with pytest.raises(DataError, match=r"tasks\.three\.pool: the data file .* does not exist"):
        grown.remove("two")


def test_an_unsure_expert_and_one_of_another_base_are_refused(grown: GrowingStore) -> None:
    five = grown.zoo.folder / "five"
    unsure = save_altered(five, "unsure", lambda n, t: t * 0.01 if n.startswith("class") else t)
    torch.manual_seed(7)
    other = save_altered(five, "o", lambda _, t: torch.randn_like(t) * 0.2 if t.ndim > 1 else t)
    for expert, said in (
        (unsure, "unsure of nearly every example of its pool"),
        (other, "was not fine-tuned from the base of this merge"),
    ):
        with pytest.raises(CheckpointError, match=said):
            growth.add("tiny", [grown.file("five", expert=str(expert))], **grown.place)
    assert versions(grown) == ["v1"]
