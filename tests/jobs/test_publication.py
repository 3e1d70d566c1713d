"""What is published can be read back whole, and no version is ever given twice."""

from __future__ import annotations

from pathlib import Path

import pytest

import tintray
from tests.conftest import Published
from tests.tiny_zoo import TASKS, TinyZoo
from tintray.jobs import api
from tintray.jobs.runs.summaries import summary
from tintray.storage.artifacts.publish import list_merges
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog


def test_a_summary_read_back_is_the_one_that_the_run_gave(published: Published) -> None:
    url = published.summary.url
    assert summary(tintray.load(url).manifest, url) == published.summary


def test_averages_are_plain_means_over_tasks(published: Published) -> None:
    found = published.summary
    merged = [task.merged for task in found.tasks]
    normalised = [task.merged / (task.expert or 1.0) for task in found.tasks]
    assert found.average == pytest.approx(sum(merged) / 4)
    assert found.normalised_accuracy == pytest.approx(sum(normalised) / 4)
    assert [task.normalised for task in found.tasks] == pytest.approx(normalised)


def test_a_manifest_tells_where_everything_came_from(published: Published, tiny: TinyZoo) -> None:
    from tintray.checkpoints.model_folder import open_model_folder

    manifest = tintray.load(published.summary.url).manifest
    assert (manifest.ref, manifest.parent) == ("tiny/v1", None)
    assert manifest.base.sha256 == open_model_folder(tiny.folder / "base").digest()
    store = open_store(published.spec.store)
    for task in manifest.tasks:
        digest = open_model_folder(tiny.folder / task.name).digest()
        assert task.expert.sha256 == digest
        for sha256 in (task.task_vector, task.pool.labels):
            assert store.exists(f"blobs/{sha256[:2]}/{sha256}")
        assert task.task_score.task == task.name
    assert [task.name for task in manifest.tasks] == list(TASKS)
    assert manifest.job.to_json() == published.spec.record()
    assert set(manifest.seconds) == {"planning", "preparing", "fitting", "evaluating"}


def test_a_new_catalog_does_not_publish_over_an_old_version(tiny: TinyZoo, tmp_path: Path) -> None:
    """The catalog is gone; what the store holds is not written over."""
    store = tmp_path / "store"
    first = api.run(tiny.spec(store, tasks=("two",), catalog=f"sqlite:///{tmp_path}/one.db"))
    before = (store / "merges/tiny/v1/manifest.json").read_bytes()
    second = api.run(tiny.spec(store, tasks=("two",), catalog=f"sqlite:///{tmp_path}/two.db"))
    assert (first.version, second.version) == ("v1", "v2")
    assert (store / "merges/tiny/v1/manifest.json").read_bytes() == before
    assert [str(ref) for ref in list_merges(open_store(str(store)))] == ["tiny/v1", "tiny/v2"]


def test_coefficients_are_summed_up_in_the_catalog(published: Published) -> None:
    import tintray

    merge = tintray.load(published.summary.url)
    with Catalog.open(published.spec.catalog, create=False) as catalog:
        layers = catalog.merges.coefficients(catalog.merges.find("tiny"))
    assert {layer.layer for layer in layers} == {unit.name for unit in merge.manifest.units}
    columns = dict(zip([u.name for u in merge.manifest.units], merge.coefficients.t(),
                       strict=True))  # fmt: skip
    for layer in layers:
        column = columns[layer.layer]
        assert layer.mean == pytest.approx(column.mean().item())
        assert layer.minimum == column.min().item()
        assert layer.maximum == column.max().item()
