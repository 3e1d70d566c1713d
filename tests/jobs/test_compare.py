"""A merge beside its rivals: who is in the table, that each is what its name says, the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, ViTForImageClassification

from tests.answers import call
from tests.conftest import Published
from tests.tiny_zoo import TASKS, TinyZoo
from tintray.data.reading import read_examples
from tintray.data.source import DataSource
from tintray.errors import InputError
from tintray.jobs import api
from tintray.jobs.config.job_file import parse_spec
from tintray.jobs.events import Notice, ignore
from tintray.jobs.results import CompareTable
from tintray.jobs.runs.compare import choose
from tintray.merging import methods
from tintray.merging.scale_search import FACTOR
from tintray.pools.preparing import build_pool

LEARNED = {"adamerging", "adamerging task", "surgery"}
TWO = ("average", "task arithmetic")


@pytest.fixture(scope="module")
def table(published: Published) -> CompareTable:
    spec = published.spec
    return api.compare("tiny", store=spec.store, catalog=spec.catalog, methods=["all"])


def values(table: CompareTable, method: str) -> dict[str, float]:
    return {row.task: row.value for row in table.rows if row.method == method}


def by_hand(tiny: TinyZoo, coefficient: float, *, on_pools: bool) -> dict[str, float]:
    """The share of each task's examples on which θ₀ + c·Σ τ is right, by plain transformers.

    By labels, or by what the expert says where there are none or ``on_pools``.
    """
    named = {n: ViTForImageClassification.from_pretrained(tiny.folder / n) for n in TASKS}
    experts = [expert.state_dict() for expert in named.values()]
    base = ViTForImageClassification.from_pretrained(tiny.folder / "base").state_dict()
    theta = {
        name: tensor + coefficient * sum(expert[name] - tensor for expert in experts)
        for name, tensor in base.items()
        if name.startswith("vit.")
    }
    found = {}
    for task, model in named.items():
        unlabelled = on_pools or task == "four"
        source = DataSource(str(tiny.folder / f"{task}.npz"), "train" if unlabelled else "test")
        processor = AutoImageProcessor.from_pretrained(tiny.folder / task)
        images = build_pool(read_examples(source, task), processor).batch(slice(None))
        with torch.inference_mode():
            expected = model.eval()(**images).logits.argmax(-1)
            model.load_state_dict(theta, strict=False)
            classes = model(**images).logits.argmax(-1)
        if not unlabelled:
            expected = torch.from_numpy(tiny.arrays(task)["y_test"])
        found[task] = (classes == expected).float().mean().item()
    return found


def test_every_method_that_can_merge_so_many_is_in_the_table(table: CompareTable) -> None:
    names = {name.replace("_", " "): known for name, known in methods().items()}
    fitting = {name for name, known in names.items() if known.most is None}
    expected = fitting | {"experts", "merge"} | LEARNED
    metrics = dict.fromkeys(TASKS, "accuracy") | {"four": "agreement"}
    assert {(row.method, row.task, row.metric) for row in table.rows} == {
        (method, task, metric) for method in expected for task, metric in metrics.items()
    }
    assert table.averages.keys() == table.normalised.keys() == expected
    assert table.scales.keys() == {name for name, known in names.items() if known.tuned} | LEARNED
    assert table.best_scale == table.scales["task arithmetic"] == table.scales["adamerging"]


def test_merge_and_experts_are_as_they_were_published(
    table: CompareTable, published: Published
) -> None:
    tasks = published.summary.tasks
    assert values(table, "merge") == {task.name: task.merged for task in tasks}
    assert values(table, "experts") == {task.name: task.expert or 1.0 for task in tasks}
    assert (table.merge, table.averages["merge"]) == ("tiny/v1", published.summary.average)
    assert table.normalised["merge"] == published.summary.normalised_accuracy
    assert table.normalised["experts"] == 1.0


def test_average_and_task_arithmetic_are_what_their_names_say(
    table: CompareTable, tiny: TinyZoo
) -> None:
    for method, scale in zip(TWO, (1 / len(TASKS), table.best_scale or 0), strict=True):
        assert values(table, method) == by_hand(tiny, scale, on_pools=False)


def test_the_scale_agrees_best_with_the_experts_on_the_pools(
    table: CompareTable, tiny: TinyZoo
) -> None:
    best = table.best_scale or 0
    scales = [best * FACTOR**step for step in (-1, 0, 1)]
    found = {s: np.mean(list(by_hand(tiny, s, on_pools=True).values())) for s in scales}
    assert found[best] == pytest.approx(max(found.values()))
    assert min(found.values()) < max(found.values())


@pytest.mark.parametrize("name", ["average", "regmean", "emr", "model_stock", "ties"])
def test_a_rival_is_what_its_job_publishes(
    tiny: TinyZoo, published: Published, table: CompareTable, name: str
) -> None:
    merge = {"method": name, "scale": table.scales.get(name)}
    section = tiny.job(Path(published.spec.store), merge=merge) | {"name": "rival"}
    alone = api.run(parse_spec(section, folder=tiny.folder))
    found = {task.name: task.merged for task in alone.tasks}
    assert values(table, name.replace("_", " ")) == pytest.approx(found)


def test_rivals_depend_neither_on_the_merges_site_nor_on_test_labels(
    tiny: TinyZoo, table: CompareTable, tmp_path: Path
) -> None:
    zoo = tiny.copy(tmp_path / "zoo")
    tint, objective = {"sites": [{"site": "vit.layers.2", "rank": 2}]}, {"feature_weight": 1.0}
    spec = zoo.spec(tmp_path / "store", tint=tint, objective=objective, fit={"rounds": 1})
    api.run(spec)
    other = api.compare("tiny", store=spec.store, catalog=spec.catalog)
    assert list(other.averages) == ["experts", *TWO, "merge"]
    assert other.best_scale == table.best_scale
    for method in ("experts", *TWO):
        assert values(other, method) == values(table, method)
    for task in TASKS:
        zoo.replace_arrays(task, y_test=np.zeros(48, int))
    other = api.compare("tiny", store=spec.store, catalog=spec.catalog)
    assert other.best_scale == table.best_scale
    assert values(other, "average") != values(table, "average")


def test_what_cannot_be_a_rival_is_left_out_of_all_and_refused_by_name() -> None:
    told: list[Any] = []
    assert "slerp" not in choose(["all"], 4, told.append)
    assert told == [Notice("'slerp' merges 2 experts, not 4: left out")]
    assert "slerp" in choose(["all"], 2, ignore)
    for name, said in (("tise", "did you mean 'ties'"), ("slerp", "at most 2 experts, found 4")):
        with pytest.raises(InputError, match=said):
            choose(["ties", name], 4, ignore)


def test_the_command_shows_the_methods_that_are_asked_for_and_a_plot(
    published: Published, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    place = ("--store", published.spec.store, "--catalog", published.spec.catalog)
    plot = tmp_path / "methods.svg"
    names = "average,ties,magmax,emr,iso_c"
    shown = call("compare", "tiny", *place, "--methods", names, "--plot", plot)
    assert shown.code == 0, shown.err
    assert all(name in shown.out for name in ("experts", "iso c", "worst task"))
    assert plot.read_text().startswith("<?xml")
    found = call("compare", "tiny", *place, "--methods", "ties", "--json").document
    assert found["scales"].keys() == {"ties"}
    assert found["averages"].keys() == {"experts", "ties", "merge"}
