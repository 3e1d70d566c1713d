"""What a worker is told and what it answers: plain data, and how an expert is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tintray.checkpoints.model_folder import TEMPLATES, ModelFolder, ZeroShot, open_model_folder
from tintray.data.labels import class_names
from tintray.data.source import DataSource
from tintray.errors import CheckpointError
from tintray.jobs.engine.published_tasks import PublishedTask
from tintray.jobs.engine.sources import local_data, local_folder
from tintray.models import base_similarity as base_similarity
from tintray.numerics.choices import Granularity
from tintray.storage.artifacts.blobs import BlobRef
from tintray.tasks.doubts import Doubt
from tintray.tasks.kind import Kind
from tintray.tinting.pseudo_labels import PseudoLabelConfig
from tintray.tinting.step import StepSettings


@dataclass(frozen=True)
class TaskConfig:
    """What a worker must know of a task to host it; plain data, from the job file."""

    name: str
    kind: Kind
    expert: str
    pool: DataSource
    test: DataSource | None
    labelled: int = 0  # how many of the pool's examples may be read with their label
    base: str = ""  # what the expert was fine-tuned from; an adapter is nothing without
    factory: str | None = None  # what builds the module, if not transformers
    published: PublishedTask | None = None  # in a merge: its expert is not needed
    classes: tuple[str, ...] | None = None  # of a zero-shot head; None: as the data name them
    templates: tuple[str, ...] = TEMPLATES

    @property
    def role(self) -> str:
        """How messages call its expert: by the field of the job file."""
        return f"tasks.{self.name}.expert"


def open_expert(task: TaskConfig, cache: Path, base: ModelFolder | None = None) -> ModelFolder:
    """A task's expert, on this machine; ``base`` saves opening that too.

    Raises
    ------
    CheckpointError
        If either cannot be opened.
    """
    if base is None:
        base = open_model_folder(local_folder(task.base, cache), role="base", factory=task.factory)
    folder = local_folder(task.expert, cache)
    checkpoint = open_model_folder(folder, role=task.role, base=base, factory=task.factory)
    if not checkpoint.is_tower or checkpoint.has_head:
        _check_no_texts(task, checkpoint)
        return checkpoint
    where = f"tasks.{task.name}.pool"
    known = class_names(local_data(task.pool, cache), where)
    told = task.classes or known
    if told is None:
        raise CheckpointError(
            f"tasks.{task.name}.zero_shot.classes: {task.pool.path} does not name its classes; "
            "expected a list of names, of which the head of a CLIP tower is made"
        )
    names = known if known is not None and len(known) == len(told) else told
    return checkpoint.with_classes(ZeroShot(tuple(told), task.templates), names)


def _check_no_texts(task: TaskConfig, checkpoint: ModelFolder) -> None:
    """Refuse names of classes for an expert whose head is not made of them."""
    if task.classes is None and task.templates == TEMPLATES:
        return
    kind = (checkpoint.config.get("architectures") or ["model of a factory"])[0]
    found = f"{checkpoint.folder} has a head of its own" if checkpoint.is_tower else f"a {kind}"
    raise CheckpointError(
        f"tasks.{task.name}.zero_shot: expected a CLIP vision tower as the expert, whose head is "
        f"made of texts; found {found}: leave 'zero_shot' out"
    )


@dataclass(frozen=True)
class FitConfig:
    """What all workers of a job must know; plain data, from the job file and the base."""

    store_url: str
    base: str
    base_digest: str
    like: tuple[str, str]  # an expert, for the class of all of them, and how messages call it
    site: str
    rank: int | None
    feature_site: str  # whose features the fit compares, where it does
    learned: bool
    granularity: Granularity
    settings: StepSettings
    pseudo_labels: PseudoLabelConfig
    factory: str | None = None  # what builds the modules, if not transformers
    device: str = "cpu"  # where rounds and evaluations compute
    direct: bool = False  # whether gradients are answered as tensors, not as arrays


@dataclass(frozen=True)
class TaskFacts:
    """What a worker found out about a task while it checked it."""

    name: str
    classes: int
    tint_parameters: int
    head_parameters: int
    expert_digest: str
    pool_digest: str
    pool_examples: int
    test_digest: str | None
    test_examples: int
    configs: Mapping[str, bytes]  # file name -> content
    base_similarity: float = 1.0  # cosine between the base's weights and the expert's
    notices: tuple[str, ...] = ()  # what is worth telling of its files, a sentence each
    pool_bytes: int = 0  # memory of the pool
    test_bytes: int = 0

    def warnings(self) -> list[str]:
        """What is worth telling of the task's files, expert and data, a sentence each."""
        found = list(self.notices)
        if base_similarity.is_unrelated(self.base_similarity):
            found.append(base_similarity.warning(self.name, self.base_similarity))
        return found

    def sizes(self) -> dict[str, int]:
        """Memory of the task's examples, by the fields of the job file."""
        found = {"pool": self.pool_bytes, "test": self.test_bytes}
        return {f"tasks.{self.name}.{part}": taken for part, taken in found.items() if taken}


@dataclass(frozen=True)
class Prepared:
    """A task's self-labels and task vector are at hand, as artifacts."""

    task: str
    seconds: float
    cached: bool  # the self-labels came from the store
    vector_cached: bool  # so did the task vector
    labels: BlobRef
    test_outputs: BlobRef | None  # the expert's outputs on the test set
    vector: BlobRef
    features: BlobRef | None = None
    doubt: Doubt | None = None  # what speaks against the expert
