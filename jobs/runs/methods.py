"""``merge.method`` and ``merge.init``: a job that runs a merging method, alone or as its start."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tintray.errors import CheckpointError, SpecError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.merge_sections import ADAMERGING, SURGERY
from tintray.jobs.engine.arrays import Floats
from tintray.jobs.engine.backend import Backend, Where, as_argument
from tintray.jobs.engine.base_model import SplitModel, load_base_model
from tintray.jobs.engine.budgets import with_prompt, within_budget
from tintray.jobs.engine.configs import Prepared, TaskFacts
from tintray.jobs.engine.featcal import KIND as FEATCAL
from tintray.jobs.engine.featcal import fitted_layers
from tintray.jobs.engine.job_size import job_recipe, starts_from_method
from tintray.jobs.engine.merger import MergerConfig, merged_backbones
from tintray.jobs.engine.statistics import Refs, measure_statistics
from tintray.jobs.engine.surgery import operate_on_all
from tintray.jobs.engine.worker import Worker
from tintray.jobs.engine.worker_pool import WorkerPool
from tintray.jobs.events import Notice, OnEvent, TensorsMerged, ignore
from tintray.jobs.tracking.tracker import check_tracker
from tintray.merging import Recipe
from tintray.merging.files.memory import check_memory
from tintray.models.base_similarity import is_unrelated
from tintray.numerics.layout import Layout
from tintray.numerics.sites import HEAD
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.tasks.evaluation import TaskScore, mean


def with_method_defaults(spec: JobSpec) -> JobSpec:
    """The job with what its merging method implies: its objective, and what is not learned.

    AdaMerging (arXiv 2310.02575) learns coefficients alone, by the entropy of the merge's own
    predictions; a method that runs alone learns nothing.
    """
    method = spec.merge.method
    changed: dict[str, Any] = {}
    scale = "own" if spec.merge.scale is None else spec.merge.scale
    if method in ADAMERGING:
        changed["merge"] = {"granularity": ADAMERGING[method], "scale": scale}
        changed["objective"] = {"labels": "entropy", "filter": "none"}
        changed["fit"] = {"correction_lr": 0.0, "held_back": 0, "sampling": "even"}
    if not spec.merge.learned:
        changed["merge"] = {"scale": scale}
    if method in ADAMERGING or not spec.merge.learned:
        # Where nothing is learned at a site, there is none to be found.
        found = spec.tint.sites is not None and not spec.tint.auto
        changed["tint"] = {"learned": False} | ({} if found else {"sites": HEAD})
    return spec.changed(**changed)


def resolve_job(spec: JobSpec) -> tuple[JobSpec, SplitModel]:
    """The job with its defaults and the base that it stands on; its method is one that can run.

    Raises
    ------
    CheckpointError, SpecError
        As ``load_base_model`` does, and for a method that cannot merge so many tasks, or tensors of
        this size within its memory.
    """
    check_tracker(spec.tracking)
    spec = with_method_defaults(spec)
    spec, base = within_budget(spec, load_base_model(spec))
    if spec.merge.method == SURGERY and (spec.tint.bits or 32) < 32:
        raise SpecError(
            f"tint.bits: '{SURGERY}' measures every task with its head as it is; expected 32, "
            f"found {spec.tint.bits}"
        )
    if spec.tint.sites is None and spec.tint.learned:
        spec, base = with_prompt(spec, base)
    if spec.tint.sites is None:  # it has no place for one
        spec = spec.changed(tint={"sites": HEAD})
    found, tasks = job_recipe(spec), len(spec.tasks)
    found.method.check_tasks(tasks)
    if not spec.merge.learned:
        shapes = {slot.name: slot.shape for slot in base.partition.layout.slots}
        check_memory(found, shapes, tasks, spec.merge.memory)
    return spec, base


def start_scale(spec: JobSpec) -> float:
    """The coefficient that every task and unit starts with, within the bounds."""
    if spec.merge.init == "base" and spec.merge.directions != spec.merge.method:
        return 0.0
    scale, tasks = spec.merge.scale, len(spec.tasks)
    if isinstance(scale, int | float):
        return scale
    low, high = spec.merge.bounds or (-math.inf, math.inf)
    average = scale is None and spec.merge.directions == "task_arithmetic"
    return min(max(1 / tasks if average else job_recipe(spec).method.start(tasks), low), high)


CORRECTION_OF_CHANGE = 0.42
"""The correction's rate over the root mean square of task vectors, where a job names none.

At this rate a matrix moves by a twelfth of what fine-tuning moved it, in each of the first rounds.
"""


def correction_rate(spec: JobSpec, facts: Mapping[str, TaskFacts]) -> float:
    """The highest learning rate of the correction: the job's, or by the experts' distance."""
    if spec.fit.correction_lr != "auto":
        return spec.fit.correction_lr
    related = [f.change for f in facts.values() if not is_unrelated(f.base_similarity)]
    return float(f"{CORRECTION_OF_CHANGE * mean(related):.2g}") if related else 0.0


def start_coefficients(
    spec: JobSpec, layout: Layout, facts: Mapping[str, TaskFacts] | None = None
) -> Tensor:
    """Λ [K, L] to start from.

    What an expert from another start differs by would only harm the others, so that its
    coefficients start at zero where ``facts`` tell of it.
    """
    start = torch.full((len(spec.tasks), len(layout.units)), start_scale(spec))
    for row, task in zip(start, spec.tasks, strict=True):
        if facts is not None and is_unrelated(facts[task.name].base_similarity):
            row.zero_()
    return start


@dataclass(frozen=True)
class PreparedJob:
    """A job whose workers have everything that a fit or a merging method takes."""

    spec: JobSpec
    base: SplitModel
    backend: Backend
    workers: WorkerPool[Worker]
    store: ArtifactStore
    facts: Mapping[str, TaskFacts]
    prepared: Mapping[str, Prepared]
    on_statistics: Callable[[Refs], None] = lambda _: None  # called with what a method measured
    on_event: OnEvent = ignore  # told what of it was reused

    @classmethod
    def of(
        cls,
        spec: JobSpec,
        base: SplitModel,
        backend: Backend,
        store: ArtifactStore,
        on_event: OnEvent = ignore,
    ) -> PreparedJob:
        """Check and prepare a job that nothing is recorded of: one that only tries something."""
        workers = WorkerPool(Worker, backend, spec, base)
        facts = workers.check()
        prepared = workers.prepare(store, lambda done: None)
        return cls(spec, base, backend, workers, store, facts, prepared, on_event=on_event)

    def statistics(self, recipe: Recipe) -> Refs:
        """All statistics that a method needs or uses, measured or found in the store."""
        kinds = [*recipe.method.needs, *recipe.method.uses]
        tasks, facts = self.workers.tasks, self.facts

        def notify(text: str) -> None:
            self.on_event(Notice(text))

        if kinds == [FEATCAL]:  # of all tasks together, one layer after the other
            of_tasks = (self.backend, self.store, self.base.partition.layout, tasks, facts)
            fitted = fitted_layers(*of_tasks, recipe, self._summed, notify, self._where)
            found: Refs = {FEATCAL: (fitted,)}
        else:
            of_each = (self.backend, self.spec.store, kinds, tasks, facts, self.prepared)
            found = measure_statistics(*of_each, notify, self._where)
        self.on_statistics(found)
        return found

    @property
    def _where(self) -> Where:
        """Where members compute that a step of the job needs for a while."""
        device = self.spec.cluster.device
        return Where(device, () if device == "cpu" else self.workers.members)

    def _summed(self, scale: float) -> Floats:
        """θ₀ + scale · Σ τ [P], while the shards hold the task vectors themselves."""
        units = len(self.base.partition.layout.units)
        return self.workers.merge(np.full((len(self.spec.tasks), units), scale, dtype=np.float32))

    def load_directions(self) -> None:
        """Let the shards hold the directions that the job's coefficients multiply."""
        found = job_recipe(self.spec)
        if FEATCAL in found.method.needs:
            self._check_related()
        if starts_from_method(self.spec):  # else their directions are T itself
            statistics = self.statistics(found)
            self.workers.assignment.shards.load_directions(found, statistics)

    def _check_related(self) -> None:
        """Refuse experts of another base: their coefficients start at 0, which undoes a fit."""
        for task in self.workers.tasks:
            similarity = self.facts[task.name].base_similarity
            if is_unrelated(similarity):
                raise CheckpointError(
                    f"{task.role} was not fine-tuned from this base (the cosine between their "
                    f"weights is {similarity:.2f}), and merge.init 'featcal' fits all layers to "
                    "all experts; leave the task out, or start from 'task_arithmetic'"
                )

    def merged(
        self,
        recipe: Recipe,
        scale: float | None,
        on_event: OnEvent,
        *,
        most: int | None = None,
        measured: bool = True,
    ) -> dict[str, Floats]:
        """θ [P] by output, ``""`` or each task, of one method; by ``most`` members at most.

        Not ``measured``, the store is not given what would spare the method work another time.
        """
        names = tuple(order.name for order in self.workers.tasks)
        config = MergerConfig(
            self.spec.store,
            self.workers.base_blob(self.store),
            names,
            tuple(self.prepared[name].vector for name in names),
            recipe,
            scale,
            self.spec.merge.memory,
            self.statistics(recipe) if measured else {},
        )
        return merged_backbones(
            self.backend,
            config,
            self.base.partition.layout,
            lambda done, total: on_event(TensorsMerged(recipe.name, done, total)),
            most=most,
            where=self._where,
        )

    def round_tints(self, backbones: Mapping[str, Floats]) -> None:
        """Round what every task owns to what is stored, judged on its backbone."""
        if self.workers.bits == 32:
            return
        shared = {name: self.backend.put(theta) for name, theta in backbones.items()}
        for name in self.workers.hosts:
            self.workers.round_tints([name], shared[name if name in shared else ""])

    def scores(self, backbones: Mapping[str, Floats]) -> list[TaskScore]:
        """Measure every task on its backbone, in the order of the job."""
        shared = {name: as_argument(self.backend.put(theta)) for name, theta in backbones.items()}
        return self.backend.get(
            [
                worker.call(Worker.evaluate, name, shared[name if name in shared else ""])
                for name, worker in self.workers.hosts.items()
            ]
        )

    def operate(
        self, backbones: Mapping[str, Floats]
    ) -> tuple[dict[str, dict[str, Tensor]], list[TaskScore], dict[str, dict[str, Tensor]]]:
        """Learn every task's surgery module on its backbone: modules, scores and references."""
        of_tasks = (self.workers.tasks, backbones, self._where)
        return operate_on_all(
            self.backend, self.base.partition.layout, self.spec.fit.seed, *of_tasks
        )
