"""Runs one job from its file to its published merge.

Stages follow each other as the catalog knows them: planning, preparing, fitting, evaluating,
publishing. Every change of stage is a compare-and-set in the catalog with its reason; whatever goes
wrong ends there as ``failed`` or ``cancelled`` with one sentence.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from jobs.arrays import peak_memory
from jobs.coordinator import Coordinator
from jobs.crew import Crew, Ground, group_count
from jobs.events import (
    Evaluated,
    Notice,
    OnEvent,
    Published,
    RoundDone,
    StageStarted,
    TaskPrepared,
)
from jobs.fleet import Fleet, open_fleet
from jobs.heartbeat import Heartbeat
from jobs.merges import usable
from jobs.methods import (
    Stage,
    job_recipe,
    start_coefficients,
    start_scale,
    surveyed,
    with_own_backbones,
    with_surgery,
)
from jobs.publication import Outcome, publish
from jobs.spec import SURGERY, JobSpec
from jobs.statistics import Refs
from jobs.worker import Prepared, TaskFacts
from storage.artifacts import ArtifactStore, open_store
from storage.cache import lookup
from storage.catalog import Catalog, Known
from storage.leases import LeaseLostError
from storage.states import JobState
from tintray.coefficients import Coefficients
from tintray.errors import StorageError, TintrayError
from tintray.evaluation import TaskScore
from tintray.models import HEAD
from tintray.schedule import schedule

HEAD_LR = 1e-2
BLOCK_LR = 2e-3
_FLUSH_SECONDS = 2.0  # rounds are entered in the catalog in batches, off the rounds' own path

_log = logging.getLogger(__name__)


class JobRun:
    """One job while it runs: its row in the catalog, its lease, its stage, its clock."""

    def __init__(self, spec: JobSpec, catalog: Catalog, on_event: OnEvent) -> None:
        self.spec = spec
        self.catalog = catalog
        self.on_event = on_event
        self.job_id = catalog.create_job(spec.name, spec.record(), str(spec.store))
        self.lease = Heartbeat(catalog, self.job_id)
        self.state = JobState.QUEUED
        self.seconds: dict[str, float] = {}
        self._pending: dict[int, dict[str, Any]] = {}
        self._flushed = time.monotonic()

    @contextmanager
    def stage(self, state: JobState, reason: str) -> Iterator[None]:
        """Be in a stage: told to the catalog and to whoever watches, and timed."""
        self.move(state, reason)
        self.on_event(StageStarted(state.value, reason))
        started = time.perf_counter()
        yield
        self.seconds[state.value] = time.perf_counter() - started

    def move(self, state: JobState, reason: str) -> None:
        """Change the job's state in the catalog, from the state that this run put it in."""
        self.catalog.transition(self.job_id, self.state, state, reason, token=self.lease.token)
        self.state = state

    def round_done(self, event: RoundDone) -> None:
        """Tell of a round, and keep its metrics for the catalog."""
        self.lease.check()
        self.on_event(event)
        self._pending[event.round] = {
            "loss": event.loss,
            "agreement": dict(event.agreement),
            "kept": dict(event.kept),
            "seconds": event.seconds,
        }
        if time.monotonic() - self._flushed > _FLUSH_SECONDS or event.round == event.rounds:
            self.flush()

    def flush(self) -> None:
        """Enter the pending rounds in the catalog."""
        if self._pending:
            self.catalog.record_rounds(self.job_id, self._pending, token=self.lease.token)
        self._pending = {}
        self._flushed = time.monotonic()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Whatever ends the job early is its last event."""
        try:
            yield
        except LeaseLostError:  # the job is another owner's, who says how it ends
            raise
        except TintrayError as error:
            self._end(JobState.FAILED, str(error))
            raise
        except KeyboardInterrupt:
            self._end(JobState.CANCELLED, "interrupted from the keyboard")
            raise
        except BaseException as error:
            self._end(JobState.FAILED, f"internal error: {type(error).__name__}: {error}")
            raise

    def _end(self, state: JobState, reason: str) -> None:
        try:
            self.move(state, reason)
        except StorageError as error:  # what ended the job is what its user must hear of
            _log.warning(
                "job %s: its end (%s) is not in the catalog: %s", self.job_id, state, error
            )


def run_job(spec: JobSpec, on_event: OnEvent) -> dict[str, Any]:
    """Run a job; returns the manifest of the merge that it published.

    Raises
    ------
    InputError
        Before any compute is spent, if the job file, an expert, data, store or catalog cannot be
        used.
    TintrayError
        If something fails while running; nothing is published then.
    """
    spec, ground = surveyed(spec)
    store, opened = open_places(spec)
    with opened as catalog:
        run = JobRun(spec, catalog, on_event)
        with run.lease, run.ending(), fleet_for(spec, ground) as fleet:
            manifest = _run(run, ground, store, fleet)
    on_event(Published(f"{store.url}/merges/{manifest['name']}/v{manifest['version']}"))
    return manifest


def open_places(spec: JobSpec) -> tuple[ArtifactStore, Catalog]:
    """The job's store, proved to be writable, and its catalog.

    Raises
    ------
    InputError
        If one of them cannot be used: nothing has been computed, and the user can mend it.
    """
    with usable():
        store = open_store(spec.store)
        store.check_writable()
        return store, Catalog.open(spec.catalog)


@contextmanager
def fleet_for(spec: JobSpec, ground: Ground) -> Iterator[Fleet]:
    """The job's fleet, closed at the end whatever happens."""
    fleet = open_fleet(
        address=spec.cluster.address,
        workers=spec.cluster.workers,
        threads=spec.cluster.threads_per_worker,
        plan=object_store_bytes(ground.partition.layout.numel, group_count(spec)),
    )
    try:
        yield fleet
    finally:
        fleet.close()


def object_store_bytes(parameters: int, groups: int) -> int:
    """What a round keeps in shared memory: θ and one gradient per group, of two rounds at most."""
    arrays = 2 * (1 + groups)
    return 2 * arrays * parameters * 4 + 256 * 2**20


def _run(run: JobRun, ground: Ground, store: ArtifactStore, fleet: Fleet) -> dict[str, Any]:
    spec = run.spec
    crew = Crew(fleet, spec, ground)
    with run.stage(JobState.PLANNING, f"checking {len(spec.tasks)} experts against the base"):
        facts = crew.check()
        _record(run, ground, facts)
    with run.stage(JobState.PREPARING, "self-labels: each expert predicts its pool once"):
        prepared = crew.prepare(store, _on_prepared(run))
        _record_base(run, ground, store)
        _tell_reuse(run, prepared)
    hears = _on_statistics(run), run.on_event
    stage = Stage(spec, ground, fleet, crew, store, facts, prepared, *hears)
    result = _fit(run, stage) if spec.merge.learned else _merge(run, stage)
    with run.stage(JobState.PUBLISHING, f"writing the merge to {store.url}"):
        outcome = Outcome(
            spec=spec,
            job_id=run.job_id,
            base_digest=ground.digest,
            backbone_parameters=ground.parameters,
            partition=ground.partition,
            prepared=prepared,
            seconds=run.seconds,
            peak_memory_mib=(crew.peak_memory() + peak_memory()) / 2**20,
            **result,
        )
        manifest = publish(outcome, store, run.catalog, run.lease)
    run.move(JobState.SUCCEEDED, f"published as {manifest['name']}/v{manifest['version']}")
    return manifest


def _fit(run: JobRun, stage: Stage) -> dict[str, Any]:
    """Learn the coefficients, and the tint layers where they are learned."""
    spec = run.spec
    with run.stage(JobState.FITTING, f"{spec.fit.rounds} rounds"):
        stage.aim()
        coefficients, coordinator = coordinator_for(stage)
        initial = coefficients.values.clone()
        coordinator.fit(spec.fit.rounds, run.round_done)
    with run.stage(JobState.EVALUATING, "measuring the merge against its experts"):
        scores = coordinator.scores(lambda score: run.on_event(evaluated(score)))
    return {
        "facts": stage.facts,
        "kept": {name: coordinator.kept(name) for name in stage.facts},
        "scores": scores,
        "theta": torch.from_numpy(coordinator.backbone().copy()),
        "initial": initial,
        "coefficients": coefficients.values,
        "tints": stage.crew.tints(),
    }


def _merge(run: JobRun, stage: Stage) -> dict[str, Any]:
    """Run a merging method alone; nothing is learned."""
    spec, layout = run.spec, stage.ground.partition.layout
    with run.stage(JobState.FITTING, f"merging by {spec.merge.method}"):
        backbones = stage.merged(job_recipe(spec), start_scale(spec), run.on_event)
    tints, facts = stage.crew.tints(), dict(stage.facts)
    with run.stage(JobState.EVALUATING, "measuring the merge against its experts"):
        if spec.merge.method == SURGERY:
            modules, scores = stage.operate(backbones)
            tints, facts = with_surgery(tints, facts, modules)
        else:
            scores = stage.scores(backbones)
        for score in scores:
            run.on_event(evaluated(score))
    coefficients = start_coefficients(spec, layout)
    shared = backbones.get("")
    if shared is None:  # every task has a backbone of its own; the base is what they share
        tints, facts = with_own_backbones(layout, tints, facts, backbones)
        shared = stage.crew.merge(0 * coefficients.numpy())
    return {
        "facts": facts,
        "kept": dict.fromkeys(facts, 1.0),
        "scores": scores,
        "theta": torch.from_numpy(shared.copy()),
        "initial": coefficients,
        "coefficients": coefficients.clone(),
        "tints": tints,
    }


def coordinator_for(stage: Stage) -> tuple[Coefficients, Coordinator]:
    """The coefficients at their start, and who moves them."""
    spec = stage.spec
    start = start_coefficients(spec, stage.ground.partition.layout)
    coefficients = Coefficients(start, spec.merge.bounds)
    default_lr = HEAD_LR if spec.tint.site == HEAD else BLOCK_LR
    fit = spec.fit
    coordinator = Coordinator(
        stage.fleet,
        stage.crew.cast,
        coefficients,
        coefficient_lr=schedule(fit.coefficient_lr, fit.schedule, fit.rounds, fit.warmup),
        tint_lr=schedule(fit.tint_lr or default_lr, fit.schedule, fit.rounds, fit.warmup),
        in_turn=fit.updates == "in_turn",
    )
    return coefficients, coordinator


def _record(run: JobRun, ground: Ground, facts: dict[str, TaskFacts]) -> None:
    """Enter base, experts, pools and tasks in the catalog, by their content."""
    spec, catalog = run.spec, run.catalog
    catalog.record_model(ground.digest, "base", str(spec.base), parameters=ground.parameters)
    for task in spec.tasks:
        found = facts[task.name]
        catalog.record_model(
            found.expert_digest,
            "expert",
            str(task.expert),
            parameters=ground.parameters + found.head_parameters,
            base=ground.digest,
        )
        catalog.record_pool(
            found.pool_digest,
            str(task.adapt.path),
            examples=found.pool_examples,
            split=task.adapt.split,
        )
        catalog.record_task(
            run.job_id, task.name, task.kind, expert=found.expert_digest, pool=found.pool_digest
        )


def _on_prepared(run: JobRun) -> Any:
    done: list[str] = []

    def tell(prepared: Prepared) -> None:
        done.append(prepared.task)
        _record_artifacts(run, prepared)
        run.on_event(
            TaskPrepared(
                task=prepared.task,
                done=len(done),
                total=len(run.spec.tasks),
                seconds=prepared.seconds,
                cached=prepared.cached,
            )
        )

    return tell


def _record_artifacts(run: JobRun, prepared: Prepared) -> None:
    """Enter what a task was prepared with; the job needs it from now on."""
    meta = {"task": prepared.task}
    known = [
        Known(prepared.labels, "self-labels", meta),
        Known(prepared.vector, "task-vector", meta),
    ]
    if prepared.test_outputs is not None:
        known.append(Known(prepared.test_outputs, "expert-outputs", meta))
    run.catalog.record_artifacts(known, job_id=run.job_id)


def _record_base(run: JobRun, ground: Ground, store: ArtifactStore) -> None:
    found = lookup(store, "bases", ground.digest)
    if found is not None:
        known = Known(found.ref, "base", {"model": ground.digest})
        run.catalog.record_artifacts([known], job_id=run.job_id)


def _on_statistics(run: JobRun) -> Callable[[Refs], None]:
    def record(found: Refs) -> None:
        known = [Known(ref, kind) for kind, refs in found.items() for ref in refs]
        run.catalog.record_artifacts(known, job_id=run.job_id)

    return record


def _tell_reuse(run: JobRun, prepared: dict[str, Prepared]) -> None:
    tasks = len(prepared)
    labels = sum(found.cached for found in prepared.values())
    vectors = sum(found.vector_cached for found in prepared.values())
    reused = [f"self-labels of {labels} of {tasks} tasks"] if labels else []
    reused += [f"task vectors of {vectors} of {tasks} tasks"] if vectors else []
    if reused:
        run.on_event(Notice(f"{' and '.join(reused)} were reused from the store"))


def evaluated(score: TaskScore) -> Evaluated:
    """A measurement as an event."""
    return Evaluated(score.task, score.metric, score.merged, score.expert)
