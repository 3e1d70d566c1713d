"""What is published can be read back whole, and no version is ever given twice."""

from __future__ import annotations

from pathlib import Path

import pytest

import tintray
from tests.conftest import Published
from tests.tiny_zoo import TASKS, TinyZoo
from tintray.checkpoints.model_folder import open_model_folder
from tintray.jobs import api
from tintray.jobs.runs.summaries import summary
from tintray.storage.artifacts.blobs import blob_key
from tintray.storage.artifacts.publish import list_merges
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog


def test_a_summary_is_read_back_and_its_averages_are_plain_means(published: Published) -> None:
    told, url = published.summary, published.summary.url
    assert summary(tintray.load(url).manifest, url) == told
    normalised = [task.merged / (task.expert or 1.0) for task in told.tasks]
    assert told.average == pytest.approx(sum(task.merged for task in told.tasks) / 4)
    assert told.normalised_accuracy == pytest.approx(sum(normalised) / 4)
    assert [task.normalised for task in told.tasks] == pytest.approx(normalised)


def test_a_manifest_tells_where_everything_came_from(published: Published, tiny: TinyZoo) -> None:
    manifest = tintray.load(published.summary.url).manifest
    assert (manifest.ref, manifest.parent) == ("tiny/v1", None)
    assert manifest.base.sha256 == open_model_folder(tiny.folder / "base").digest()
    store = open_store(published.spec.store)
    for task in manifest.tasks:
        assert task.expert.sha256 == open_model_folder(tiny.folder / task.name).digest()
        assert store.exists(blob_key(task.task_vector)) and store.exists(blob_key(task.pool.labels))
        assert task.task_score.task == task.name
    assert [task.name for task in manifest.tasks] == list(TASKS)
    job, asked = manifest.job.to_json(), published.spec.record()
    asked.pop("tracking")  # who was told of the job says nothing of the merge
    rate = job["fit"]["correction_lr"]  # what was left out is as it was decided
    assert job == {**asked, "tint": job["tint"], "fit": {**asked["fit"], "correction_lr": rate}}
    assert [site["site"] for site in job["tint"]["sites"]] == ["prompt", "head"] and rate > 0
    assert set(manifest.seconds) == {"planning", "preparing", "fitting", "evaluating"}


def test_a_new_catalog_does_not_publish_over_an_old_version(tiny: TinyZoo, tmp_path: Path) -> None:
    """The catalog is gone; what the store holds is not written over."""
    store, written, made = tmp_path / "store", [], []
    for name in ("one", "two"):
        catalog = f"sqlite:///{tmp_path}/{name}.db"
        made.append(api.run(tiny.spec(store, tasks=("two",), catalog=catalog)).version)
        written.append((store / "merges/tiny/v1/manifest.json").read_bytes())
    assert made == ["v1", "v2"] and written[0] == written[1]
    assert [str(ref) for ref in list_merges(open_store(str(store)))] == ["tiny/v1", "tiny/v2"]


def test_coefficients_are_summed_up_in_the_catalog(published: Published) -> None:
    merge = tintray.load(published.summary.url)
    with Catalog.open(published.spec.catalog, create=False) as catalog:
        layers = {
            row.layer: row for row in catalog.merges.coefficients(catalog.merges.find("tiny"))
        }
    assert layers.keys() == {unit.name for unit in merge.manifest.units}
    for unit, column in zip(merge.manifest.units, merge.coefficients.t(), strict=True):
        row = layers[unit.name]
        assert row.mean == pytest.approx(column.mean().item())
        assert (row.minimum, row.maximum) == (column.min().item(), column.max().item())
