"""A job from its file to its published merge, and everything that can be asked of it after."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

import tintray
from tests import conftest
from tests.growing import hashes
from tests.tiny_zoo import CLASSES, GPUS, POOL, TASKS, TEST, TinyZoo, comparable
from tintray.data.reading import read_examples
from tintray.jobs import api
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.events import (
    Evaluated,
    JobChecked,
    Notice,
    PhaseStarted,
    Published,
    RoundDone,
    TaskPrepared,
)
from tintray.pools.preparing import build_pool
from tintray.published.merge import Merge
from tintray.storage.catalog.catalog import Catalog

STAGES = ["planning", "preparing", "fitting", "evaluating", "publishing"]


def learned(url: str) -> dict[str, str]:
    """sha256 by name of what the fit decides."""
    decided = ("backbone", "coefficients", "tints/")
    return {name: sha for name, sha in hashes(url).items() if name.startswith(decided)}


def expert_of(tiny: TinyZoo, task: str) -> Any:
    return AutoModelForImageClassification.from_pretrained(tiny.folder / task)


def pixels(spec: JobSpec, merge: Merge, task: str) -> torch.Tensor:
    """A task's test images as its own processor prepares them."""
    source = next(t.test or t.pool for t in spec.tasks if t.name == task)
    pool = build_pool(read_examples(source.source(), task), merge.processor(task))
    return pool.batch(slice(None))["pixel_values"]


# What a run leaves behind


def test_a_merge_is_a_folder_of_exactly_what_its_manifest_lists(
    published: conftest.Published,
) -> None:
    folder = published.folder
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    assert files.pop("manifest.json")
    found = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert found == hashes(published.summary.url)
    expected = {"backbone.safetensors", "coefficients.safetensors"}
    for task in TASKS:
        expected |= {f"tints/{task}.safetensors", f"configs/{task}/config.json"}
        expected |= {f"configs/{task}/preprocessor_config.json", f"routing/{task}.safetensors"}
        expected.add(f"references/{task}.safetensors")
    assert found.keys() == expected


def test_the_catalog_knows_job_and_merge(published: conftest.Published) -> None:
    summary = published.summary
    with Catalog.open(published.spec.catalog, create=False) as catalog:
        merge = catalog.merges.find("tiny")
        assert (merge.name, merge.version, merge.url) == ("tiny", 1, summary.url)
        assert merge.job_id == summary.job_id
        assert merge.metrics["normalised_accuracy"] == summary.normalised_accuracy
        known = {name: ref.sha256 for name, ref in catalog.merges.files(merge).items()}
        assert known == hashes(summary.url)
        told = [event for event in published.events if isinstance(event, RoundDone)]
        rounds = [(row.round, row.metrics["loss"]) for row in catalog.jobs.rounds(summary.job_id)]
        assert rounds == [(n, event.loss) for n, event in enumerate(told, start=1)]
        assert len(rounds) == 4


def test_events_tell_the_job_in_order(published: conftest.Published) -> None:
    events = published.events
    assert [event.phase for event in events if isinstance(event, PhaseStarted)] == STAGES
    others = [event for event in events if not isinstance(event, PhaseStarted)]
    each = [JobChecked] + [TaskPrepared] * 4 + [RoundDone] * 4 + [Evaluated] * 4 + [Published]
    assert [type(event) for event in others] == each
    for number, (prepared, round_) in enumerate(
        zip(others[1:5], others[5:9], strict=True), start=1
    ):
        assert (prepared.done, prepared.total, prepared.cached) == (number, 4, False)
        assert round_.agreement.keys() == round_.selected_fraction.keys() == set(TASKS)
    assert events[-1].url == published.summary.url


def test_every_task_is_judged_on_the_data_that_it_has(published: conftest.Published) -> None:
    found = {task.name: task for task in published.summary.tasks}
    assert list(found) == list(TASKS)
    for name, task in found.items():
        labelled = name != "four"
        assert task.metric == ("accuracy" if labelled else "agreement")
        assert task.test_examples == (TEST if labelled else POOL)
        assert (task.expert is not None) == labelled
        head = 17 * CLASSES[name]  # 16 inputs and a bias for each class
        rank, left = divmod(task.tint_parameters - head, 17 + 16)  # 17 positions of width 16
        assert rank >= 1 and left == 0
    assert found["four"].merged == found["four"].agreement == found["four"].normalised


def test_scores_are_those_of_the_published_files(
    published: conftest.Published, tiny: TinyZoo
) -> None:
    """Measured here by hand: plain transformers models over the raw test images."""
    merge = tintray.load(published.summary.url)
    for task in published.summary.tasks[:3]:
        labels = torch.from_numpy(tiny.arrays(task.name)["y_test"])
        images, expert = pixels(published.spec, merge, task.name), expert_of(tiny, task.name)
        for model, value in ((merge.for_task(task.name), task.merged), (expert, task.expert)):
            with torch.inference_mode():
                classes = model(pixel_values=images).logits.argmax(-1)
            assert (classes == labels).float().mean().item() == value


def test_the_fit_brings_the_merge_nearer_to_its_experts(
    tiny: TinyZoo, published: conftest.Published, tmp_path: Path
) -> None:
    long = api.run(tiny.spec(tmp_path, fit={"rounds": 80}))
    before, after = (
        np.mean([task.agreement for task in of.tasks]) for of in (published.summary, long)
    )
    assert after > before + 0.03


# What can be asked of it


def test_eval_reproduces_the_scores_exactly(published: conftest.Published) -> None:
    spec, summary = published.spec, published.summary
    events: list[object] = []
    table = api.evaluate("tiny", store=spec.store, catalog=spec.catalog, on_event=events.append)
    assert comparable(table.tasks) == comparable(summary.tasks)
    found, told = (
        (of.average, of.expert_average, of.normalised_accuracy) for of in (table, summary)
    )
    assert found == (pytest.approx(told, abs=0.02) if GPUS else told)
    assert sum(isinstance(event, Evaluated) for event in events) == 4


def test_show_and_load_understand_every_name(published: conftest.Published) -> None:
    spec, summary = published.spec, published.summary
    for name in ("tiny", "tiny/v1", "latest", summary.url, str(published.folder)):
        assert api.show(name, store=spec.store, catalog=spec.catalog).tasks == summary.tasks
        assert tintray.load(name, catalog=spec.catalog).tasks == TASKS


def test_an_export_answers_exactly_as_the_merge(
    tiny: TinyZoo, published: conftest.Published, tmp_path: Path
) -> None:
    spec = published.spec
    merge = tintray.load(published.summary.url)
    for task in TASKS:
        folder = api.export("tiny", task, tmp_path / task, store=spec.store, catalog=spec.catalog)
        model = AutoModelForImageClassification.from_pretrained(folder)
        images = pixels(spec, merge, task)
        with torch.inference_mode():
            exported = model(pixel_values=images).logits
            merged = merge.for_task(task)(pixel_values=images).logits
        assert torch.equal(exported, merged), task
        processor = AutoImageProcessor.from_pretrained(folder)
        assert processor.to_dict() == merge.processor(task).to_dict()
        assert model.config.id2label == expert_of(tiny, task).config.id2label


# The same again


def test_a_second_run_recomputes_nothing_and_publishes_the_same(
    tiny: TinyZoo, tmp_path: Path
) -> None:
    spec = tiny.spec(tmp_path)
    first, events = api.run(spec), []
    second = api.run(spec, on_event=events.append)
    assert (first.version, second.version) == ("v1", "v2")
    assert hashes(second.url) == hashes(first.url)
    assert all(event.cached for event in events if isinstance(event, TaskPrepared))
    assert [event.text for event in events if isinstance(event, Notice)] == [
        "self-labels of 4 of 4 tasks and task vectors of 4 of 4 tasks were reused from the store"
    ]


def test_what_is_in_the_cache_never_changes_the_result(
    tiny: TinyZoo, published: conftest.Published, tmp_path: Path
) -> None:
    """Self-labels and task vectors of another job, with another site, are used as they are."""
    api.run(tiny.spec(tmp_path, tint={"sites": "vit.layers.2"}, fit={"rounds": 1}))
    assert learned(api.run(tiny.spec(tmp_path)).url) == learned(published.summary.url)


def test_a_seed_decides_and_changes(
    tiny: TinyZoo, published: conftest.Published, tmp_path: Path
) -> None:
    other = learned(api.run(tiny.spec(tmp_path, fit={"seed": 1})).url)
    assert other.keys() == learned(published.summary.url).keys()
    assert all(other[name] != sha for name, sha in learned(published.summary.url).items())


# What a fit may not see


@pytest.mark.parametrize("labels", ["scrambled", "absent"])
def test_labels_of_the_pool_are_never_read(
    tiny: TinyZoo, published: conftest.Published, tmp_path: Path, labels: str
) -> None:
    zoo = tiny.copy(tmp_path / "zoo")
    for task in TASKS:
        wrong = None if labels == "absent" else np.full(POOL, 999)
        zoo.replace_arrays(task, y_train=wrong)
    assert learned(api.run(zoo.spec(tmp_path / "store")).url) == learned(published.summary.url)


def test_test_data_never_reaches_the_fit(
    tiny: TinyZoo, published: conftest.Published, tmp_path: Path
) -> None:
    zoo = tiny.copy(tmp_path / "zoo")
    for task in TASKS:
        arrays = zoo.arrays(task)
        zoo.replace_arrays(task, x_test=255 - arrays["x_test"], y_test=1 - arrays["y_test"] % 2)
    summary = api.run(zoo.spec(tmp_path / "store"))
    assert learned(summary.url) == learned(published.summary.url)
    assert summary.average != published.summary.average


def test_a_job_without_any_test_set_is_judged_by_agreement(tiny: TinyZoo, tmp_path: Path) -> None:
    job = tiny.job(tmp_path, tasks=("two", "five"))
    for task in job["tasks"]:
        del task["test"]
    summary = api.run(tintray.parse_spec(job, folder=tiny.folder))
    assert [task.metric for task in summary.tasks] == ["agreement", "agreement"]
    assert [task.test_examples for task in summary.tasks] == [POOL, POOL]
    again = api.evaluate("tiny", store=str(tmp_path), catalog=f"sqlite:///{tmp_path}/catalog.db")
    assert comparable(again.tasks) == comparable(summary.tasks)


# What a job may ask for


def test_either_spelling_of_a_site_gives_the_same_merge(tiny: TinyZoo, tmp_path: Path) -> None:
    in_memory, on_disk = (
        api.run(tiny.spec(tmp_path, tasks=("two", "five"), tint={"sites": site}))
        for site in ("vit.layers.1", "vit.encoder.layer.1")
    )
    assert learned(in_memory.url) == learned(on_disk.url)
    # A block of 16 wide: norms, query, key, value and output, and two layers between 16 and 32.
    block = 4 * 16 + 4 * (16 * 16 + 16) + 16 * 32 + 32 + 32 * 16 + 16
    owned = {task: block + 17 * CLASSES[task] for task in ("two", "five")}  # heads too
    assert in_memory.tint_parameters_per_task == owned
    mean = sum(owned.values()) / 2
    assert in_memory.tint_share == pytest.approx(mean / in_memory.backbone_parameters)
    assert 4 * mean < in_memory.tint_bytes < 4 * mean + 4096  # the header of a file
    merge = tintray.load(in_memory.url)
    one, other = (merge.for_task(task).state_dict() for task in ("two", "five"))
    shared = {name for name in one if one[name].data_ptr() == other[name].data_ptr()}
    below = ("vit.layers.1.", "classifier.")
    assert {name for name in one if not name.startswith(below)} == shared


def test_tints_that_do_not_learn_are_their_experts_heads(tiny: TinyZoo, tmp_path: Path) -> None:
    spec = tiny.spec(tmp_path, tasks=("two", "five"), tint={"learned": False})
    merge = tintray.load(api.run(spec).url)
    for task in ("two", "five"):
        expert = expert_of(tiny, task).state_dict()
        for name, tensor in merge.tint(task).items():
            assert torch.equal(tensor, expert[name])
    assert not torch.equal(merge.coefficients, torch.full_like(merge.coefficients, 0.5))


def test_order_of_tasks_does_not_matter(tiny: TinyZoo, tmp_path: Path) -> None:
    """The same coefficients for each task, up to the order in which gradients were summed.

    One coefficient per block: that of a key's bias alone has no gradient but rounding, since
    attention does not depend on it, and Adam makes a whole step of that.
    """
    names = ("two", "three", "five")
    alone: dict[str, Any] = {"merge": {"granularity": "block"}, "fit": {"correction_lr": 0}}
    merges = [tintray.run(tiny.spec(tmp_path, tasks=t, **alone)) for t in (names, names[::-1])]
    assert merges[0].coefficients.shape == (3, 5)
    one, other = (dict(zip(m.tasks, m.coefficients, strict=True)) for m in merges)
    for name in names:
        assert torch.allclose(one[name], other[name], atol=1e-6)
        assert (one[name] - 1 / 3).abs().max() > 1e-3  # they have moved
    for name, tensor in merges[0].backbone.items():
        assert torch.allclose(tensor, merges[1].backbone[name], atol=1e-5), name


def test_a_fit_in_bfloat16_is_published_and_measured_in_float32(
    tiny: TinyZoo, tmp_path: Path
) -> None:
    spec, other = (
        tiny.spec(tmp_path, fit={"precision": precision, "correction_lr": 0})
        for precision in ("bfloat16", "float32")
    )
    summary, exact = api.run(spec), api.run(other)
    assert learned(summary.url) != learned(exact.url)
    merge, single = tintray.load(summary.url), tintray.load(exact.url)
    assert {tensor.dtype for tensor in merge.backbone.values()} == {torch.float32}
    assert merge.manifest.precision == "bfloat16"
    # Most move alike; Adam makes whole steps of the few gradients that are rounding and no more.
    assert (merge.coefficients - single.coefficients).abs().median() < 1e-3
    again = api.evaluate(summary.url, store=spec.store, catalog=spec.catalog)
    assert comparable(again.tasks) == comparable(summary.tasks)
    assert learned(api.run(spec).url) == learned(summary.url)
