"""The members of a job: who hosts which task, and what they found out when they checked it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Concatenate, Generic, TypeVar

import torch

from tintray.checkpoints.tensors import TensorFile, in_float32
from tintray.errors import InputError, SpecError, StorageError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.task_sections import TaskSpec
from tintray.jobs.engine.arrays import Floats, as_tensors
from tintray.jobs.engine.backend import (
    ActorHandle,
    Backend,
    Future,
    P,
    Placement,
    T,
    as_argument,
)
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.configs import FitConfig, Prepared, TaskConfig, TaskFacts
from tintray.jobs.engine.coordinator import Assignment
from tintray.jobs.engine.grouping import (
    form_groups,
    group_count,
    micro_batch,
    spread_groups,
)
from tintray.jobs.engine.job_size import make_plan, of_an_example
from tintray.jobs.engine.machine_speed import Speed
from tintray.jobs.engine.published_tasks import PublishedTask
from tintray.jobs.engine.shards import Shard, ShardConfig, Shards
from tintray.jobs.engine.worker import Worker
from tintray.models.structure import backbone_names
from tintray.numerics.choices import Bits
from tintray.numerics.precision import resolve
from tintray.numerics.randomness import sample_tasks
from tintray.storage.artifacts.blobs import BlobRef
from tintray.storage.artifacts.cache import lookup, remember
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.tasks.registry import find_kind
from tintray.tinting.draws import Draws
from tintray.tinting.pseudo_labels import PseudoLabelConfig
from tintray.tinting.step import StepSettings
from tintray.tinting.stored_tints import StoredTint

W_co = TypeVar("W_co", bound=Worker, covariant=True)


class WorkerPool(Generic[W_co]):
    """Workers (of the class that hosts task groups) and shards of one job, on a backend.

    Tasks of a ``published`` merge are taken up without their experts. ``first_drawn`` says how many
    self-labels are asked for at first where rounds are all that is done; without it, all are.
    """

    def __init__(
        self,
        worker: type[W_co],
        backend: Backend,
        spec: JobSpec,
        base: SplitModel,
        *,
        published: Mapping[str, PublishedTask] | None = None,
        first_drawn: int | None = None,
    ) -> None:
        self._backend = backend
        self._spec = spec
        self._base = base
        self.tasks = [task_config(spec, task, published) for task in spec.tasks]
        self.plan = make_plan(spec, base, backend.capacity())
        self._shards: Shards | None = None
        direct = backend.tensor_transport
        config = replace(
            _fit_config(spec, base),
            direct=direct,
            first_drawn=first_drawn,
            checkpointed=self.plan.checkpointed,
        )
        threads, gpus = spec.cluster.threads_per_worker, spec.cluster.gpus_per_worker
        stretches = form_groups(len(self.tasks), group_count(spec))
        groups = [self.tasks[stretch.start : stretch.stop] for stretch in stretches]
        self._names = {n: [task.name for task in group] for n, group in enumerate(groups)}
        self._workers: list[ActorHandle[W_co]] = []
        self._groups: dict[int, ActorHandle[W_co]] = {}
        for numbers in spread_groups(stretches, self.plan.workers):
            placement = Placement(f"worker {len(self._workers) + 1}", threads, gpus)
            hosted = {number: groups[number] for number in numbers}
            self._workers.append(backend.spawn(placement, worker, config, hosted))
            self._groups |= dict.fromkeys(numbers, self._workers[-1])
        self._groups = dict(sorted(self._groups.items()))
        self._hosts = {name: self._groups[n] for n, names in self._names.items() for name in names}

    def each(
        self,
        names: Iterable[str] | None,
        method: Callable[Concatenate[W_co, str, P], T],
        /,
        *args: P.args,
        **options: P.kwargs,
    ) -> list[Future[T]]:
        """Start a method of tasks by these names, or of all, on the workers that host them."""
        return [
            self._hosts[name].call(method, name, *args, **options)
            for name in (self._hosts if names is None else names)
        ]

    def check(self) -> dict[str, TaskFacts]:
        """Check every expert and every data set by one example of each; nothing is written.

        Raises for a worker that cannot build the models, else for the first task that is of no use.
        """
        return {name: facts.result() for name, facts in self._checks().items()}

    def failures(self) -> dict[str, InputError]:
        """Check every task, and give what is wrong with each that cannot be used.

        Raises for a worker that cannot build the models, and for a store that does not answer:
        that is no task's fault.
        """
        found: dict[str, InputError] = {}
        for name, facts in self._checks().items():
            try:
                facts.result()
            except StorageError:
                raise
            except InputError as error:
                found[name] = error
        return found

    def _checks(self) -> dict[str, Future[TaskFacts]]:
        self._backend.ready(self._workers)
        return {task.name: self._hosts[task.name].call(Worker.check, task) for task in self.tasks}

    def benchmark(self, seconds: float) -> Speed:
        """Time the steps of the first task, by the worker that hosts it; ``check`` comes first."""
        return self.each([self.tasks[0].name], Worker.benchmark, seconds)[0].result()

    def prepare(
        self, store: ArtifactStore, on_done: Callable[[Prepared], None]
    ) -> dict[str, Prepared]:
        """Have self-labels and task vectors of every task, and load the shards and the groups."""
        prepared = self.label(on_done)
        self.load(self.base_blob(store), prepared)
        return prepared

    def label(self, on_done: Callable[[Prepared], None]) -> dict[str, Prepared]:
        """Have self-labels and task vectors of every task; nothing is loaded."""
        prepared: dict[str, Prepared] = {}
        for _, done in self._backend.as_completed(self.each(None, Worker.prepare)):
            prepared[done.task] = done
            on_done(done)
        return prepared

    def load(self, base: BlobRef, prepared: Mapping[str, Prepared]) -> None:
        """Load the shards, with what task vectors are added to, and form the groups."""
        direct = self._backend.tensor_transport
        config = ShardConfig(
            store_url=str(self._spec.store),
            base=base,
            layout=self._base.partition.layout,
            format=self.plan.format,
            mapped=self.plan.mapped,
            device=self._spec.cluster.device,
            direct=direct,
            optimiser=self._spec.fit.correction_optimiser,
        )
        shards = self._shards = Shards(
            *(self._backend, config, max(1, self.plan.shards), self._workers if direct else ()),
            in_process=self.plan.in_process,
        )
        vectors = {task.name: prepared[task.name].vector for task in self.tasks}
        begun = [worker.call(Worker.begin, shards.bounds) for worker in self._workers]
        self._backend.get([*shards.load(list(vectors), list(vectors.values())), *begun])
        if direct:
            self._backend.connect(self._workers)

    def outgrown(self) -> bool:
        """Whether the cluster has room for more workers by now, where the job takes all."""
        if self._spec.cluster.workers != "auto" or self._spec.cluster.gpus_per_worker:
            return False
        try:
            plan = make_plan(self._spec, self._base, self._backend.capacity())
        except SpecError:  # it has less room, or less that is free
            return False
        return plan.workers > self.plan.workers

    @property
    def hosts(self) -> Mapping[str, ActorHandle[W_co]]:
        """Which worker has each task, in the order of the job."""
        return self._hosts

    @property
    def members(self) -> list[ActorHandle[W_co]]:
        """The workers."""
        return list(self._workers)

    @property
    def assignment(self) -> Assignment:
        """Who takes part in rounds; ``prepare`` comes first."""
        assert self._shards is not None, "prepare() comes first"
        return Assignment(self._shards, self._groups, self._names, self._hosts)

    def keep_labels(self) -> dict[str, BlobRef]:
        """Keep the self-labels that were asked for since ``prepare``: all of such a task's."""
        found = self._backend.get(self.each(None, Worker.keep_labels))
        named = zip(self._hosts, found, strict=True)
        return {name: ref for name, ref in named if ref is not None}

    def save_groups(self, mark: torch.Tensor) -> dict[int, BlobRef]:
        """Have every task group's state written to the store, with ``mark``; blobs by number."""
        saved = [host.call(Worker.save_group, n, mark) for n, host in self._groups.items()]
        return dict(zip(self._groups, self._backend.get(saved), strict=True))

    def load_groups(self, blobs: Mapping[int, BlobRef]) -> None:
        """Have every task group go back to what was written."""
        loaded = [host.call(Worker.load_group, n, blobs[n]) for n, host in self._groups.items()]
        self._backend.get(loaded)

    def draws(self) -> Draws:
        """What tasks draw in the rounds of a fit, from its first on."""
        fit, names = self._spec.fit, [task.name for task in self.tasks]
        count = fit.tasks_per_round
        chosen = None
        if count is not None and count < len(names):

            def chosen(round_: int) -> frozenset[str]:
                return frozenset(
                    names[k] for k in sample_tasks(fit.seed, round_, len(names), count)
                )

        lagging = fit.sampling == "lagging"
        return Draws(names, fit.batch_size, lagging=lagging, chosen=chosen)

    @property
    def bits(self) -> Bits:
        """What a number that a task owns is stored in."""
        return self._spec.tint.bits or 32

    def round_tints(self, names: Iterable[str], theta: Future[Floats]) -> None:
        """Round what tasks of these names own to what is stored, judged under θ [P]."""
        if self.bits < 32:
            only = self._spec.tint.budget is not None  # more bits would not fit it
            shared = as_argument(theta)
            self._backend.get(self.each(names, Worker.round_tint, self.bits, only, shared))

    def tints(self) -> dict[str, StoredTint]:
        """What every task owns, as it is stored."""
        tints = self._backend.get(self.each(None, Worker.tint))
        return {
            name: StoredTint(as_tensors(arrays), bits, lost, as_tensors(reference))
            for name, (arrays, bits, lost, reference) in zip(self._hosts, tints, strict=True)
        }

    def merge(self, coefficients: Floats) -> Floats:
        """θ [P] for any Λ [K, L], by the shards."""
        shards = self.assignment.shards
        return shards.gather(shards.merge(torch.from_numpy(coefficients)))

    def dismiss(self) -> None:
        """End workers and shards, so that others can use their CPUs."""
        shards = [] if self._shards is None else self._shards.members
        self._backend.dismiss([*self._workers, *shards])
        self._workers, self._shards = [], None

    def peak_memory(self) -> int:
        """Bytes: the sum over the members' own processes of the most that each has held."""
        peaks = [worker.call(Worker.peak_memory) for worker in self._workers]
        if self._shards is not None and not self._shards.in_process:
            peaks += [shard.call(Shard.peak_memory) for shard in self._shards.members]
        return sum(self._backend.get(peaks))

    def base_blob(self, store: ArtifactStore) -> BlobRef:
        """The base's backbone tensors, as an artifact."""
        if (found := lookup(store, "bases", self._base.digest)) is not None:
            return found
        module = self._base.partition.module
        tensors = {name: in_float32(module.get_parameter(name)) for name in backbone_names(module)}
        return remember(store, "bases", self._base.digest, TensorFile(tensors))


def task_config(
    spec: JobSpec, task: TaskSpec, published: Mapping[str, PublishedTask] | None = None
) -> TaskConfig:
    """What a worker must know of a task, which may be ``published`` by then."""
    return TaskConfig(
        name=task.name,
        kind=find_kind(task.kind),
        expert=str(task.expert),
        pool=task.pool.source(),
        test=None if task.test is None else task.test.source(),
        labelled=task.labelled,
        base=str(spec.base),
        factory=spec.factory,
        published=(published or {}).get(task.name),
        classes=task.zero_shot.classes,
        templates=task.zero_shot.templates,
    )


def _fit_config(spec: JobSpec, base: SplitModel) -> FitConfig:
    fit, objective = spec.fit, spec.objective
    settings = StepSettings(
        seed=fit.seed,
        batch_size=fit.batch_size,
        micro_batch=micro_batch(spec, of_an_example(spec, base.partition.module)),
        labels=objective.labels,
        filter=objective.filter,
        temperature=objective.temperature,
        precision=resolve(fit.precision, spec.cluster.device),
        features=objective.feature_weight,
        distance=objective.distance,
    )
    return FitConfig(
        store_url=str(spec.store),
        base=str(spec.base),
        base_digest=base.digest,
        like=base.like,
        factory=spec.factory,
        sites=spec.tint.places,
        tint_lr=spec.fit.tint_lr,
        feature_site=objective.feature_site,
        learned=spec.tint.learned,
        device=spec.cluster.device,
        granularity=spec.merge.granularity,
        held_back=spec.fit.held_back,
        floor=spec.fit.has_floor,
        settings=settings,
        route=spec.route,
        pseudo_labels=PseudoLabelConfig(
            selected_fraction=objective.top_p,
            threshold=None if objective.threshold == "auto" else objective.threshold,
            target_precision=objective.target_precision,
            true_labels=objective.true_labels,
        ),
    )
