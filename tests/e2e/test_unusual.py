"""Jobs that are unusual but right, and jobs that look right and are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

import tintray
from tests.tiny_zoo import TinyZoo, comparable
from tintray.errors import CheckpointError, DataError
from tintray.jobs import api
from tintray.storage.artifacts.blobs import blob_key


@pytest.fixture
def zoo(tiny: TinyZoo, tmp_path: Path) -> TinyZoo:
    """A zoo of one's own, to be changed."""
    return tiny.copy(tmp_path / "zoo")


def halve(folder: Path, dtype: torch.dtype = torch.float16) -> None:
    path = folder / "model.safetensors"
    halves = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(halves, path, metadata={"format": "pt"})


def reconfigure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("task", "field", "value"),
    [
        ("five", "num_attention_heads", 4),
        ("five", "hidden_act", "relu"),
        ("five", "layer_norm_eps", 1e-3),
        ("base", "num_attention_heads", 4),
    ],
)
def test_tensors_of_one_shape_in_models_that_compute_otherwise_are_refused(
    zoo: TinyZoo, tmp_path: Path, task: str, field: str, value: Any
) -> None:
    """All tasks pass one set of shared layers: those must mean the same in every expert."""
    reconfigure(zoo.folder / task, **{field: value})
    with pytest.raises(CheckpointError, match=field):
        api.run(zoo.spec(tmp_path / "store"))
    assert not (tmp_path / "store" / "merges").exists()


@pytest.mark.parametrize("halved", ["five", "base"])
def test_an_expert_in_half_precision_is_converted_and_told(
    zoo: TinyZoo, tmp_path: Path, halved: str
) -> None:
    halve(zoo.folder / halved)
    report = api.validate(zoo.spec(tmp_path / "store", tasks=("two", "five")))
    told = [notice.split(" ")[0] for notice in report.notices if "float32" in notice]
    assert told == ["tasks.two.expert", "tasks.five.expert"][halved == "five" :]


@pytest.mark.parametrize("site", ["vit.embeddings", "vit.layers.0.mlp", "vit.layernorm"])
def test_any_module_may_be_tinted(tiny: TinyZoo, tmp_path: Path, site: str) -> None:
    spec = tiny.spec(tmp_path, tasks=("two", "five"), tint={"sites": site})
    summary = api.run(spec)
    table = api.evaluate("tiny", store=spec.store, catalog=spec.catalog)
    assert comparable(table.tasks) == comparable(summary.tasks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_experts_in_half_precision_are_merged_and_exported_in_single(
    zoo: TinyZoo, tmp_path: Path, dtype: torch.dtype
) -> None:
    for task in ("base", "two", "five"):
        halve(zoo.folder / task, dtype)
        reconfigure(zoo.folder / task, dtype=str(dtype).removeprefix("torch."))
    spec = zoo.spec(tmp_path / "store", tasks=("two", "five"))
    summary = api.run(spec)
    merge = tintray.load(summary.url)
    assert {tensor.dtype for tensor in merge.backbone.values()} == {torch.float32}
    images = torch.rand(4, 3, 16, 16)
    model = AutoModelForImageClassification.from_pretrained(merge.export("five", tmp_path / "out"))
    with torch.inference_mode():
        exported = model(pixel_values=images).logits
        assert exported.dtype == torch.float32
        assert torch.equal(exported, merge.for_task("five")(pixel_values=images).logits)
    again = api.evaluate("tiny", store=spec.store, catalog=spec.catalog)
    assert comparable(again.tasks) == comparable(summary.tasks)


def test_one_task_alone_is_a_job(tiny: TinyZoo, tmp_path: Path) -> None:
    head: dict[str, Any] = {"tint": {"sites": "head"}, "fit": {"correction_lr": 0}}
    summary = api.run(tiny.spec(tmp_path, tasks=("five",), **head))
    assert summary.tasks[0].agreement > 0.9
    assert summary.separate_parameters == summary.merged_parameters  # one model, one head


def test_a_pool_smaller_than_a_batch_is_walked_again(zoo: TinyZoo, tmp_path: Path) -> None:
    for task, examples in (("five", 1), ("two", 4)):
        zoo.replace_arrays(task, x_train=zoo.arrays(task)["x_train"][:examples])
    assert tintray.run(zoo.spec(tmp_path / "s", tasks=("two", "five"))).tasks == ("two", "five")


def test_one_expert_may_serve_two_tasks(zoo: TinyZoo, tmp_path: Path) -> None:
    job = zoo.job(tmp_path / "store", tasks=("five", "two"))
    job["tasks"].append(zoo.task("five") | {"name": "twin"})
    one, _, twin = tintray.run(tintray.parse_spec(job, folder=zoo.folder)).manifest.tasks
    assert one.score.expert == twin.score.expert
    assert one.task_vector == twin.task_vector


def test_the_base_may_be_its_own_expert(zoo: TinyZoo, tmp_path: Path) -> None:
    """A task vector of zeros: its coefficients have no gradient and stay where they were."""
    zoo.replace_arrays("five", class_names=None)  # they are not those of the base's own head
    job = zoo.job(tmp_path / "store", tasks=("five",))
    job["tasks"].append(zoo.task("five") | {"name": "unchanged", "expert": "base", "test": None})
    learned, unchanged = tintray.run(tintray.parse_spec(job, folder=zoo.folder)).coefficients
    start = torch.full_like(learned, 0.5)
    assert torch.equal(unchanged, start) and not torch.equal(learned, start)


# A merge outlives what it was made from


def test_eval_needs_no_cache(zoo: TinyZoo, tmp_path: Path) -> None:
    """Self-labels may be gone: the expert answers again, to the same scores."""
    spec = zoo.spec(tmp_path / "store")
    summary = api.run(spec)
    for task in tintray.load(summary.url).manifest.tasks:
        for sha256 in filter(None, (task.pool.labels, task.test and task.test.outputs)):
            (tmp_path / "store" / blob_key(sha256)).unlink()
    again = api.evaluate("tiny", store=spec.store, catalog=spec.catalog)
    assert comparable(again.tasks) == comparable(summary.tasks)


def test_eval_refuses_data_that_has_changed_or_gone(zoo: TinyZoo, tmp_path: Path) -> None:
    spec = zoo.spec(tmp_path / "store")
    api.run(spec)
    images = zoo.arrays("five")["x_test"]
    zoo.replace_arrays("five", x_test=np.ascontiguousarray(images[::-1]))
    with pytest.raises(DataError, match=r"task 'five': .*five\.npz is not what"):
        api.evaluate("tiny", store=spec.store, catalog=spec.catalog)
    (zoo.folder / "five.npz").unlink()
    with pytest.raises(DataError, match=r"five\.npz does not exist"):
        api.evaluate("tiny", store=spec.store, catalog=spec.catalog)


def test_show_and_load_need_neither_experts_nor_data(zoo: TinyZoo, tmp_path: Path) -> None:
    spec = zoo.spec(tmp_path / "store")
    summary = api.run(spec)
    zoo.folder.rename(tmp_path / "away")
    assert api.show("tiny", store=spec.store, catalog=spec.catalog) == summary
    logits = tintray.load(summary.url).for_task("five")(pixel_values=torch.zeros(1, 3, 16, 16))
    assert logits.logits.shape == (1, 5)
