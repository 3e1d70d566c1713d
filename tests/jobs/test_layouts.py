"""Who hosts what never enters a result: the same bits on any number of members."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tintray
from tests.growing import GrowingStore
from tests.tiny_zoo import TinyZoo
from tintray.jobs import api
from tintray.jobs.engine.backend import Args, Backend, Future, Placement, open_backend
from tintray.jobs.engine.in_process import InProcessBackend, LocalHandle
from tintray.jobs.engine.plan import ClusterSize
from tintray.tinting import watching


def sent(value: Any) -> Any:
    """What arrives in another process: a copy, whose arrays nobody may write to."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(buffer.raw()) for buffer in buffers])


class Apart(LocalHandle[Any]):
    """A member that is handed copies."""

    def _run(self, method: str, args: Args, options: Any) -> Any:
        given = [arg if isinstance(arg, Future) else sent(arg) for arg in args]
        return super()._run(method, given, options)


class Cluster(InProcessBackend):
    """Several members that answer with copies; one more than its CPUs would wait for ever.

    What a job computes must not depend on who hosts what. That is tried here over many layouts,
    without the seconds that each of Ray's processes takes to start.
    """

    def __init__(self, cpus: int) -> None:
        super().__init__(1, capacity=ClusterSize(cpus=cpus, memory=8 * 2**30))
        self.threads: dict[Any, float] = {}
        self.most = 0

    def spawn(self, placement: Placement, cls: Any, /, *args: Any, **options: Any) -> Any:
        handle = Apart(self, sent, lambda: cls(*sent(args), **options))
        away = placement.colocate_with is None and not placement.in_process
        self.threads[handle] = placement.threads if away else 0
        assert sum(self.threads.values()) <= self.size(), f"{placement.name} would wait for ever"
        self.most = max(self.most, len(self.threads))
        self._members.append(handle)
        return handle

    def dismiss(self, members: Sequence[Any]) -> None:
        for member in members:
            self.threads.pop(member, None)
        super().dismiss(members)


def on_a_cluster(monkeypatch: pytest.MonkeyPatch, cpus: int) -> list[Cluster]:
    """Every backend that is opened from now on, but those of jobs that ask for no worker."""
    opened: list[Cluster] = []

    def several(**wanted: Any) -> Backend:
        if wanted["workers"] == 0:
            return open_backend(**wanted)
        opened.append(Cluster(cpus))
        return opened[-1]

    for caller in ("evaluate", "pipeline", "plan"):
        monkeypatch.setattr(f"tintray.jobs.runs.{caller}.open_backend", several)
    return opened


def test_what_is_sent_is_a_copy_that_cannot_be_written_to() -> None:
    array = np.zeros(3)
    found = sent((array, {"a": array}))
    assert not np.shares_memory(found[0], array)
    assert not found[0].flags.writeable
    with pytest.raises(AssertionError, match="worker 2 would wait"):
        backend = Cluster(1)
        for number in (1, 2):
            backend.spawn(Placement(f"worker {number}", 1), dict)


def test_workers_and_shards_never_change_the_result(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, on one to four workers; with one shard or more. Each from an empty store.

    A tinted block, so that tints are more than heads; four groups, so that sums have an order; the
    precision that this machine computes in by default; watched after each of the last two rounds.
    """
    opened = on_a_cluster(monkeypatch, 4)
    monkeypatch.setattr(watching, "SHARE", 1.0)
    found = {}
    for workers, shards in ((0, 1), (1, 2), (2, "auto"), (2, 2), (3, 5), (4, 1)):
        spec = tiny.spec(
            tmp_path / f"{workers}-{shards}",
            tint={"sites": "vit.layers.2"},
            fit={
                "rounds": 4,
                "groups": 4,
                "micro_batch": 8,
                "precision": "auto",
                "held_back": 8,
                "floor": True,
                "correction_lr": 1e-2,
            },
            cluster={"workers": workers, "shards": shards},
        )
        manifest = tintray.run(spec).manifest
        tasks = [(task.score.merged, task.held_back) for task in manifest.tasks]
        found[workers, shards] = manifest.files, tasks, manifest.floor
    for cluster, of_cluster in found.items():
        assert of_cluster == found[0, 1], cluster
    merging = 4  # members, one on each CPU, that look for the floor
    members = [1 + 2, 2 + 1, 2 + 2, 3 + 5, 4 + 1]
    assert [backend.most - merging for backend in opened] == members


@pytest.mark.parametrize("method", ["ties", "fisher", "tall_masks"])
def test_members_that_merge_tensors_change_nothing(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    on_a_cluster(monkeypatch, 3)
    one, other = (
        tintray.run(tiny.spec(tmp_path / f"{n}", merge={"method": method}, cluster={"workers": n}))
        for n in (0, 3)
    )
    assert one.manifest.files == other.manifest.files


def test_comparing_and_evaluating_find_cpus_where_workers_took_them_all(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_cluster(monkeypatch, 4)
    spec = tiny.spec(tmp_path, fit={"rounds": 2, "groups": 4}, cluster={"workers": "auto"})
    summary = api.run(spec)
    places = {"store": str(spec.store), "catalog": str(spec.catalog)}
    assert api.evaluate("tiny", **places).tasks == summary.tasks
    table = api.compare("tiny", **places)
    assert table.averages["merge"] == pytest.approx(summary.average)


def test_a_merge_grows_to_the_same_bits_on_workers(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two children, one grown from the other."""
    zoo = tiny.copy(tmp_path / "zoo")
    on_a_cluster(monkeypatch, 4)
    made = []
    for workers in (2, 0):
        store = GrowingStore(zoo, tmp_path / f"{workers}")
        store.run("two", "three", cluster={"workers": workers}, fit={"rounds": 2})
        children = (store.add("five", mode="coefficients"), store.add("four", mode="joint"))
        made.append([store.hashes(child) for child in children])
    assert made[0] == made[1]
