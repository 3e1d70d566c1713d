"""A job on GPUs, as far as that can be seen without one.

The step, the merge and the projection run on another device than the CPU, of which tensors have no
numbers (torch's fake tensors): like those of a GPU they refuse to be mixed with the CPU's. That
members reach each other directly is tried in this process, and between Ray actors in
``tests/e2e/test_clusters.py``.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tests.growing import hashes
from tests.tiny_zoo import TinyZoo
from tests.workbench import SETTINGS, Workbench, tiny_workbench
from tintray.errors import SpecError
from tintray.jobs import api
from tintray.jobs.engine.backend import Backend, Placement, open_backend
from tintray.jobs.engine.in_process import InProcessBackend
from tintray.jobs.engine.plan import Choice, ClusterSize, JobSize, check_plan, lay_out
from tintray.jobs.engine.resources import free_on_card
from tintray.jobs.runs.pipeline import on_gpus_there
from tintray.numerics.layout import build_layout
from tintray.numerics.low_rank import LowRank
from tintray.tinting import step
from tintray.tinting.step import TaskGroup, TaskState
from tintray.tinting.tint_layers import FusedModel
from tintray.vectors.task_vectors import TaskVectors

ELSEWHERE = "meta"  # of fake tensors; a GPU that torch was not built for will not even do as a fake


@pytest.fixture(scope="module")
def bench(tiny: TinyZoo) -> Workbench:
    return tiny_workbench(tiny, site="vit.layers.2")


def test_a_step_never_mixes_devices(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools and self-labels in memory, all else on the device."""
    numbers: list[torch.Tensor] = []
    # What looks at numbers, or has no kernel there, is left out.
    monkeypatch.setattr(step, "sample", lambda *purpose: torch.arange(SETTINGS.batch_size))
    monkeypatch.setattr(torch.optim, "Adam", lambda parameters, fused: torch.optim.SGD(parameters))
    monkeypatch.setattr(step, "_check", lambda tasks, totals, round_: numbers.append(totals))
    monkeypatch.setattr(FakeTensor, "tolist", lambda self: [[0.0] * 3] * len(self))
    template = next(iter(bench.experts.values()))
    # A module of fake tensors cannot be moved: it is made where it will be.
    monkeypatch.setattr(type(template), "to", lambda self, device: self)
    with FakeTensorMode(allow_non_fake_inputs=True):
        states = [
            TaskState(
                task := layer.task,
                layer,
                bench.pools[task],
                bench.labels[task],
                features=torch.zeros(len(bench.pools[task]), 32),
            )
            for layer in bench.layers(ELSEWHERE)
        ]
        with torch.device(ELSEWHERE):
            there = type(template)(template.config).eval()
        fused = FusedModel(there, bench.layout, bench.private, device=ELSEWHERE)
        fused.capture("vit.layers.1")
        gradient = torch.zeros(bench.layout.numel, device=ELSEWHERE)
        settings = replace(SETTINGS, filter="agreement", features=0.1)
        group = TaskGroup(states, fused, gradient, settings)
        found = group.step(torch.zeros(bench.layout.numel, device=ELSEWHERE), 0, 1e-2)
        assert str(found.gradient.device) == ELSEWHERE
        for state in states:
            assert {str(p.device) for p in state.layer.parameters} == {ELSEWHERE}
    assert len(numbers) == 1
    assert numbers[0].device.type == "cpu"


@pytest.mark.parametrize("format", ["f32", "bf16", "int8", "int4"])
def test_a_shard_never_mixes_devices(format: Any) -> None:
    layout = build_layout({"w": (8, 4), "b": (8,)})
    with FakeTensorMode():
        product = LowRank(torch.randn(8, 2), torch.randn(2, 4))

        def rows(slot: Any) -> list[Any]:
            dense = torch.randn(slot.shape)
            return [dense, product if len(slot.shape) > 1 else None, None]

        vectors = TaskVectors.gather(
            layout, ["p", "q", "r"], torch.zeros(40), rows, format, mapped=True, device=ELSEWHERE
        )
        theta = vectors.merge(torch.full((3, 2), 0.3))
        projected = vectors.project(torch.zeros(40, device=ELSEWHERE))
        assert (str(theta.device), str(projected.device)) == (ELSEWHERE, ELSEWHERE)
        assert projected.shape == (3, 2)


def test_tensors_that_go_directly_are_the_arrays_that_would(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same fit with members that answer tensors: the same bits, and none overwritten."""

    def direct(**wanted: Any) -> Backend:
        backend = InProcessBackend(1)
        backend.tensor_transport = True
        return backend

    job = {"fit": {"rounds": 2, "groups": 2}, "merge": {"granularity": "block"}}
    arrays = api.run(tiny.spec(tmp_path / "arrays", **job))
    monkeypatch.setattr("tintray.jobs.runs.pipeline.open_backend", direct)
    tensors = api.run(tiny.spec(tmp_path / "tensors", **job))
    assert hashes(tensors.url) == hashes(arrays.url)


def test_without_a_gpu_a_job_that_asks_for_one_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SpecError, match=r"cluster\.gpus_per_worker: torch finds no GPU.*leave it"):
        open_backend(address=None, workers=0, threads=1, plan=0, gpus=1)


def test_a_worker_has_a_gpu_and_a_shard_beside_it() -> None:
    job = JobSize(build_layout({"w": (4096, 4096)}), tasks=40, private=10, groups=8)
    machine = ClusterSize(cpus=16, memory=2**40, gpus=2)
    plan = lay_out(job, machine, Choice(gpus=1))
    assert (plan.workers, plan.shards) == (2, 2)
    assert lay_out(job, machine, Choice(gpus=1, shards=1)).shards == 1
    assert lay_out(job, machine, Choice(gpus=1, shards=9, workers=1)).shards == 1


def test_a_job_on_a_part_of_a_gpu_has_one_worker(tiny: TinyZoo, tmp_path: Path) -> None:
    """Two of its processes could not exchange tensors on one GPU."""
    job = JobSize(build_layout({"w": (4096, 4096)}), tasks=40, private=10, groups=8)
    plan = lay_out(job, ClusterSize(cpus=16, memory=2**40, gpus=2), Choice(gpus=0.25))
    assert (plan.workers, plan.shards) == (1, 1)
    spec = tiny.spec(tmp_path, cluster={"gpus_per_worker": 0.25, "workers": 1})
    assert spec.cluster.device == "cuda"
    with pytest.raises(SpecError, match=r"cluster\.gpus_per_worker: .*0\.25 beside workers: 4"):
        spec.changed(cluster={"workers": 4})


def test_a_whole_gpu_is_written_as_one(tiny: TinyZoo, tmp_path: Path) -> None:
    """Jobs that are the same have the same hash."""
    one, other = (tiny.spec(tmp_path, cluster={"gpus_per_worker": n}) for n in (1, 1.0))
    assert one.digest() == other.digest()
    assert '"gpus_per_worker":1}' in one.model_dump_json(include={"cluster": {"gpus_per_worker"}})


def test_of_a_card_that_is_shared_a_worker_can_have_its_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[float] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (60, 80))
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", limits.append)
    assert [free_on_card(share) for share in (1, 0.5, 0.25)] == [60, 40, 20]
    with closing(InProcessBackend(1, gpus=0.25)) as backend:
        assert backend.capacity().card == 20
    assert limits == [0.25, 1]


def test_a_job_that_its_gpus_have_no_room_for_is_refused_with_what_would_fit() -> None:
    size = JobSize(
        build_layout({"w": (4096, 4096)}),
        tasks=40,
        private=10,
        groups=8,
        activation_bytes=4 * 2**30,
    )
    machine = ClusterSize(cpus=16, memory=2**40, gpus=2, card=8 * 2**30)
    plan = lay_out(size, machine, Choice(gpus=1))
    assert plan.card > size.activation_bytes + size.vector_bytes("f32") // 2
    assert lay_out(size, machine, Choice()).card == 0
    check_plan(size, replace(machine, card=plan.card), Choice(gpus=1))
    check_plan(size, replace(machine, card=None), Choice(gpus=1))
    with pytest.raises(
        SpecError, match=r"on their GPU \(f32 task vectors\), and 6 GiB are free"
    ) as no:
        check_plan(size, replace(machine, card=6 * 2**30), Choice(gpus=1))
    assert "fit.micro_batch" in str(no.value) or "merge.task_vectors" in str(no.value)


def test_a_merge_that_was_fitted_on_gpus_goes_on_without(tiny: TinyZoo, tmp_path: Path) -> None:
    """But not on a cluster that the job names: it has them."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    spec = tiny.spec(tmp_path, cluster={"gpus_per_worker": 1})
    assert on_gpus_there(spec).cluster.device == "cpu"
    named = spec.changed(cluster={"workers": 2, "address": "10.0.0.5:6379"})
    assert on_gpus_there(named).cluster.device == "cuda"


def test_no_more_members_are_started_than_there_are_gpus_for() -> None:
    """They would wait for one another for ever."""
    backend = InProcessBackend(1, capacity=ClusterSize(cpus=8, memory=2**30, gpus=2))
    for gpus, members in ((0, 5), (1, 2), (0.5, 4)):
        with backend.spread(5, Placement("evaluator", 1, gpus), list) as each:
            assert (len(each), len(set(map(id, each)))) == (5, members)
    backend.close()
