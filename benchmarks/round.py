"""One round against the bare compute that it contains, and against the published scheme.

    python -m benchmarks.round [--repeats 7] [--device cuda] [--model vit-b-32] [--tasks 8 32]
                               [--gpus 2]

For K = 8 and K = 32 tasks of 16 images, on the ViT of the ten-scripts zoo (1.2 M parameters, 32×32
images) or one in the shape of ViT-B/32 (86 M, 224×224), in one process, interleaved, medians:

* ``round``      merge, fused step of all task groups, projection, updates of Λ and of the tints
* ``bare``       forward and backward of the same images through one merged model, in the same
                 micro-batches and the same precision, and nothing else
* ``published``  what the released code of Model Tinting does, task by task in float32: the expert
                 labels the batch, base and all K task vectors are merged inside autograd (a sum of
                 products per tensor), forward, backward, one Adam step on Λ and the tint layer
* ``published, tuned``  the same with each sum of products written as one matrix product, and with
                 labels computed beforehand: how much of the difference is the scheme itself

* ``bare, recorded``  on a GPU: the bare passes as one recorded CUDA graph

``round`` and ``bare`` are measured in the precision that a job takes on this machine (bfloat16
where the processor has it) and in float32, with as many examples in a forward pass as a job takes.

With ``--gpus``, rounds of a worker on each of so many GPUs, and a shard beside it, stand beside
the bare passes of these workers (``benchmarks.scaling``).

Merging and projecting also tell which bytes they move (``moved``): what each operation reads and
writes, over the least that there is, which is T once for each of the two, θ₀ read and θ written,
and the gradient read.

The last line is one JSON object. In it ``moved_over_least`` is that by format, and
``kernels_k32_over_k4`` is how many kernels a round of 32 tasks takes over one of 4, in the form
that GPUs run, counted by torch's profiler.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Hashable
from copy import deepcopy
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import scaling
from benchmarks.scaling import (
    BATCH,
    CLASSES,
    LARGE,
    POOL,
    ZOO,
    base_model,
    micro_batch,
    split,
)
from tintray.jobs.engine.grouping import GPU_MICRO_BATCH, default_groups, form_groups
from tintray.models.structure import private_state
from tintray.numerics.choices import Format, Precision
from tintray.numerics.graphs import Recordings
from tintray.numerics.precision import computing, resolve
from tintray.numerics.sites import TintSite
from tintray.pools.pool import Pool
from tintray.tinting.partition import Partition, partition
from tintray.tinting.stacked_step import StackedGroup, form_group
from tintray.tinting.step import StepSettings, TaskState
from tintray.tinting.tint_layers import FusedModel, TintLayer
from tintray.vectors import stacks
from tintray.vectors.coefficients import Coefficients
from tintray.vectors.stacks import BITS
from tintray.vectors.task_vectors import TaskVectors

T = TypeVar("T")

SHAPES = {"zoo": ZOO, "vit-b-32": LARGE}


_NO_KERNELS = {
    f"aten::{name}"
    for name in (
        *("view", "as_strided", "t", "transpose", "slice", "select", "expand", "detach", "alias"),
        *("unsqueeze", "squeeze", "permute", "reshape", "_unsafe_view", "_reshape_alias", "narrow"),
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_"),
        *("result_type", "is_nonzero", "lift_fresh", "unbind", "split", "unflatten", "movedim"),
    )
}
"""Operations that only look at a tensor in another way, or make room for one."""


class Counted(Recordings):
    """Counts kernels instead of recording them: operations that are made of no others."""

    kernels = 0

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        self.count(function)

    def count(self, function: Callable[[], T]) -> T:
        """Run a function, and count what it starts."""
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            answer = function()
        for event in seen.events() or ():
            made_of = any(child.name.startswith("aten::") for child in event.cpu_children)
            if event.name.startswith("aten::") and event.name not in _NO_KERNELS and not made_of:
                self.kernels += 1
        return answer


class Moved(TorchDispatchMode):
    """Counts the bytes that operations read and write; what only looks at a tensor moves none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer, schema = func(*args, **(kwargs or {})), func._schema.arguments
        if f"aten::{func.overloadpacket.__name__}" not in _NO_KERNELS:
            given = {**dict(zip((a.name for a in schema), args, strict=False)), **(kwargs or {})}
            only_written = func.overloadpacket.__name__ in {"copy_", "fill_", "zero_"}
            changed = [given.get(a.name) for a in schema if a.alias_info and a.alias_info.is_write]
            read = [
                of
                for name, of in given.items()
                if name != "out" and not (only_written and of is given["self"])
            ]
            written = changed or [answer]
            leaves = tree_leaves([read, written])
            self.bytes += sum(_span(of) for of in leaves if isinstance(of, Tensor))
        return answer


def _span(tensor: Tensor) -> int:
    """Bytes of the numbers of a tensor; what is expanded lies there once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride) * tensor.element_size()


def moved(tasks: int, format: Format) -> tuple[int, int]:
    """Bytes that merging and projecting move, in blocks as on a GPU; and the least."""
    layout = split(ZOO).layout
    matrix = torch.randn(tasks, layout.numel)
    with patch.object(stacks, "_BLOCK", stacks._BLOCK_ELSEWHERE):
        vectors = TaskVectors.gather(
            *(layout, [f"task{k}" for k in range(tasks)], torch.zeros(layout.numel)),
            lambda slot: [*matrix[:, slot.start : slot.stop]],
            format,
        )
    with Moved() as seen:
        vectors.project(vectors.merge(torch.full((tasks, len(layout.units)), 0.1)))
    return seen.bytes, 2 * vectors.nbytes + 3 * vectors.base.nbytes


class Contest:
    """The same tasks, images and task vectors for all contestants."""

    def __init__(self, tasks: int, shape: str, device: str) -> None:
        self.tasks = tasks
        self.device = device
        self.micro_batch = micro_batch(device)
        self.module = base_model(SHAPES[shape])
        self.parts: Partition = partition(self.module, [TintSite("head")])
        layout = self.parts.layout
        generator = torch.Generator().manual_seed(1)
        size = SHAPES[shape]["image_size"]
        self.images = torch.randn(tasks, POOL, 3, size, size, generator=generator)
        self.labels = torch.randn(tasks, POOL, CLASSES, generator=generator)
        matrix = torch.randn(tasks, layout.numel, generator=generator).mul_(0.01)
        names = tuple(f"task{k}" for k in range(tasks))
        base = layout.flatten(self.module.state_dict())
        self.vectors = TaskVectors.gather(
            layout, names, base, lambda slot: [*matrix[:, slot.start : slot.stop]], device=device
        )
        start = torch.full((tasks, len(layout.units)), 0.1)
        self.coefficients = Coefficients(start)

    # -- ours ----------------------------------------------------------------------------------

    def round(self, precision: Precision) -> Callable[[int], None]:
        """Merge, step every group, project, update: what a job does in a round."""
        settings = self._settings(precision)
        fused = FusedModel(self.module, self.parts.layout, self.parts.private, device=self.device)
        buffer = torch.zeros(self.parts.layout.numel, device=self.device)
        groups = [
            form_group([self._task(k) for k in stretch], fused, buffer, settings)
            for stretch in form_groups(
                self.tasks, default_groups(self.tasks, BATCH, self.micro_batch)
            )
        ]
        total = torch.zeros_like(buffer)

        def one(round_: int) -> None:
            theta = self.vectors.merge(self.coefficients.values)
            total.zero_()
            for group in groups:
                total.add_(group.step(theta, round_, 0.1).gradient)
            self.coefficients.update(self.vectors.project(total).cpu(), 1e-3)

        return one

    def kernels(self) -> int:
        """How many kernels a round takes in the form that GPUs run, whatever it runs on here."""
        fused = FusedModel(self.module, self.parts.layout, self.parts.private, device=self.device)
        buffer = torch.zeros(self.parts.layout.numel, device=self.device)
        tasks, settings = [self._task(k) for k in range(self.tasks)], self._settings("float32")
        group = StackedGroup(tasks, fused, buffer, settings)
        group.step(self.vectors.base, 0, 0.1)  # modules are asked what they can do once
        group._recordings = counted = Counted(self.device)
        theta = counted.count(lambda: self.vectors.merge(self.coefficients.values))
        gradient = group.step(theta, 1, 0.1).gradient
        counted.count(lambda: self.vectors.project(gradient))
        return counted.kernels

    def _settings(self, precision: Precision) -> StepSettings:
        return StepSettings(0, BATCH, self.micro_batch, "soft", "agreement", precision=precision)

    def _task(self, k: int) -> TaskState:
        layer = TintLayer.of_expert(
            f"task{k}",
            private_state(self.module, self.parts.private),
            self.parts.rate,
            device=self.device,
        )
        pool = Pool({"pixel_values": self.images[k]}, None, None, "")
        return TaskState(f"task{k}", layer, pool, self.labels[k])

    # -- the bare compute ------------------------------------------------------------------------

    def bare(self, precision: Precision) -> Callable[[int], None]:
        """Forward and backward of the round's images through one model; no task, no merge."""
        module = deepcopy(self.module).to(self.device)
        images = self.images[:, :BATCH].flatten(0, 1).to(self.device)
        targets = self.labels[:, :BATCH].flatten(0, 1).softmax(-1).to(self.device)

        def one(round_: int) -> None:
            module.zero_grad(set_to_none=False)
            pieces = zip(
                images.split(self.micro_batch), targets.split(self.micro_batch), strict=True
            )
            for piece, target in pieces:
                with computing(precision, module, self.device):
                    logits = module(pixel_values=piece).logits
                cross_entropy(logits.float(), target).backward()

        return one

    def recorded(self, precision: Precision) -> Callable[[int], None]:
        """The same as one recorded graph."""
        recordings, bare = Recordings(self.device), self.bare(precision)
        return lambda round_: recordings.run("bare", lambda: bare(round_))

    # -- the published scheme --------------------------------------------------------------------

    def published(self, *, tuned: bool) -> Callable[[int], None]:
        """Task by task: label, merge inside autograd, forward, backward, one Adam step."""
        module = deepcopy(self.module).to(self.device)  # as it is, every task's expert
        slots = self.parts.layout.slots
        base = self.parts.layout.views(self.vectors.base)
        matrix = self.vectors.matrix
        stacked = {
            slot.name: matrix[:, slot.start : slot.stop].reshape(-1, *slot.shape) for slot in slots
        }
        separate = {name: [base[name], *tensor.unbind()] for name, tensor in stacked.items()}
        coefficients = nn.Parameter(self.coefficients.values.to(self.device, copy=True))
        heads = [
            {
                name: nn.Parameter(tensor.to(self.device, copy=True))
                for name, tensor in private_state(self.module, self.parts.private).items()
            }
            for _ in range(self.tasks)
        ]
        everything = [coefficients, *(p for head in heads for p in head.values())]
        optimiser = torch.optim.Adam(everything, lr=1e-3)

        def merged() -> dict[str, Tensor]:
            if tuned:
                return {
                    slot.name: base[slot.name]
                    + torch.tensordot(coefficients[:, column], stacked[slot.name], 1)
                    for column, slot in enumerate(slots)
                }
            ones = torch.ones(1, len(slots), device=self.device)
            rows = torch.cat([ones, coefficients.clamp(0, 1)]).t()
            return {
                slot.name: sum(  # type: ignore[misc]
                    tensor * coefficient
                    for tensor, coefficient in zip(separate[slot.name], row, strict=True)
                )
                for slot, row in zip(slots, rows, strict=True)
            }

        def one(round_: int) -> None:
            for k, head in enumerate(heads):
                inputs = {"pixel_values": self.images[k, :BATCH].to(self.device)}
                target = self.labels[k, :BATCH].to(self.device)
                if not tuned:
                    with torch.no_grad():
                        target = module(**inputs).logits
                output = functional_call(module, merged() | head, (), inputs)
                loss = cross_entropy(output.logits, target.softmax(-1))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()

        return one


def kernels(tasks: int) -> int:
    """Kernels of a round of so many tasks on the small ViT, as a GPU would run it."""
    with patch.object(stacks, "_BLOCK", stacks._BLOCK_ELSEWHERE):
        contest = Contest(tasks, "zoo", "cpu")
    contest.micro_batch = GPU_MICRO_BATCH
    return contest.kernels()


def measure(tasks: int, repeats: int, shape: str, device: str) -> dict[str, float]:
    """Median seconds of each contestant, one round of each in turn."""
    contest = Contest(tasks, shape, device)
    precision = resolve("auto", device)
    contestants = {
        "round": contest.round(precision),
        "bare": contest.bare(precision),
        "round, float32": contest.round("float32"),
        "bare, float32": contest.bare("float32"),
        "published": contest.published(tuned=False),
        "published, tuned": contest.published(tuned=True),
    }
    if device != "cpu":
        contestants["bare, recorded"] = contest.recorded(precision)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    warm = 1 if device == "cpu" else 3  # on a GPU the second run is recorded
    for repeat in range(repeats + warm):
        for name, one in contestants.items():
            started = time.perf_counter()
            one(repeat)
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat >= warm:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _ratio(seconds: dict[str, float], numerator: str, denominator: str) -> float:
    return round(seconds[numerator] / seconds[denominator], 3)


def main() -> None:
    """Print a table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", choices=list(SHAPES), default="zoo")
    parser.add_argument("--tasks", type=int, nargs="+", default=[8, 32], metavar="K")
    parser.add_argument("--gpus", type=int, default=0, help="also a worker on each of so many")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, dict[str, float]] = {}
    for tasks in arguments.tasks:
        seconds = measure(tasks, arguments.repeats, arguments.model, arguments.device)
        print(
            f"K = {tasks}, {BATCH} images per task, threads: {arguments.threads}, "
            f"precision of a job here: {resolve('auto', arguments.device)}"
        )
        for name, value in seconds.items():
            print(f"  {name:18} {value * 1e3:9.1f} ms   {value / seconds['bare']:6.2f} × bare")
        result[f"k{tasks}"] = {
            "over_bare": _ratio(seconds, "round", "bare"),
            "speedup_over_published": _ratio(seconds, "published", "round"),
            "over_bare_float32": _ratio(seconds, "round, float32", "bare, float32"),
            "speedup_over_published_float32": _ratio(seconds, "published", "round, float32"),
            "speedup_over_tuned_float32": _ratio(seconds, "published, tuned", "round, float32"),
        }
        if "bare, recorded" in seconds:
            result[f"k{tasks}"]["over_bare_recorded"] = _ratio(seconds, "round", "bare, recorded")
        if arguments.gpus:
            of = scaling.measure(
                *(SHAPES[arguments.model], tasks, arguments.repeats),
                workers=arguments.gpus,
                transport="nccl",
            )
            ratio = of["round"] / of["bare"]
            print(f"  {arguments.gpus} GPUs: {of['round'] * 1e3:.1f} ms   {ratio:.2f} × bare there")
            result[f"k{tasks}"][f"over_bare_{arguments.gpus}_gpus"] = round(ratio, 3)
    result["moved_over_least"] = {}
    for format in BITS:
        bytes_, least = moved(max(arguments.tasks), format)
        print(
            f"{format}: merging and projecting K = {max(arguments.tasks)} move "
            f"{bytes_ / 2**20:.0f} MiB, of which {least / 2**20:.0f} are the least"
        )
        result["moved_over_least"][format] = round(bytes_ / least, 2)
    few, many = map(kernels, (4, 32))
    print(f"kernels of a round: {few} for 4 tasks, {many} for 32")
    print(json.dumps(result | {"kernels_k32_over_k4": round(many / few, 3)}))


if __name__ == "__main__":
    main()
