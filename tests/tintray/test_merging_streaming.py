"""Whole checkpoints merged tensor by tensor: what comes out, what it takes, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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
        self.experts = {
            task: checkpoint(folder / task, of) for task, of in self.expert_tensors.items()
        }

    def merge(self, name: str = "task_arithmetic", **options: object) -> dict[str, Tensor]:
        most = methods()[name].most or 3
        experts = dict(list(self.experts.items())[:most])
        output = self.folder / "out"
        merge_checkpoints(self.base, experts, output, recipe(name), **options)  # type: ignore[arg-type]
        return load_file(output / "model.safetensors")

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
    if known.own is None:
        outputs = {"": zoo.merge(name)}
    else:
        merge_checkpoints(zoo.base, zoo.experts, zoo.folder / "out", recipe(name))
        outputs = {t: load_file(zoo.folder / "out" / t / "model.safetensors") for t in TASKS}
    for slot, layer in layers(vectors, recipe(name)):
        own = known.own and known.own(layer, **recipe(name).parameters)
        delta = directions(layer, recipe(name)) if own is None else own
        expected = delta.sum(0, keepdim=True) if known.own is None else delta
        for merged, of_task in zip(outputs.values(), expected, strict=True):
            torch.testing.assert_close(
                merged[slot.name], layer.base + scale * of_task, atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_names_types_and_shapes_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    zoo = Zoo(tmp_path, dtype)
    merged = zoo.merge("ties")
    assert {n: (t.shape, t.dtype) for n, t in merged.items()} == {
        n: (t.shape, t.dtype) for n, t in zoo.base_tensors.items()
    }
    assert torch.equal(merged["positions"], torch.arange(7))


def test_one_expert_at_scale_one_comes_back(zoo: Zoo) -> None:
    output = zoo.folder / "out"
    one = {"red": zoo.experts["red"]}
    merge_checkpoints(zoo.base, one, output, recipe("task_arithmetic"), scale=1.0)
    merged = load_file(output / "model.safetensors")
    for name, tensor in zoo.expert_tensors["red"].items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=0)


def test_the_configuration_comes_along(zoo: Zoo) -> None:
    zoo.merge()
    assert open_model_folder(zoo.folder / "out").config == {"model_type": "made-up"}


def test_large_output_is_cut_into_shards_with_an_index(zoo: Zoo) -> None:
    whole = zoo.merge()
    output = zoo.folder / "cut"
    merge_checkpoints(
        zoo.base, zoo.experts, output, recipe("task_arithmetic"), shard_bytes=4 * 300 * 260
    )
    opened = open_model_folder(output)
    count = len(opened.weights)
    assert count > 1
    assert [path.name for path in opened.weights] == [
        f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)
    ]
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    parts = [load_file(path) for path in opened.weights]
    assert index["weight_map"] == {
        name: path.name for path, part in zip(opened.weights, parts, strict=True) for name in part
    }
    assert index["weight_map"].keys() == whole.keys()
    for part in parts:
        assert all(torch.equal(tensor, whole[name]) for name, tensor in part.items())


def test_a_sharded_base_is_read_like_a_single_file(zoo: Zoo) -> None:
    whole = zoo.merge()
    cut = zoo.folder / "cut"
    itself = {"base": zoo.base}
    merge_checkpoints(zoo.base, itself, cut, recipe("average"), shard_bytes=4 * 300 * 260)
    output = zoo.folder / "again"
    merge_checkpoints(open_model_folder(cut), zoo.experts, output, recipe("task_arithmetic"))
    again = load_file(output / "model.safetensors")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in again.items())


def test_progress_rises_to_the_whole(zoo: Zoo) -> None:
    told: list[tuple[int, int]] = []
    zoo.merge(progress=lambda done, total: told.append((done, total)))
    done = [first for first, _ in told]
    assert done == sorted(done)
    assert told[-1][0] == told[-1][1] == sum(t.numel() for t in zoo.base_tensors.values())


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


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (lambda of: of.pop("layers.0.bias"), "expert 'green' lacks tensor 'layers.0.bias'"),
        (
            lambda of: of.update({"layers.0.bias": torch.zeros(25)}),
            "'layers.0.bias' has shape [25]; the base has [24]",
        ),
        (
            lambda of: of.update({"adapter.weight": torch.zeros(2)}),
            "has tensor 'adapter.weight', which the base lacks",
        ),
        *[
            (
                lambda of, value=value: of["layers.1.weight"][2].fill_(value),
                "expert 'green': tensor 'layers.1.weight' has 24 of 384 values",
            )
            for value in (float("nan"), float("inf"))
        ],
    ],
)
def test_an_expert_that_does_not_fit_is_named(
    zoo: Zoo, alter: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    alter(zoo.expert_tensors["green"])
    zoo.experts["green"] = checkpoint(zoo.folder / "green", zoo.expert_tensors["green"])
    assert said in refused(zoo)


def test_what_overflows_in_sixteen_bits_is_refused(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path, torch.float16)
    said = refused(zoo, scale=1e7)
    assert "gives values for tensor 'embed.weight' that are not finite as F16" in said


@pytest.mark.parametrize(("name", "kind"), [("fisher", "fisher"), ("regmean", "gram")])
def test_a_method_without_its_statistics_is_refused(zoo: Zoo, name: str, kind: str) -> None:
    assert f"'{name}' needs statistics '{kind}'" in refused(zoo, name)


@pytest.mark.parametrize("name", DATA_FREE)
def test_a_bound_that_the_largest_tensor_exceeds_is_refused(zoo: Zoo, name: str) -> None:
    said = refused(zoo, name, memory=2**16)
    assert said.startswith(f"merge.memory: '{name}' needs")
    assert "'embed.weight' [300, 260]" in said


def test_elementwise_methods_fit_where_whole_tensors_do_not(zoo: Zoo) -> None:
    bound = 6 * 2**20
    assert "raise merge.memory" in refused(zoo, "tsv_m", memory=bound)
    zoo.merge("task_arithmetic", memory=bound)


def test_a_merge_of_nothing_or_into_what_exists_is_refused(zoo: Zoo) -> None:
    zoo.merge()
    assert "out exists; give a new folder" in refused(zoo)
    zoo.experts = {}
    assert "expected at least one expert" in refused(zoo)


def test_task_vectors_serve_like_experts(zoo: Zoo) -> None:
    whole = zoo.merge("iso_c")
    files = []
    for task, of in zoo.expert_tensors.items():
        path = zoo.folder / f"{task}.safetensors"
        save_file({n: of[n] - zoo.base_tensors[n] for n in SHAPES}, path)
        files.append(TensorFiles([path], task))
    base = zoo.folder / "base.safetensors"
    save_file({n: zoo.base_tensors[n] for n in SHAPES}, base)
    sources = Sources(TensorFiles([base], "base"), files, TASKS, differences=True)
    merging = Merging(sources, recipe("iso_c"))
    for name in SHAPES:
        torch.testing.assert_close(merging.tensor(name)[0], whole[name])


@pytest.mark.parametrize("name", ["fisher", "regmean"])
def test_statistics_are_read_beside_the_tensors(zoo: Zoo, name: str) -> None:
    (kind,) = methods()[name].needs
    random = torch.Generator().manual_seed(5)
    measured: dict[str, Tensor] = {}
    for tensor, shape in SHAPES.items():
        if kind == "fisher":
            measured[tensor] = torch.rand(3, *shape, generator=random)
        elif len(shape) == 2:
            inputs = torch.randn(3, 400, shape[1], generator=random)
            measured[tensor] = inputs.mT @ inputs
    files = []
    for k, task in enumerate(TASKS):
        path = zoo.folder / f"{task}-{kind}.safetensors"
        save_file({n: t[k].contiguous() for n, t in measured.items()}, path)
        files.append(TensorFiles([path], task))
    from contextlib import ExitStack

    with ExitStack() as stack:
        sources = Sources.open(zoo.base, zoo.experts, stack)
        merging = Merging(replace(sources, statistics={kind: files}), recipe(name))
        for slot, layer in layers(zoo.vectors(3), recipe(name), {kind: measured}):
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
