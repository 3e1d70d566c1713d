"""Runs one job from its file to its published merge.

Stages follow each other as the catalog knows them: planning, preparing, fitting, evaluating,
publishing. Every change of stage is a compare-and-set in the catalog with its reason; whatever goes
wrong ends there as ``failed`` or ``cancelled`` with one sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.job_file import SURGERY, JobSpec
from tintray.jobs.engine.arrays import peak_memory
from tintray.jobs.engine.backend import Backend, open_backend
from tintray.jobs.engine.base_model import SplitModel, load_base_model
from tintray.jobs.engine.configs import Prepared, TaskFacts
from tintray.jobs.engine.coordinator import Coordinator
from tintray.jobs.engine.fit_checkpoints import Checkpoints, Ownership, delete_blobs
from tintray.jobs.engine.job_size import object_store_needed
from tintray.jobs.engine.statistics import Refs
from tintray.jobs.engine.worker import Worker
from tintray.jobs.engine.worker_pool import WorkerPool
from tintray.jobs.events import Evaluated, Notice, OnEvent, Published, RoundDone, TaskPrepared
from tintray.jobs.runs.job_run import JobRun, enter_job
from tintray.jobs.runs.methods import (
    PreparedJob,
    job_recipe,
    resolve_job,
    start_coefficients,
    start_scale,
    with_own_backbones,
    with_surgery,
)
from tintray.jobs.runs.publication import Outcome, publish
from tintray.jobs.runs.site_search import place
from tintray.numerics.schedules import Schedule
from tintray.published.manifest import Manifest
from tintray.storage.artifacts.cache import lookup
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.artifacts import KnownArtifact
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.inputs import KnownModel, KnownPool, KnownTask
from tintray.storage.catalog.states import JobState
from tintray.tasks.doubts import shortfall
from tintray.tasks.evaluation import TaskScore, check_finite
from tintray.tasks.registry import find_kind
from tintray.tinting.plateau import Plateau
from tintray.tinting.site_search import AUTO
from tintray.vectors.coefficients import Coefficients


def run_job(spec: JobSpec, on_event: OnEvent) -> Manifest:
    """Run a new job; returns the manifest of the merge that it published.

    Raises
    ------
    InputError
        Before any compute is spent, if the job file, an expert, data, store or catalog cannot be
        used.
    TintrayError
        If something fails while running; nothing is published then.
    """
    spec, ground = resolve_job(spec)
    store, opened = open_store_and_catalog(spec)
    with opened as catalog:
        run = JobRun(enter_job(catalog, spec), catalog, on_event)
        with run.running(), backend_for(spec, ground) as fleet:
            return _run(run, spec, ground, store, fleet)


def continue_job(job_id: str, catalog: Catalog, spec: JobSpec, on_event: OnEvent) -> Manifest:
    """Run a job that waits in the catalog, from its last checkpoint if it has one.

    Returns the manifest of the merge that it published. Whatever goes wrong is how the job ends.

    Raises
    ------
    LeaseHeldError
        Another process works on it.
    TintrayError
        As ``run_job``.
    """
    run = JobRun(job_id, catalog, on_event)
    with run.running():
        return carry_on(run, spec)


def carry_on(run: JobRun, spec: JobSpec) -> Manifest:
    """The stages of a job whose lease is held; see ``continue_job``."""
    spec, ground = resolve_job(spec)
    with as_input_error():
        store = open_store(spec.store)
        store.check_writable()
    with backend_for(spec, ground) as fleet:
        return _run(run, spec, ground, store, fleet)


def open_store_and_catalog(spec: JobSpec) -> tuple[ArtifactStore, Catalog]:
    """The job's store, proved to be writable, and its catalog.

    Raises
    ------
    InputError
        If one of them cannot be used: nothing has been computed, and the user can mend it.
    """
    with as_input_error():
        store = open_store(spec.store)
        store.check_writable()
        return store, Catalog.open(spec.catalog)


@contextmanager
def backend_for(spec: JobSpec, ground: SplitModel) -> Iterator[Backend]:
    """The job's fleet, closed at the end whatever happens."""
    fleet = open_backend(
        address=spec.cluster.address,
        workers=spec.cluster.workers,
        threads=spec.cluster.threads_per_worker,
        plan=object_store_needed(spec, ground),
        gpus=spec.cluster.gpus_per_worker,
    )
    try:
        yield fleet
    finally:
        fleet.close()


def _run(
    run: JobRun, spec: JobSpec, ground: SplitModel, store: ArtifactStore, fleet: Backend
) -> Manifest:
    with run.phase(JobState.PLANNING, f"checking {len(spec.tasks)} experts against the base"):
        placement = None
        if spec.tint.site == AUTO:
            spec, placement = place(spec, fleet, store, _short_fit, run.on_event)
            ground = load_base_model(spec)
        crew = WorkerPool(Worker, fleet, spec, ground)
        skipped: dict[str, str] = {}
        if spec.on_task_error == "skip":
            skipped = _failed(crew, run.on_event)
        if skipped:  # what is left is a job like any other: the merge is that of a job without them
            crew.dismiss()
            spec = spec.without(skipped)
            ground = load_base_model(spec)
            crew = WorkerPool(Worker, fleet, spec, ground)
        facts = crew.check()
        tell_warnings(run, facts)
        _record(run, spec, ground, facts)
    with run.phase(JobState.PREPARING, "self-labels: each expert predicts its pool once"):
        prepared = crew.prepare(store, on_prepared(run, len(spec.tasks)))
        _use_base(run, ground, store)
        _tell_reuse(run, prepared)
        tell_doubts(run, prepared)
    hears = _on_statistics(run), run.on_event
    stage = PreparedJob(spec, ground, fleet, crew, store, facts, prepared, *hears)
    result = _fit(run, stage) if spec.merge.learned else _merge(run, stage)
    check_finite(result["scores"])
    tell_shortfalls(run, spec, result["facts"], result["kept"], result["scores"])
    with run.phase(JobState.PUBLISHING, f"writing the merge to {store.url}"):
        outcome = Outcome(
            spec=spec,
            job_id=run.job_id,
            base_digest=ground.digest,
            backbone_parameters=ground.parameters,
            partition=ground.partition,
            prepared=prepared,
            seconds=run.seconds,
            peak_memory_mib=(crew.peak_memory() + peak_memory()) / 2**20,
            placement=placement,
            skipped=skipped,
            notices=run.remarks,
            **result,
        )
        manifest = publish(outcome, store, run.catalog, run.lease)
        run.move(JobState.SUCCEEDED, f"published as {manifest.ref}")
        delete_blobs(store, run.catalog.checkpoints.drop(run.job_id))
    run.on_event(Published(f"{store.url}/merges/{manifest.ref}"))
    return manifest


def tell_warnings(run: JobRun, facts: Mapping[str, TaskFacts]) -> None:
    """Tell what speaks against experts and data, now and in the merge."""
    for found in facts.values():
        for text in found.warnings():
            run.remark(text)


def _short_fit(stage: PreparedJob, rounds: int) -> Coordinator:
    """A fit that only tries something: nobody hears of its rounds."""
    _, coordinator = coordinator_for(stage)
    coordinator.fit(rounds, lambda event: None)
    return coordinator


def _failed(crew: WorkerPool[Worker], on_event: OnEvent) -> dict[str, str]:
    """The tasks to leave out, each with its reason; told at once.

    Raises
    ------
    InputError
        If no task is left.
    """
    failures = crew.failures()
    if len(failures) == len(crew.tasks):
        raise next(iter(failures.values()))
    for name, error in failures.items():
        on_event(Notice(f"task '{name}' is left out: {error}"))
    return {name: str(error) for name, error in failures.items()}


def _fit(run: JobRun, stage: PreparedJob) -> dict[str, Any]:
    """Learn the coefficients, and the tint layers where they are learned."""
    spec = stage.spec
    with run.phase(JobState.FITTING, f"{spec.fit.rounds} rounds"):
        stage.aim()
        coefficients, coordinator = coordinator_for(stage)
        initial = coefficients.values.clone()
        spent = _rounds(run, stage, coordinator)
    run.seconds[JobState.FITTING.value] += spent
    with run.phase(JobState.EVALUATING, "measuring the merge against its experts"):
        scores = coordinator.scores(lambda score: run.on_event(evaluated(score)))
    return {
        "facts": stage.facts,
        "rounds": coordinator.rounds,
        "kept": {name: coordinator.kept(name) for name in stage.facts},
        "scores": scores,
        "theta": torch.from_numpy(coordinator.backbone().copy()),
        "initial": initial,
        "coefficients": coefficients.values,
        "tints": stage.crew.tints(),
    }


def _rounds(run: JobRun, stage: PreparedJob, coordinator: Coordinator) -> float:
    """Run the rounds that are left, with checkpoints; returns the seconds of those before."""
    spec = stage.spec
    checkpoints = Checkpoints(
        stage.store,
        run.catalog,
        Ownership(run.job_id, run.lease.token),
        coordinator,
        stage.crew,
        every=spec.fit.checkpoint_every,
        basis=_basis(stage),
    )
    done = checkpoints.resume()
    if done.rounds:
        run.on_event(Notice(f"goes on after round {done.rounds} of {spec.fit.rounds}"))

    def on_round(event: RoundDone) -> None:
        run.round_done(event)
        last = event.round == spec.fit.rounds
        if run.stopper.asked or (checkpoints.due(event.round) and not last):
            run.flush()
            run.on_event(checkpoints.save(event))
        run.stopper.check()

    coordinator.fit(spec.fit.rounds, on_round, first=done.rounds, seconds=done.seconds)
    if coordinator.rounds < spec.fit.rounds:
        run.on_event(Notice(f"agreement stopped growing: ended after round {coordinator.rounds}"))
    return done.seconds


def _basis(stage: PreparedJob) -> dict[str, str]:
    """What the fit stands on, by its content: another base or expert would be another fit."""
    basis = {"the job file": stage.spec.digest(), "base": stage.ground.digest}
    for name, facts in stage.facts.items():
        basis[f"tasks.{name}.expert"] = facts.expert_digest
        basis[f"tasks.{name}.pool"] = facts.pool_digest
    return basis


def _merge(run: JobRun, stage: PreparedJob) -> dict[str, Any]:
    """Run a merging method alone; nothing is learned."""
    spec, layout = stage.spec, stage.ground.partition.layout
    with run.phase(JobState.FITTING, f"merging by {spec.merge.method}"):
        backbones = stage.merged(job_recipe(spec), start_scale(spec), run.on_event)
    facts = dict(stage.facts)
    with run.phase(JobState.EVALUATING, "measuring the merge against its experts"):
        if spec.merge.method == SURGERY:
            modules, scores = stage.operate(backbones)
            tints, facts = with_surgery(stage.crew.tints(), facts, modules)
        else:
            scores = stage.scores(backbones)
            tints = stage.crew.tints()  # with what measuring has estimated for this backbone
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


def coordinator_for(stage: PreparedJob) -> tuple[Coefficients, Coordinator]:
    """The coefficients at their start, and who moves them."""
    spec, ground = stage.spec, stage.ground
    start = start_coefficients(spec, ground.partition.layout, stage.facts)
    coefficients = Coefficients(start, spec.merge.bounds)
    rate = spec.fit.correction_lr
    found = coordinator(
        *(spec, ground, stage.fleet, stage.crew, coefficients, spec.fit.rounds),
        correction_lr=spec.fit.rate(rate, spec.fit.rounds) if rate else None,
    )
    return coefficients, found


def coordinator(
    spec: JobSpec,
    ground: SplitModel,
    fleet: Backend,
    crew: WorkerPool[Worker],
    coefficients: Coefficients,
    rounds: int,
    correction_lr: Schedule | None = None,
) -> Coordinator:
    """Who moves the coefficients of a crew's tasks over so many rounds, as the job's fit says."""
    fit = spec.fit
    return Coordinator(
        fleet,
        crew.assignment,
        coefficients,
        coefficient_lr=fit.rate(spec.coefficient_lr(len(crew.tasks)), rounds),
        tint_lr=fit.rate(ground.tint_lr(spec), rounds),
        correction_lr=correction_lr,
        in_turn=fit.updates == "in_turn",
        plateau=Plateau(fit.patience, fit.min_delta) if fit.patience else None,
        sampled=crew.sampler,
    )


def _record(run: JobRun, spec: JobSpec, ground: SplitModel, facts: dict[str, TaskFacts]) -> None:
    """Enter base, experts, pools and tasks in the catalog, by their content."""
    models = [KnownModel(ground.digest, "base", str(spec.base), ground.parameters)]
    pools, tasks = [], []
    for task in spec.tasks:
        found = facts[task.name]
        parameters = ground.parameters + found.head_parameters
        expert = KnownModel(
            found.expert_digest, "expert", str(task.expert), parameters, ground.digest
        )
        models.append(expert)
        path, split = str(task.pool.path), task.pool.split
        pools.append(KnownPool(found.pool_digest, path, found.pool_examples, split))
        tasks.append(KnownTask(task.name, task.kind, found.expert_digest, found.pool_digest))
    run.catalog.inputs.record_models(models)
    run.catalog.inputs.record_pools(pools)
    run.catalog.inputs.record_tasks(run.job_id, tasks)


def on_prepared(run: JobRun, total: int) -> Callable[[Prepared], None]:
    """Hear of each task that is prepared: tell of it, and note what the job needs of it."""
    done: list[str] = []

    def tell(prepared: Prepared) -> None:
        done.append(prepared.task)
        run.used(*artifacts(prepared))
        run.on_event(
            TaskPrepared(
                task=prepared.task,
                done=len(done),
                total=total,
                seconds=prepared.seconds,
                cached=prepared.cached,
            )
        )

    return tell


def artifacts(prepared: Prepared) -> list[KnownArtifact]:
    """What a task was prepared with."""
    meta = {"task": prepared.task}
    known = [
        KnownArtifact(prepared.labels, "self-labels", meta),
        KnownArtifact(prepared.vector, "task-vector", meta),
    ]
    if prepared.features is not None:
        known.append(KnownArtifact(prepared.features, "self-features", meta))
    if prepared.test_outputs is not None:
        known.append(KnownArtifact(prepared.test_outputs, "expert-outputs", meta))
    return known


def _use_base(run: JobRun, ground: SplitModel, store: ArtifactStore) -> None:
    found = lookup(store, "bases", ground.digest)
    if found is not None:
        run.used(KnownArtifact(found.ref, "base", {"model": ground.digest}))


def _on_statistics(run: JobRun) -> Callable[[Refs], None]:
    def record(found: Refs) -> None:
        run.used(*(KnownArtifact(ref, kind) for kind, refs in found.items() for ref in refs))

    return record


def _tell_reuse(run: JobRun, prepared: dict[str, Prepared]) -> None:
    tasks = len(prepared)
    labels = sum(found.cached for found in prepared.values())
    vectors = sum(found.vector_cached for found in prepared.values())
    reused = [f"self-labels of {labels} of {tasks} tasks"] if labels else []
    reused += [f"task vectors of {vectors} of {tasks} tasks"] if vectors else []
    if reused:
        run.on_event(Notice(f"{' and '.join(reused)} were reused from the store"))


def tell_doubts(run: JobRun, prepared: Mapping[str, Prepared]) -> None:
    """Say before the fit which experts seem to guess."""
    for name, found in prepared.items():
        if found.doubt is not None:
            left = "; it is left out of the normalised accuracy" if found.doubt.at_chance else ""
            run.remark(f"task '{name}': its expert {found.doubt.said}{left}")


def tell_shortfalls(
    run: JobRun,
    spec: JobSpec,
    facts: Mapping[str, TaskFacts],
    kept: Mapping[str, float],
    scores: Iterable[TaskScore],
) -> None:
    """Say of which tasks the merge seems to have learned nothing."""
    kinds = {task.name: task.kind for task in spec.tasks}
    for score in scores:
        name = score.task
        if name in facts:
            said = shortfall(find_kind(kinds[name]), facts[name].classes, score, kept[name])
            if said is not None:
                run.remark(f"task '{name}': {said}")


def evaluated(score: TaskScore) -> Evaluated:
    """A measurement as an event."""
    return Evaluated(score.task, score.metric, score.merged, score.expert)
