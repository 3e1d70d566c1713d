"""From a change that passed the guard to a published child: what did not change is not written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from tintray.checkpoints.tensors import tensors_as_bytes
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.configs import Prepared, TaskFacts
from tintray.jobs.engine.finding import blobs_of, manifest_of
from tintray.jobs.runs.catalog_entries import enter
from tintray.jobs.runs.change import Change
from tintray.jobs.runs.guard import Loss, fitted
from tintray.jobs.runs.job_run import JobRun
from tintray.jobs.runs.parent import Parent
from tintray.jobs.runs.publication import shared_buffers, task_entry
from tintray.jobs.runs.recomposition import correction_from
from tintray.jobs.runs.summaries import means
from tintray.published.files import BACKBONE, COEFFICIENTS, config_file, tint_file
from tintray.published.manifest import (
    Manifest,
    Means,
    ScoreEntry,
    TaskEntry,
    UnpublishedManifest,
)
from tintray.storage.artifacts.blobs import BlobRef
from tintray.storage.artifacts.publish import (
    manifest_digest,
    next_version,
    parse_merge_url,
    publish_merge,
)
from tintray.tasks.evaluation import TaskScore


def unchanged_since(ancestor: Parent, parent: Parent) -> frozenset[str]:
    """The tasks that both have, with the same expert and the same pool."""
    return frozenset(
        name
        for name in set(ancestor.merge.tasks) & set(parent.merge.tasks)
        if ancestor.merge.task(name).same_source(parent.merge.task(name))
    )


@dataclass(frozen=True)
class Child:
    """All that a change leaves behind, before any of it is visible.

    Attributes
    ----------
    theta
        The backbone [P]; None where it is the parent's, or the ancestor's.
    coefficients
        Λ [K, L] over the child's tasks.
    tints, scores
        Of the tasks whose tint has changed, or that were measured again.
    new
        What was found out of the new and the refreshed tasks.
    report
        How it came about, for the manifest.
    ancestor
        The merge further back whose backbone and tints are what is left.
    """

    parent: Parent
    spec: JobSpec
    ground: SplitModel
    change: Change
    theta: Tensor | None
    coefficients: Tensor
    tints: Mapping[str, Mapping[str, Tensor]]
    scores: Mapping[str, TaskScore]
    new: Mapping[str, tuple[TaskFacts, Prepared]]
    kept: Mapping[str, float]
    losses: tuple[Loss, ...]
    peak_memory: int
    report: Mapping[str, Any]
    ancestor: Parent | None = None

    def source(self, task: str) -> Parent:
        """The merge that an unchanged task is taken from."""
        ancestor = self.ancestor
        restored = ancestor is not None and task in unchanged_since(ancestor, self.parent)
        return ancestor if restored and ancestor is not None else self.parent


def publish_child(child: Child, run: JobRun, head: int) -> Manifest:
    """Write the child to the parent's store, its manifest last, and enter it in the catalog.

    Raises
    ------
    ParentChangedError
        If a version newer than ``head`` has come since the change began.
    StorageError
        If the store or the catalog fails; nothing of the child is visible then.
    """
    store, name = child.parent.store, child.parent.ref.name
    number = run.catalog.merges.reserve(
        name, run.job_id, at_least=next_version(store, name), head=head
    )
    if gone := _gone_from_correction(child):
        run.remark(
            f"the correction that tasks learned together stays in the backbone, and was learned "
            f"from {', '.join(gone)} too (fit.correction_lr); run the job anew to be rid of it"
        )
    manifest = child_manifest(child, run)
    url = publish_merge(
        store, name, _files(child), manifest.to_json(), version=number, confirm=run.lease.confirm
    )
    ref = parse_merge_url(url)[1]
    published = manifest_of(store, ref)
    enter(
        run.catalog,
        published,
        url,
        manifest_sha256=manifest_digest(store, ref),
        coefficients=child.coefficients,
        job_id=run.job_id,
        token=run.lease.token,
    )
    return published


def _files(child: Child) -> dict[str, bytes | Path | BlobRef]:
    source = child.ancestor or child.parent
    files: dict[str, bytes | Path | BlobRef] = {BACKBONE: source.backbone}
    if child.theta is not None:
        shared = shared_buffers(child.ground.partition)
        backbone = child.ground.partition.layout.views(child.theta) | shared
        files[BACKBONE] = tensors_as_bytes(backbone)
    files[COEFFICIENTS] = _coefficients(child, source)
    for task in child.spec.tasks:
        if task.name in child.new:
            facts, _ = child.new[task.name]
            files |= {config_file(task.name, n): data for n, data in facts.configs.items()}
        else:
            files |= child.source(task.name).files(task.name)
        if task.name in child.tints:
            files[tint_file(task.name)] = tensors_as_bytes(child.tints[task.name])
    return files


def _coefficients(child: Child, source: Parent) -> bytes | BlobRef:
    """Λ and where it began: a new task began at zero."""
    if child.ancestor is not None and source.merge.tasks == tuple(
        task.name for task in child.spec.tasks
    ):
        return blobs_of(source.manifest)[COEFFICIENTS]
    begun = child.parent.merge.tensors(COEFFICIENTS)["initial"]
    known = {name: begun[row] for row, name in enumerate(child.parent.merge.tasks)}
    initial = child.coefficients * 0
    for row, task in enumerate(child.spec.tasks):
        if task.name in known and task.name not in child.new:
            initial[row] = known[task.name]
    return tensors_as_bytes({"coefficients": child.coefficients, "initial": initial})


def child_manifest(child: Child, run: JobRun) -> UnpublishedManifest:
    """The parent's manifest with what has changed; what a job may need later is all named in it."""
    entries = [_entry(child, index) for index in range(len(child.spec.tasks))]
    guard = [
        {
            "task": name,
            "metric": score.metric,
            "before": child.parent.merge.task(name).score.merged,
            "fitted": fitted(child.parent, name).value,
            "after": score.merged,
        }
        for name, score in child.scores.items()
        if name not in child.change.names
    ]
    return child.parent.manifest.unpublished(
        tintray=version("tintray"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        job_id=run.job_id,
        parent=str(child.parent.ref),
        change={
            "operation": child.change.operation,
            "tasks": list(child.change.names),
            **child.report,
            "guard": {"tolerance": child.spec.growth.tolerance, "tasks": guard},
        },
        correction_from=correction_from(child.parent),
        notices=list(run.remarks),
        tasks=entries,
        metrics=Means(**asdict(means(entries))),
        seconds=dict(run.seconds),
        peak_memory_mib=child.peak_memory / 2**20,
        job=child.spec.record(),
    )


def _gone_from_correction(child: Child) -> list[str]:
    """Tasks that the shared correction was learned from and that are gone, or have new experts."""
    return [
        name
        for name, expert in correction_from(child.parent).items()
        if name not in {task.name for task in child.spec.tasks}
        or (name in child.new and child.new[name][0].expert_digest != expert)
        or (name not in child.new and child.source(name).expert(name) != expert)
    ]


def _entry(child: Child, index: int) -> TaskEntry:
    task = child.spec.tasks[index]
    if task.name in child.new:
        facts, prepared = child.new[task.name]
        score = child.scores[task.name]
        entry = task_entry(task, facts, prepared, child.kept[task.name], score)
        if child.theta is None and task.name in child.parent.merge.tasks:
            # The backbone still holds the task vector of the version before.
            vector = child.parent.merge.task(task.name).task_vector
            return entry.changed(task_vector=vector)
        return entry
    changed: dict[str, Any] = {"fitted": fitted(child.parent, task.name)}
    if task.name in child.scores:
        changed["score"] = ScoreEntry.of(child.scores[task.name])
    if task.name in child.kept:
        changed["kept"] = child.kept[task.name]
    return child.source(task.name).merge.task(task.name).changed(**changed)
