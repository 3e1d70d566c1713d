"""What a job computes on its GPUs, on a device that is not there: see ``tests/elsewhere.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import tintray
from tests.elsewhere import ELSEWHERE, There, elsewhere, in_truth
from tests.tintray.test_merging_methods import ALL, SHAPES, TASKS, few, layer
from tests.tiny_zoo import TinyZoo
from tests.workbench import dense_task_vectors
from tintray.jobs import api
from tintray.jobs.config.cluster_sections import ClusterSpec
from tintray.jobs.engine import in_process
from tintray.merging import recipe, surgery
from tintray.merging.apply import direct, directions
from tintray.merging.files.streaming import Merging, Sources
from tintray.merging.files.tensor_files import TensorFiles
from tintray.models import loading
from tintray.numerics.choices import Format
from tintray.numerics.layout import build_layout
from tintray.vectors.similarity import pairs_of

HEAVY = {
    *("addmm", "bmm", "convolution", "native_layer_norm"),  # of models
    *("_linalg_svd", "_linalg_eigh", "linalg_cholesky_ex", "cholesky_solve", "kthvalue"),
}
"""What is on the device wherever a job has one."""


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ALL)
def test_a_method_computes_where_the_task_vectors_are(name: str, shape: tuple[int, ...]) -> None:
    given, known = layer(shape, few(name)), recipe(name)
    method, expected = known.method, directions(given, known)
    with elsewhere() as in_memory:
        there = given.on(ELSEWHERE)
        found = directions(there, known)
        assert isinstance(found, There)
        assert torch.equal(found.cpu(), expected)
        if method.totals is not None:
            there = replace(there, totals=method.totals(there))
        if method.own is not None:
            assert isinstance(method.own(there, **known.parameters), There)
    assert HEAVY.isdisjoint(in_memory)


@pytest.mark.parametrize("format", ["f32", "bf16", "int8", "int4"])
def test_a_shard_keeps_a_methods_directions_where_it_merges(format: Format) -> None:
    """Beside measurements in memory, and merged before: what was recorded then is let go."""
    layout = build_layout({"w": (8, 6), "b": (8,)})
    numbers = torch.randn(4, layout.numel, generator=torch.Generator().manual_seed(3))
    inputs = torch.randn(3, 30, 6, generator=torch.Generator().manual_seed(4))
    measured = {"w": {"gram": inputs.mT @ inputs}}
    coefficients = torch.full((3, 2), 0.4)

    def merged(device: str) -> tuple[Tensor, bool]:
        vectors = dense_task_vectors(layout, ("p", "q", "r"), numbers[0], numbers[1:], device)
        vectors.merge(coefficients)
        statistics = lambda name: measured.get(name, {})  # noqa: E731
        found = direct(vectors, recipe("regmean"), statistics, format=format)
        theta = found.merge(coefficients)
        return theta.cpu(), isinstance(theta, There) and found is not vectors

    expected, _ = merged("cpu")
    with elsewhere():
        found, there = merged(ELSEWHERE)
    assert there
    assert torch.equal(found, expected)


def test_task_vectors_are_compared_where_they_are() -> None:
    block = torch.randn(3, 40, generator=torch.Generator().manual_seed(3))
    expected = pairs_of([block], 3)
    with elsewhere():
        found = pairs_of([block.to(ELSEWHERE)], 3)
    assert torch.equal(found.products, expected.products)
    assert torch.equal(found.opposed, expected.opposed)


@pytest.mark.parametrize("name", ["ties", "emr", "tsv_m", "iso_c"])
def test_a_piece_of_a_streamed_merge_is_brought_to_the_device_and_back(
    tmp_path: Path, name: str
) -> None:
    """Thresholds and totals too, which are taken of whole tensors and of the model."""
    random = torch.Generator().manual_seed(5)
    for model in ("base", *TASKS):
        tensors = {n: torch.randn(shape, generator=random) for n, shape in SHAPES.items()}
        save_file(tensors, tmp_path / f"{model}.safetensors")
    base, *experts = (
        TensorFiles([tmp_path / f"{model}.safetensors"], model) for model in ("base", *TASKS)
    )
    sources, known = Sources(base, experts, TASKS), recipe(name)

    def merged(device: str) -> dict[str, Tensor]:
        merging = Merging(sources, known, at_once=1, device=device)
        return {tensor: merging.tensor(tensor, merging.totals()) for tensor in SHAPES}

    here = merged("cpu")
    with elsewhere() as in_memory:
        there = merged(ELSEWHERE)
    assert HEAVY.isdisjoint(in_memory)
    for tensor, expected in here.items():
        assert type(there[tensor]) is Tensor
        assert torch.equal(there[tensor], expected), tensor


@pytest.fixture
def elsewhere_in_jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Jobs with ``gpus_per_worker`` compute on the device."""
    device = property(lambda spec: ELSEWHERE if spec.gpus_per_worker else "cpu")
    monkeypatch.setattr(ClusterSpec, "device", device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(in_process, "free_on_card", lambda *_: 2**40)
    monkeypatch.setattr(in_process, "keep_to_share", lambda share: None)
    monkeypatch.setattr(loading, "load_weights", in_truth(loading.load_weights))
    adam: Any = torch.optim.Adam  # its fused form asks for a device that torch knows
    plain = lambda params, fused=False, **options: adam(params, **options)  # noqa: E731
    monkeypatch.setattr(torch.optim, "Adam", plain)
    with elsewhere() as in_memory:
        yield in_memory


@pytest.mark.parametrize("method", ["emr", "featcal", "surgery"])
def test_a_job_of_a_method_is_on_the_device(
    tiny: TinyZoo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    elsewhere_in_jobs: set[str],
    method: str,
) -> None:
    monkeypatch.setattr(surgery, "STEPS", 20)

    def run(gpus: int) -> dict[str, Tensor]:
        parts: dict[str, Any] = {"cluster": {"gpus_per_worker": gpus}, "merge": {"method": method}}
        # What routing takes is computed in memory.
        spec = tiny.spec(tmp_path / str(gpus), ("two", "three"), **parts, route=False)
        summary = api.run(spec)
        found = tintray.load(summary.url)
        tints = {f"{task} {n}": t for task in found.tasks for n, t in found.tint(task).items()}
        return dict(found.backbone) | tints

    here = run(0)
    elsewhere_in_jobs.clear()
    there = run(1)
    assert not HEAVY & elsewhere_in_jobs
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        if surgery.PREFIX not in name:  # Adam's first steps go by the sign of what may be rounding
            torch.testing.assert_close(there[name], tensor, atol=1e-4, rtol=1e-3)


def test_surgery_learns_where_the_features_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surgery, "STEPS", 20)
    random = torch.Generator().manual_seed(1)
    merged, expert = torch.randn(2, 50, 24, generator=random)

    def learnt(device: str) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(2)
        return surgery.learn(merged.to(device), expert.to(device), generator)

    expected = learnt("cpu")
    with elsewhere():
        for name, tensor in learnt(ELSEWHERE).items():
            assert isinstance(tensor, There)
            assert torch.equal(tensor.cpu(), expected[name])


def test_sites_are_searched_on_the_device(
    tiny: TinyZoo, tmp_path: Path, elsewhere_in_jobs: set[str]
) -> None:
    def run(gpus: int) -> str:
        parts: dict[str, Any] = {"cluster": {"gpus_per_worker": gpus}, "route": False}
        tint, fit = {"sites": "auto"}, {"rounds": 6, "correction_lr": 0.0}
        spec = tiny.spec(tmp_path / str(gpus), ("two", "three"), tint=tint, fit=fit, **parts)
        return api.run(spec).site

    here = run(0)
    elsewhere_in_jobs.clear()
    assert run(1) == here
    assert not HEAVY & elsewhere_in_jobs
