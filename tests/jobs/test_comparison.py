"""The rivals in the table are what their names say, worked out again here by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ViTForImageClassification

from tests.conftest import Published
from tests.tiny_zoo import TASKS, TinyZoo
from tests.workbench import Workbench, tiny_workbench
from tintray.data.reading import read_examples
from tintray.data.source import DataSource
from tintray.jobs import api
from tintray.jobs.results import CompareTable
from tintray.jobs.runs.compare import SCALES
from tintray.pools.preparing import build_pool


@pytest.fixture(scope="module")
def table(published: Published) -> CompareTable:
    return api.compare("tiny", store=published.spec.store, catalog=published.spec.catalog)


@pytest.fixture(scope="module")
def bench(tiny: TinyZoo) -> Workbench:
    return tiny_workbench(tiny)


def values(table: CompareTable, method: str) -> dict[str, float]:
    return {row.task: row.value for row in table.rows if row.method == method}


def merged_by_hand(tiny: TinyZoo, bench: Workbench, coefficient: float) -> dict[str, float]:
    """The metric of each task under θ₀ + c·Σ τ and its expert's head, plain transformers."""
    found = {}
    state = bench.base.state_dict()
    experts = [expert.state_dict() for expert in bench.experts.values()]
    theta = {
        name: tensor + coefficient * sum(expert[name] - tensor for expert in experts)
        for name, tensor in state.items()
        if name.startswith("vit.")
    }
    for task in TASKS:
        model = ViTForImageClassification.from_pretrained(tiny.folder / task)
        split = "train" if task == "four" else "test"
        raw = read_examples(DataSource(str(tiny.folder / f"{task}.npz"), split), task)
        images = build_pool(raw, processor(tiny, task)).batch(slice(None))["pixel_values"]
        with torch.inference_mode():
            expected = model(pixel_values=images).logits.argmax(-1)
            model.load_state_dict(theta, strict=False)
            classes = model(pixel_values=images).logits.argmax(-1)
        if task != "four":
            expected = torch.from_numpy(tiny.arrays(task)["y_test"])
        found[task] = (classes == expected).float().mean().item()
    return found


def processor(tiny: TinyZoo, task: str) -> object:
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(tiny.folder / task)


def test_there_is_a_row_of_every_method_for_every_task(table: CompareTable) -> None:
    methods = ("experts", "average", "task arithmetic", "merge")
    assert [(row.method, row.task) for row in table.rows] == [
        (method, task) for method in methods for task in TASKS
    ]
    assert {row.task: row.metric for row in table.rows} == dict.fromkeys(TASKS, "accuracy") | {
        "four": "agreement"
    }
    assert table.merge == "tiny/v1"
    assert set(table.averages) == set(table.normalised) == set(methods)
    assert table.normalised["experts"] == 1.0


def test_merge_and_experts_are_as_they_were_published(
    table: CompareTable, published: Published
) -> None:
    tasks = published.summary.tasks
    assert values(table, "merge") == {task.name: task.merged for task in tasks}
    assert values(table, "experts") == {task.name: task.expert or 1.0 for task in tasks}
    assert table.averages["merge"] == published.summary.average
    assert table.normalised["merge"] == published.summary.normalised_accuracy


def test_average_is_the_mean_of_the_experts_weights(
    table: CompareTable, tiny: TinyZoo, bench: Workbench
) -> None:
    assert values(table, "average") == merged_by_hand(tiny, bench, 1 / len(TASKS))


def test_task_arithmetic_is_at_the_scale_that_is_told(
    table: CompareTable, tiny: TinyZoo, bench: Workbench
) -> None:
    assert table.best_scale in SCALES
    assert values(table, "task arithmetic") == merged_by_hand(tiny, bench, table.best_scale)


def test_that_scale_agrees_best_with_the_experts_on_the_pools(
    table: CompareTable, bench: Workbench
) -> None:
    def agreement(scale: float) -> float:
        group = bench.group()
        group._fused.bind(bench.vectors.merge(bench.uniform(scale)), None)
        shares = []
        for layer, (name, pool) in zip(bench.layers(), bench.pools.items(), strict=True):
            with torch.inference_mode():
                (logits,) = group._fused.forward([pool.batch(slice(None))], [layer])
            expert = bench.labels[name]
            same = logits[:, : expert.shape[1]].argmax(-1) == expert.argmax(-1)
            shares.append(same.float().mean().item())
        return float(np.mean(shares))

    found = {scale: agreement(scale) for scale in SCALES}
    assert found[table.best_scale] == pytest.approx(max(found.values()))
    assert min(found.values()) < max(found.values())


def test_rivals_do_not_depend_on_the_merges_own_site(
    tiny: TinyZoo, table: CompareTable, tmp_path: Path
) -> None:
    tint, objective = {"site": "vit.layers.2", "rank": 2}, {"features": 1.0}
    spec = tiny.spec(tmp_path, tint=tint, objective=objective, fit={"rounds": 1})
    api.run(spec)
    other = api.compare("tiny", store=spec.store, catalog=spec.catalog)
    for method in ("experts", "average", "task arithmetic"):
        assert values(other, method) == values(table, method)
    assert other.best_scale == table.best_scale


def test_test_labels_do_not_choose_the_scale(
    tiny: TinyZoo, table: CompareTable, tmp_path: Path
) -> None:
    zoo = tiny.copy(tmp_path / "zoo")
    spec = zoo.spec(tmp_path / "store")
    api.run(spec)
    for task in TASKS:
        zoo.replace_arrays(task, y_test=np.zeros(48, int))
    other = api.compare("tiny", store=spec.store, catalog=spec.catalog)
    assert other.best_scale == table.best_scale
    assert values(other, "average") != values(table, "average")
