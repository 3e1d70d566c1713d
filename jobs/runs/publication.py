"""From a finished fit to a published merge: files, manifest, catalog."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from torch import Tensor

from tintray.checkpoints.tensors import tensors_as_bytes
from tintray.jobs.config.job_file import JobSpec, TaskSpec
from tintray.jobs.engine.configs import Prepared, TaskFacts
from tintray.jobs.engine.finding import manifest_of
from tintray.jobs.runs.catalog_entries import enter
from tintray.jobs.runs.heartbeat import Heartbeat
from tintray.jobs.runs.summaries import means
from tintray.numerics.precision import resolve
from tintray.published.files import BACKBONE, COEFFICIENTS, config_file, tint_file
from tintray.published.manifest import (
    FORMAT,
    FORMAT_VERSION,
    ExpertEntry,
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
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.publish import (
    manifest_digest,
    parse_merge_url,
    publish_merge,
)
from tintray.storage.catalog.catalog import Catalog
from tintray.tasks.evaluation import TaskScore
from tintray.tinting.partition import Partition


@dataclass(frozen=True)
class Outcome:
    """All that a fit leaves behind, before any of it is visible."""

    spec: JobSpec
    job_id: str
    base_digest: str
    backbone_parameters: int
    partition: Partition
    facts: Mapping[str, TaskFacts]
    prepared: Mapping[str, Prepared]
    kept: Mapping[str, float]
    scores: Sequence[TaskScore]
    theta: Tensor
    initial: Tensor
    coefficients: Tensor
    tints: Mapping[str, Mapping[str, Tensor]]
    seconds: Mapping[str, float]
    peak_memory_mib: float
    rounds: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)  # task left out -> why
    notices: Sequence[str] = ()  # what whoever uses the merge should know
    placement: Mapping[str, Any] | None = None  # how the site was found, where searched for


def publish(outcome: Outcome, store: ArtifactStore, catalog: Catalog, lease: Heartbeat) -> Manifest:
    """Write the merge to the store, its manifest last, and enter it in the catalog.

    Only who holds the job's lease may: it is asked for again right before the manifest.

    Raises
    ------
    StorageError
        If the store or the catalog fails; nothing of the merge is visible then.
    """
    name = outcome.spec.name
    number = catalog.merges.reserve(name, outcome.job_id, at_least=_next_version(store, name))
    document = _manifest(outcome).to_json()
    url = publish_merge(
        store, name, _files(outcome), document, version=number, confirm=lease.confirm
    )
    ref = parse_merge_url(url)[1]
    manifest = manifest_of(store, ref)
    enter(
        catalog,
        manifest,
        url,
        manifest_sha256=manifest_digest(store, ref),
        coefficients=outcome.coefficients,
        job_id=outcome.job_id,
        token=lease.token,
    )
    return manifest


def _next_version(store: ArtifactStore, name: str) -> int:
    """Above every version that the store has, also those that another catalog knows."""
    from tintray.storage.artifacts.publish import next_version

    return next_version(store, name)


def _files(outcome: Outcome) -> dict[str, bytes]:
    backbone = outcome.partition.layout.views(outcome.theta) | shared_buffers(outcome.partition)
    files = {
        BACKBONE: tensors_as_bytes(backbone),
        COEFFICIENTS: tensors_as_bytes(
            {"coefficients": outcome.coefficients, "initial": outcome.initial}
        ),
    }
    for task, facts in outcome.facts.items():
        files[tint_file(task)] = tensors_as_bytes(outcome.tints[task])
        files |= {config_file(task, name): data for name, data in facts.configs.items()}
    return files


def shared_buffers(partition: Partition) -> dict[str, Tensor]:
    """Persistent buffers outside the private modules: the base's, which no coefficient touches."""
    module = partition.module
    parameters = dict(module.named_parameters(remove_duplicate=False))  # tied ones by both names
    below = tuple(f"{path}." for path in partition.private)
    return {
        name: tensor
        for name, tensor in module.state_dict().items()
        if name not in parameters and not name.startswith(below)
    }


def _manifest(outcome: Outcome) -> UnpublishedManifest:
    spec = outcome.spec
    corrected = bool(spec.merge.learned and spec.fit.correction_lr)
    entries = [
        task_entry(
            *(task, outcome.facts[task.name], outcome.prepared[task.name]),
            *(outcome.kept[task.name], score),
        )
        for task, score in zip(spec.tasks, outcome.scores, strict=True)
    ]
    return UnpublishedManifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        tintray=version("tintray"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        job_id=outcome.job_id,
        parent=None,
        base=ModelEntry(source=str(spec.base), sha256=outcome.base_digest),
        backbone_parameters=outcome.backbone_parameters,
        site=spec.tint.site,
        placement=outcome.placement,
        skipped=dict(outcome.skipped),
        private_modules=list(outcome.partition.private),
        units=Unit.all_of(outcome.partition.layout),
        corrected=corrected,
        # Whom the shared correction was learned from: tasks may be removed or refreshed later.
        correction_from={n: f.expert_digest for n, f in outcome.facts.items() if corrected},
        notices=list(outcome.notices),
        tasks=entries,
        metrics=Means(**asdict(means(entries))),
        rounds=outcome.rounds,
        precision=resolve(spec.fit.precision, spec.cluster.device),
        seconds=dict(outcome.seconds),
        peak_memory_mib=outcome.peak_memory_mib,
        job=Job.model_validate(spec.record()),
    )


def task_entry(
    task: TaskSpec, facts: TaskFacts, prepared: Prepared, kept: float, score: TaskScore
) -> TaskEntry:
    """What the manifest says of a task; ``kept`` is the share of its pool that counted."""
    test = None
    if task.test is not None:
        test = TestEntry(
            **task.test.order().record(),
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
        task_vector=prepared.vector.sha256,
        pool=PoolEntry(
            **task.pool.order().record(),
            sha256=facts.pool_digest,
            examples=facts.pool_examples,
            labels=prepared.labels.sha256,
        ),
        test=test,
        tint_parameters=facts.tint_parameters,
        head_parameters=facts.head_parameters,
        kept=kept,
        score=ScoreEntry.of(score),
    )
