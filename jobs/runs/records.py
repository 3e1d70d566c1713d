"""What every operation tells of its inputs and enters in the catalog, by their content."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.configs import Prepared
from tintray.jobs.engine.statistics import Refs
from tintray.jobs.engine.worker import MAY_LOSE
from tintray.jobs.events import JobChecked, Notice, TaskPrepared
from tintray.jobs.runs.job_run import JobRun
from tintray.jobs.runs.outcome import Checked, Hosted, Lineage, Outcome
from tintray.jobs.runs.recomposition import correction_from
from tintray.storage.artifacts.blobs import BlobRef
from tintray.storage.artifacts.cache import lookup
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.catalog.artifacts import KnownArtifact
from tintray.storage.catalog.inputs import KnownModel, KnownPool, KnownTask
from tintray.storage.secrets import shown_url
from tintray.tasks.doubts import shortfall
from tintray.tasks.registry import find_kind

INHERITED = "self-features"
"""The kind of artifact of old tasks that no manifest names, and that their child may need."""


# Once everything is checked


def record_checked(run: JobRun, checked: Checked, lineage: Lineage | None) -> None:
    """Tell what speaks against experts and data; enter base, experts, pools and tasks."""
    for of_task in checked.facts.values():
        for text in of_task.warnings():
            run.remark(text)
    base = checked.base
    models = [KnownModel(base.digest, "base", str(checked.spec.base), base.parameters)]
    pools, tasks = [], []
    for task in checked.spec.tasks:
        if (facts := checked.facts.get(task.name)) is not None:
            expert = (facts.expert_digest, str(task.expert), facts.head_parameters)
            pool = (facts.pool_digest, str(task.pool.path), facts.pool_examples, task.pool.split)
        elif lineage is not None:  # it stays as it was
            entry = lineage.source(task.name).merge.task(task.name)
            expert = (entry.expert.sha256, entry.expert.source, entry.head_parameters)
            of_pool = entry.pool
            pool = (of_pool.sha256, of_pool.path, of_pool.examples, of_pool.split)
        sha256, source, head = expert
        models.append(KnownModel(sha256, "expert", source, base.parameters + head, base.digest))
        pools.append(KnownPool(*pool))
        tasks.append(KnownTask(task.name, task.kind, sha256, pool[0]))
    run.catalog.inputs.record(run.job_id, models, pools, tasks)
    workers = len(checked.workers.members) if isinstance(checked, Hosted) else 0
    lines = _lineage(models, pools, tasks, lineage)
    run.on_event(JobChecked(checked.spec.record(), lines, workers))
    if lineage is not None:
        _inherit(run, checked, lineage)


def _lineage(
    models: Sequence[KnownModel],
    pools: Sequence[KnownPool],
    tasks: Sequence[KnownTask],
    lineage: Lineage | None,
) -> dict[str, str]:
    """What a job stands on, as trackers are told: each with where it is and its hash."""
    base, *experts = models
    told = {"base": f"{shown_url(base.source)} sha256:{base.sha256}"}
    if lineage is not None:
        told |= {"parent": str(lineage.parent.ref), "change": str(lineage.change)}
    for task, expert, pool in zip(tasks, experts, pools, strict=True):
        told[f"{task.name}.expert"] = f"{shown_url(expert.source)} sha256:{expert.sha256}"
        told[f"{task.name}.pool"] = f"{shown_url(pool.source)} sha256:{pool.sha256}"
    return told


def _inherit(run: JobRun, checked: Checked, lineage: Lineage) -> None:
    """Need what the parent's job has of the old tasks: the parent may be deleted one day."""
    old = {task.name for task in checked.spec.tasks} - checked.facts.keys()
    job_id = lineage.parent.manifest.job_id
    for known in run.catalog.artifacts.all(INHERITED, job_id=job_id):
        if known.meta.get("task") in old:
            run.used(KnownArtifact(BlobRef(known.sha256, known.size), INHERITED, known.meta))


# Once everything is prepared


def record_prepared(
    run: JobRun, store: ArtifactStore, base: SplitModel, prepared: Mapping[str, Prepared]
) -> None:
    """Need the base, say what was there already, and which experts seem to guess."""
    known = lookup(store, "bases", base.digest)
    if known is not None:
        run.used(KnownArtifact(known, "base", {"model": base.digest}))
    tasks = len(prepared)
    labels = sum(of_task.cached for of_task in prepared.values())
    vectors = sum(of_task.vector_cached for of_task in prepared.values())
    reused = [f"self-labels of {labels} of {tasks} tasks"] if labels else []
    reused += [f"task vectors of {vectors} of {tasks} tasks"] if vectors else []
    if reused:
        run.on_event(Notice(f"{' and '.join(reused)} were reused from the store"))
    for name, of_task in prepared.items():
        if of_task.doubt is not None:
            left = "; it is left out of the normalised accuracy" if of_task.doubt.at_chance else ""
            run.remark(f"task '{name}': its expert {of_task.doubt.said}{left}")


def on_prepared(run: JobRun, total: int, done: dict[str, Prepared]) -> Callable[[Prepared], None]:
    """A callback for each task that is prepared: keep it, tell of it, and need what it has."""

    def callback(prepared: Prepared) -> None:
        done[prepared.task] = prepared
        use_artifacts(run, prepared)
        known = (prepared.seconds, prepared.cached)
        run.on_event(TaskPrepared(prepared.task, len(done), total, *known))

    return callback


def use_artifacts(run: JobRun, prepared: Prepared) -> None:
    """Need what a task was prepared with, so that nothing of it lies in the store unowned."""
    kinds = {
        "self-labels": prepared.labels,
        "task-vector": prepared.vector,
        "self-features": prepared.features,
        "expert-outputs": prepared.test_outputs,
        "routing": prepared.routing,
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
    kinds = {task.name: find_kind(task.kind) for task in outcome.checked.spec.tasks}
    for name, score in result.scores.items():
        if name in facts:
            share = result.selected_fraction[name]
            if said := shortfall(kinds[name], facts[name].classes, score, share):
                run.remark(f"task '{name}': {said}")
    for said in _bits(outcome):
        run.remark(said)
    if outcome.lineage is not None and (gone := _gone_from_correction(outcome, outcome.lineage)):
        run.remark(
            f"the correction that tasks learned together stays in the backbone, and was learned "
            f"from {', '.join(gone)} too (fit.correction_lr); run the job anew to be rid of it"
        )


def _bits(outcome: Outcome) -> list[str]:
    """Of which tasks rounding takes too much, and what was done about it."""
    tint, said = outcome.checked.spec.tint, []
    for name, stored in outcome.result.tints.items():
        if stored.bits > (tint.bits or 32):
            said.append(f"task '{name}' is stored in {stored.bits} bits: {tint.bits} cost too much")
        elif stored.lost > MAY_LOSE:
            said.append(
                f"task '{name}' loses {100 * stored.lost:.1f} points of agreement by being stored "
                f"in {stored.bits} bits; more would not fit tint.budget ({tint.budget})"
            )
    return said


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
