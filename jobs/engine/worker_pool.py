"""The members of a job: who hosts which task, and what they found out when they checked it.

Task groups are fixed by the job: tasks in their order, cut into ``fit.groups`` stretches of nearly
equal size. Which worker hosts a group depends on the cluster and never enters a result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Generic, TypeVar

import torch

from tintray.checkpoints.model_folder import ModelFolder, open_model_folder
from tintray.errors import InputError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.settings import share_factories
from tintray.jobs.engine.adapter_sizes import factor_bytes
from tintray.jobs.engine.arrays import Floats
from tintray.jobs.engine.backend import ActorHandle, Backend, Placement
from tintray.jobs.engine.configs import FitConfig, Prepared, TaskConfig, TaskFacts
from tintray.jobs.engine.coordinator import Assignment
from tintray.jobs.engine.machine_speed import Speed
from tintray.jobs.engine.pool_sizes import pool_bytes
from tintray.jobs.engine.published_tasks import Kept
from tintray.jobs.engine.resources import free_disk
from tintray.jobs.engine.shards import Shard, ShardConfig, Shards
from tintray.jobs.engine.sizes import (
    Choice,
    ClusterSize,
    Plan,
    activation_bytes,
    check,
    job_size,
    object_store_bytes,
)
from tintray.jobs.engine.sources import cache_folder, local_folder
from tintray.jobs.engine.worker import Worker
from tintray.models.comparing import check_same_computation
from tintray.models.loading import load_base
from tintray.models.structure import HEAD, backbone_names
from tintray.numerics.precision import resolve
from tintray.numerics.randomness import sample_tasks
from tintray.published.merge import tensors_as_bytes
from tintray.storage.artifacts.blobs import BlobRef
from tintray.storage.artifacts.cache import lookup, remember
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.tasks.registry import find_kind
from tintray.tinting.partition import Partition, default_tint_lr, partition
from tintray.tinting.pseudo_labels import PseudoLabelConfig
from tintray.tinting.site_search import AUTO, candidates
from tintray.tinting.step import StepSettings

W_co = TypeVar("W_co", bound=Worker, covariant=True)

MOST_GROUPS = 8
"""Groups of a job that names none, at most: enough for eight cores, few enough that their gradients
(one backbone each) stay small beside T."""

DEFAULT_MICRO_BATCH = 64
"""Examples per forward pass. Measured on a ViT of 1.2 M parameters in bfloat16: 7 % faster than 32
on one thread and 13 % on two; 128 gains as much again and doubles what activations take."""


@dataclass(frozen=True)
class SplitModel:
    """What a job stands on: its base, checked, and how it splits for the tint site.

    ``site`` is the one that it is laid out for: the head, where the job's own is still to be found.
    """

    digest: str
    partition: Partition
    site: str
    like: tuple[str, str] = ("", "")  # an expert that could be opened, and how messages call it

    @property
    def parameters(self) -> int:
        """Parameters of the backbone, the tint site included."""
        module = self.partition.module
        return sum(module.get_parameter(n).numel() for n in backbone_names(module))

    def tint_lr(self, spec: JobSpec) -> float:
        """The highest learning rate of tint layers: the job's own, or the default of its site."""
        module = self.partition.module
        return spec.fit.tint_lr or default_tint_lr(module, self.site, spec.tint.rank)


def load_base_model(spec: JobSpec) -> SplitModel:
    """Open the base and resolve the tint site; reads one model, computes nothing.

    Raises
    ------
    CheckpointError, SpecError
        If the base cannot be loaded, the site names no module of it, or none fits the budget.
    """
    share_factories()
    cache = cache_folder()
    base = open_model_folder(local_folder(spec.base, cache), role="base", factory=spec.factory)
    like, expert = _first_expert(spec, base, cache)
    role = like[1]
    check_same_computation(base, expert, "the base", role)
    module = load_base(base, like=expert)
    site = spec.tint.site
    if site == AUTO:  # still to be found: all but the head is laid out
        candidates(module, spec.tint.max_parameters)
        site = HEAD
    choice = (module, site, spec.merge.granularity, spec.tint.rank)
    return SplitModel(base.digest(), partition(*choice, learned=spec.tint.learned), site, like)


def _first_expert(
    spec: JobSpec, base: ModelFolder, cache: Path
) -> tuple[tuple[str, str], ModelFolder]:
    """The first task's expert; of a job that leaves tasks out, the first that can be opened."""
    for last, task in enumerate(spec.tasks, start=1 - len(spec.tasks)):
        role = f"tasks.{task.name}.expert"
        try:
            folder = local_folder(task.expert, cache)
            expert = open_model_folder(folder, role=role, base=base, factory=spec.factory)
            return (str(task.expert), role), expert
        except InputError:
            if spec.on_task_error == "fail" or last == 0:
                raise
    raise AssertionError("a job has tasks")


def make_plan(spec: JobSpec, ground: SplitModel, cluster: ClusterSize) -> Plan:
    """How the job is laid out over a cluster, and the memory that it takes there.

    Raises
    ------
    SpecError
        If it does not fit; see ``plan.check``.
    """
    layout, private = ground.partition.layout, ground.partition.private
    module, examples = ground.partition.module, spec.fit.micro_batch or DEFAULT_MICRO_BATCH
    below = tuple(f"{path}." for path in private)
    own = sum(p.numel() for name, p in module.named_parameters() if name.startswith(below))
    known = getattr(module, "config", None)
    answers = {
        "num_labels": getattr(known, "num_labels", 1)
    }  # a property, of which a dict is silent
    config = known.to_dict() | answers if known else {}
    wide = 4 if resolve(spec.fit.precision, spec.cluster.device) == "float32" else 2
    size = job_size(
        layout,
        tasks=len(spec.tasks),
        private=own,
        groups=min(len(spec.tasks), group_count(spec)),
        pool_bytes=pool_bytes(spec, config),
        activation_bytes=activation_bytes(config, examples, wide),
        corrected=bool(spec.merge.learned and spec.fit.correction_lr),
        factors=list(factor_bytes(spec).values()),
    )
    store = Path(spec.store.path) if spec.store.path else None
    place = replace(cluster, disk=None if store is None else free_disk(store))
    return check(size, place, _choice(spec))


def object_store_needed(spec: JobSpec, ground: SplitModel) -> int:
    """Bytes of shared memory for a cluster that is started for the job."""
    return object_store_bytes(ground.partition.layout.numel, group_count(spec))


def _choice(spec: JobSpec) -> Choice:
    wanted = spec.cluster
    return Choice(
        workers=None if wanted.workers == "auto" else max(1, wanted.workers),
        threads=wanted.threads_per_worker,
        shards=None if wanted.shards == "auto" else wanted.shards,
        gpus=wanted.gpus_per_worker,
        format=spec.merge.task_vectors,
    )


def default_groups(tasks: int, batch_size: int) -> int:
    """Task groups of a job that names none: each has a full micro-batch, if there are enough."""
    full = tasks * batch_size // DEFAULT_MICRO_BATCH
    return max(1, min(full, tasks, MOST_GROUPS))


def form_groups(tasks: int, groups: int) -> list[range]:
    """Cut tasks 0 … K-1, in order, into stretches whose sizes differ by one at most."""
    count = min(tasks, groups)
    edges = [tasks * index // count for index in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]


def spread_groups(groups: Sequence[range], workers: int) -> list[list[int]]:
    """Give each group to the worker with the fewest tasks so far, the largest groups first."""
    hands: list[list[int]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for number in sorted(range(len(groups)), key=lambda n: (-len(groups[n]), n)):
        least = loads.index(min(loads))
        hands[least].append(number)
        loads[least] += len(groups[number])
    return [sorted(hand) for hand in hands if hand]


class WorkerPool(Generic[W_co]):
    """Workers and shards of one job, on a backend.

    Parameters
    ----------
    worker
        What hosts the task groups.
    backend
        Where they run.
    spec, ground
        The job, and its base as ``load_base_model`` found it.
    kept
        Tasks of a published merge, which are taken up without their experts.
    """

    def __init__(
        self,
        worker: type[W_co],
        backend: Backend,
        spec: JobSpec,
        ground: SplitModel,
        *,
        kept: Mapping[str, Kept] | None = None,
    ) -> None:
        self._backend = backend
        self._spec = spec
        self._ground = ground
        self.orders = [_order(spec, index, kept or {}) for index in range(len(spec.tasks))]
        groups = form_groups(len(self.orders), group_count(spec))
        threads = spec.cluster.threads_per_worker
        self.plan = make_plan(spec, ground, backend.capacity())
        order = replace(_fit_order(spec, ground), direct=backend.tensor_transport)
        self._groups: dict[int, ActorHandle[W_co]] = {}
        self._names: dict[int, list[str]] = {}
        self._tasks: dict[str, ActorHandle[W_co]] = {}
        self._workers: list[ActorHandle[W_co]] = []
        for hand in spread_groups(groups, self.plan.workers):
            hosted = {number: [self.orders[i] for i in groups[number]] for number in hand}
            name, gpus = f"worker {len(self._workers) + 1}", spec.cluster.gpus_per_worker
            member = backend.spawn(Placement(name, threads, gpus), worker, order, hosted)
            self._workers.append(member)
            self._groups |= dict.fromkeys(hand, member)
            self._names |= {number: [o.name for o in of] for number, of in hosted.items()}
            self._tasks |= {o.name: member for tasks in hosted.values() for o in tasks}
        self._shards: Shards | None = None

    def check(self) -> dict[str, TaskFacts]:
        """Check every expert and every data set by one example of each; nothing is written.

        Raises
        ------
        InputError
            For a worker that cannot build the models at all; else for the first task, in the job's
            order, that cannot be used.
        """
        self._backend.ready(self._workers)
        checks = [self._tasks[order.name].call(Worker.check, order) for order in self.orders]
        return {facts.name: facts for facts in self._backend.get(checks)}

    def failures(self) -> dict[str, InputError]:
        """Check every task, and give what is wrong with each that cannot be used.

        Raises
        ------
        InputError
            For a worker that cannot build the models: that is no task's fault.
        """
        self._backend.ready(self._workers)
        checks = {o.name: self._tasks[o.name].call(Worker.check, o) for o in self.orders}
        found: dict[str, InputError] = {}
        for name, facts in checks.items():
            try:
                facts.result()
            except InputError as error:
                found[name] = error
        return found

    def calibrate(self, seconds: float) -> Speed:
        """Time the steps of the first task, by the worker that hosts it; ``check`` comes first."""
        name = self.orders[0].name
        return self._tasks[name].call(Worker.calibrate, name, seconds).result()

    def prepare(
        self, store: ArtifactStore, on_done: Callable[[Prepared], None]
    ) -> dict[str, Prepared]:
        """Have self-labels and task vectors of every task, and load the shards and the groups."""
        prepared = self.label(on_done)
        self.load(self.base_blob(store), prepared)
        return prepared

    def label(self, on_done: Callable[[Prepared], None]) -> dict[str, Prepared]:
        """Have self-labels and task vectors of every task."""
        calls = [self._tasks[o.name].call(Worker.prepare, o.name) for o in self.orders]
        prepared: dict[str, Prepared] = {}
        for _, done in self._backend.as_completed(calls):
            prepared[done.task] = done
            on_done(done)
        return prepared

    def load(self, base: BlobRef, prepared: Mapping[str, Prepared]) -> None:
        """Load the shards, with what task vectors are added to, and form the groups."""
        order = ShardConfig(
            store_url=str(self._spec.store),
            base=base,
            layout=self._ground.partition.layout,
            format=self.plan.format,
            mapped=self.plan.mapped,
            device=self._spec.cluster.device,
            direct=self._backend.tensor_transport,
        )
        hosts = self._workers if self._backend.tensor_transport else ()
        shards = self._shards = Shards(
            self._backend, order, self.plan.shards, hosts, in_process=self.plan.in_process
        )
        names = [order.name for order in self.orders]
        vectors = [prepared[name].vector for name in names]
        self._backend.get(
            [
                *shards.load(names, vectors),
                *(worker.call(Worker.begin, shards.bounds) for worker in self._workers),
            ]
        )
        if self._backend.tensor_transport:
            self._backend.connect(self._workers)

    @property
    def cast(self) -> Assignment:
        """Who takes part in rounds; ``prepare`` comes first."""
        assert self._shards is not None, "prepare() comes first"
        tasks = {order.name: self._tasks[order.name] for order in self.orders}
        return Assignment(self._shards, self._workers, self._groups, self._names, tasks)

    def save_groups(self, mark: torch.Tensor) -> dict[int, BlobRef]:
        """Have every task group's state written to the store, with ``mark``; blobs by number."""
        numbers = sorted(self._groups)
        saved = [self._groups[number].call(Worker.save_group, number, mark) for number in numbers]
        return dict(zip(numbers, self._backend.get(saved), strict=True))

    def load_groups(self, refs: Mapping[int, BlobRef]) -> None:
        """Have every task group go back to what was written."""
        self._backend.get(
            [worker.call(Worker.load_group, n, refs[n]) for n, worker in self._groups.items()]
        )

    @property
    def sampler(self) -> Callable[[int], frozenset[str]] | None:
        """Which tasks take part in a round, where not all do."""
        count = self._spec.fit.tasks_per_round
        if count is None or count >= len(self.orders):
            return None
        seed, names = self._spec.fit.seed, [order.name for order in self.orders]

        def chosen(round_: int) -> frozenset[str]:
            return frozenset(names[k] for k in sample_tasks(seed, round_, len(names), count))

        return chosen

    def tints(self) -> dict[str, dict[str, torch.Tensor]]:
        """Every task's private tensors, as they are now."""
        names = [order.name for order in self.orders]
        found = self._backend.get([self._tasks[name].call(Worker.tint, name) for name in names])
        return {
            name: {key: torch.from_numpy(array.copy()) for key, array in tensors.items()}
            for name, tensors in zip(names, found, strict=True)
        }

    def merge(self, coefficients: Floats) -> Floats:
        """θ [P] for any Λ [K, L], by the shards."""
        shards = self.cast.shards
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
        found = lookup(store, "bases", self._ground.digest)
        if found is not None:
            return found.ref
        module = self._ground.partition.module
        tensors: Mapping[str, torch.Tensor] = {
            name: module.get_parameter(name).detach() for name in backbone_names(module)
        }
        return remember(store, "bases", self._ground.digest, tensors_as_bytes(tensors), {}).ref


def group_count(spec: JobSpec) -> int:
    """In turn means task by task; otherwise as the job says, or by its tasks and batches."""
    if spec.fit.updates == "in_turn":
        return len(spec.tasks)
    return spec.fit.groups or default_groups(len(spec.tasks), spec.fit.batch_size)


def _order(spec: JobSpec, index: int, kept: Mapping[str, Kept]) -> TaskConfig:
    task = spec.tasks[index]
    test = None if task.test is None else task.test.order()
    pool = task.pool.order()
    known = (task.labelled, str(spec.base), spec.factory, kept.get(task.name))
    return TaskConfig(
        *(task.name, find_kind(task.kind), str(task.expert), pool, test, *known),
        classes=task.zero_shot.classes,
        templates=task.zero_shot.templates,
    )


def _fit_order(spec: JobSpec, ground: SplitModel) -> FitConfig:
    settings = StepSettings(
        seed=spec.fit.seed,
        batch_size=spec.fit.batch_size,
        micro_batch=spec.fit.micro_batch or DEFAULT_MICRO_BATCH,
        labels=spec.objective.labels,
        filter=spec.objective.filter,
        temperature=spec.objective.temperature,
        precision=resolve(spec.fit.precision, spec.cluster.device),
        features=spec.objective.feature_weight,
        distance=spec.objective.distance,
    )
    return FitConfig(
        store_url=str(spec.store),
        base=str(spec.base),
        base_digest=ground.digest,
        like=ground.like,
        factory=spec.factory,
        site=ground.site,
        rank=spec.tint.rank,
        feature_site=spec.objective.feature_site,
        learned=spec.tint.learned,
        device=spec.cluster.device,
        granularity=spec.merge.granularity,
        settings=settings,
        trust=PseudoLabelConfig(
            selected_fraction=spec.objective.top_p,
            threshold=None if spec.objective.threshold == "auto" else spec.objective.threshold,
            target_precision=spec.objective.target_precision,
            true_labels=spec.objective.true_labels,
        ),
    )
