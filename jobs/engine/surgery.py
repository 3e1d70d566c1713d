"""Surgery on the tasks of a merge, spread over a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tintray.checkpoints.processors import load_processor
from tintray.data.source import DataSource
from tintray.jobs.engine.arrays import Floats
from tintray.jobs.engine.backend import Backend, Placement, as_argument
from tintray.jobs.engine.configs import TaskConfig, open_expert
from tintray.jobs.engine.sources import cache_folder, local_data
from tintray.merging import surgery
from tintray.models.calling import answer_space
from tintray.models.loading import load_expert
from tintray.numerics.layout import Layout
from tintray.numerics.randomness import stream
from tintray.pools import sequences
from tintray.pools.pool import Pool
from tintray.pools.preparing import labels_of, open_pool
from tintray.tasks.evaluation import TaskScore, calibrated_score
from tintray.tinting.self_labels import predict


@dataclass(frozen=True)
class Operated:
    """A task after surgery: its module, and how the merge does on the task with it."""

    tensors: dict[str, NDArray[Any]]
    score: TaskScore


class Surgeon:
    """A member that operates on one task after the other; it keeps nothing."""

    def __init__(self, layout: Layout, seed: int) -> None:
        self._layout = layout
        self._seed = seed
        self._cache = cache_folder()

    def operate(self, order: TaskConfig, theta: Floats) -> Operated:
        """Learn a task's module under the backbone θ [P], and measure the task with it."""
        checkpoint = open_expert(order, self._cache)
        module = load_expert(checkpoint, order.role).requires_grad_(False)

        def load(source: DataSource, labelled: bool) -> Pool:
            data, where = local_data(source, self._cache), f"tasks.{order.name}"
            found = open_pool(data, checkpoint, order.kind, order.role, where, self._cache)
            if not (labelled and sequences.is_open(found)):
                return sequences.completed(module, found)
            tokenizer = load_processor(checkpoint, order.role, text=True)
            config = getattr(module, "config", None)
            return sequences.with_right_answers(found, data, tokenizer, config, where)

        pool = load(order.pool, labelled=False)
        measured = pool if order.test is None else load(order.test, labelled=True)
        wanted = surgery.features(module, pool)
        expert = predict(module, measured, order.kind)
        merged = self._layout.views(torch.from_numpy(theta.copy()))
        for name, tensor in merged.items():
            module.get_parameter(name).copy_(tensor)
        found = surgery.learn(
            surgery.features(module, pool), wanted, stream(self._seed, order.name, "surgery")
        )
        surgery.attach(module, found)
        answers = predict(module, measured, order.kind)
        labels = None
        if order.test is not None:
            width = order.kind.answer_width(module)
            labels = labels_of(
                local_data(order.test, self._cache),
                *(order.kind, measured, answer_space(module, width), f"tasks.{order.name}.test"),
            )
        seen = (order.kind, answers, expert, labels, measured.mask)
        measure = calibrated_score(order.name, *seen)
        return Operated({name: tensor.numpy() for name, tensor in found.items()}, measure)


def operate_on_all(
    backend: Backend,
    layout: Layout,
    seed: int,
    orders: Sequence[TaskConfig],
    backbones: Mapping[str, Floats],
) -> tuple[dict[str, dict[str, Tensor]], list[TaskScore]]:
    """Each task's module, and its score, in the order of the tasks.

    ``backbones`` is θ [P] by task, or under ``""`` for all.
    """
    surgeons = [
        backend.spawn(Placement(f"surgeon {n + 1}"), Surgeon, layout, seed)
        for n in range(min(backend.size(), len(orders)))
    ]
    shared = {name: as_argument(backend.put(theta)) for name, theta in backbones.items()}
    found = backend.get(
        [
            surgeons[k % len(surgeons)].call(
                Surgeon.operate, order, shared[order.name if order.name in shared else ""]
            )
            for k, order in enumerate(orders)
        ]
    )
    backend.dismiss(surgeons)
    tensors = {
        order.name: {name: torch.from_numpy(array.copy()) for name, array in of.tensors.items()}
        for order, of in zip(orders, found, strict=True)
    }
    return tensors, [of.score for of in found]
