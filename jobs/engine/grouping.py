"""Task groups: which tasks step together, and on which worker.

Groups are fixed by the job: tasks in their order, cut into ``fit.groups`` stretches of nearly equal
size. Which worker hosts a group depends on the cluster and never enters a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tintray.jobs.config.job_file import JobSpec

MOST_GROUPS = 8
"""Of a job that names none: their gradients, a backbone each, stay small beside T."""

DEFAULT_MICRO_BATCH = 64
"""Examples per forward pass. Measured on a ViT of 1.2 M parameters in bfloat16: 7 % faster than 32
on one thread and 13 % on two; 128 gains as much again and doubles what activations take."""

GPU_MICRO_BATCH = 512
"""The same on a GPU, which is kept busy by many examples."""

_GPU_ACTIVATIONS = 16 * 2**30
"""Bytes that a forward pass may keep for the backward pass on a GPU, where no size is named."""


def group_count(spec: JobSpec) -> int:
    """In turn means task by task; otherwise as the job says, or by its tasks and batches."""
    if spec.fit.updates == "in_turn":
        return len(spec.tasks)
    full = DEFAULT_MICRO_BATCH if spec.cluster.device == "cpu" else GPU_MICRO_BATCH
    return spec.fit.groups or default_groups(len(spec.tasks), spec.fit.batch_size, full)


def default_groups(tasks: int, batch_size: int, micro_batch: int = DEFAULT_MICRO_BATCH) -> int:
    """Task groups of a job that names none: each has a full micro-batch, if there are enough."""
    full = tasks * batch_size // micro_batch
    return max(1, min(full, tasks, MOST_GROUPS))


def micro_batch(spec: JobSpec, activations: int) -> int:
    """Examples in one forward pass: as the job says, or as many as suit where it computes.

    ``activations`` is what the forward pass of one example keeps, in bytes; 0 if nothing tells.
    """
    if spec.fit.micro_batch or spec.cluster.device == "cpu":
        return spec.fit.micro_batch or DEFAULT_MICRO_BATCH
    size = GPU_MICRO_BATCH
    while size > 16 and size * activations > _GPU_ACTIVATIONS:
        size //= 2
    return size


def form_groups(tasks: int, groups: int) -> list[range]:
    """Cut tasks 0 … K-1, in order, into stretches whose sizes differ by one at most."""
    count = min(tasks, groups)
    edges = [tasks * index // count for index in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]


def spread_groups(groups: Sequence[range], workers: int) -> list[list[int]]:
    """Give each group to the worker with the fewest tasks so far, the largest groups first."""
    hosted: list[list[int]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for number in sorted(range(len(groups)), key=lambda n: (-len(groups[n]), n)):
        least = loads.index(min(loads))
        hosted[least].append(number)
        loads[least] += len(groups[number])
    return [sorted(numbers) for numbers in hosted if numbers]
