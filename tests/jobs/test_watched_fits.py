"""A fit keeps examples back, is judged by them, and publishes the state that did best there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tintray
from tests.answers import call
from tests.tiny_zoo import POOL, TASKS, TinyZoo
from tests.workbench import tiny_workbench, workbench
from tintray.errors import DataError
from tintray.jobs.config.job_file import JobSpec, parse_spec
from tintray.jobs.events import RoundDone
from tintray.jobs.runs.floor import LOOKS, SHARE, plan_search
from tintray.numerics.layout import build_layout
from tintray.pools.held_back import MOST, held_back_count, split_pool
from tintray.published.manifest import Manifest
from tintray.published.merge import Merge
from tintray.storage.catalog.catalog import Catalog
from tintray.tinting.self_labels import predict


def fitted(spec: JobSpec) -> tuple[Manifest, list[RoundDone]]:
    """What a job publishes, and its rounds."""
    events: list[Any] = []
    merge = tintray.run(spec, on_event=events.append)
    return merge.manifest, [event for event in events if isinstance(event, RoundDone)]


def test_nothing_is_learned_from_what_is_held_back(tiny: TinyZoo, tmp_path: Path) -> None:
    """Other images in its place: the same merge, which agrees less with the expert on them."""
    zoo = tiny.copy(tmp_path / "zoo")
    fit = {"held_back": 8, "rounds": 30}
    before, _ = fitted(zoo.spec(tmp_path / "before", ("five", "three"), fit=fit))
    held = split_pool(POOL, 8, 0, "five")[1].numpy()
    images = zoo.arrays("five")["x_train"]
    images[held] = np.random.default_rng(0).integers(0, 256, images[held].shape)
    zoo.replace_arrays("five", x_train=images)
    after, _ = fitted(zoo.spec(tmp_path / "after", ("five", "three"), fit=fit))
    assert after.files["backbone.safetensors"] == before.files["backbone.safetensors"]
    assert after.files["tints/five.safetensors"] == before.files["tints/five.safetensors"]
    agreed = [manifest.tasks[0].held_back for manifest in (before, after)]
    assert agreed[0] != agreed[1]
    assert after.tasks[1].held_back == before.tasks[1].held_back


def test_it_is_told_in_events_status_rounds_and_result(tiny: TinyZoo, tmp_path: Path) -> None:
    spec = tiny.spec(tmp_path, ("five", "three"), fit={"held_back": 8})
    manifest, rounds = fitted(spec)
    last = rounds[-1].held_back
    assert list(last) == ["five", "three"]
    assert {task.name: task.held_back for task in manifest.tasks} == last
    where = ("--catalog", str(spec.catalog))
    status = call("status", manifest.job_id, *where, "--json").document
    assert {task["name"]: task["held_back"] for task in status["tasks"]} == last
    assert "held back" in call("status", manifest.job_id, *where).out
    with Catalog.open(spec.catalog, create=False) as catalog:
        assert catalog.jobs.rounds(manifest.job_id)[-1].metrics["held_back"] == last
    shown = call("show", manifest.ref, "--store", str(tmp_path), *where).out
    mean = sum(last.values()) / 2
    assert f"{100 * mean:.1f} % agreement with the experts on examples not learned" in shown


def test_of_a_small_pool_nothing_is_held_back_unless_asked(tiny: TinyZoo, tmp_path: Path) -> None:
    """It is watched as a whole, which is no figure to publish."""
    manifest, rounds = fitted(tiny.spec(tmp_path, ("five", "three")))
    assert [bool(event.held_back) for event in rounds] == [False, False, False, True]
    assert [task.held_back for task in manifest.tasks] == [None, None]
    with pytest.raises(
        DataError, match=rf"tasks\.five\.pool: expected more examples than the {POOL}"
    ):
        fitted(tiny.spec(tmp_path, ("five", "three"), fit={"held_back": POOL}))
    unwatched, rounds = fitted(tiny.spec(tmp_path, ("five", "three"), fit={"held_back": 0}))
    assert not any(event.held_back for event in rounds)
    assert unwatched.files["backbone.safetensors"] == manifest.files["backbone.safetensors"]


# The floor


def agreed(zoo: TinyZoo, tasks: Mapping[str, str], merge: Merge) -> dict[str, float]:
    """Mean agreement on what is watched: of a merge, and of two that need no learning.

    ``tasks`` name the expert of each, whose pool has the same name. Whole models are compared, with
    none of the job's code.
    """
    bench = workbench(zoo.folder, {name: zoo.folder / f"{name}.npz" for name in {*tasks.values()}})
    count = len(tasks)
    names = [slot.name for slot in bench.layout.slots]
    base = {name: bench.base.get_parameter(name).detach() for name in names}
    total = {
        name: sum(bench.experts[of].get_parameter(name).detach() - base[name] for of in
                  tasks.values()) for name in names
    }  # fmt: skip
    found: dict[str, list[float]] = {"merge": [], "average": [], "task arithmetic": []}
    for task, of in tasks.items():
        pool, expert = bench.pools[of], bench.experts[of]
        held = held_back_count(len(pool), None) or min(len(pool), MOST)
        watched = pool[split_pool(len(pool), held, 0, task)[1]]
        wanted = predict(expert, watched).argmax(1)
        models = {"merge": merge.for_task(task)}
        for name, scale in (("average", 1 / count), ("task arithmetic", 0.3)):
            models[name] = copy.deepcopy(expert)
            moved = {key: base[key] + scale * total[key] for key in names}
            models[name].load_state_dict(moved, strict=False)
        for name, model in models.items():
            same = predict(model, watched).argmax(1) == wanted
            found[name].append(float(same.float().mean()))
    return {name: sum(each) / count for name, each in found.items()}


def with_pool(zoo: TinyZoo, name: str, rows: Any) -> None:
    arrays = zoo.arrays(name)
    images, labels = ([arrays[f"{of}_train"], arrays[f"{of}_test"]] for of in "xy")
    both = np.concatenate(images), np.concatenate(labels)
    chosen = rows(*both) if callable(rows) else np.arange(rows) % len(both[0])
    zoo.replace_arrays(name, x_train=both[0][chosen], y_train=both[1][chosen])


def with_pools(zoo: TinyZoo, examples: int) -> None:
    for name in TASKS:
        with_pool(zoo, name, examples)


def with_expert(zoo: TinyZoo, name: str, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Give a task another expert: each tensor of the backbone from the base's and its own."""
    base, own = (load_file(zoo.folder / of / "model.safetensors") for of in ("base", name))
    changed = {key: change(base[key], own[key]) if key in base else own[key] for key in own}
    kept = {key: own[key] if key.startswith("classifier") else changed[key] for key in own}
    save_file(kept, zoo.folder / name / "model.safetensors", metadata={"format": "pt"})


def one_class(zoo: TinyZoo) -> None:
    with_pool(zoo, "five", lambda images, labels: np.flatnonzero(labels == 0))


def contradicting(zoo: TinyZoo) -> None:
    """One task vector is the other's opposite."""
    other = load_file(zoo.folder / "three" / "model.safetensors")
    base = load_file(zoo.folder / "base" / "model.safetensors")
    own = load_file(zoo.folder / "five" / "model.safetensors")
    opposite = {
        key: own[key] if key.startswith("classifier") else 2 * base[key] - other[key] for key in own
    }
    save_file(opposite, zoo.folder / "five" / "model.safetensors", metadata={"format": "pt"})


def random_expert(zoo: TinyZoo) -> None:
    generator = torch.Generator().manual_seed(0)
    with_expert(zoo, "five", lambda base, own: 0.2 * torch.randn(own.shape, generator=generator))


CASES: dict[str, tuple[Callable[[TinyZoo], None], tuple[str, ...]]] = {
    "pools of 5": (lambda zoo: with_pools(zoo, 5), TASKS),
    "pools of 20": (lambda zoo: with_pools(zoo, 20), TASKS),
    "pools of 100": (lambda zoo: with_pools(zoo, 100), TASKS),
    "a pool of one class": (one_class, TASKS),
    "one task twice": (lambda zoo: None, ("five", "three", "five")),
    "tasks that contradict each other": (contradicting, ("five", "three")),
    "a random expert": (random_expert, TASKS),
    "two tasks": (lambda zoo: None, ("two", "four")),
    "two hundred tasks": (lambda zoo: with_pools(zoo, 5), TASKS * 50),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] * case.startswith("two hundred"))
        for case in CASES
    ],
)
def test_the_same_job_ends_above_what_needs_no_learning(
    tiny: TinyZoo, tmp_path: Path, case: str
) -> None:
    change, experts = CASES[case]
    zoo = tiny.copy(tmp_path / "zoo")
    change(zoo)
    tasks = {f"{of}{n}" if n >= len(TASKS) or experts.index(of) != n else of: of
             for n, of in enumerate(experts)}  # fmt: skip
    job = zoo.job(tmp_path / "store", fit={"rounds": 3 if len(tasks) > 100 else 20, "floor": True})
    job["tasks"] = [{**zoo.task(of), "name": name, "test": None} for name, of in tasks.items()]
    merge = tintray.run(parse_spec(job, folder=zoo.folder))
    found = agreed(zoo, tasks, merge)
    examples = sum(min(len(zoo.arrays(of)["x_train"]), 10) for of in tasks.values())
    assert found["merge"] >= max(found.values()) - 0.002 - 1 / examples, found
    assert merge.manifest.floor is not None
    assert merge.manifest.floor.agreement <= found["merge"] + 0.002 + 1 / examples


def test_what_learned_too_little_gives_way_to_what_needs_no_learning(
    tiny: TinyZoo, tmp_path: Path
) -> None:
    """Rates that are far too high; a prompt and a correction are learned, too."""
    fit = {"rounds": 6, "tint_lr": 3.0, "coefficient_lr": 1.0, "correction_lr": 1e-2}
    sections: dict[str, Any] = {"tint": {"sites": ["prompt", "head"]}}
    learned, _ = fitted(tiny.spec(tmp_path / "learned", fit=fit, **sections))
    manifest, _ = fitted(tiny.spec(tmp_path / "floor", fit={**fit, "floor": True}, **sections))
    floor = manifest.floor
    assert floor is not None
    assert floor.taken
    assert floor.agreement > floor.learned
    assert "task arithmetic at scale" in "".join(manifest.notices)
    assert not manifest.corrected
    assert learned.corrected
    merge = tintray.load(f"{tmp_path}/floor/merges/{manifest.ref}")
    bench = tiny_workbench(tiny)
    for slot in bench.layout.slots:
        base = bench.base.get_parameter(slot.name).detach()
        experts = (of.get_parameter(slot.name).detach() for of in bench.experts.values())
        wanted = base + floor.scale * sum(expert - base for expert in experts)
        assert torch.allclose(merge.backbone[slot.name], wanted, atol=1e-5)
    own = merge.tensors("tints/five.safetensors")
    assert torch.equal(own["classifier.weight"], bench.experts["five"].classifier.weight)
    assert not any(tensor.any() for name, tensor in own.items() if name.endswith("low_rank.up"))
    assert merge.tensors("coefficients.safetensors")["coefficients"].unique().numel() == 1


@pytest.mark.parametrize(
    ("rounds", "methods", "examples"),
    [(1, 1, 16), (60, 2, 16), (300, 5, 29), (9000, 5, 256)],
)
def test_what_the_search_for_a_floor_tries_follows_from_what_the_fit_takes(
    rounds: int, methods: int, examples: int
) -> None:
    """Ten tasks, 16 examples of each in a round; passes of 65 tokens."""
    layout = build_layout({f"layer.{n}.w": (128, 128) for n in range(12)})
    forward = 65.0 * 2 * layout.numel
    operations = SHARE * 3 * rounds * 160 * forward
    watched = min(256, max(32, rounds * 2))
    budget = plan_search(operations, forward, layout, 10, watched)
    assert (len(budget.methods), budget.examples) == (methods, examples)
    assert budget.methods[0] == "task_arithmetic"
    if rounds > 1:
        looks = LOOKS * 10 * budget.examples * len(budget.methods)
        assert (looks + 10 * watched) * forward < operations
