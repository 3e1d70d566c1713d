"""All that is known of a merge, in one record: what ``tintray report`` writes as a page.

Nothing is computed here beyond means. What was never measured is missing, and the record names the
command that measures it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tintray.errors import TintrayError
from tintray.jobs.config.settings import chosen
from tintray.jobs.engine.finding import load_merge, locate, store_of
from tintray.jobs.records import Record
from tintray.jobs.results import CompareTable, MergeSummary, TaskResult
from tintray.jobs.runs.history import Version, history
from tintray.jobs.runs.summaries import summary
from tintray.jobs.watching.conflicts import Conflicts
from tintray.jobs.watching.remembered import recall
from tintray.numerics.layout import block_of
from tintray.published.manifest import Manifest, TaskEntry
from tintray.published.merge import Merge
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.tables import Round


@dataclass(frozen=True)
class Origin(Record):
    """Where a task comes from."""

    task: str
    expert: str
    expert_sha256: str
    base_similarity: float | None  # cosine between the weights of base and expert
    doubt: str | None  # what speaks against the expert
    pool: str
    examples: int


@dataclass(frozen=True)
class Learning(Record):
    """What a fit told of its rounds; agreement is with the experts."""

    rounds: Sequence[int]
    loss: Sequence[float]  # mean over tasks
    agreement: Mapping[str, Sequence[float | None]]  # task -> on the batch of each round
    held_back: Mapping[str, Mapping[int, float]]  # task -> round -> on examples held back


@dataclass(frozen=True)
class Report(Record):
    """A published merge, and all that is known of it."""

    merge: MergeSummary
    worst: str | None  # the task that keeps least of its expert
    base: str
    base_sha256: str
    precision: str
    corrected: bool  # whether the backbone has a correction that tasks learned together
    origins: Sequence[Origin]
    layers: Sequence[str] = ()  # blocks of the backbone, in its order
    coefficients: Sequence[Sequence[float]] = ()  # task by layer: mean λ over its parameters
    learning: Learning | None = None
    comparison: CompareTable | None = None
    conflicts: Conflicts | None = None
    versions: Sequence[Version] = ()
    missing: Sequence[str] = field(default_factory=list)  # what is not known, and how to know it


def report(merge: str, *, store: str | None = None, catalog: str | None = None) -> Report:
    """All that is known of a merge, from its files, its catalog and its store."""
    store, catalog = chosen(store, catalog)
    url = locate(merge, catalog)
    found = load_merge(url)
    missing: list[str] = []
    known = of_manifest(found.manifest, url)
    learning, versions = _from_catalog(found.manifest, catalog, missing)
    place = open_store(store_of(url, store))
    comparison = recall(place, found.manifest, CompareTable)
    fights = recall(place, found.manifest, Conflicts)
    if comparison is None:
        missing.append(
            "what the average of the experts and task arithmetic keep; tintray compare "
            f"{found.manifest.ref} measures it, and so does report --measure"
        )
    if fights is None:
        missing.append(
            f"which tasks fight; tintray conflicts {found.manifest.ref} measures it, and so does "
            "report --measure"
        )
    layers, coefficients = _by_layer(found)
    return replace(
        known,
        layers=layers,
        coefficients=coefficients,
        learning=learning,
        comparison=comparison,
        conflicts=fights,
        versions=versions or known.versions,
        missing=missing,
    )


def of_manifest(manifest: Manifest, url: str) -> Report:
    """What the manifest of a merge tells by itself."""
    told = summary(manifest, url)
    return Report(
        merge=told,
        worst=_worst(told.tasks),
        base=manifest.base.source,
        base_sha256=manifest.base.sha256,
        precision=manifest.precision,
        corrected=manifest.corrected,
        origins=[_origin(task) for task in manifest.tasks],
        versions=[_version(manifest, told)],
    )


def _version(manifest: Manifest, told: MergeSummary) -> Version:
    """The merge itself in its tree, of which only the catalog knows more."""
    change = manifest.change
    return Version(
        ref=manifest.ref,
        parent=manifest.parent,
        created=manifest.created,
        operation="merged" if change is None else change.operation,
        changed=() if change is None else change.tasks,
        mode=None if change is None else change.mode,
        tasks=len(manifest.tasks),
        average=told.average,
        normalised_accuracy=told.normalised_accuracy,
    )


def _worst(tasks: Sequence[TaskResult]) -> str | None:
    """The task that keeps least; of experts that seem to guess there is nothing to keep."""
    known = {t.name: t.normalised for t in tasks if not t.at_chance and t.normalised is not None}
    return min(known, key=lambda name: known[name], default=None)


def _origin(task: TaskEntry) -> Origin:
    similarity, doubt = task.expert.base_similarity, task.expert.doubt
    return Origin(
        task=task.name,
        expert=task.expert.source,
        expert_sha256=task.expert.sha256,
        base_similarity=similarity if isinstance(similarity, float) else None,
        doubt=None if doubt is None else str(doubt),
        pool=f"{task.pool.path} ({task.pool.split})",
        examples=task.pool.examples,
    )


def _by_layer(merge: Merge) -> tuple[list[str], list[list[float]]]:
    """The blocks of the backbone, and the mean coefficient of each task in each."""
    units = merge.manifest.units
    names = [block_of(f"{unit.name}.").rstrip(".") for unit in units]
    layers = list(dict.fromkeys(names))
    weights = merge.coefficients.new_zeros(len(units), len(layers))
    for row, (unit, name) in enumerate(zip(units, names, strict=True)):
        weights[row, layers.index(name)] = max(unit.stop - unit.start, 1)
    mean: list[list[float]] = (merge.coefficients @ (weights / weights.sum(0))).tolist()
    return layers, mean


def _from_catalog(
    manifest: Manifest, catalog: str, missing: list[str]
) -> tuple[Learning | None, list[Version]]:
    """What the catalog has of the rounds and of the tree that a merge is in."""
    try:
        with Catalog.open(catalog, create=False) as opened:
            rounds = opened.jobs.rounds(manifest.job_id)
        versions = history(manifest.ref, catalog=catalog)
    except TintrayError as error:
        missing.append(f"curves and earlier versions: {error}")
        return None, []
    if not rounds:
        if manifest.rounds:
            missing.append(f"the catalog has no rounds of job {manifest.job_id}")
        return None, versions
    return learning_of(rounds, [task.name for task in manifest.tasks]), versions


def learning_of(rounds: Sequence[Round], tasks: Sequence[str]) -> Learning:
    """What the recorded rounds of a job, one at least, tell of its tasks."""
    metrics = [row.metrics for row in rounds]
    return Learning(
        rounds=[row.round for row in rounds],
        loss=[of.get("loss", float("nan")) for of in metrics],
        agreement={name: [_of(of, "agreement").get(name) for of in metrics] for name in tasks},
        held_back={
            name: {
                row.round: of[name]
                for row in rounds
                if name in (of := _of(row.metrics, "held_back"))
            }
            for name in tasks
        },
    )


def _of(metrics: Mapping[str, Any], name: str) -> Mapping[str, float]:
    """Figures by task; a row of an older catalog may have none."""
    found = metrics.get(name)
    return found if isinstance(found, Mapping) else {}
