"""What a job computes on its GPUs, on a device that is not there: see ``tests/elsewhere.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tintray
from tests.elsewhere import ELSEWHERE, There, elsewhere, in_truth
from tests.growing import GrowingStore
from tests.tintray.test_merging_methods import ALL, SHAPES, TASKS, few, layer
from tests.tintray.test_routing import POOLS
from tests.tiny_zoo import TinyZoo
from tests.workbench import dense_task_vectors
from tintray.jobs import api
from tintray.jobs.config.cluster_sections import ClusterSpec
from tintray.jobs.engine import in_process
from tintray.jobs.results import RoutingTable
from tintray.jobs.runs.add_router import add_router
from tintray.jobs.watching.monitoring import monitor
from tintray.merging import recipe, surgery
from tintray.merging.apply import direct, directions
from tintray.merging.files.streaming import Merging, Sources
from tintray.merging.files.tensor_files import TensorFiles
from tintray.models import loading
from tintray.numerics.choices import Format
from tintray.numerics.layout import build_layout
from tintray.pools.pool import Pool
from tintray.routing.pools import pool_features, routing_key, routing_of
from tintray.routing.router import Router
from tintray.vectors.similarity import pairs_of

HEAVY = {
    *("addmm", "bmm", "convolution", "native_layer_norm"),  # of models
    *("_linalg_svd", "_linalg_eigh", "linalg_cholesky_ex", "cholesky_solve", "kthvalue"),
    "adaptive_max_pool2d",  # of what a router needs
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


@pytest.mark.parametrize("name", ["ties", "tsv_m", "average"])
def test_whole_checkpoints_are_merged_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    random = torch.Generator().manual_seed(5)
    for model in ("base", *TASKS):
        tensors = {n: torch.randn(shape, generator=random) for n, shape in SHAPES.items()}
        (tmp_path / model).mkdir()
        save_file(tensors, tmp_path / model / "model.safetensors")
        (tmp_path / model / "config.json").write_text("{}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def merged(device: str) -> dict[Path, Tensor]:
        base, *experts = (str(tmp_path / model) for model in ("base", *TASKS))
        made = tmp_path / "merged" / device
        api.merge_checkpoints(base, experts, made, method=name, device=device)
        files = sorted(made.glob("**/*.safetensors"))
        return {f.relative_to(made) / n: t for f in files for n, t in load_file(f).items()}

    here = merged("cpu")
    with elsewhere() as in_memory:
        there = merged(ELSEWHERE)
    assert {*HEAVY, "addmv"}.isdisjoint(in_memory)
    assert here.keys() == there.keys()
    for tensor, expected in here.items():
        assert torch.equal(there[tensor], expected), tensor


def filled(load: Callable[..., Any]) -> Callable[..., Any]:
    """The same, where heads that no file has begin at zero, and positions are counted."""

    def loaded(*args: Any, **options: Any) -> Any:
        module, info = load(*args, **options)
        for name in (*info["missing_keys"], *(known[0] for known in info["mismatched_keys"])):
            module.state_dict()[name].zero_()
        for name, buffer in module.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]))
        return module, info

    return loaded


@contextmanager
def jobs_elsewhere() -> Iterator[set[str]]:
    """Jobs with ``gpus_per_worker`` compute on the device in this block."""
    with pytest.MonkeyPatch.context() as patching:
        device = property(lambda spec: ELSEWHERE if spec.gpus_per_worker else "cpu")
        patching.setattr(ClusterSpec, "device", device)
        patching.setattr(torch.cuda, "is_available", lambda: True)
        patching.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        patching.setattr(in_process, "free_on_card", lambda *_: 2**40)
        patching.setattr(in_process, "keep_to_share", lambda share: None)
        patching.setattr(loading, "load_weights", in_truth(filled(loading.load_weights)))
        adam: Any = torch.optim.Adam  # its fused form asks for a device that torch knows
        plain = lambda params, fused=False, **options: adam(params, **options)  # noqa: E731
        patching.setattr(torch.optim, "Adam", plain)
        with elsewhere() as in_memory:
            yield in_memory


FORKED = get_context("forkserver")
"""Processes that are forked from one which has imported what each would, and run nothing."""
FORKED.set_forkserver_preload(["tests.growing", "transformers.models.vit.modeling_vit"])


def apart(run: Callable[..., Any], *given: Any) -> tuple[Any, set[str]]:
    """What ``run`` gives in a process of its own that has the device, and what is in memory there.

    After many models were run on a device that torch believes to be without numbers, transformers
    leaves heads that no file has as they are.
    """
    with ProcessPoolExecutor(1, mp_context=FORKED) as pool:
        found: tuple[Any, set[str]] = pool.submit(_there, run, *given).result()
        return found


def _there(run: Callable[..., Any], *given: Any) -> tuple[Any, set[str]]:
    with jobs_elsewhere() as in_memory:
        return run(*given), set(in_memory)


def merged_by(folder: Path, store: Path, method: str, gpus: int) -> dict[str, Tensor]:
    """The tensors of a merge by a method, and what its tasks own."""
    parts: dict[str, Any] = {"cluster": {"gpus_per_worker": gpus}, "merge": {"method": method}}
    spec = TinyZoo(folder).spec(store, ("two", "three"), **parts)
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(surgery, "STEPS", 20)
        found = tintray.load(api.run(spec).url)
    tints = {f"{task} {n}": t for task in found.tasks for n, t in found.tint(task).items()}
    return dict(found.backbone) | tints


@pytest.mark.parametrize("method", ["emr", "featcal", "surgery"])
def test_a_job_of_a_method_is_on_the_device(tiny: TinyZoo, tmp_path: Path, method: str) -> None:
    here = merged_by(tiny.folder, tmp_path / "here", method, 0)
    there, in_memory = apart(merged_by, tiny.folder, tmp_path / "there", method, 1)
    assert HEAVY.isdisjoint(in_memory)
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


def grown(folder: Path, store: Path, mode: str, gpus: int) -> list[float]:
    """How tasks agree with their experts after one was added, or refreshed."""
    growing = GrowingStore(TinyZoo(folder), store)
    fit = {"held_back": 8, "correction_lr": 0.0}
    parts: dict[str, Any] = {"fit": fit, "tint": {"sites": "vit.layers.2"}}
    growing.run("two", "three", **parts, cluster={"gpus_per_worker": gpus})
    child = growing.refresh("three") if mode == "refresh" else growing.add("five", mode=mode)
    return [task.agreement for task in child.tasks]


@pytest.mark.parametrize("mode", ["tint", "joint", "refresh"])
def test_a_merge_grows_on_the_device(tiny: TinyZoo, tmp_path: Path, mode: str) -> None:
    """On prefix activations that are computed there, too."""
    here = grown(tiny.folder, tmp_path / "here", mode, 0)
    there, in_memory = apart(grown, tiny.folder, tmp_path / "there", mode, 1)
    assert HEAVY.isdisjoint(in_memory)
    assert there == pytest.approx(here, abs=0.1)


def searched(folder: Path, store: Path, gpus: int) -> str:
    """The site that a search finds."""
    parts: dict[str, Any] = {"cluster": {"gpus_per_worker": gpus}}
    tint, fit = {"sites": "auto"}, {"rounds": 6, "correction_lr": 0.0}
    spec = TinyZoo(folder).spec(store, ("two", "three"), tint=tint, fit=fit, **parts)
    return api.run(spec).site


def test_sites_are_searched_on_the_device(tiny: TinyZoo, tmp_path: Path) -> None:
    here = searched(tiny.folder, tmp_path / "here", 0)
    there, in_memory = apart(searched, tiny.folder, tmp_path / "there", 1)
    assert there == here
    assert HEAVY.isdisjoint(in_memory)


@pytest.mark.parametrize("form", POOLS)
def test_what_a_router_needs_is_computed_where_its_job_is(form: str) -> None:
    """And its comparisons: where the features are."""
    made: dict[str, tuple[Any, Any]] = POOLS[form]
    pools = {n: Pool(make(of, 300), None, None, n) for n, (make, of) in made.items()}
    router = Router.fit({name: pool_features(pool) for name, pool in pools.items()})
    for pool in pools.values():
        expected, routes = routing_of(pool), router.route(pool_features(pool))
        assert expected is not None
        with elsewhere() as in_memory:
            found = routing_of(pool, ELSEWHERE)
            features = pool_features(pool, ELSEWHERE)
            assert isinstance(features, There)
            assert router.route(features) == routes
        assert found is not None and found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert type(found[name]) is Tensor
            assert torch.equal(found[name], tensor), name
        assert {*HEAVY, "mm", "bincount", "scatter_add_"}.isdisjoint(in_memory)
        assert routing_key(pool, ELSEWHERE) != routing_key(pool)  # GPUs round in their own way


def routed(folder: Path, store: Path, gpus: int) -> RoutingTable | None:
    """Where examples go, by a router that a merge was given afterwards."""
    growing = GrowingStore(TinyZoo(folder), store)
    growing.run("two", "three", cluster={"gpus_per_worker": gpus}, route=False)
    url = add_router("tiny", **growing.place).url
    return api.evaluate(url, route=True, foreign=[str(folder / "five.npz")]).routing


def test_a_router_is_added_and_tried_on_the_device(tiny: TinyZoo, tmp_path: Path) -> None:
    here = routed(tiny.folder, tmp_path / "here", 0)
    there, in_memory = apart(routed, tiny.folder, tmp_path / "there", 1)
    assert here is not None
    assert there.routed == here.routed
    assert [task.to for task in there.tasks] == [task.to for task in here.tasks]
    assert [data.to for data in there.foreign] == [data.to for data in here.foreign]
    # The router itself, made and calibrated once, is in memory.
    assert HEAVY & in_memory == {"_linalg_svd", "bmm"}


def watched(folder: Path, store: Path, gpus: int) -> tuple[Any, Any]:
    """What is found of new examples by monitoring, and of a task by an explanation."""
    growing = GrowingStore(TinyZoo(folder), store)
    fit = {"rounds": 2, "floor": False}
    growing.run("two", "three", cluster={"gpus_per_worker": gpus}, fit=fit)
    data = str(folder / "two.npz")
    found = monitor("tiny", "two", data, **growing.place, expert=True, dry_run=True)
    return found, tintray.load(growing.summary.url).explain("three", nearest=1)


def test_new_examples_and_explanations_are_answered_on_the_device(
    tiny: TinyZoo, tmp_path: Path
) -> None:
    drift, explained = watched(tiny.folder, tmp_path / "here", 0)
    (there, other), in_memory = apart(watched, tiny.folder, tmp_path / "there", 1)
    assert HEAVY & in_memory <= {"_linalg_svd", "bmm"}
    assert there.examples == drift.examples
    assert there.disagreement is not None and there.elsewhere == drift.elsewhere
    assert [layer.layer for layer in other.features] == [of.layer for of in explained.features]
