"""A fit asks experts for what it draws or holds back, whenever; other uses need whole pools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import tintray
from tests.growing import EASY, hashes
from tests.tiny_zoo import TinyZoo
from tintray.checkpoints.tensors import read_tensors
from tintray.jobs import api
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.asking import first_drawn
from tintray.jobs.events import RoundDone, TaskPrepared
from tintray.jobs.runs import run as runs
from tintray.jobs.runs.run import continue_job
from tintray.pools.held_back import split_pool
from tintray.published.manifest import Manifest
from tintray.storage.artifacts.blobs import BlobRef, blob_key, fetch_blob
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.collect import plan
from tintray.tinting import on_demand

POOL, HELD = 800, 80
FIT: dict[str, Any] = {"rounds": 9, "checkpoint_every": 2, "groups": 2, "floor": True}
TINT = {"sites": "vit.layers.2"}
TASKS = ("two", "five", "four")


@pytest.fixture(scope="module")
def zoo(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> TinyZoo:
    """The tiny zoo with pools of which a fit of a few rounds draws a part."""
    larger = tiny.copy(tmp_path_factory.mktemp("larger") / "zoo")
    for task in TASKS:
        known = larger.arrays(task)
        rows = np.random.default_rng(0).integers(0, len(known["x_train"]), POOL)
        noise = np.random.default_rng(1).integers(0, 60, known["x_train"][rows].shape)
        images = (known["x_train"][rows].astype(int) + noise).clip(0, 255).astype(np.uint8)
        larger.replace_arrays(task, x_train=images, y_train=known["y_train"][rows])
    return larger


def manifest(url: str) -> Manifest:
    return tintray.load(url).manifest


def labels(spec: JobSpec, of: Manifest) -> dict[str, dict[str, torch.Tensor]]:
    """What a merge names as its tasks' self-labels, by task."""
    store = open_store(spec.store)
    found = {}
    for task in of.tasks:
        size = store.stat(blob_key(task.pool.labels)).size  # type: ignore[union-attr]
        found[task.name] = read_tensors(
            fetch_blob(store, BlobRef(task.pool.labels, size), Path(str(spec.store)))
        )
    return found


def told(manifest: Manifest) -> tuple[Any, ...]:
    """All of a merge that must not depend on when its experts were asked."""
    tasks = [(t.name, t.selected_fraction, t.score, t.held_back) for t in manifest.tasks]
    return {name: file.sha256 for name, file in manifest.files.items()}, tasks


@pytest.fixture(scope="module")
def fitted(zoo: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> tuple[JobSpec, Manifest]:
    spec = zoo.spec(tmp_path_factory.mktemp("store"), TASKS, fit=FIT, tint=TINT)
    return spec, manifest(api.run(spec).url)


def test_a_fit_asks_for_what_it_draws_or_holds_back(fitted: tuple[JobSpec, Manifest]) -> None:
    """But for all of a pool on which the merge is measured."""
    spec, merge = fitted
    found = labels(spec, merge)
    assert "rows" not in found["four"] and len(found["four"]["logits"]) == POOL
    for task in ("two", "five"):
        rows = found[task]["rows"]
        assert len(rows) == len(found[task]["logits"]) == len(rows.unique()) <= POOL / 2
        assert torch.equal(rows[:HELD], split_pool(POOL, HELD, 0, task)[1])
    store = open_store(spec.store)
    with Catalog.open(spec.catalog, create=False) as catalog:
        assert not plan(store, catalog, age=-60).garbage


@pytest.mark.parametrize("first", [1, 150, None])
def test_a_merge_does_not_depend_on_when_experts_are_asked(
    zoo: TinyZoo,
    tmp_path: Path,
    fitted: tuple[JobSpec, Manifest],
    monkeypatch: pytest.MonkeyPatch,
    first: int | None,
) -> None:
    """A pass at a time, all beforehand, or in two processes of which the first was killed."""
    spec = zoo.spec(tmp_path, TASKS, fit=FIT, tint=TINT)
    if first is not None:
        monkeypatch.setattr(on_demand, "LEAST", 1)
        monkeypatch.setattr(runs, "first_drawn", lambda spec: first)
        assert told(manifest(api.run(spec).url)) == told(fitted[1])
        return

    class PowerCutError(Exception):
        pass

    def cut(event: object) -> None:
        if isinstance(event, RoundDone) and event.round == 5:
            raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(on_demand, "LEAST", 1)
        patch.setattr(runs, "first_drawn", lambda spec: 1)
        with pytest.raises(PowerCutError):
            api.run(spec, on_event=cut)
    with Catalog.open(spec.catalog, create=False) as catalog:
        (job,) = catalog.jobs.all()
        catalog.queue.requeue(job.id, "resumed", cluster=None)
        resumed = continue_job(job.id, catalog, spec, lambda event: None)
    assert told(resumed) == told(fitted[1])


def test_a_second_job_reads_what_the_first_has_asked_for(
    zoo: TinyZoo, fitted: tuple[JobSpec, Manifest], tmp_path: Path
) -> None:
    spec, merge = fitted
    events: list[Any] = []
    again = manifest(api.run(spec, on_event=events.append).url)
    assert all(event.cached for event in events if isinstance(event, TaskPrepared))
    assert told(again) == told(merge)
    longer = spec.changed(fit={"rounds": 90})
    found = labels(spec, manifest(api.run(longer).url))
    before = labels(spec, merge)
    for task in ("two", "five"):
        count = len(before[task]["rows"])
        assert len(found[task]["rows"]) > count
        assert torch.equal(found[task]["logits"][:count], before[task]["logits"])


def test_a_merge_grows_on_what_it_has_asked_for_without_its_experts(
    zoo: TinyZoo, tmp_path: Path
) -> None:
    own = zoo.copy(tmp_path / "zoo")
    spec = own.spec(tmp_path / "store", ("two", "five"), fit=FIT, tint=TINT)
    merge = tintray.run(spec)
    for task in ("two", "five"):
        (own.folder / task / "model.safetensors").unlink()
    task = own.folder / "four.yaml"
    task.write_text(yaml.safe_dump(own.task("four")))
    child = merge.add([task], mode="joint", overrides=EASY)
    assert child.manifest.ref == "tiny/v2"
    assert child.manifest.tasks[0].pool.labels == merge.manifest.tasks[0].pool.labels


@pytest.mark.parametrize(
    ("changed", "whole"),
    [
        ({}, False),
        ({"objective": {"filter": "top_p", "top_p": 0.5}}, True),
        ({"objective": {"feature_weight": 0.1}}, True),
        ({"tint": {"bits": 8}}, True),
        ({"merge": {"method": "ties"}}, True),
    ],
)
def test_what_needs_whole_pools_asks_for_them(
    zoo: TinyZoo, tmp_path: Path, changed: dict[str, Any], whole: bool
) -> None:
    spec = zoo.spec(tmp_path, TASKS, fit=FIT, **changed)
    assert (first_drawn(spec) is None) == whole


def test_an_expert_that_is_gone_when_more_is_asked_for_is_named(
    zoo: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = zoo.copy(tmp_path / "zoo")
    monkeypatch.setattr(runs, "first_drawn", lambda spec: 1)

    def remove(event: object) -> None:
        if isinstance(event, RoundDone):
            (own.folder / "two" / "model.safetensors").unlink(missing_ok=True)

    fit = FIT | {"rounds": 60}
    spec = own.spec(tmp_path / "store", ("two", "five"), fit=fit, tint=TINT)
    with pytest.raises(tintray.errors.TintrayError, match=r"two"):
        api.run(spec, on_event=remove)
    assert not hashes_of(spec)


def hashes_of(spec: JobSpec) -> list[str]:
    """The merges that a store has."""
    folder = Path(str(spec.store).removeprefix("file://")) / "merges"
    return [hashes(str(path)) and str(path) for path in folder.glob("*/v*")]
