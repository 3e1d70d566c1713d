"""What a worker is told and what it answers: plain data, and how an expert is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tintray.checkpoints.model_folder import TEMPLATES
from tintray.data.source import DataSource
from tintray.jobs.engine.published_tasks import PublishedTask
from tintray.models import base_similarity as base_similarity
from tintray.numerics.choices import Granularity
from tintray.numerics.sites import TintSite
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


@dataclass(frozen=True)
class FitConfig:
    """What all workers of a job must know; plain data, from the job file and the base."""

    store_url: str
    base: str
    base_digest: str
    like: tuple[str, str]  # an expert, for the class of all of them, and how messages call it
    sites: tuple[TintSite, ...]
    tint_lr: float | None
    feature_site: str  # whose features the fit compares, where it does
    learned: bool
    granularity: Granularity
    settings: StepSettings
    pseudo_labels: PseudoLabelConfig
    factory: str | None = None  # what builds the modules, if not transformers
    device: str = "cpu"  # where rounds and evaluations compute
    held_back: int | None = 0  # of each pool, examples that the fit does not learn from
    # self-labels that a fit asks for at first, see ``asking.first_drawn``; None: of whole pools
    first_drawn: int | None = None
    floor: bool = False  # whether a task must be able to go back to what it is without learning
    checkpointed: bool = False  # whether layers compute their activations again, see ``checkpoint``
    direct: bool = False  # whether gradients are answered as tensors, not as arrays
    route: bool = True  # whether the merge can tell which task an example is of


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
    change: float = 0.0  # how far fine-tuning went: root mean square over the weights
    # its task vector in few numbers, float32; empty for a task of a published merge
    sketch: bytes = field(default=b"", repr=False)
    notices: tuple[str, ...] = ()  # what is worth telling of its files, a sentence each
    pool_bytes: int = 0  # memory of the pool
    test_bytes: int = 0
    labels_key: str = ""  # under which the store has its self-labels, if it has them
    disturbed: int = 0  # examples that are answered beside those that it is measured on
    operations: int = 0  # of an example's pass one way, as far as they are known

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
    routing: BlobRef | None = None  # what tells the task's examples from others
