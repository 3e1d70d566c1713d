"""On a GPU: rounds and whole jobs are those in memory, but for rounding.

Skipped where torch finds no GPU. With TINTRAY_TEST_GPUS=1 the jobs of the other tests compute on
it as well: see ``tests/tiny_zoo.py``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tintray
from tests.growing import GrowingStore
from tests.tintray.test_merging_methods import ALL, few, layer
from tests.tiny_zoo import TASKS, TinyZoo
from tests.workbench import SETTINGS, Workbench, tiny_workbench
from tintray.jobs import api
from tintray.jobs.results import MergeSummary
from tintray.jobs.runs.evaluate import evaluate
from tintray.merging import methods, recipe
from tintray.merging.apply import directions
from tintray.models.structure import copy_on
from tintray.numerics.precision import resolve
from tintray.pools.feeding import batches_on
from tintray.tinting.self_labels import predict, predict_features
from tintray.tinting.stacked_step import StackedGroup, form_group

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")

ROUNDS = 5  # the first loads kernels, the second records them
WHOLE: dict[str, Any] = {
    "tint": {"sites": "vit.layers.2"},
    "fit": {"rounds": 6, "groups": 2, "correction_lr": 1e-4},
}


@pytest.mark.parametrize(
    ("site", "rank"), [("head", None), ("vit.layers.2", None), ("vit.layers.2", 2)]
)
def test_rounds_are_those_in_memory(tiny: TinyZoo, site: str, rank: int | None) -> None:
    bench = tiny_workbench(tiny, site=site, rank=rank)
    near, there = rounds(bench, "cpu"), rounds(bench, "cuda")
    assert near.keys() == there.keys()
    for name, tensor in near.items():
        # Attention does not depend on a key's bias: its gradient is rounding, and Adam's steps too.
        if not name.endswith("k_proj.bias"):
            assert torch.allclose(there[name], tensor, rtol=1e-3, atol=1e-5), name


def rounds(bench: Workbench, device: str) -> dict[str, Tensor]:
    """What a few rounds give: Λ's gradients, and the tints at the end."""
    vectors = bench.vectors_on(device)
    group = bench.group(replace(SETTINGS, filter="agreement"), device=device)
    group = form_group(group.tasks, group._fused, group._gradient, group._settings)
    assert isinstance(group, StackedGroup) == (device != "cpu")
    found = {}
    for round_ in range(ROUNDS):
        gradient = group.step(vectors.merge(bench.uniform(0.3)), round_, 1e-3).gradient
        assert gradient.device.type == device
        found[f"gradient {round_}"] = vectors.project(gradient).cpu()
    for state in group.tasks:
        tensors = {f"{state.name} {n}": t.detach() for n, t in state.layer.tensors.items()}
        assert {tensor.device.type for tensor in tensors.values()} == {device}
        found |= {name: tensor.cpu() for name, tensor in tensors.items()}
    return found


@pytest.fixture(scope="module")
def in_memory(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> MergeSummary:
    cluster = {"gpus_per_worker": 0}
    return api.run(tiny.spec(tmp_path_factory.mktemp("memory"), cluster=cluster, **WHOLE))


@pytest.mark.parametrize(
    ("workers", "gpus"),
    [(0, 1), (0, 0.5), *(pytest.param(1, n, marks=pytest.mark.slow) for n in (1, 0.5))],
)
def test_a_job_gives_the_merge_that_it_gives_in_memory(
    tiny: TinyZoo, tmp_path: Path, in_memory: MergeSummary, workers: int, gpus: float
) -> None:
    """In this process, and on a Ray worker with a shard beside it; in the memory planned."""
    cluster = {"workers": workers, "gpus_per_worker": gpus}
    spec = tiny.spec(tmp_path, cluster=cluster, **WHOLE)
    torch.cuda.reset_peak_memory_stats()
    summary = api.run(spec)
    assert torch.cuda.max_memory_reserved() <= api.plan(spec).card_bytes
    assert same_answers(summary, in_memory)
    for here, there in zip(in_memory.tasks, summary.tasks, strict=True):
        assert there.agreement == pytest.approx(here.agreement, abs=0.03)  # an image of 40


def there_and_here(tiny: TinyZoo, folder: Path, **parts: Any) -> list[MergeSummary]:
    """The same job on a GPU and in memory."""
    return [
        api.run(tiny.spec(folder / str(gpus), cluster={"gpus_per_worker": gpus}, **parts))
        for gpus in (1, 0)
    ]


def same_answers(one: MergeSummary, other: MergeSummary) -> bool:
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first, second = (
            [tintray.load(merge.url).for_task(task)(pixel_values=images).logits for task in TASKS]
            for merge in (one, other)
        )
    return all(torch.allclose(*pair, atol=1e-2) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_task_vectors_in_other_formats_lie_on_the_gpu(
    tiny: TinyZoo, tmp_path: Path, format: str
) -> None:
    """The same job with the same format in memory."""
    parts: dict[str, Any] = {"fit": {"rounds": 3}, "merge": {"task_vectors": format}}
    assert same_answers(*there_and_here(tiny, tmp_path, **parts))


def test_passes_compute_in_bfloat16_where_the_job_does_not_say(
    tiny: TinyZoo, tmp_path: Path
) -> None:
    assert resolve("auto", "cuda") == "bfloat16"
    cluster = {"gpus_per_worker": 1}
    rough, precise = (
        api.run(tiny.spec(tmp_path / name, fit={"rounds": 6, "precision": name}, cluster=cluster))
        for name in ("auto", "float32")
    )
    for one, other in zip(rough.tasks, precise.tasks, strict=True):
        assert one.agreement == pytest.approx(other.agreement, abs=0.06)  # two images of 40


def test_experts_answer_there_as_in_memory(tiny: TinyZoo) -> None:
    """Images in bytes, and more passes than are made ready beforehand."""
    bench = tiny_workbench(tiny)
    expert, pool = bench.experts["five"], bench.pools["five"]
    for examples in (1, 7, 64):
        batches = list(batches_on(pool, "cuda", examples))
        pixels = torch.cat([batch["pixel_values"] for batch in batches])
        assert pixels.device.type == "cuda"
        assert torch.allclose(pixels.cpu(), pool.batch(slice(0, len(pool)))["pixel_values"])
    there = copy_on(expert, "cuda")
    assert {p.device.type for p in expert.parameters()} == {"cpu"}
    found = predict(there, pool, device="cuda")
    assert found.device.type == "cpu" and not found.is_pinned()
    assert torch.allclose(found, bench.labels["five"], rtol=1e-3, atol=1e-4)
    rough = predict(there, pool, device="cuda", precision="bfloat16")
    assert torch.allclose(rough, found, rtol=0.05, atol=0.1)
    path = "vit.layers.1"
    near, far = (
        predict_features(module, pool, path, device=device)
        for module, device in ((expert, "cpu"), (there, "cuda"))
    )
    assert far.device.type == "cpu" and torch.allclose(near, far, rtol=1e-3, atol=1e-4)


def test_a_merge_is_measured_and_grows_there(tiny: TinyZoo, tmp_path: Path) -> None:
    """Beside the same in memory; a tint is learned on activations that were computed there."""
    found = []
    for gpus in (0, 1):
        grown = GrowingStore(tiny, tmp_path / str(gpus))
        sections = {
            "fit": {"held_back": 8, "correction_lr": 0.0},
            "tint": {"sites": "vit.layers.2"},
        }
        grown.run("two", "three", **sections, cluster={"gpus_per_worker": gpus})
        merge = tintray.load(grown.summary.url)
        measured = evaluate(merge, str(grown.store), lambda event: None)
        known = {task.name: task.merged for task in grown.summary.tasks}
        assert {task.name: task.merged for task in measured.tasks} == pytest.approx(known, abs=0.03)
        figures = [known]
        for mode, task in (("tint", "five"), ("joint", "four")):
            child = grown.add(task, mode=mode)
            figures.append({task.name: task.agreement for task in child.tasks})
        found.append(figures)
    for near, there in zip(*found, strict=True):
        assert there == pytest.approx(near, abs=0.1)


def test_sites_are_searched_there(tiny: TinyZoo, tmp_path: Path) -> None:
    spec = tiny.spec(
        tmp_path, tint={"sites": "auto"}, fit={"rounds": 6}, cluster={"gpus_per_worker": 1}
    )
    assert api.run(spec).site


@pytest.mark.parametrize("name", [name for name in ALL if methods()[name].own is None])
def test_a_method_gives_the_directions_that_it_gives_in_memory(name: str) -> None:
    given, known = layer((96, 64), few(name)), recipe(name)
    here, there = directions(given, known), directions(given.on("cuda"), known)
    assert there.device.type == "cuda"
    scale = float(here.abs().max())
    assert torch.allclose(there.cpu(), here, atol=1e-3 * scale, rtol=1e-2)


@pytest.mark.parametrize("init", ["ties", "regmean", "featcal"])
def test_a_fit_starts_there_from_a_method(tiny: TinyZoo, tmp_path: Path, init: str) -> None:
    """A shard takes up directions, after it has merged and recorded that."""
    both = there_and_here(tiny, tmp_path, merge={"init": init}, fit={"rounds": 3})
    assert same_answers(*both)


@pytest.mark.parametrize("method", ["ties", "emr", "fisher", "regmean", "tsv_m", "featcal"])
def test_methods_measure_and_merge_there(tiny: TinyZoo, tmp_path: Path, method: str) -> None:
    assert same_answers(*there_and_here(tiny, tmp_path, merge={"method": method}))


def test_surgery_learns_there(tiny: TinyZoo, tmp_path: Path) -> None:
    """A module learns for a thousand steps: what it brings is near, its numbers need not be."""
    there, here = (
        api.run(
            tiny.spec(
                tmp_path / str(gpus),
                merge={"method": "surgery"},
                cluster={"gpus_per_worker": gpus},
            )
        )
        for gpus in (1, 0)
    )
    for one, other in zip(there.tasks, here.tasks, strict=True):
        assert one.agreement == pytest.approx(other.agreement, abs=0.06)  # two images of 40
