"""FeatCal over a job's backend: members run the tasks' models, stage by stage, and solve a stage.

What a stage's tasks have to say is summed in their order, so that the result is the same on one
member and on many. One stage's equations of all tasks are held at a time, and a member holds one
expert at a time.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from typing import Any

import torch
from torch import nn

from tintray.checkpoints.tensors import TensorFile
from tintray.jobs.engine.arrays import Floats, as_arrays, readable
from tintray.jobs.engine.backend import ON_CPUS, Backend, Where, as_argument
from tintray.jobs.engine.configs import TaskConfig, TaskFacts
from tintray.jobs.engine.task_files import TaskFiles
from tintray.merging import Recipe, featcal
from tintray.merging.featcal import Settings, Stage
from tintray.models.loading import load_expert
from tintray.models.structure import copy_on
from tintray.numerics.layout import Layout
from tintray.pools import sequences
from tintray.pools.pool import Pool
from tintray.storage.artifacts.blobs import BlobRef
from tintray.storage.artifacts.cache import lookup, remember
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.vectors.task_count_scale import scale_for_task_count

KIND = "featcal"
_VERSION = 1  # of how layers are fitted; another number, another key

Arrays = dict[str, Floats]


class LayerFitter:
    """A member that runs one task's models after the other, and solves, on ``device``.

    It keeps only pools.
    """

    def __init__(self, layout: Layout, settings: Settings, device: str = "cpu") -> None:
        self._layout, self._settings, self._device = layout, settings, device
        self._pools: dict[str, Pool] = {}

    def stages(self, task: TaskConfig) -> list[Stage]:
        """Which layers of the backbone can be fitted, in the order of a forward pass."""
        expert, pool = self._opened(task)
        return featcal.stages(expert, [slot.name for slot in self._layout.slots], pool)

    def observe(self, task: TaskConfig, stage: Stage, theta: Floats) -> Arrays:
        """A task's part of a stage's equations, under the backbone θ [P] so far."""
        expert, pool = self._opened(task)
        merged = copy.deepcopy(expert)  # what is its own stays its expert's
        with torch.no_grad():
            for name, tensor in self._layout.views(readable(theta)).items():
                merged.get_parameter(name).copy_(tensor)
        found = featcal.observed(expert, merged, pool, stage, self._settings.mix)
        return as_arrays(found)

    def solve(
        self, task: TaskConfig, stage: Stage, parts: Arrays, base: Arrays, start: Arrays
    ) -> Arrays:
        """The tensors of a stage; ``task`` is any, its model says what the layers are."""
        expert = self._expert(TaskFiles.open(task))  # none of its numbers are read
        equations, anchor, at = (
            {name: readable(array, self._device) for name, array in of.items()}
            for of in (parts, base, start)
        )
        found = featcal.solved(expert, stage, equations, anchor, at, self._settings)
        return as_arrays(found)

    def _opened(self, task: TaskConfig) -> tuple[nn.Module, Pool]:
        files = TaskFiles.open(task)
        expert = copy_on(self._expert(files), self._device)
        if task.name not in self._pools:
            pool = files.pool()
            first = torch.arange(min(self._settings.examples, len(pool)))
            few = pool[first]  # a copy of those
            self._pools[task.name] = sequences.completed(expert, few, self._device)
        return expert, self._pools[task.name]

    def _expert(self, files: TaskFiles) -> nn.Module:
        expert = load_expert(files.folder.without_texts(), files.task.role, as_stored=True)
        return expert.requires_grad_(False)


def fitted_layers(
    backend: Backend,
    store: ArtifactStore,
    layout: Layout,
    tasks: Sequence[TaskConfig],
    facts: Mapping[str, TaskFacts],
    recipe: Recipe,
    summed: Callable[[float], Floats],
    notify: Callable[[str], object],
    where: Where = ON_CPUS,
) -> BlobRef:
    """θ − θ₀ after every layer was fitted, by tensor, as an artifact; computed once.

    ``summed`` gives θ₀ + scale · Σ τ [P], at which the layers start.

    Raises
    ------
    SpecError
        If no layer can be fitted.
    """
    values: Any = recipe.parameters  # checked: ``examples`` is whole
    settings = Settings(**values)
    scale = settings.start * scale_for_task_count(len(tasks))
    origin, theta = summed(0.0), summed(scale).copy()
    key = _key(layout, tasks, facts, (origin, theta), settings, where.device)
    if (known := lookup(store, KIND, key)) is not None:
        notify("the layers fitted by FeatCal were reused from the store")
        return known
    of_base, of_start = layout.views(readable(origin)), layout.views(readable(theta.copy()))
    views = layout.views(torch.from_numpy(theta))
    placement, given_to_all = where.placement("layer fitter"), (layout, settings, where.device)
    with backend.spread(len(tasks), placement, LayerFitter, *given_to_all) as members:
        stages = backend.get([members[0].call(LayerFitter.stages, tasks[0])])[0]
        for stage in stages:
            shared = as_argument(backend.put(theta.copy()))
            calls = [
                member.call(LayerFitter.observe, task, stage, shared)
                for member, task in zip(members, tasks, strict=True)
            ]
            parts = reduce(_added, (call.result() for call in calls))
            names = [n for n in of_base if n.rpartition(".")[0] in stage.calls]
            given = [{n: of[n].numpy() for n in names} for of in (of_base, of_start)]
            solved = members[0].call(LayerFitter.solve, tasks[0], stage, parts, *given)
            for name, array in solved.result().items():
                views[name].copy_(torch.from_numpy(array.copy()))
    notify(f"FeatCal has fitted {sum(len(stage.calls) for stage in stages)} layers")
    for name, tensor in views.items():
        tensor -= of_base[name]
    return remember(store, KIND, key, TensorFile(views))


def _added(total: Arrays, part: Arrays) -> Arrays:
    """The sum of two tasks' parts, term by term."""
    return {
        name: total[name] + part[name] if name in total and name in part else (total | part)[name]
        for name in total | part
    }


def _key(
    layout: Layout,
    tasks: Sequence[TaskConfig],
    facts: Mapping[str, TaskFacts],
    models: Sequence[Floats],
    settings: Settings,
    device: str,
) -> str:
    """The hash of all that the fitted layers depend on; of a GPU's rounding too."""
    parts = [KIND, str(_VERSION), str(asdict(settings))]
    parts += [hashlib.sha256(model.tobytes()).hexdigest() for model in models]
    parts += [slot.name for slot in layout.slots]
    parts += [f"{facts[t.name].expert_digest} {facts[t.name].pool_digest}" for t in tasks]
    parts += [] if device == "cpu" else [device]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
