"""What a job will read, hold and compute, said before it starts; and a rehearsal of it.

Sizes come from the plan that the driver itself makes, times from a few seconds of the job's own
steps on this machine. Nothing is written: not to the store, not to the catalog.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from tintray.errors import SpecError
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.locations import Location
from tintray.jobs.config.settings import limits
from tintray.jobs.engine.asking import expected, first_drawn
from tintray.jobs.engine.backend import open_backend
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.configs import TaskFacts
from tintray.jobs.engine.in_process import InProcessBackend
from tintray.jobs.engine.job_size import adapter_bytes, make_plan
from tintray.jobs.engine.machine_speed import Speed
from tintray.jobs.engine.plan import FLOAT, ClusterSize, Plan
from tintray.jobs.engine.resources import free_on_card
from tintray.jobs.engine.worker import Worker
from tintray.jobs.engine.worker_pool import WorkerPool
from tintray.jobs.events import OnEvent, ignore
from tintray.jobs.records import Record
from tintray.jobs.runs.advice import far_tasks
from tintray.jobs.runs.methods import resolve_job
from tintray.jobs.runs.pilot import PilotReport, rehearse
from tintray.storage.artifacts.cache import lookup
from tintray.storage.artifacts.store import open_store
from tintray.vectors.task_vectors import vector_key

CALIBRATION_SECONDS = 10.0


@dataclass(frozen=True)
class PlanReport(Record):
    """What a job takes. Bytes, floating-point operations, seconds of wall time."""

    name: str
    tasks: int
    rounds: int
    parameters: int  # of the shared backbone
    read_bytes: int  # models and data, and what is cached of them
    cached_labels: int  # tasks whose self-labels are in the store
    cached_vectors: int  # tasks whose task vector is
    write_bytes: int  # what the store has more afterwards, at most
    workers: int
    shards: int
    worker_bytes: int  # the most memory of one worker
    shard_bytes: int
    object_store_bytes: int  # on each node
    memory_bytes: int  # of all members and object stores
    available_bytes: int
    fits: bool
    problem: str | None  # why it does not, and what would
    flops: float  # of the rounds
    seconds: Mapping[str, float]  # stage -> wall time
    pools: Mapping[str, int] = field(default_factory=dict)  # field -> memory of its examples
    max_pool_bytes: int = 0  # what each of them may take
    max_seconds: int = 0  # that a foreign tokenizer may compute over each of them
    card_bytes: int = 0  # of each worker's GPU
    checkpointed: bool = False  # whether layers compute their activations again, to take less
    pilot: PilotReport | None = None
    notices: Sequence[str] = ()  # what speaks against the job, each a sentence


def plan(
    spec: JobSpec,
    *,
    pilot: bool = False,
    seconds: float = CALIBRATION_SECONDS,
    on_event: OnEvent | None = None,
) -> PlanReport:
    """What a job will read, hold and compute, from ``seconds`` of its own steps on this machine.

    With ``pilot`` a small part of it is run in this process, in a store of its own that is deleted.

    Raises InputError for the first thing that would make the job fail, but for a lack of memory or
    disk: that is in the report.
    """
    spec, base = resolve_job(spec)
    with as_input_error():
        store = open_store(spec.store)
        next(iter(store.list("merges/")), None)
    capacity = _capacity(spec)
    problem = None
    try:
        laid_out = make_plan(spec, base, capacity)
    except SpecError as error:
        problem = str(error)
        laid_out = make_plan(spec, base, _boundless(capacity))
    facts, speed = _looked_at(spec, base, seconds)
    labels, vectors = [], []  # tasks for which they are not in the store
    for fact in facts.values():
        if lookup(store, "self-labels", fact.labels_key) is None:
            labels.append(fact)
        if lookup(store, "task-vectors", vector_key(base.digest, fact.expert_digest)) is None:
            vectors.append(fact)
    budgets = limits()
    report = PlanReport(
        name=spec.name,
        tasks=len(spec.tasks),
        rounds=spec.fit.rounds if spec.merge.learned else 0,
        parameters=base.parameters,
        read_bytes=_read_bytes(spec),
        cached_labels=len(facts) - len(labels),
        cached_vectors=len(facts) - len(vectors),
        write_bytes=_write_bytes(spec, base, facts, labels, vectors),
        workers=laid_out.workers,
        shards=laid_out.shards,
        worker_bytes=laid_out.worker,
        shard_bytes=laid_out.shard,
        object_store_bytes=laid_out.object_store,
        memory_bytes=laid_out.memory,
        available_bytes=capacity.memory,
        fits=problem is None,
        problem=problem,
        flops=speed.flops * _examples(spec),
        seconds=_seconds(spec, facts, labels, speed, laid_out),
        pools={name: taken for fact in facts.values() for name, taken in fact.sizes().items()},
        max_pool_bytes=budgets.max_pool_bytes,
        max_seconds=budgets.max_seconds,
        card_bytes=laid_out.card,
        checkpointed=laid_out.checkpointed,
        notices=far_tasks(facts),
    )
    if not pilot:
        return report
    planned = sum(report.seconds.values())
    return replace(report, pilot=rehearse(spec, planned, speed.step, on_event or ignore))


def _capacity(spec: JobSpec) -> ClusterSize:
    """Of the cluster that the job names, else of this machine."""
    address, gpus = spec.cluster.address, spec.cluster.gpus_per_worker
    if address is None or address.startswith("http"):
        here = InProcessBackend(1).capacity()
        card = free_on_card(gpus) if gpus else None
        return replace(here, cpus=os.cpu_count() or 1, gpus=int(card is not None), card=card)
    opened = open_backend(address=address, workers="auto", threads=1, plan=0, gpus=gpus)
    with closing(opened) as backend:
        return backend.capacity()


def _boundless(cluster: ClusterSize) -> ClusterSize:
    return replace(cluster, memory=2**62, card=None, object_store=None, disk=None)


def _looked_at(
    spec: JobSpec, base: SplitModel, seconds: float
) -> tuple[dict[str, TaskFacts], Speed]:
    """Check every task in this process, and time the steps of the first."""
    # The job need not fit here: members that only look at it hold no task vector.
    capacity = _boundless(ClusterSize(cpus=1, memory=0))
    with closing(InProcessBackend(spec.cluster.threads_per_worker, capacity=capacity)) as backend:
        workers = WorkerPool(Worker, backend, spec.here(), base, first_drawn=first_drawn(spec))
        return workers.check(), workers.benchmark(seconds)


def _read_bytes(spec: JobSpec) -> int:
    """Bytes of models and data files that are on this machine; others are not known."""
    files: set[Path] = set()
    places = [spec.base, *(task.expert for task in spec.tasks)]
    for task in spec.tasks:
        places += [data.path for data in (task.pool, task.test) if data is not None]
    for place in places:
        path = Location(place).path
        if path is not None:
            files |= set(path.glob("*.safetensors")) if path.is_dir() else {path}
    return sum(path.stat().st_size for path in files)


def _write_bytes(
    spec: JobSpec,
    base: SplitModel,
    facts: Mapping[str, TaskFacts],
    labels: Sequence[TaskFacts],
    vectors: Sequence[TaskFacts],
) -> int:
    """The merge itself, and of the tasks given their self-labels and task vectors."""
    products = adapter_bytes(spec)
    written = sum(products.get(fact.name, FLOAT * base.parameters) for fact in vectors)
    outputs = sum((expected(spec, f) + f.test_examples) * f.classes for f in labels)
    private = sum(fact.tint_parameters for fact in facts.values())
    return written + FLOAT * (outputs + base.parameters + private)


def _examples(spec: JobSpec) -> int:
    """Examples that pass forward and backward in all rounds."""
    if not spec.merge.learned:
        return 0
    of_round = min(len(spec.tasks), spec.fit.tasks_per_round or len(spec.tasks))
    return spec.fit.rounds * of_round * spec.fit.batch_size


def _seconds(
    spec: JobSpec,
    facts: Mapping[str, TaskFacts],
    labels: Sequence[TaskFacts],
    speed: Speed,
    laid_out: Plan,
) -> dict[str, float]:
    """Wall time by stage, with every worker on a core of its own that is like this one."""
    at_once = laid_out.workers
    predicted = sum(expected(spec, fact) + fact.test_examples for fact in labels)
    measured = sum(
        (fact.test_examples or fact.pool_examples) + fact.disturbed for fact in facts.values()
    )
    shards = spec.fit.rounds * 2 * len(facts) * speed.vector / max(1, laid_out.shards)
    return {
        "preparing": predicted * speed.forward / at_once,
        "fitting": _examples(spec) * speed.step / at_once + (shards if _examples(spec) else 0.0),
        "evaluating": measured * speed.forward / at_once,
    }
