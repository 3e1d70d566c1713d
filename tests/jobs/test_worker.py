"""A worker prepares from content: the same content is reused, other content never is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tintray
from tests.tiny_zoo import CLASSES, POOL, TEST, TinyZoo
from tests.workbench import tiny_workbench
from tintray.checkpoints.tensors import read_tensors
from tintray.errors import SpecError
from tintray.jobs import api
from tintray.jobs.engine.base_model import load_base_model
from tintray.jobs.engine.configs import Prepared
from tintray.jobs.engine.in_process import InProcessBackend
from tintray.jobs.engine.worker import Worker, part
from tintray.jobs.engine.worker_pool import WorkerPool
from tintray.models.structure import backbone_names
from tintray.references.estimates import UNTRIED
from tintray.storage.artifacts.blobs import fetch_blob
from tintray.storage.artifacts.store import open_store
from tintray.tinting.tint_layers import FusedModel


def prepare(zoo: TinyZoo, store: Path, **sections: Any) -> dict[str, Prepared]:
    spec = zoo.spec(store, tasks=("five", "four"), **sections)
    backend = InProcessBackend(1)
    workers = WorkerPool(Worker, backend, spec, load_base_model(spec))
    workers.check()
    found = workers.prepare(open_store(spec.store), lambda done: None)
    backend.close()
    return found


@pytest.mark.parametrize("site", ["head", "vit.layers.2"])
def test_self_labels_and_task_vectors_are_those_of_the_experts(
    tiny: TinyZoo, tmp_path: Path, site: str
) -> None:
    """Vectors cover the whole backbone, whatever the site."""
    found = prepare(tiny, tmp_path, tint={"sites": site})
    store, bench = open_store(str(tmp_path)), tiny_workbench(tiny, ("five", "four"))
    for task, prepared in found.items():
        labels = read_tensors(fetch_blob(store, prepared.labels, tmp_path))["logits"]
        assert labels.shape == (POOL, CLASSES[task])
        assert torch.allclose(labels, bench.labels[task], atol=1e-5)
        vector = read_tensors(fetch_blob(store, prepared.vector, tmp_path))
        assert sorted(vector) == sorted(backbone_names(bench.base))
        for name, tensor in vector.items():
            expert, base = bench.experts[task].get_parameter(name), bench.base.get_parameter(name)
            assert torch.equal(tensor, expert.detach() - base.detach())
    outputs = read_tensors(fetch_blob(store, found["five"].test_outputs, tmp_path))["logits"]
    assert outputs.shape == (TEST, 5)
    assert found["four"].test_outputs is None


def test_the_same_content_is_not_computed_twice(tiny: TinyZoo, tmp_path: Path) -> None:
    """Wherever it lies, and whatever the job does with it."""
    first = prepare(tiny, tmp_path / "store")
    moved = tiny.copy(tmp_path / "zoo")
    again = prepare(moved, tmp_path / "store", tint={"sites": "vit.layers.1"}, fit={"seed": 9})
    assert not any(prepared.cached for prepared in first.values())
    for task, prepared in again.items():
        assert prepared.cached
        assert (prepared.labels, prepared.vector) == (first[task].labels, first[task].vector)


def test_examples_stay_beside_their_answers_in_whatever_order(tiny: TinyZoo) -> None:
    """All of a pool, but in another order, as growth has what it learns from before the rest."""
    pool = tiny_workbench(tiny, ("five",)).pools["five"]
    rows = torch.arange(POOL - 1, -1, -1)
    assert torch.equal(part(pool, rows).inputs["pixel_values"], pool.inputs["pixel_values"][rows])
    assert part(pool, torch.arange(POOL)) is pool


def one_pixel(zoo: TinyZoo) -> None:
    images = zoo.arrays("five")["x_train"]
    images[0, 0, 0, 0] ^= 255
    zoo.replace_arrays("five", x_train=images)


def preprocessing(zoo: TinyZoo) -> None:
    path = zoo.folder / "five" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.4, 0.5, 0.6]}))


def expert(zoo: TinyZoo) -> None:
    path = zoo.folder / "five" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 0x10  # a bit of the last float's exponent or mantissa: still finite
    path.write_bytes(data)


def no_labels(zoo: TinyZoo) -> None:
    zoo.replace_arrays("five", y_train=None)


def test_other_content_is_computed_anew(tiny: TinyZoo, tmp_path: Path) -> None:
    """The labels of a pool are no content."""
    first = prepare(tiny, tmp_path / "store")
    for change in (one_pixel, preprocessing, expert, no_labels):
        zoo = tiny.copy(tmp_path / change.__name__)
        change(zoo)
        again = prepare(zoo, tmp_path / "store")
        assert again["five"].cached == (change is no_labels)
        assert (again["five"].labels == first["five"].labels) == (change is no_labels)
        assert again["four"].cached


def test_features_are_cached_by_expert_pool_and_depth(tiny: TinyZoo, tmp_path: Path) -> None:
    def features(site: str) -> Any:
        objective = {"feature_weight": 1.0, "feature_site": site}
        return prepare(tiny, tmp_path, objective=objective)["five"].features

    assert features("head") == features("head") != features("vit.layers.1")
    assert features("vit.encoder.layer.1") == features("vit.layers.1")
    with pytest.raises(SpecError, match=r"^objective\.feature_site.*'vit\.layers\.1'"):
        features("vit.layer.1")


def test_disturbed_examples_are_answered_under_one_backbone(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is bound for what normalisation estimates, for the test set, and for all that follow."""
    bind, measured = FusedModel.bind, Worker.evaluate
    binds, of_tasks = [0], list[int]()

    def bound(model: FusedModel, *given: Any) -> None:
        binds[0] += 1
        bind(model, *given)

    def evaluate(worker: Worker, name: str, *theta: Any) -> Any:
        before = binds[0]
        found = measured(worker, name, *theta)
        of_tasks.append(binds[0] - before)
        return found

    monkeypatch.setattr(FusedModel, "bind", bound)
    monkeypatch.setattr(Worker, "evaluate", evaluate)
    spec = tiny.spec(tmp_path, ("two", "five"), merge={"method": "average"})
    merge = tintray.load(api.run(spec).url)
    assert of_tasks == [3, 3]
    for task in merge.tasks:
        reference = merge.reference(task)
        assert reference is not None and not torch.equal(reference.weights, UNTRIED)
