"""Rivals that learn nothing: merging methods at their best scale, and compressed experts.

A zoo is prepared once for all of them: its experts answer, whatever is measured after.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.compressed import MASKED, SCHEMES
from benchmarks.quality.measure import Bench, Measured
from benchmarks.quality.zoos import Zoo
from tintray.checkpoints.model_folder import ModelFolder, open_model_folder
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.arrays import Floats
from tintray.jobs.events import ignore
from tintray.jobs.runs.compare import rival, whole_backbone
from tintray.jobs.runs.methods import PreparedJob, resolve_job
from tintray.jobs.runs.pipeline import backend_for
from tintray.merging import methods
from tintray.models.loading import load_expert
from tintray.storage.artifacts.store import open_store
from tintray.tasks.evaluation import TaskScore

_MODULES = tuple(f"benchmarks/quality/{name}.py" for name in ("compressed", "untrained"))
FLOAT = 32  # bits of a number of a head, and of the backbone


def data_free(tasks: int) -> list[str]:
    """Merging methods that read no data and give so many tasks one backbone."""
    return [
        name
        for name, method in methods().items()
        if not method.needs and method.own is None and (method.most or tasks) >= tasks
    ]


class Rivals:
    """The rivals of one zoo; what is measured of them is kept."""

    def __init__(self, bench: Bench, zoo: Zoo) -> None:
        self._bench, self._zoo = bench, zoo
        spec = bench.spec(zoo, (), 0)
        self.spec: JobSpec = whole_backbone(spec, str(bench.store))

    def methods(self, names: Sequence[str] = ()) -> Iterator[tuple[str, Measured]]:
        """Merging methods by name; if none is named, all that read no data."""
        for name in names or data_free(len(self.spec.tasks)):
            yield name, self._once(name, partial(self._method, name))

    def compressed(self, name: str, share: float) -> Measured:
        """Experts by a scheme, in ``share`` of the bytes of a float32 backbone, heads included."""
        return self._once(f"{name} {share:g}", lambda: self._compressed(name, share))

    def masked(self, name: str) -> Measured:
        """A method that keeps one bit a number for each task."""
        bits = self._numbers + MASKED[name]
        return self._once(name, lambda: self._method(name, bits))

    def _once(self, what: str, compute: Callable[[], Measured]) -> Measured:
        key = self._bench.key(self.spec, f"{self._zoo.name} untrained {what}", *_MODULES)
        note = f"{self._zoo.name} {what}"
        return Measured(**self._bench.kept.once(key, note, lambda: dataclasses.asdict(compute())))

    # -- on the prepared job --------------------------------------------------------------------

    @cached_property
    def _job(self) -> PreparedJob:
        spec, base = resolve_job(self.spec)
        backend = backend_for(spec, base).__enter__()  # in this process: there is nothing to close
        return PreparedJob.of(spec, base, backend, open_store(spec.store), ignore)

    @cached_property
    def _numbers(self) -> int:
        return self._job.base.partition.layout.numel

    @cached_property
    def _theta(self) -> Floats:
        """θ₀ [P]."""
        job = self._job
        units = len(job.base.partition.layout.units)
        return job.workers.merge(np.zeros((len(job.spec.tasks), units), dtype=np.float32))

    def _method(self, name: str, bits: int = 0) -> Measured:
        return self._measured(rival(self._job, name, {}), bits)

    def _compressed(self, name: str, share: float) -> Measured:
        layout, base = self._job.base.partition.layout, torch.from_numpy(self._theta)
        start = layout.views(base)
        most = int(share * FLOAT * self._numbers) - FLOAT * round(self._heads)
        backbones, taken = {}, []
        for task, expert in self._experts():
            vectors = {name: expert[name] - tensor for name, tensor in start.items()}
            found, bits = SCHEMES[name].fit(vectors, most)
            backbones[task] = (base + layout.flatten(found)).numpy()
            taken.append(bits)
        return self._measured(self._job.scores(backbones), sum(taken) / len(taken))

    def _experts(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Every expert's tensors, one after the other."""
        spec = self._job.spec
        base = open_model_folder(Path(spec.base), role="the base")
        for task in spec.tasks:
            role = f"the expert of task '{task.name}'"
            folder: ModelFolder = open_model_folder(Path(task.expert), role=role, base=base)
            yield task.name, load_expert(folder, role).state_dict()

    @property
    def _heads(self) -> float:
        """Numbers of a head, the mean over tasks."""
        facts = self._job.facts.values()
        return sum(fact.head_parameters for fact in facts) / len(facts)

    def _measured(self, scores: Sequence[TaskScore], bits: float) -> Measured:
        """A row; ``bits`` are what a task has beside its head."""
        own = bits + FLOAT * self._heads
        averaged = len({score.metric for score in scores}) == 1
        return Measured(
            accuracy=sum(s.merged for s in scores) / len(scores) if averaged else None,
            normalised={s.task: s.normalised for s in scores if s.normalised is not None},
            agreement={score.task: score.agreement for score in scores},
            share=own / FLOAT / self._numbers,
            tint_bytes=round(own / 8),
            seconds=0.0,
            rounds=0,
        )
