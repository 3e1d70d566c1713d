"""What a job will read, hold and compute, said before it starts; and a rehearsal of it.

Sizes come from the plan that the driver itself makes, times from a few seconds of the job's own
steps on this machine. Nothing is written: not to the store, not to the catalog.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tintray.errors import SpecError
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.locations import Location
from tintray.jobs.config.sections import TaskSpec
from tintray.jobs.config.settings import limits
from tintray.jobs.engine.backend import open_backend
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.configs import TaskFacts
from tintray.jobs.engine.in_process import InProcessBackend
from tintray.jobs.engine.job_size import adapter_bytes, make_plan
from tintray.jobs.engine.machine_speed import Speed
from tintray.jobs.engine.plan import ClusterSize, Plan
from tintray.jobs.engine.worker import Worker
from tintray.jobs.engine.worker_pool import WorkerPool
from tintray.jobs.events import Event, OnEvent, RoundDone, ignore
from tintray.jobs.results import Record
from tintray.jobs.runs.methods import resolve_job
from tintray.jobs.runs.run import run_job
from tintray.published.manifest import Manifest
from tintray.storage.artifacts.cache import lookup
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.store import open_store
from tintray.tinting.self_labels import labels_key

CALIBRATION_SECONDS = 10.0
PILOT_TASKS, PILOT_ROUNDS, PILOT_EXAMPLES = 4, 40, 512
_FLOAT = 4


@dataclass(frozen=True)
class PilotReport(Record):
    """A rehearsal: few tasks, few rounds, part of the pools; and what it makes one expect."""

    tasks: Sequence[str]
    rounds: int
    examples: int  # of each pool, at most
    seconds: float  # what it took
    agreement: float  # mean over tasks, at its end
    normalised_accuracy: float | None
    expected_agreement: float  # of these tasks, after all rounds of the job
    expected_seconds: float  # of the whole job: all tasks, rounds and examples


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
    pilot: PilotReport | None = None


def plan(
    spec: JobSpec,
    *,
    pilot: bool = False,
    seconds: float = CALIBRATION_SECONDS,
    on_event: OnEvent | None = None,
) -> PlanReport:
    """What a job will read, hold and compute, from ``seconds`` of its own steps on this machine.

    With ``pilot`` a small part of it is run in this process, in a store of its own that is deleted.

    Raises
    ------
    InputError
        For the first thing that would make the job fail, but for a lack of memory or disk: that is
        in the report.
    """
    spec, ground = resolve_job(spec)
    with as_input_error():
        store = open_store(spec.store)
        next(iter(store.list("merges/")), None)
    capacity = _capacity(spec)
    problem = None
    try:
        laid_out = make_plan(spec, ground, capacity)
    except SpecError as error:
        problem = str(error)
        laid_out = make_plan(spec, ground, _boundless(capacity))
    facts, speed = _looked_at(spec, ground, seconds)
    cached = _Cached.found(store, ground, facts)
    report = PlanReport(
        name=spec.name,
        tasks=len(spec.tasks),
        rounds=spec.fit.rounds if spec.merge.learned else 0,
        parameters=ground.parameters,
        read_bytes=_read_bytes(spec),
        cached_labels=len(cached.labels),
        cached_vectors=len(cached.vectors),
        write_bytes=_write_bytes(spec, ground, facts, cached),
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
        seconds=_seconds(spec, facts, cached, speed, laid_out),
        pools={name: taken for fact in facts.values() for name, taken in fact.sizes().items()},
        max_pool_bytes=limits().max_pool_bytes,
        max_seconds=limits().max_seconds,
    )
    if not pilot:
        return report
    planned = sum(report.seconds.values())
    rehearsed = rehearse(spec, planned, speed.step, on_event or ignore)
    return PlanReport(**{**vars(report), "pilot": rehearsed})


# What is there


@dataclass(frozen=True)
class _Cached:
    """The tasks whose artifacts an earlier job has left in the store."""

    labels: frozenset[str]
    vectors: frozenset[str]

    @classmethod
    def found(
        cls, store: ArtifactStore, ground: SplitModel, facts: Mapping[str, TaskFacts]
    ) -> _Cached:
        labels, vectors = set(), set()
        for name, fact in facts.items():
            if lookup(store, "self-labels", labels_key(fact.expert_digest, fact.pool_digest)):
                labels.add(name)
            if lookup(store, "task-vectors", f"{ground.digest[:32]}{fact.expert_digest[:32]}"):
                vectors.add(name)
        return cls(frozenset(labels), frozenset(vectors))


def _capacity(spec: JobSpec) -> ClusterSize:
    """Of the cluster that the job names, else of this machine."""
    address = spec.cluster.address
    if address is None or address.startswith("http"):
        return replace(InProcessBackend(1).capacity(), cpus=os.cpu_count() or 1)
    fleet = open_backend(address=address, workers="auto", threads=1, plan=0)
    try:
        return fleet.capacity()
    finally:
        fleet.close()


def _boundless(cluster: ClusterSize) -> ClusterSize:
    return replace(cluster, memory=2**62, object_store=None, disk=None)


def _looked_at(
    spec: JobSpec, ground: SplitModel, seconds: float
) -> tuple[dict[str, TaskFacts], Speed]:
    """Check every task in this process, and time the steps of the first."""
    # The job need not fit here: members that only look at it hold no task vector.
    fleet = InProcessBackend(
        spec.cluster.threads_per_worker, capacity=_boundless(ClusterSize(cpus=1, memory=0))
    )
    try:
        crew = WorkerPool(Worker, fleet, spec.here(), ground)
        return crew.check(), crew.benchmark(seconds)
    finally:
        fleet.close()


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
    spec: JobSpec, ground: SplitModel, facts: Mapping[str, TaskFacts], cached: _Cached
) -> int:
    """Task vectors and self-labels that are not there yet, and the merge itself."""
    products = adapter_bytes(spec)
    absent = facts.keys() - cached.vectors
    vectors = sum(products.get(name, _FLOAT * ground.parameters) for name in absent)
    labels = sum(f.pool_examples * f.classes for n, f in facts.items() if n not in cached.labels)
    tests = sum(f.test_examples * f.classes for n, f in facts.items() if n not in cached.labels)
    merge = ground.parameters + sum(f.tint_parameters + f.head_parameters for f in facts.values())
    return vectors + _FLOAT * (labels + tests + merge)


# What it takes


def _examples(spec: JobSpec) -> int:
    """Examples that pass forward and backward in all rounds."""
    if not spec.merge.learned:
        return 0
    of_round = min(len(spec.tasks), spec.fit.tasks_per_round or len(spec.tasks))
    return spec.fit.rounds * of_round * spec.fit.batch_size


def _seconds(
    spec: JobSpec,
    facts: Mapping[str, TaskFacts],
    cached: _Cached,
    speed: Speed,
    laid_out: Plan,
) -> dict[str, float]:
    """Wall time by stage, with every worker on a core of its own that is like this one."""
    at_once = laid_out.workers
    new = [fact for name, fact in facts.items() if name not in cached.labels]
    predicted = sum(fact.pool_examples + fact.test_examples for fact in new)
    measured = sum(fact.test_examples or fact.pool_examples for fact in facts.values())
    shards = spec.fit.rounds * 2 * len(facts) * speed.vector / laid_out.shards
    return {
        "preparing": predicted * speed.forward / at_once,
        "fitting": _examples(spec) * speed.step / at_once + (shards if _examples(spec) else 0.0),
        "evaluating": measured * speed.forward / at_once,
    }


# A rehearsal


def rehearse(spec: JobSpec, planned: float, step: float, on_event: OnEvent) -> PilotReport:
    """Run a few tasks of a job for a few rounds on part of their pools, and extrapolate.

    ``planned`` are the seconds that the whole job was estimated to take, ``step`` those of one
    example; the rehearsal corrects them by what its rounds took.

    The tasks are spread over the job. Agreement is extrapolated by its trend over the logarithm of
    the round, which is how it grows once the first rounds are over.
    """
    tasks = _spread(spec.tasks, PILOT_TASKS)
    rounds = min(spec.fit.rounds, PILOT_ROUNDS)
    seen: list[float] = []

    def hear(event: Event) -> None:
        if isinstance(event, RoundDone):
            seen.append(float(np.mean(list(event.agreement.values()))))
        on_event(event)

    with TemporaryDirectory(prefix="tintray-pilot-") as name:
        folder = Path(name)
        small = _small(spec, tasks, rounds, folder)
        began = time.perf_counter()
        manifest = run_job(small, hear)
        took = time.perf_counter() - began
    metrics = manifest.metrics
    known = any(task.test is not None for task in tasks)
    return PilotReport(
        tasks=[task.name for task in tasks],
        rounds=rounds,
        examples=PILOT_EXAMPLES,
        seconds=took,
        agreement=metrics.agreement,
        normalised_accuracy=metrics.normalised_accuracy if known else None,
        expected_agreement=expected_agreement(seen, metrics.agreement, spec.fit.rounds),
        expected_seconds=planned
        * _slower(manifest, rounds * len(tasks) * spec.fit.batch_size, step),
    )


def expected_agreement(seen: Sequence[float], reached: float, rounds: int) -> float:
    """Agreement after ``rounds`` rounds, from its trend over log(round); at least what it is now.

    ``seen`` is that of each round so far, on its batches; ``reached`` was measured at their end.
    """
    count = len(seen)
    if count < 4 or rounds <= count:
        return reached
    late = np.arange(count // 2, count)
    slope = float(np.polyfit(np.log(late + 1.0), np.asarray(seen)[late], 1)[0])
    return min(1.0, reached + max(0.0, slope) * math.log(rounds / count))


def _slower(manifest: Manifest, passed: int, step: float) -> float:
    """By how much rounds took longer than their steps alone were estimated to; 1 at least."""
    fitted = manifest.seconds.get("fitting", 0.0)
    return max(1.0, fitted / (passed * step)) if passed and step else 1.0


def _spread(tasks: Sequence[TaskSpec], most: int) -> list[TaskSpec]:
    """Some tasks, spread evenly over all."""
    count = min(len(tasks), most)
    return [tasks[len(tasks) * index // count] for index in range(count)]


def _small(spec: JobSpec, tasks: Sequence[TaskSpec], rounds: int, folder: Path) -> JobSpec:
    """The job of a rehearsal, in this process, with store and catalog in ``folder``."""
    cut = []
    for task in tasks:
        changed: dict[str, Any] = {}
        for part in ("pool", "test"):
            data = getattr(task, part)
            if data is not None and "[" not in data.split:  # a slice is what its author wants
                split = f"{data.split}[:{PILOT_EXAMPLES}]"
                changed[part] = {"split": split}
        cut.append(task.changed(**changed))
    fit = {"rounds": rounds, "warmup": min(spec.fit.warmup, rounds - 1), "groups": None}
    return spec.here().changed(
        tasks=cut,
        fit=fit,
        store=Location(str(folder / "store")),
        catalog=Location(f"sqlite:///{folder}/catalog.db"),
    )
