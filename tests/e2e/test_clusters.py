"""The same job gives the same merge, to the last bit, on Ray as in one process.

Layouts of every size are tried in one process, by tests/jobs/test_layouts.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny_models
from tests.e2e.test_factory import make_plain_zoo
from tests.growing import hashes
from tests.tiny_zoo import TinyZoo
from tintray.errors import SpecError
from tintray.jobs import api
from tintray.jobs.engine.backend import Backend, open_backend
from tintray.jobs.engine.ray_backend import RayBackend
from tintray.jobs.events import Notice
from tintray.jobs.runs import grow as growth

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Backend]:
    """One local Ray for the whole module: jobs that find it running use it and leave it running."""
    backend = open_backend(address=None, workers=2, threads=1, plan=128 * 2**20)
    yield backend
    backend.close()


def grown(zoo: TinyZoo, store: Path, **cluster: Any) -> list[Any]:
    """The files of a merge and of a child of it, and their scores."""
    spec = zoo.spec(
        store,
        ("two", "three"),
        tint={"sites": "vit.layers.2"},
        fit={"rounds": 3, "groups": 2, "micro_batch": 8, "precision": "auto"},
        cluster=cluster,
    )
    summary = api.run(spec)
    places = {"store": str(spec.store), "catalog": str(spec.catalog)}
    path = zoo.folder / "five-alone.yaml"
    path.write_text(yaml.safe_dump(zoo.task("five")))
    overrides = ("growth.rounds=2", "growth.refit_rounds=2", "growth.tolerance=100")
    child = growth.add("tiny", [path], mode="joint", overrides=overrides, **places)
    scores = [[task.merged for task in found.tasks] for found in (summary, child)]
    return [hashes(summary.url), hashes(child.url), scores]


@pytest.mark.usefixtures("cluster")
def test_a_merge_is_made_and_grown_to_the_same_bits_on_ray(tiny: TinyZoo, tmp_path: Path) -> None:
    """On workers that take all CPUs, with shards beside them; what comes after finds CPUs too."""
    zoo = tiny.copy(tmp_path / "zoo")
    here = grown(zoo, tmp_path / "here", workers=0)
    assert grown(zoo, tmp_path / "ray", workers="auto", shards=2) == here


@pytest.mark.usefixtures("cluster")
def test_tensors_that_go_from_actor_to_actor_are_the_arrays_that_would(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's direct transport, over gloo where there is no GPU: shards beside workers, same bits."""
    parts = {"fit": {"rounds": 3, "groups": 4}, "merge": {"granularity": "block"}}
    arrays = api.run(tiny.spec(tmp_path / "arrays", **parts))

    def direct(**wanted: Any) -> Backend:
        return RayBackend(None, wanted["workers"], wanted["plan"], transport="gloo")

    monkeypatch.setattr("tintray.jobs.runs.pipeline.open_backend", direct)
    cluster = {"workers": 2, "shards": 2}
    tensors = api.run(tiny.spec(tmp_path / "tensors", cluster=cluster, **parts))
    assert hashes(tensors.url) == hashes(arrays.url)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("on_task_error", ["fail", "skip"])
def test_workers_that_cannot_import_the_factory_say_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_task_error: str
) -> None:
    """The driver has the module, the workers have not: no task is to blame, so none is skipped."""
    folder = make_plain_zoo(tmp_path / "zoo")
    code = tmp_path / "code"
    code.mkdir()
    (code / "only_here.py").write_text(
        "import tests.e2e.test_factory\n\n\ndef make(config):\n"
        "    return tests.e2e.test_factory.make(config)\n"
    )
    monkeypatch.syspath_prepend(code)
    sections = {"cluster": {"workers": 2}, "on_task_error": on_task_error}
    job = tiny_models.job(
        *(folder, dict.fromkeys(("reds", "rgb"), "classification")),
        store=str(tmp_path / "store"),
        suffix=".npz",
        factory="only_here:make",
        **sections,
    )
    events: list[object] = []
    with pytest.raises(SpecError, match="install it where the workers run") as refused:
        api.run(job, on_event=events.append)
    assert str(refused.value).count("factory: the module 'only_here' cannot be imported") == 1
    assert not [event for event in events if isinstance(event, Notice)]


@pytest.mark.parametrize(
    ("workers", "gpus", "said"),
    [
        (999, 0, r"cluster\.workers.*need 999 CPUs"),
        (2, 99, r"cluster\.gpus_per_worker: the workers need 198 GPUs and"),
    ],
)
def test_a_cluster_with_less_than_workers_need_is_refused(
    cluster: Backend, workers: int, gpus: int, said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        open_backend(address="auto", workers=workers, threads=1, plan=0, gpus=gpus)
