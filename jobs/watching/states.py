"""Where tasks are compared: a merge as it was published, or a job as the average of its experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tintray.errors import InputError, NotFoundError
from tintray.jobs.config.job_file import JobSpec, load_spec
from tintray.jobs.config.locations import store_location
from tintray.jobs.config.settings import chosen
from tintray.jobs.engine.arrays import Floats, Sent
from tintray.jobs.engine.backend import Backend, Future, as_argument
from tintray.jobs.engine.finding import locate, store_of
from tintray.jobs.engine.worker import Worker
from tintray.jobs.engine.worker_pool import WorkerPool
from tintray.jobs.events import OnEvent, PhaseStarted
from tintray.jobs.queue.views import opened, resolve
from tintray.jobs.runs.change import Change
from tintray.jobs.runs.compare import whole_backbone
from tintray.jobs.runs.methods import PreparedJob, resolve_job
from tintray.jobs.runs.parent import Parent, child_base, open_parent, sums_task_vectors
from tintray.jobs.runs.pipeline import backend_for
from tintray.numerics.layout import Layout
from tintray.storage.artifacts.store import open_store


@dataclass(frozen=True)
class State:
    """Where tasks are compared: members that hold T and the pools, θ in pieces, Λ [K, L]."""

    of: str
    what: str
    spec: JobSpec
    layout: Layout
    backend: Backend
    workers: WorkerPool[Worker]
    theta: Sequence[Future[Sent]]
    coefficients: Tensor
    learned: bool  # whether it is a merge that was fitted, and no average

    @property
    def names(self) -> list[str]:
        """The tasks, in order."""
        return [task.name for task in self.spec.tasks]

    def merged(self, coefficients: Tensor) -> list[Future[Sent]]:
        """θ in pieces for any Λ, without a correction."""
        return self.workers.assignment.shards.merge(coefficients)

    def moved(self) -> Floats:
        """θ − θ₀ [P]."""
        shards = self.workers.assignment.shards
        moved: Floats = shards.gather(self.theta) - shards.gather(
            self.merged(self.coefficients * 0)
        )
        return moved

    def agreement(
        self, names: Sequence[str], theta: Sequence[Future[Sent]], examples: int
    ) -> list[float]:
        """Agreement of tasks with their experts under θ, on the beginnings of their pools."""
        pieces = [as_argument(piece) for piece in theta]
        return self.backend.get(self.workers.each(names, Worker.agreement, examples, *pieces))

    def step(
        self, name: str, theta: Sequence[Future[Sent]], examples: int
    ) -> tuple[list[Future[Sent]], float]:
        """∂L/∂θ of one task in pieces, and its loss; nothing moves, since the pace is 0."""
        group = next(n for n, own in self.workers.assignment.names.items() if name in own)
        pieces = [as_argument(piece) for piece in theta]
        draws = {name: (0, examples)}
        gradient, told = self.workers.assignment.groups[group].call_direct_parts(
            Worker.step, len(pieces), group, 0, 0.0, draws, *pieces
        )
        return gradient, told.result()[name].loss


def find(target: str, store: str | None, catalog: str | None) -> tuple[JobSpec | None, str | None]:
    """A job, or where a merge lies. What is prepared for a job file goes to ``store``, if given."""
    if target.endswith((".yaml", ".yml")) and "://" not in target:
        spec = load_spec(Path(target))
        return (
            spec if store is None else spec.changed(store=store_location(store, Path.cwd()))
        ), None
    catalog = chosen(store, catalog)[1]
    try:
        return None, locate(target, catalog)
    except NotFoundError as error:
        try:
            with opened(catalog) as (known, _):
                record = known.jobs.get(resolve(known, target)).spec
        except NotFoundError:
            raise error from None
    return JobSpec.from_record(record).on_own_cluster(), None


@contextmanager
def before(spec: JobSpec, examples: int, on_event: OnEvent) -> Iterator[State]:
    """A job as the average of its experts."""
    spec = _measuring(whole_backbone(spec, str(spec.store)), examples)
    spec, base = resolve_job(spec)
    on_event(PhaseStarted("preparing", "experts and their task vectors"))
    with backend_for(spec, base) as backend:
        job = PreparedJob.of(spec, base, backend, open_store(spec.store), on_event)
        layout, tasks = base.partition.layout, len(spec.tasks)
        average = torch.full((tasks, len(layout.units)), 1 / tasks)
        theta = job.workers.assignment.shards.merge(average)
        where = (backend, job.workers, theta, average, False)
        yield State(spec.name, "the average of the experts", spec, layout, *where)


@contextmanager
def published(
    url: str, store: str, catalog: str, examples: int, on_event: OnEvent
) -> Iterator[tuple[State, Parent]]:
    """A merge as it was published."""
    parent = open_parent(url, store=store_of(url, store), catalog=catalog)
    if not sums_task_vectors(parent.spec):
        raise InputError(
            f"{parent.ref} was merged by '{parent.spec.merge.method}', whose backbone is no sum of "
            "task vectors; give its job file, whose experts are then compared"
        )
    spec = _measuring(parent.spec, examples)
    base = child_base(parent, Change("remove", ()), spec)
    layout, names = base.partition.layout, [task.name for task in spec.tasks]
    on_event(PhaseStarted("preparing", "pools and task vectors"))
    with backend_for(spec, base) as backend:
        tasks = parent.published_tasks(names)
        workers = WorkerPool(Worker, backend, spec, base, published=tasks)
        workers.check()
        workers.prepare(parent.store, lambda _: None)
        flat: Floats = layout.flatten(parent.merge.backbone).numpy()
        pieces = [flat[bounds] for bounds in workers.assignment.shards.bounds]
        theta: list[Future[Sent]] = [backend.put(piece) for piece in pieces]
        where = (backend, workers, theta, parent.coefficients, True)
        yield State(str(parent.ref), "the merge", spec, layout, *where), parent


def _measuring(spec: JobSpec, examples: int) -> JobSpec:
    """The same job, to be measured and not to be fitted."""
    fit = {"batch_size": examples, "precision": "float32", "held_back": 0, "floor": False}
    objective = {"feature_weight": 0.0, "temperature": 1.0, "filter": "none"}
    here = {"gpus_per_worker": 0}
    return spec.changed(fit=fit, objective=objective, cluster=here, route=False)
