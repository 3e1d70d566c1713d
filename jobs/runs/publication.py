"""From an outcome to a published merge: files, manifest, catalog.

A merge that grew refers to files of its parent, or of an ancestor, wherever they are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from tintray.checkpoints.tensors import TensorFile, tensors_as_bytes
from tintray.jobs.config.task_sections import TaskSpec
from tintray.jobs.engine.arrays import peak_memory
from tintray.jobs.engine.finding import blobs_of, manifest_of
from tintray.jobs.runs.catalog_entries import enter
from tintray.jobs.runs.guard import fitted
from tintray.jobs.runs.job_run import JobRun
from tintray.jobs.runs.outcome import Lineage, Outcome, Result
from tintray.jobs.runs.recomposition import correction_from
from tintray.jobs.runs.summaries import means
from tintray.numerics.precision import resolve
from tintray.pools.held_back import held_back_count
from tintray.published.files import (
    BACKBONE,
    COEFFICIENTS,
    config_file,
    reference_file,
    routing_file,
    tint_file,
)
from tintray.published.manifest import (
    FORMAT,
    FORMAT_VERSION,
    ExpertEntry,
    FloorEntry,
    Job,
    Manifest,
    Means,
    ModelEntry,
    PoolEntry,
    ScoreEntry,
    TaskEntry,
    TestEntry,
    Unit,
    UnpublishedManifest,
)
from tintray.storage.artifacts.blobs import BlobRef
from tintray.storage.artifacts.protocol import ArtifactStore, Pieces
from tintray.storage.artifacts.publish import MergeRef, next_version, publish_merge
from tintray.storage.catalog.catalog import Catalog
from tintray.tinting.partition import Partition

Files = Mapping[str, bytes | Path | Pieces | BlobRef]


def publish(outcome: Outcome, run: JobRun, store: ArtifactStore) -> Manifest:
    """Write a merge to the store, its manifest last, and enter it in the catalog.

    Only who holds the job's lease may: it is asked for again right before the manifest.

    Raises ParentChangedError if a newer version has come since the change of a merge began;
    StorageError if the store or the catalog fails; nothing of the merge is visible then.
    """
    return write_merge(
        store,
        run.catalog,
        outcome.checked.spec.name,
        _files(outcome),
        _manifest(outcome, run),
        outcome.result.coefficients,
        head=None if outcome.lineage is None else outcome.lineage.head,
        run=run,
    )


def write_merge(
    store: ArtifactStore,
    catalog: Catalog,
    name: str,
    files: Files,
    manifest: UnpublishedManifest,
    coefficients: Tensor,
    *,
    head: int | None = None,
    run: JobRun | None = None,
) -> Manifest:
    """Publish files and a manifest as the next version of ``name``, for a job where one runs.

    ``coefficients`` are Λ [K, L]; ``head`` is the newest version that a child may come after.
    """
    job_id, token, confirm = None, None, None
    if run is not None:
        job_id, token, confirm = run.job_id, run.lease.token, run.lease.confirm
    least = next_version(store, name)
    number = catalog.merges.reserve(name, job_id, at_least=least, head=head)
    publish_merge(store, name, files, manifest.to_json(), version=number, confirm=confirm)
    published = manifest_of(store, MergeRef(name, number))
    enter(catalog, store, published, coefficients, job_id=job_id, token=token)
    return published


# Files


def _files(outcome: Outcome) -> Files:
    checked, result, lineage = outcome.checked, outcome.result, outcome.lineage
    files: dict[str, bytes | Path | Pieces | BlobRef] = {}
    if result.theta is not None:
        split = checked.base.partition
        backbone = split.layout.views(result.theta) | _shared_buffers(split)
        files[BACKBONE] = TensorFile(backbone)
    elif lineage is not None:
        files[BACKBONE] = lineage.backbone_source.backbone
    ancestor = None if lineage is None else lineage.ancestor
    if ancestor is not None and ancestor.merge.tasks == tuple(t.name for t in checked.spec.tasks):
        files[COEFFICIENTS] = blobs_of(ancestor.manifest)[COEFFICIENTS]  # that is all that is left
    else:
        matrices = {"coefficients": result.coefficients, "initial": result.initial}
        files[COEFFICIENTS] = tensors_as_bytes(matrices)
    for task in checked.spec.tasks:
        name = task.name
        if name in checked.facts:
            configs = checked.facts[name].configs
            files |= {config_file(name, file): data for file, data in configs.items()}
            if (routing := outcome.prepared[name].routing) is not None:
                files[routing_file(name)] = routing
        elif lineage is not None:
            files |= lineage.source(name).files(name)
        if name in result.tints:
            tint = result.tints[name]
            files[tint_file(name)] = tensors_as_bytes(tint.tensors)
            if tint.reference:
                files[reference_file(name)] = tensors_as_bytes(tint.reference)
    return files


def _shared_buffers(partition: Partition) -> dict[str, Tensor]:
    """Persistent buffers outside the private modules: the base's, which no coefficient touches."""
    module = partition.module
    parameters = dict(module.named_parameters(remove_duplicate=False))  # tied ones by both names
    below = tuple(f"{path}." for path in partition.private)
    return {
        name: tensor
        for name, tensor in module.state_dict().items()
        if name not in parameters and not name.startswith(below)
    }


# Manifest


def _manifest(outcome: Outcome, run: JobRun) -> UnpublishedManifest:
    """What the merge is and where it comes from; all that a job may need later is named in it."""
    lineage = outcome.lineage
    entries = [_entry(outcome, task) for task in outcome.checked.spec.tasks]
    rounded = any(entry.tint_bits < 32 for entry in entries)
    common: dict[str, Any] = {
        "format_version": FORMAT_VERSION if rounded else 1,
        "tintray": version("tintray"),
        "created": publication_time(),
        "job_id": run.job_id,
        "notices": list(run.remarks),
        "tasks": entries,
        "metrics": Means(**asdict(means(entries))),
        "seconds": dict(run.seconds),
        "peak_memory_mib": (outcome.result.peak_memory + peak_memory()) / 2**20,
        # Who was told of it is no part of a merge.
        "job": Job.model_validate(
            {n: v for n, v in outcome.checked.spec.record().items() if n != "tracking"}
        ),
    }
    if lineage is None:
        return UnpublishedManifest(**_of_experts(outcome), **common)
    return lineage.parent.manifest.unpublished(**_of_growth(outcome, lineage), **common)


def publication_time() -> str:
    """Now, as a manifest has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _of_experts(outcome: Outcome) -> dict[str, Any]:
    """What a manifest says of a merge that comes from experts alone."""
    checked, base, spec = outcome.checked, outcome.checked.base, outcome.checked.spec
    corrected, floor = bool(spec.merge.learned and spec.fit.correction_lr), outcome.result.floor
    if floor is not None and floor["taken"]:  # by other methods it is more than Λ says of it
        corrected = floor["method"] != "task_arithmetic"
    experts = {name: facts.expert_digest for name, facts in checked.facts.items()}
    return {
        "format": FORMAT,
        "parent": None,
        "base": ModelEntry(source=str(spec.base), sha256=base.digest),
        "backbone_parameters": base.parameters,
        "site": spec.tint.told,
        "placement": checked.site_search,
        "skipped": dict(checked.skipped),
        "private_modules": list(base.partition.private),
        "units": Unit.all_of(base.partition.layout),
        "corrected": corrected,
        # Whom the shared correction was learned from: tasks may be removed or refreshed later.
        "correction_from": experts if corrected else {},
        "rounds": outcome.result.rounds,
        "floor": floor and FloorEntry(**floor),
        "precision": resolve(spec.fit.precision, spec.cluster.device),
    }


def _of_growth(outcome: Outcome, lineage: Lineage) -> dict[str, Any]:
    """What a manifest says of how its merge grew; the rest of its parent's holds for it too."""
    parent, change = lineage.parent, lineage.change
    guard = [
        {
            "task": name,
            "metric": score.metric,
            "before": parent.merge.task(name).score.merged,
            "fitted": fitted(parent, name).value,
            "after": score.merged,
        }
        for name, score in outcome.result.scores.items()
        if name not in change.names
    ]
    return {
        "parent": str(parent.ref),
        "change": {
            "operation": change.operation,
            "tasks": list(change.names),
            **outcome.result.report,
            "guard": {"tolerance": outcome.checked.spec.growth.tolerance, "tasks": guard},
        },
        "correction_from": correction_from(parent),
    }


def _entry(outcome: Outcome, task: TaskSpec) -> TaskEntry:
    """What is said of a task: what was said, with what was measured now, where it has stayed."""
    lineage, result, name = outcome.lineage, outcome.result, task.name
    if lineage is None or name in outcome.checked.facts:
        return _new_entry(outcome, task)
    changed: dict[str, Any] = {"fitted": fitted(lineage.parent, name)}
    if name in result.scores:
        changed["score"] = ScoreEntry.of(result.scores[name])
        if result.theta is not None:  # what was measured was another merge
            changed["held_back"] = None
    if name in result.selected_fraction:
        changed["kept"] = result.selected_fraction[name]
    if name in result.tints:
        changed |= _stored(result, name)
    return lineage.source(name).merge.task(name).changed(**changed)


def _new_entry(outcome: Outcome, task: TaskSpec) -> TaskEntry:
    """What is said of a task that is new, or refreshed."""
    result = outcome.result
    facts, prepared = outcome.checked.facts[task.name], outcome.prepared[task.name]
    held = held_back_count(facts.pool_examples, outcome.checked.spec.fit.held_back)
    test = None
    if task.test is not None:
        test = TestEntry(
            **task.test.source().to_json(),
            sha256=facts.test_digest,
            examples=facts.test_examples,
            outputs=prepared.test_outputs.sha256 if prepared.test_outputs else None,
        )
    return TaskEntry(
        name=task.name,
        kind=task.kind,
        classes=facts.classes,
        expert=ExpertEntry(
            source=str(task.expert),
            sha256=facts.expert_digest,
            base_similarity=facts.base_similarity,
            doubt=prepared.doubt and prepared.doubt.said,
            at_chance=bool(prepared.doubt and prepared.doubt.at_chance),
        ),
        task_vector=_task_vector(outcome, task.name),
        pool=PoolEntry(
            **task.pool.source().to_json(),
            sha256=facts.pool_digest,
            examples=facts.pool_examples,
            labels=prepared.labels.sha256,
        ),
        test=test,
        tint_parameters=facts.tint_parameters + result.extra_parameters.get(task.name, 0),
        head_parameters=facts.head_parameters,
        **_stored(result, task.name),
        kept=result.selected_fraction[task.name],
        score=ScoreEntry.of(result.scores[task.name]),
        # Of a small pool nothing is held back: it was watched as a whole.
        held_back=result.held_back.get(task.name) if held else None,
    )


def _stored(result: Result, name: str) -> dict[str, Any]:
    """In how many bits and bytes what a task owns is stored."""
    return {"tint_bits": result.tints[name].bits, "tint_bytes": result.tints[name].nbytes}


def _task_vector(outcome: Outcome, name: str) -> str:
    """The hash of the task vector that the backbone holds."""
    before = None if outcome.lineage is None else outcome.lineage.parent.merge
    if outcome.result.theta is None and before is not None and name in before.tasks:
        return before.task(name).task_vector  # it was refreshed under a backbone that stays
    return outcome.prepared[name].vector.sha256
