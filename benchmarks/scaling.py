"""Rounds of many tasks on a local Ray cluster, against the bare compute that they contain.

    python -m benchmarks.scaling [--tasks 8 32 128 512] [--repeats 3] [--plot FILE]
    python -m benchmarks.scaling --large

Shards, workers and coordinator are those of a job; what a job would read from files is made here:
K distinct task vectors of random numbers, and pools of random images that tasks share. The model is
the real zoo's ViT (1.2 M parameters, 32×32 images), with 16 images per task and round; workers are
as many as there are cores. For each K, rounds and ``bare`` alternate, and medians are taken:

* ``round``  merge, fused steps of all task groups, gradients to the shards, projection, updates
* ``bare``   the same workers run forward and backward of the same images, in the same
             micro-batches and the same precision, through one model each, and nothing else

``per_task_ms`` is the wall time of a round over K; ``over_bare`` is the worst ratio of the two;
``worker_mib`` is the peak memory of the largest worker, and ``worker_pool_mib`` what pools take of
it. ``preparing`` is the largest share of a round in which batches are drawn and prepared: the most
that preparing the next ones during the merge could gain. With ``--large``, a model in the shape of
ViT-B/32 (86 M parameters, 224×224 images) and K = 20 with bfloat16 task vectors; ``total_mib`` is
the proportional memory of all processes at its peak.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification

from tintray.jobs.engine.backend import ActorHandle, Placement, T
from tintray.jobs.engine.configs import FitConfig
from tintray.jobs.engine.coordinator import Assignment, Coordinator
from tintray.jobs.engine.grouping import (
    DEFAULT_MICRO_BATCH,
    GPU_MICRO_BATCH,
    default_groups,
    form_groups,
    spread_groups,
)
from tintray.jobs.engine.plan import Choice, ClusterSize, JobSize, lay_out, object_store_bytes
from tintray.jobs.engine.ray_backend import RayBackend
from tintray.jobs.engine.shards import Shard, ShardConfig, Shards
from tintray.jobs.engine.worker import Worker
from tintray.models.structure import private_state
from tintray.numerics.choices import Format
from tintray.numerics.layout import Layout
from tintray.numerics.precision import computing, resolve
from tintray.numerics.randomness import sample
from tintray.numerics.schedules import Rates
from tintray.numerics.sites import TintSite
from tintray.pools.pool import Pool, joined
from tintray.storage.artifacts.blobs import BlobRef
from tintray.tinting.draws import Draws
from tintray.tinting.partition import Partition, partition
from tintray.tinting.pseudo_labels import PseudoLabelConfig
from tintray.tinting.stacked_step import form_group
from tintray.tinting.step import StepSettings, TaskGroup, TaskState
from tintray.tinting.tint_layers import FusedModel, TintLayer
from tintray.vectors.coefficients import Coefficients
from tintray.vectors.task_vectors import TaskVectors

BATCH = 16
POOL = 64  # images of each task
CLASSES = 10
ZOO = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4}
ZOO |= {"intermediate_size": 512, "image_size": 32, "patch_size": 4}
LARGE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE |= {"intermediate_size": 3072, "image_size": 224, "patch_size": 32}


def base_model(shape: dict[str, int]) -> ViTForImageClassification:
    """A model of that shape; weights do not matter to the time it takes."""
    torch.manual_seed(0)
    config = ViTConfig(
        **shape, num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return ViTForImageClassification(config).eval()


def split(shape: dict[str, int]) -> Partition:
    return partition(base_model(shape), [TintSite("head")])


def micro_batch(device: str) -> int:
    """Examples in a forward pass, as a job takes them."""
    return DEFAULT_MICRO_BATCH if device == "cpu" else GPU_MICRO_BATCH


def settings(device: str = "cpu") -> StepSettings:
    precision = resolve("auto", device)
    return StepSettings(0, BATCH, micro_batch(device), "soft", "agreement", precision=precision)


_NOTHING = FitConfig(
    *("", "", "", ("", ""), (TintSite("head"),), None, "head", True, "tensor"),
    settings=StepSettings(0, BATCH, DEFAULT_MICRO_BATCH, "soft", "agreement"),
    pseudo_labels=PseudoLabelConfig(1.0, threshold=None, target_precision=0.5, true_labels=False),
)
"""A configuration that names no base and no store: workers here make what others read."""


class MadeShard(Shard):
    """A shard whose task vectors are drawn instead of read."""

    def load(self, tasks: Sequence[str], vectors: Sequence[BlobRef]) -> None:
        random = torch.Generator().manual_seed(self._layout.numel)
        base = 0.02 * torch.randn(self._layout.numel, generator=random)
        self._vectors = TaskVectors.gather(
            self._layout,
            tasks,
            base,
            lambda slot: [
                1e-3 * torch.randn(slot.stop - slot.start, generator=random) for _ in tasks
            ],
            self._config.format,
            device=self._config.device,
        )


class MadeWorker(Worker):
    """A worker whose tasks are made instead of read; it can also run their bare compute."""

    def __init__(
        self,
        shape: dict[str, int],
        groups: dict[int, list[str]],
        device: str = "cpu",
        direct: bool = False,
    ) -> None:
        side = shape["image_size"]
        self._config = replace(_NOTHING, settings=settings(device), device=device, direct=direct)
        self._names = groups
        self._parts = split(shape)
        self._bare = base_model(shape).to(device)
        random = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (POOL, 3, side, side), generator=random, dtype=torch.uint8)
        self._images = images
        self._groups: dict[int, TaskGroup] = {}

    def begin(self, bounds: Sequence[slice]) -> None:
        self._bounds = list(bounds)
        parts, device = self._parts, self._config.device
        fused = FusedModel(parts.module, parts.layout, parts.private, device=device)
        gradient = torch.zeros(parts.layout.numel, device=device)
        for number, names in self._names.items():
            states = [self._task(name) for name in names]
            self._groups[number] = form_group(states, fused, gradient, self._config.settings)

    def _task(self, name: str) -> TaskState:
        """Its own pool in memory, as every task of a job has."""
        private = private_state(self._bare, self._parts.private)
        layer = TintLayer.of_expert(name, private, self._parts.rate, self._config.device)
        half = torch.full((3, 1, 1), 1 / 127.5), torch.full((3, 1, 1), -1.0)
        pool = Pool({"pixel_values": self._images.clone()}, *half, "")
        return TaskState(name, layer, pool, torch.randn(POOL, CLASSES))

    def bare(self) -> int:
        """Forward and backward of as many images as a round of these tasks has."""
        count, device, model = 0, self._config.device, self._bare
        at_once = micro_batch(device)
        for group in self._groups.values():
            examples = BATCH * len(group.tasks)
            model.zero_grad(set_to_none=False)
            for start in range(0, examples, at_once):
                size = min(at_once, examples - start)
                pixels = self._images.repeat(-(-size // POOL), 1, 1, 1)[:size].to(device)
                with computing(resolve("auto", device), model, device):
                    logits = model(pixel_values=pixels / 127.5 - 1).logits
                target = torch.full((size, CLASSES), 1 / CLASSES, device=device)
                cross_entropy(logits.float(), target).backward()
                count += size
        if device != "cpu":
            torch.cuda.synchronize()
        return count

    def preparing(self) -> float:
        """Seconds in which the batches of a round of these tasks are drawn, prepared and joined."""
        started = time.perf_counter()
        for group in self._groups.values():
            joined(
                [
                    task.pool.batch(sample(0, task.name, 0, len(task.pool), BATCH))
                    for task in group.tasks
                ]
            )
        return time.perf_counter() - started

    def pool_bytes(self) -> int:
        tasks = [task for group in self._groups.values() for task in group.tasks]
        return sum(tensor.nbytes for task in tasks for tensor in task.pool.inputs.values())


class MadeShards(Shards):
    """Shards that draw their task vectors."""

    member = MadeShard


class Memory:
    """The proportional memory of this process and all below it; the most that was seen."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.peak = max(self.peak, sum(map(_pss, _family(os.getpid()))))


def _family(root: int) -> list[int]:
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except OSError:  # it has just ended
                continue
            parents[int(folder.name)] = int(text.rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:  # it has just ended
        pass
    return 0


@dataclass(frozen=True)
class Members:
    """All that takes part in rounds of K tasks."""

    backend: RayBackend
    workers: Sequence[ActorHandle[MadeWorker]]
    shards: Shards
    coordinator: Coordinator
    groups: Sequence[range]  # the tasks of each group
    hosted: Sequence[Sequence[int]]  # the groups of each worker
    layout: Layout

    def on_workers(self, method: Callable[[MadeWorker], T]) -> list[T]:
        """Call a method of every worker at once."""
        return self.backend.get([worker.call(method) for worker in self.workers])


@contextmanager
def members(
    shape: dict[str, int],
    tasks: int,
    workers: int,
    format: Format = "f32",
    kinds: tuple[type[MadeWorker], type[MadeShards]] = (MadeWorker, MadeShards),
    transport: str | None = None,
) -> Iterator[Members]:
    """Members for K tasks on a fresh cluster, laid out as a job on this machine would be.

    With a ``transport`` they exchange tensors directly: by ``nccl``, each on a GPU of its own.
    """
    layout = split(shape).layout
    gpus, direct = int(transport == "nccl"), transport is not None
    device = "cuda" if gpus else "cpu"
    groups = form_groups(tasks, default_groups(tasks, BATCH, micro_batch(device)))
    store = object_store_bytes(layout.numel, len(groups))
    backend = RayBackend(None, workers, store, gpus=gpus * workers, transport=transport)
    try:
        size = JobSize(layout, tasks=tasks, private=0, groups=len(groups))
        cluster = ClusterSize(cpus=os.cpu_count() or 1, memory=2**63, gpus=gpus * workers)
        choice = Choice(workers=workers, gpus=gpus, format=format)
        plan = lay_out(size, cluster, choice)
        names = [f"task{k}" for k in range(tasks)]
        started: list[ActorHandle[MadeWorker]] = []
        hosts, of_groups = {}, {}
        hosted = spread_groups(groups, workers)
        for numbers in hosted:
            mine = {number: [names[k] for k in groups[number]] for number in numbers}
            place = Placement(f"worker {len(started)}", 1, gpus)
            worker = backend.spawn(place, kinds[0], shape, mine, device, direct)
            started.append(worker)
            hosts |= dict.fromkeys(numbers, worker)
            of_groups |= mine
        config = ShardConfig(
            *("", BlobRef("0" * 64, 0), layout),
            format=plan.format,
            device=device,
            direct=direct,
        )
        in_process = plan.in_process and not direct
        shards = kinds[1](
            backend, config, plan.shards, started if direct else (), in_process=in_process
        )
        loads = shards.load(names, [])
        begun = [worker.call(MadeWorker.begin, shards.bounds) for worker in started]
        backend.get([*loads, *begun])
        if direct:
            backend.connect(started)
        coordinator = Coordinator(
            backend,
            Assignment(shards, hosts, of_groups, {}),
            Coefficients(torch.full((tasks, len(layout.units)), 0.01)),
            rates=lambda _: Rates(lambda _: 1e-3, lambda _: 1.0),
            draws=Draws(names, BATCH),
        )
        yield Members(backend, started, shards, coordinator, groups, hosted, layout)
    finally:
        backend.close()


def measure(
    shape: dict[str, int],
    tasks: int,
    repeats: int,
    format: Format = "f32",
    *,
    workers: int | None = None,
    transport: str | None = None,
) -> dict[str, Any]:
    """Medians of K tasks' rounds on a fresh cluster; see ``members``."""
    count, warm = workers or os.cpu_count() or 1, 3 if transport == "nccl" else 1
    with members(shape, tasks, count, format, transport=transport) as found:
        rounds, bare = [], []
        for repeat in range(repeats + warm):
            started = time.perf_counter()
            found.coordinator.fit(repeat + 1, lambda _: None, first=repeat)
            middle = time.perf_counter()
            images = sum(found.on_workers(MadeWorker.bare))
            ended = time.perf_counter()
            assert images == tasks * BATCH
            if repeat >= warm:  # on a GPU the second run is recorded
                rounds.append(middle - started)
                bare.append(ended - middle)
        found.on_workers(MadeWorker.preparing)  # a warm-up
        return {
            "round": statistics.median(rounds),
            "bare": statistics.median(bare),
            "preparing": max(found.on_workers(MadeWorker.preparing)),
            "worker_mib": round(max(found.on_workers(MadeWorker.peak_memory)) / 2**20),
            "pool_mib": round(max(found.on_workers(MadeWorker.pool_bytes)) / 2**20),
            "shards": len(found.shards.members),
        }


def plot(found: dict[int, dict[str, Any]], path: Path) -> None:
    """Time per task and memory of a worker over K."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    keys = list(found)
    for name, colour in (("round", "#1b7f5c"), ("bare", "#9db4c8")):
        left.plot(keys, [1e3 * found[k][name] / k for k in keys], "o-", color=colour, label=name)
    left.set_title("ms per task and round", fontsize=10, loc="left")
    peaks = [found[k]["worker_mib"] for k in keys]
    right.plot(keys, peaks, "o-", color="#1b7f5c", label="worker, peak")
    pools = [found[k]["pool_mib"] for k in keys]
    right.plot(keys, pools, "o-", color="#9db4c8", label="its pools")
    right.set_title("MiB", fontsize=10, loc="left")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(keys, [str(k) for k in keys])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tasks")
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    """Print a table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, nargs="+", default=[8, 32, 128, 512])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="K = 20 of 86 M parameters instead")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    shape, tasks = (LARGE, [20]) if arguments.large else (ZOO, arguments.tasks)
    found: dict[int, dict[str, Any]] = {}
    print(f"{BATCH} images per task, {os.cpu_count()} workers, {resolve('auto')}")
    with Memory() as memory:
        for k in tasks:
            format: Format = "bf16" if arguments.large else "f32"
            found[k] = row = measure(shape, k, arguments.repeats, format)
            print(
                f"K = {k:4}  round {row['round'] * 1e3:9.1f} ms  {row['round'] * 1e3 / k:7.2f} per "
                f"task  {row['round'] / row['bare']:5.3f} × bare  worker {row['worker_mib']} MiB, "
                f"pools {row['pool_mib']} MiB of it  {row['shards']} shards  "
                f"preparing {row['preparing'] / row['round']:.2%}",
                flush=True,
            )
    if arguments.plot:
        plot(found, arguments.plot)
    result: dict[str, Any] = {
        "per_task_ms": {str(k): round(1e3 * row["round"] / k, 2) for k, row in found.items()},
        "over_bare": round(max(row["round"] / row["bare"] for row in found.values()), 3),
        "preparing": round(max(row["preparing"] / row["round"] for row in found.values()), 4),
        "worker_mib": {str(k): row["worker_mib"] for k, row in found.items()},
        "worker_pool_mib": {str(k): row["pool_mib"] for k, row in found.items()},
    }
    if arguments.large:
        result["total_mib"] = round(memory.peak / 2**20)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
