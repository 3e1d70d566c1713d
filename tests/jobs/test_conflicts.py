"""Which tasks fight: of merges and of jobs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import tintray
from tests.answers import call
from tests.tiny_zoo import TASKS, TinyZoo
from tintray.jobs.events import Notice, ignore
from tintray.jobs.watching.conflicts import compared, conflicts, left_out
from tintray.jobs.watching.report import report
from tintray.jobs.watching.states import before, published


@pytest.fixture(scope="module")
def merge(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> tintray.Merge:
    """A merge with a correction, and coefficients that are not alike."""
    fit = {"rounds": 8, "coefficient_lr": 0.05}
    return tintray.run(tiny.spec(tmp_path_factory.mktemp("store"), fit=fit))


def test_effects_are_those_of_leaving_a_task_out(tiny: TinyZoo, tmp_path: Path) -> None:
    """In first order: the smaller the step, the nearer the truth."""
    with before(tiny.spec(tmp_path / "store"), 40, ignore) as state:
        found, off = compared(state, 40, ignore), []
        for start in (1.0, 0.01):
            weights = state.coefficients.clone()
            for left, row in enumerate(found.effects):
                changed = weights.clone()
                changed[left] *= 1 - start
                theta = state.merged(changed)
                for task, effect in enumerate(row):
                    loss = found.losses[task]
                    true = state.step(state.names[task], theta, 40)[1] / loss - 1
                    off.append(abs(true / start - effect))
        whole, little = off[: len(off) // 2], off[len(off) // 2 :]
        assert max(little) < 0.02 < max(whole)


def test_a_merge_is_compared_as_it_is(merge: tintray.Merge) -> None:
    found = merge.conflicts(examples=40)
    assert (found.of, found.state, found.tasks) == (merge.ref, "the merge", list(TASKS))
    cosines, gradients = torch.tensor(found.cosine), torch.tensor(found.gradients)
    for square in (cosines, gradients):
        assert torch.allclose(square.diagonal(), torch.ones(4, dtype=square.dtype), atol=1e-5)
        assert torch.allclose(square, square.T, atol=1e-6)
    assert any(abs(share) > 1e-4 for share in found.correction)
    assert found.measured
    assert [of.layer for of in found.layers][:2] == ["vit.embeddings", "vit.layers.0"]
    assert found.split is not None and found.split.together is None
    known = report(merge.url).conflicts
    assert known is not None and known.to_json() == found.to_json()


def test_a_task_of_a_merge_is_left_out_in_truth(tiny: TinyZoo, tmp_path: Path) -> None:
    """Without the only task, and where nothing is corrected, what is left is the base."""
    fit = {"rounds": 2, "correction_lr": 0.0}
    merge = tintray.run(tiny.spec(tmp_path / "store", tasks=TASKS[:1], fit=fit))
    place = (merge.url, str(tmp_path / "store"), f"sqlite:///{tmp_path}/store/catalog.db")
    with published(*place, 40, ignore) as (state, _):
        loss = state.step("two", state.theta, 40)[1]
        base = state.step("two", state.merged(state.coefficients * 0), 40)[1]
        effects, correction = left_out(state, torch.tensor([loss]), 40)
    assert effects[0, 0] == pytest.approx(base / loss - 1, rel=1e-3)
    assert correction[0] == pytest.approx(0, abs=1e-4)


def test_what_fights_is_found_before_a_job(tiny: TinyZoo, tmp_path: Path) -> None:
    """An expert whose task vector is large and points away from another's is far from the rest."""
    zoo = tiny.copy(tmp_path / "zoo")
    _turn_away(zoo, "two", "five", 4.0)
    job = zoo.job_file(tmp_path / "store")
    found = call("conflicts", job, "--json").document
    names = found["tasks"]
    pair = names.index("two"), names.index("five")
    assert found["cosine"][pair[0]][pair[1]] < -0.9
    assert found["sign_conflict"][pair[0]][pair[1]] > 0.9
    assert [said.partition(" ")[0] for said in found["alone"]] == ["'five'"]
    assert ["five"] in found["split"]["groups"]
    assert found["split"]["apart"] > found["split"]["together"]
    shown = call("conflicts", job).out
    assert "warning: 'five' is far from the rest and may better stand alone" in shown
    assert not (tmp_path / "store" / "merges").exists()


def test_who_should_stand_alone_is_told_before_a_job(tiny: TinyZoo, tmp_path: Path) -> None:
    """By plan, validate and run alike; of a job whose tasks are alike nothing is told."""
    zoo = tiny.copy(tmp_path / "zoo")
    told = _told_of(zoo.job_file(tmp_path / "store"))
    assert told == ([], [])
    _turn_away(zoo, "two", "five", 4.0)
    told = _told_of(zoo.job_file(tmp_path / "store"))
    events: list[object] = []
    merge = tintray.run(zoo.spec(tmp_path / "store"), on_event=events.append)
    ran = [event.text for event in events if isinstance(event, Notice) and "far" in event.text]
    assert ran == told[0] == told[1]
    (sentence,) = ran
    assert sentence.startswith("task 'five' is far from the rest and may better stand alone: ")
    assert "times as long as the usual one; two merges" in sentence
    assert "two merges of 3 and 1 may keep more (two, three, four | five)" in sentence
    assert not any("far from the rest" in text for text in merge.manifest.notices)


def _told_of(job: Path) -> tuple[list[str], list[str]]:
    """What ``plan`` and ``validate`` say of tasks that are far from the rest."""
    planned = call("plan", job, "--calibrate", "0.1", "--json").document["notices"]
    checked = call("validate", job, "--json").document["notices"]
    return planned, [text for text in checked if "far from the rest" in text]


def _turn_away(zoo: TinyZoo, one: str, other: str, size: float) -> None:
    """Give ``other`` the opposite of the task vector of ``one``."""
    from safetensors.torch import load_file, save_file

    base, expert, changed = (
        load_file(zoo.folder / name / "model.safetensors") for name in ("base", one, other)
    )
    for name in changed:
        if not name.startswith("classifier"):
            changed[name] = base[name] - size * (expert[name] - base[name])
    save_file(changed, zoo.folder / other / "model.safetensors", {"format": "pt"})


def test_a_split_can_be_tried(merge: tintray.Merge, tmp_path: Path) -> None:
    found = merge.conflicts(examples=20, try_rounds=2).split
    assert found is not None and found.together is not None and found.apart is not None
    assert 0 < found.together < 2 and 0 < found.apart < 2
    assert found.how.endswith("after 2 rounds")


def test_a_job_is_named_by_its_id(merge: tintray.Merge) -> None:
    store = merge.url.partition("/merges/")[0]
    job = merge.manifest.job_id
    found = call("conflicts", job, "--store", store, "--examples", 8, "--json").document
    assert (found["of"], found["state"]) == ("tiny", "the average of the experts")


def test_what_cannot_be_compared(tiny: TinyZoo, merge: tintray.Merge, tmp_path: Path) -> None:
    store = merge.url.partition("/merges/")[0]
    assert "did you mean 'tiny'" in call("conflicts", "tiny2", "--store", store).sentence
    assert "no.yaml: expected a job file" in call("conflicts", tmp_path / "no.yaml").sentence
    ties = tintray.run(tiny.spec(tmp_path / "store", tasks=TASKS[:2], merge={"method": "ties"}))
    with pytest.raises(tintray.InputError, match="no sum of task vectors; give its job file"):
        ties.conflicts()
    shutil.copytree(Path(store.removeprefix("file://")) / "merges/tiny/v1", tmp_path / "copy")
    assert "a copy outside of a store" in call("conflicts", tmp_path / "copy").sentence


def test_one_task_fights_nobody(tiny: TinyZoo, tmp_path: Path) -> None:
    merge = tintray.run(tiny.spec(tmp_path / "store", tasks=TASKS[:1]))
    found = conflicts(merge.url, store=str(tmp_path / "store"), examples=8)
    assert (found.groups, found.alone, found.split) == ([["two"]], [], None)
    assert call("conflicts", merge.url, "--store", tmp_path / "store").code == 0
