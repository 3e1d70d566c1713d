"""What every operation tells of its inputs and enters in the catalog, by their content."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tintray.jobs.config.sections import TaskSpec
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.configs import Prepared, TaskFacts
from tintray.jobs.engine.statistics import Refs
from tintray.jobs.events import Notice, TaskPrepared
from tintray.jobs.runs.job_run import JobRun
from tintray.jobs.runs.outcome import Checked, Lineage, Outcome
from tintray.jobs.runs.recomposition import correction_from
from tintray.published.manifest import TaskEntry
from tintray.storage.artifacts.blobs import BlobRef
from tintray.storage.artifacts.cache import lookup
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.catalog.artifacts import KnownArtifact
from tintray.storage.catalog.inputs import KnownModel, KnownPool, KnownTask
from tintray.tasks.doubts import shortfall
from tintray.tasks.registry import find_kind

INHERITED = "self-features"
"""The kind of artifact of old tasks that no manifest names, and that their child may need."""


# Once everything is checked


def record_checked(run: JobRun, checked: Checked, lineage: Lineage | None) -> None:
    """Tell what speaks against experts and data; enter base, experts, pools and tasks."""
    for facts in checked.facts.values():
        for text in facts.warnings():
            run.remark(text)
    base = checked.base
    known = {
        task.name: _of_facts(task, checked.facts[task.name], base)
        for task in checked.spec.tasks
        if task.name in checked.facts
    }
    if lineage is not None:
        for name in _old(checked):
            known[name] = _of_entry(lineage.source(name).merge.task(name), base)
    models = [KnownModel(base.digest, "base", str(checked.spec.base), base.parameters)]
    models += [expert for expert, _ in known.values()]
    pools = [pool for _, pool in known.values()]
    tasks = [
        KnownTask(task.name, task.kind, expert.sha256, pool.sha256)
        for task, (expert, pool) in ((task, known[task.name]) for task in checked.spec.tasks)
    ]
    run.catalog.inputs.record_models(models)
    run.catalog.inputs.record_pools(pools)
    run.catalog.inputs.record_tasks(run.job_id, tasks)
    if lineage is not None:
        _inherit(run, checked, lineage)


def _of_facts(task: TaskSpec, facts: TaskFacts, base: SplitModel) -> tuple[KnownModel, KnownPool]:
    parameters = base.parameters + facts.head_parameters
    pool = task.pool
    return (
        KnownModel(facts.expert_digest, "expert", str(task.expert), parameters, base.digest),
        KnownPool(facts.pool_digest, str(pool.path), facts.pool_examples, pool.split),
    )


def _of_entry(entry: TaskEntry, base: SplitModel) -> tuple[KnownModel, KnownPool]:
    expert, pool = entry.expert, entry.pool
    parameters = base.parameters + entry.head_parameters
    return (
        KnownModel(expert.sha256, "expert", expert.source, parameters, base.digest),
        KnownPool(pool.sha256, pool.path, pool.examples, pool.split),
    )


def _old(checked: Checked) -> list[str]:
    """The tasks that stay as they were."""
    return [task.name for task in checked.spec.tasks if task.name not in checked.facts]


def _inherit(run: JobRun, checked: Checked, lineage: Lineage) -> None:
    """Need what the parent's job has of the old tasks: the parent may be deleted one day."""
    old = _old(checked)
    job_id = lineage.parent.manifest.job_id
    for found in run.catalog.artifacts.all(INHERITED, job_id=job_id):
        if found.meta.get("task") in old:
            run.used(KnownArtifact(BlobRef(found.sha256, found.size), INHERITED, found.meta))


# Once everything is prepared


def record_prepared(
    run: JobRun, store: ArtifactStore, base: SplitModel, prepared: Mapping[str, Prepared]
) -> None:
    """Need the base, say what was there already, and which experts seem to guess."""
    found = lookup(store, "bases", base.digest)
    if found is not None:
        run.used(KnownArtifact(found.ref, "base", {"model": base.digest}))
    _tell_reuse(run, prepared)
    for name, of_task in prepared.items():
        if of_task.doubt is not None:
            left = "; it is left out of the normalised accuracy" if of_task.doubt.at_chance else ""
            run.remark(f"task '{name}': its expert {of_task.doubt.said}{left}")


def _tell_reuse(run: JobRun, prepared: Mapping[str, Prepared]) -> None:
    tasks = len(prepared)
    labels = sum(of_task.cached for of_task in prepared.values())
    vectors = sum(of_task.vector_cached for of_task in prepared.values())
    reused = [f"self-labels of {labels} of {tasks} tasks"] if labels else []
    reused += [f"task vectors of {vectors} of {tasks} tasks"] if vectors else []
    if reused:
        run.on_event(Notice(f"{' and '.join(reused)} were reused from the store"))


def on_prepared(run: JobRun, total: int) -> Callable[[Prepared], None]:
    """A callback for each task that is prepared: tell of it, and need what it has."""
    done: list[str] = []

    def callback(prepared: Prepared) -> None:
        done.append(prepared.task)
        use_artifacts(run, prepared)
        run.on_event(
            TaskPrepared(
                task=prepared.task,
                done=len(done),
                total=total,
                seconds=prepared.seconds,
                cached=prepared.cached,
            )
        )

    return callback


def use_artifacts(run: JobRun, prepared: Prepared) -> None:
    """Need what a task was prepared with, so that nothing of it lies in the store unowned."""
    kinds = {
        "self-labels": prepared.labels,
        "task-vector": prepared.vector,
        "self-features": prepared.features,
        "expert-outputs": prepared.test_outputs,
    }
    meta = {"task": prepared.task}
    run.used(*(KnownArtifact(ref, kind, meta) for kind, ref in kinds.items() if ref is not None))


def use_statistics(run: JobRun) -> Callable[[Refs], None]:
    """A callback for what a merging method measured."""

    def callback(refs: Refs) -> None:
        run.used(*(KnownArtifact(ref, kind) for kind, of_kind in refs.items() for ref in of_kind))

    return callback


# Before it is published


def remark_on_result(run: JobRun, outcome: Outcome) -> None:
    """Say of which tasks the merge seems to have learned nothing, and what stays of those gone."""
    facts, result = outcome.checked.facts, outcome.result
    kinds = {task.name: task.kind for task in outcome.checked.spec.tasks}
    for name, score in result.scores.items():
        if name in facts:
            kind, share = find_kind(kinds[name]), result.selected_fraction[name]
            said = shortfall(kind, facts[name].classes, score, share)
            if said is not None:
                run.remark(f"task '{name}': {said}")
    if outcome.lineage is not None and (gone := _gone_from_correction(outcome, outcome.lineage)):
        run.remark(
            f"the correction that tasks learned together stays in the backbone, and was learned "
            f"from {', '.join(gone)} too (fit.correction_lr); run the job anew to be rid of it"
        )


def _gone_from_correction(outcome: Outcome, lineage: Lineage) -> list[str]:
    """Tasks that the shared correction was learned from and that are gone, or have new experts."""
    facts = outcome.checked.facts
    experts = {
        task.name: facts[task.name].expert_digest
        if task.name in facts
        else lineage.source(task.name).expert(task.name)
        for task in outcome.checked.spec.tasks
    }
    known = correction_from(lineage.parent)
    return [name for name, expert in known.items() if experts.get(name) != expert]
