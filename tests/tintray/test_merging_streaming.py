"""Whole checkpoints merged tensor by tensor: what comes out, what it takes, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.workbench import dense_task_vectors
from tintray.checkpoints.model_folder import ModelFolder, open_model_folder
from tintray.errors import InputError, StorageError
from tintray.merging import methods, recipe
from tintray.merging.apply import directions, layers
from tintray.merging.files import streaming
from tintray.merging.files.streaming import Merging, Sources
from tintray.merging.files.tensor_files import TensorFiles
from tintray.merging.files.writing import merge_checkpoints
from tintray.merging.mergekit.blends import BLENDS
from tintray.numerics.layout import build_layout
from tintray.vectors.task_vectors import TaskVectors

SHAPES = {
    "embed.weight": (300, 260),
    "layers.0.weight": (24, 16),
    "layers.0.bias": (24,),
    "layers.1.weight": (16, 24),
    "norm.scale": (),
}
TASKS = ("red", "green", "blue")
DATA_FREE = [name for name, known in methods().items() if not known.needs]


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {n: torch.randn(s, generator=generator).to(dtype) for n, s in SHAPES.items()}
    return made | {"positions": torch.arange(7)}


def checkpoint(folder: Path, content: dict[str, Tensor]) -> ModelFolder:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(content, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "made-up"}')
    return open_model_folder(folder)


class Zoo:
    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.folder = folder
        self.base_tensors = tensors(0, dtype)
        self.expert_tensors = {
            task: {
                n: t if n == "positions" else (t.float() + 0.1 * own[n].float()).to(dtype)
                for n, t in self.base_tensors.items()
            }
            for task, own in ((task, tensors(k + 1)) for k, task in enumerate(TASKS))
        }
        self.base = checkpoint(folder / "base", self.base_tensors)
        self.experts = {n: checkpoint(folder / n, of) for n, of in self.expert_tensors.items()}

    def merge(self, name: str = "task_arithmetic", **options: Any) -> dict[str, Tensor]:
        """What is in the files; of methods that give each task a backbone, ``task/tensor``."""
        experts = dict(list(self.experts.items())[: methods()[name].most])
        output = self.folder / "out"
        merge_checkpoints(self.base, experts, output, recipe(name), **options)
        if methods()[name].own is None:
            return load_file(output / "model.safetensors")
        each = {task: load_file(output / task / "model.safetensors") for task in experts}
        return {f"{task}/{n}": t for task, found in each.items() for n, t in found.items()}

    def vectors(self, tasks: int) -> TaskVectors:
        layout = build_layout(SHAPES)
        base = layout.flatten(self.base_tensors)
        rows = [layout.flatten(of) - base for of in list(self.expert_tensors.values())[:tasks]]
        return dense_task_vectors(layout, TASKS[:tasks], base, torch.stack(rows))


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo(tmp_path)


@pytest.mark.parametrize("name", DATA_FREE)
def test_a_streamed_merge_is_the_merge_in_memory(
    zoo: Zoo, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PIECES", (2**14, 2**12))  # several of them at once
    known = methods()[name]
    vectors = zoo.vectors(known.most or 3)
    scale = known.start(len(vectors.tasks))
    merged = zoo.merge(name)
    for slot, layer in layers(vectors, recipe(name)):
        if known.own is None:
            expected = {slot.name: directions(layer, recipe(name)).sum(0)}
        else:
            own = known.own(layer, **recipe(name).parameters)
            expected = {f"{n}/{slot.name}": of for n, of in zip(TASKS, own, strict=True)}
        for key, delta in expected.items():
            torch.testing.assert_close(
                merged[key], layer.base + scale * delta, atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_names_types_shapes_and_configuration_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    zoo = Zoo(tmp_path, dtype)
    merged = zoo.merge("ties")
    assert {n: (t.shape, t.dtype) for n, t in merged.items()} == {
        n: (t.shape, t.dtype) for n, t in zoo.base_tensors.items()
    }
    assert torch.equal(merged["positions"], torch.arange(7))
    assert open_model_folder(zoo.folder / "out").config == {"model_type": "made-up"}


def test_one_expert_at_scale_one_comes_back(zoo: Zoo) -> None:
    zoo.experts = {"red": zoo.experts["red"]}
    told: list[tuple[int, int]] = []
    merged = zoo.merge(scale=1.0, progress=lambda done, total: told.append((done, total)))
    for name, tensor in zoo.expert_tensors["red"].items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=0)
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == sum(t.numel() for t in zoo.base_tensors.values())


def test_large_output_is_cut_into_shards_that_are_read_like_a_single_file(zoo: Zoo) -> None:
    whole = zoo.merge()
    cut, again = zoo.folder / "cut", zoo.folder / "again"
    itself, shards = {"base": zoo.base}, {"shard_bytes": 4 * 300 * 260}
    merge_checkpoints(zoo.base, itself, cut, recipe("average"), **shards)
    opened = open_model_folder(cut)
    count = len(opened.weights)
    assert count > 1
    assert [path.name for path in opened.weights] == [
        f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)
    ]
    index = json.loads((cut / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    assert index["weight_map"] == {
        name: path.name for path in opened.weights for name in load_file(path)
    }
    assert index["weight_map"].keys() == whole.keys()
    merge_checkpoints(opened, zoo.experts, again, recipe("task_arithmetic"))
    tensors = load_file(again / "model.safetensors")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
def test_a_merge_that_ends_early_leaves_nothing(zoo: Zoo, raised: type[BaseException]) -> None:
    def stop(done: int, total: int) -> None:
        raise raised

    before = sorted(path.name for path in zoo.folder.iterdir())
    with pytest.raises(raised):
        zoo.merge(progress=stop)
    assert sorted(path.name for path in zoo.folder.iterdir()) == before


def refused(zoo: Zoo, name: str = "task_arithmetic", **options: object) -> str:
    before = sorted(path.name for path in zoo.folder.iterdir())
    with pytest.raises((InputError, StorageError)) as caught:
        zoo.merge(name, **options)
    assert sorted(path.name for path in zoo.folder.iterdir()) == before, "bytes were written"
    return str(caught.value)


def test_what_overflows_in_sixteen_bits_is_refused(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path, torch.float16)
    said = refused(zoo, scale=1e7)
    assert "gives values for tensor 'embed.weight' that are not finite as F16" in said


@pytest.mark.parametrize("name", DATA_FREE)
def test_a_bound_that_the_largest_tensor_exceeds_is_refused(zoo: Zoo, name: str) -> None:
    said = refused(zoo, name, memory=2**16)
    assert said.startswith(f"merge.memory: '{name}' needs")
    assert "'embed.weight' [300, 260]" in said


def test_elementwise_methods_fit_where_whole_tensors_do_not(zoo: Zoo) -> None:
    bound = 6 * 2**20
    assert "raise merge.memory" in refused(zoo, "tsv_m", memory=bound)
    zoo.merge("task_arithmetic", memory=bound)
    zoo.experts = {}
    assert "expected at least one expert" in refused(zoo)


def opened(path: Path, content: dict[str, Tensor]) -> TensorFiles:
    save_file(content, path)
    return TensorFiles([path], path.stem)


def test_task_vectors_serve_like_experts(zoo: Zoo) -> None:
    whole, base = zoo.merge("iso_c"), {n: zoo.base_tensors[n] for n in SHAPES}
    files = [
        opened(zoo.folder / f"{task}.safetensors", {n: of[n] - base[n] for n in SHAPES})
        for task, of in zoo.expert_tensors.items()
    ]
    of_base = opened(zoo.folder / "base.safetensors", base)
    merging = Merging(Sources(of_base, files, TASKS, differences=True), recipe("iso_c"))
    for name in SHAPES:
        torch.testing.assert_close(merging.tensor(name)[0], whole[name])


@pytest.mark.parametrize("name", ["fisher", "regmean"])
def test_statistics_are_read_beside_the_tensors(zoo: Zoo, name: str) -> None:
    (kind,) = methods()[name].needs
    assert f"'{name}' needs statistics '{kind}'" in refused(zoo, name)
    random = torch.Generator().manual_seed(5)
    measured: dict[str, Tensor] = {}
    for tensor, shape in SHAPES.items():
        if kind == "fisher":
            measured[tensor] = torch.rand(3, *shape, generator=random)
        elif len(shape) == 2:
            inputs = torch.randn(3, 400, shape[1], generator=random)
            measured[tensor] = inputs.mT @ inputs
    files = [
        opened(zoo.folder / f"{k}.safetensors", {n: t[k].contiguous() for n, t in measured.items()})
        for k in range(3)
    ]
    with ExitStack() as stack:
        sources = Sources.open(zoo.base, zoo.experts, stack)
        merging = Merging(replace(sources, statistics={kind: files}), recipe(name))
        known = {n: {kind: of} for n, of in measured.items()}
        for slot, layer in layers(zoo.vectors(3), recipe(name), lambda n: known.get(n, {})):
            expected = layer.base + directions(layer, recipe(name)).sum(0)
            torch.testing.assert_close(merging.tensor(slot.name)[0], expected, atol=1e-5, rtol=1e-4)


MEASURE = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from tintray.checkpoints.model_folder import open_model_folder
from tintray.merging import recipe
from tintray.merging.files.tensor_files import TensorFiles
from tintray.merging.files.writing import merge_checkpoints
from tintray.merging.mergekit.blends import BLENDS
from tintray.merging.mergekit.composing import Composing
from tintray.merging.mergekit.composition import Composition, Rule, Slice, Source
from tintray.merging.mergekit.planning import plan

folder, models = Path(sys.argv[1]), ("base", "a", "b", "c", "d", "e")
for dtype in (torch.float32, torch.float16):
    for size, shape in (("small", (64, 64)), ("large", (1024, 512))):
        for model in models:
            of = {f"layers.{n}.weight": torch.randn(shape).to(dtype) for n in range(3)}
            (folder / f"{size}-{dtype}" / model).mkdir(parents=True)
            save_file(of, folder / f"{size}-{dtype}" / model / "model.safetensors")
            (folder / f"{size}-{dtype}" / model / "config.json").write_text("{}")

def resident(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))

def told(name, dtype, merge):
    merge("small")  # code and threads are there from here on
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    held = resident("VmRSS")
    bound = merge("large")
    print(name, dtype, resident("VmHWM") - held, bound)

def stream(name, bound, size):
    base, *experts = (open_model_folder(folder / f"{size}-torch.float32" / n) for n in models)
    output = folder / f"out-{size}-{name}"
    merge_checkpoints(base, dict(zip("abcde", experts)), output, recipe(name), memory=bound)
    return bound

def compose(blend, dtype, size):
    first = blend.base == "input"
    named = models[first : first + (blend.most or 4 - first)]
    files = {
        model: TensorFiles([folder / f"{size}-{dtype}" / model / "model.safetensors"], model)
        for model in named
    }
    half = {"weight", "density", "t", "gamma", "scale"} & {s.name for s in blend.settings}
    settings = {name: (Rule((0.5,)),) for name in half}
    whole = Slice(tuple(map(Source, named)), "base" if "base" in named else None)
    tables = {model: file.tensors for model, file in files.items()}
    planned = plan(Composition(blend, (whole,), None, settings), tables)
    bound = blend.needed_bytes(planned[0].info.numel, len(named), dtype.itemsize)
    for _, numbers in Composing(files, planned, blend, memory=bound).pieces():
        del numbers
    return bound

for name, mebibytes in (("ties", 16), ("model_stock", 36), ("pcb", 48)):
    told(name, torch.float32, lambda size: stream(name, mebibytes * 2**20, size))
for blend in BLENDS.values():
    for dtype in (torch.float32, torch.float16):
        told(f"mergekit's-{blend.name}", dtype, lambda size: compose(blend, dtype, size))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs its own peak")
def test_memory_stays_within_its_bound(tmp_path: Path) -> None:
    """A process grows by no more than a merge may hold, and every recipe's method by its count.

    The allocator gives back at once what is freed: what it would keep, and in which thread's
    arena, depends on the moment and is nobody's array.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    slack = 2**20  # of pages and threads
    for line in done.stdout.splitlines():
        name, dtype, grown, bound = line.split()
        assert 0 < int(grown) < int(bound) + slack, (name, dtype)
    assert len(done.stdout.splitlines()) == 3 + 2 * len(BLENDS)
