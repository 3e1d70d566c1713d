"""Several nodes with an object store each: the same bits, and nothing spills."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.growing import hashes
from tests.tiny_zoo import TinyZoo
from tintray.checkpoints.tensors import tensors_as_bytes
from tintray.jobs import api
from tintray.jobs.engine.backend import Backend, Placement, open_backend
from tintray.jobs.engine.coordinator import Assignment, Coordinator
from tintray.jobs.engine.shards import ShardConfig, Shards
from tintray.jobs.events import RoundDone
from tintray.numerics.layout import build_layout
from tintray.numerics.schedules import Rates
from tintray.storage.artifacts.blobs import put_blob
from tintray.storage.artifacts.store import open_store
from tintray.tinting.draws import Draws
from tintray.tinting.step import TaskMetrics
from tintray.vectors.coefficients import Coefficients

pytestmark = pytest.mark.slow

STORE = 100 * 2**20  # bytes of each node's object store


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes with one CPU each."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's default of 15 would let them wait for whatever else this machine does.
    os.environ.setdefault("RAY_worker_niceness", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE}
    )
    cluster.add_node(num_cpus=1, object_store_memory=STORE)
    cluster.wait_for_nodes()
    with pytest.MonkeyPatch.context() as patch:  # its token goes to a cluster that was chosen
        patch.setenv("TINTRAY_ADDRESS", cluster.address)
        yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def nodes(cluster: Any) -> str:
    """Its address."""
    return str(cluster.address)


@pytest.fixture
def backend(nodes: str) -> Iterator[Backend]:
    backend = open_backend(address=nodes, workers=2, threads=1, plan=0)
    yield backend
    backend.close()


class Probe:
    """Tells where it is."""

    def node(self) -> str:
        import ray

        found: str = ray.get_runtime_context().get_node_id()
        return found


class Echo:
    """A worker whose gradient is θ itself, and whose rounds take no time."""

    def step(self, group: int, round_: int, tint_lr: float, only: Any, *theta: Any) -> Any:
        return [piece.copy() for piece in theta], {f"{group}": TaskMetrics(1.0, 0.5, 1.0)}


def spilled() -> int:
    """Bytes that all nodes have spilled to disk since they started."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    reply = get_memory_info_reply(get_state_from_address(None))
    return int(reply.store_stats.spilled_bytes_total)


def test_two_nodes_give_the_bits_of_one_process(nodes: str, tiny: TinyZoo, tmp_path: Path) -> None:
    job: dict[str, Any] = {
        "tint": {"sites": "vit.layers.2"},
        "fit": {"rounds": 5, "groups": 4, "precision": "auto", "tasks_per_round": 3},
        "merge": {"task_vectors": "int8"},
    }
    here = tiny.spec(tmp_path / "here", cluster={"workers": 0}, **job)
    cluster = {"workers": 2, "shards": 2, "address": nodes}
    there = tiny.spec(tmp_path / "there", cluster=cluster, **job)
    assert hashes(api.run(here).url) == hashes(api.run(there).url)


def test_members_are_spread_over_the_nodes(backend: Backend) -> None:
    capacity = backend.capacity()
    assert (capacity.cpus, capacity.nodes) == (2, 2)
    assert 0 < (capacity.object_store or 0) <= STORE
    workers = [backend.spawn(Placement(f"worker {n}", 1), Probe) for n in range(2)]
    shards = [backend.spawn(Placement(f"shard {n}"), Probe) for n in range(4)]
    assert len(set(backend.get([member.call(Probe.node) for member in workers]))) == 2
    assert len(set(backend.get([member.call(Probe.node) for member in shards]))) > 1


def test_nothing_spills_however_many_rounds_there_are(backend: Backend, tmp_path: Path) -> None:
    """12 MiB of θ, five groups, ten rounds: 0.7 GiB pass through object stores of 100 MiB."""
    layout = build_layout({f"w.{n}": (1024, 512) for n in range(6)})
    store = open_store(str(tmp_path))
    tensors = {slot.name: torch.full(slot.shape, 0.01) for slot in layout.slots}
    blob = put_blob(store, tensors_as_bytes(tensors))
    shards = Shards(backend, ShardConfig(str(tmp_path), blob, layout), 2)
    backend.get(shards.load(["a", "b"], [blob, blob]))
    workers = [backend.spawn(Placement(f"worker {n}", 1), Echo) for n in range(2)]
    groups = {n: workers[n % 2] for n in range(5)}
    assignment = Assignment(shards, groups, {n: [str(n)] for n in groups}, {})
    start = Coefficients(torch.full((2, len(layout.units)), 0.3))
    before = spilled()
    told: list[Any] = []
    rates = Rates(lambda _: 1e-3, lambda _: 0.0)
    draws = Draws([str(n) for n in groups], 1)
    Coordinator(backend, assignment, start, rates=lambda _: rates, draws=draws).fit(10, told.append)
    assert len(told) == 10
    assert spilled() == before
    theta = shards.gather(shards.merge(start.values))
    assert np.isfinite(theta).all()
    # Every group's gradient was θ > 0, along task vectors > 0: coefficients fell ten times.
    assert start.values.max() < 0.3 - 8e-3


@pytest.mark.timeout(900)
def test_a_cluster_that_grows_is_used_and_one_that_shrinks_too(
    cluster: Any, tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node comes in round 3 and goes, with its worker, in round 7."""
    monkeypatch.setattr("tintray.jobs.runs.fitting.WORTH", 0.0)
    monkeypatch.setattr("tintray.jobs.engine.ray_backend._PATIENCE", 2.0)
    fit = {"rounds": 10, "groups": 4, "checkpoint_every": 1}
    undisturbed = api.run(tiny.spec(tmp_path / "here", fit=fit))
    extra: list[Any] = []
    workers: list[int] = []

    def listen(event: object) -> None:
        if not isinstance(event, RoundDone):
            return
        left = ray.available_resources().get("CPU", 0)
        workers.append(int(ray.cluster_resources()["CPU"] - left))
        if event.round == 3 and not extra:
            extra.append(cluster.add_node(num_cpus=1, object_store_memory=STORE))
            cluster.wait_for_nodes()
        if event.round == 7 and len(extra) == 1:
            cluster.remove_node(extra[0], allow_graceful=False)
            extra.append(None)

    import ray

    there = {"workers": "auto", "address": cluster.address}
    summary = api.run(tiny.spec(tmp_path / "there", fit=fit, cluster=there), on_event=listen)
    assert hashes(summary.url) == hashes(undisturbed.url)
    assert max(workers) == 3 and workers[0] == workers[-1] == 2
