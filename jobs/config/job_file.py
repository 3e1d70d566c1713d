"""The job file: what to merge, how, and where the result goes.

``load_spec`` reads a file; ``parse_spec`` takes a mapping that Python code built. Both answer bad
input with one ``SpecError``.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from tintray.errors import SpecError
from tintray.jobs.config.cluster_sections import ClusterSpec, Tracking
from tintray.jobs.config.documents import Document, read_document
from tintray.jobs.config.fields import CatalogLocation, ModelLocation, Name, StoreLocation
from tintray.jobs.config.fit_sections import FitSpec, GrowthSpec, ObjectiveSpec
from tintray.jobs.config.merge_sections import MergeSpec, TintSpec
from tintray.jobs.config.recipes import RecipeName, completed
from tintray.jobs.config.renamed import as_hashed, upgraded
from tintray.jobs.config.section import Section
from tintray.jobs.config.settings import default_catalog, default_store, is_own_cluster
from tintray.jobs.config.task_sections import TaskSpec
from tintray.storage.secrets import shown_url
from tintray.tasks.kinds import BY_DISTANCE
from tintray.vectors.task_count_scale import scale_for_task_count

COEFFICIENT_LR = 2e-2
"""Of up to ten tasks; see ``scale_for_task_count``."""


class JobSpec(Section):
    """A job: what to merge, how, and where the result goes."""

    name: Name = Field(examples=["ten-scripts"])
    """The merge's name in the catalog."""
    base: ModelLocation = Field(examples=["zoo/base"])
    """The pretrained model that every expert was fine-tuned from."""
    tasks: tuple[TaskSpec, ...] = Field(min_length=1, strict=False)
    """The tasks, each with its expert."""
    factory: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$", examples=["my_models:build"])
    """The function that builds base and experts, where they are none of transformers' models."""
    recipe: RecipeName = "default"
    """What fields mean that are left out: `fast`, `default`, or `best`, which takes longest."""
    merge: MergeSpec = MergeSpec()
    """How the task vectors are merged."""
    tint: TintSpec = TintSpec()
    """The layer that every task keeps for itself."""
    objective: ObjectiveSpec = ObjectiveSpec()
    """What the fit makes small."""
    fit: FitSpec = FitSpec()
    """How long and how fast the fit learns."""
    cluster: ClusterSpec = ClusterSpec()
    """Where the job runs."""
    on_task_error: Literal["fail", "skip"] = "fail"
    """When a task's expert or data cannot be used: fail, or leave the task out and say so."""
    route: bool = True
    """Whether statistics of the pools are kept, to tell which task an example is of."""
    growth: GrowthSpec = GrowthSpec()
    """What holds when the published merge grows."""
    store: StoreLocation = Field(default_factory=default_store, examples=["s3://models/tintray"])
    """The artifact store: a folder or an s3:// URL; left out, that of the settings."""
    catalog: CatalogLocation = Field(
        default_factory=lambda data: default_catalog(data["store"]),
        examples=["postgresql+psycopg://tintray@db/tintray"],
    )
    """The database of jobs and merges; left out, that of the settings."""
    tracking: Tracking = None
    """Who else is told of the job: `mlflow`, `wandb` or `tensorboard`."""

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, name: str) -> str:
        if name == "latest":
            raise ValueError("expected a name other than 'latest', which means the newest merge")
        return name

    @field_validator("tasks")
    @classmethod
    def _names_differ(cls, tasks: tuple[TaskSpec, ...]) -> tuple[TaskSpec, ...]:
        most, count = Counter(task.name.lower() for task in tasks).most_common(1)[0]
        if count > 1:
            same = ", ".join(repr(task.name) for task in tasks if task.name.lower() == most)
            raise ValueError(
                "expected a different name for each task (upper and lower case count as the "
                f"same), found {same}"
            )
        return tasks

    @field_validator("fit")
    @classmethod
    def _no_group_is_empty(cls, fit: FitSpec, info: ValidationInfo) -> FitSpec:
        tasks = info.data.get("tasks")
        if tasks is not None and fit.groups is not None and fit.groups > len(tasks):
            raise ValueError(
                f"expected 'groups' to be at most the {len(tasks)} tasks, found {fit.groups}"
            )
        return fit

    @field_validator("tracking")
    @classmethod
    def _tracker_has_a_place(cls, tracking: Tracking, info: ValidationInfo) -> Tracking:
        if tracking is None or tracking.tracker != "tensorboard" or tracking.to is not None:
            return tracking
        store = info.data.get("store")
        if store is not None and store.path is None:
            raise ValueError(f"expected 'to', a folder for TensorBoard's files: {store} is none")
        return tracking

    def coefficient_lr(self, tasks: int) -> float:
        """The first learning rate of so many tasks' coefficients: the job's own, or by them."""
        own = self.fit.coefficient_lr
        return COEFFICIENT_LR * scale_for_task_count(tasks) if own is None else own

    def without(self, names: Collection[str]) -> Self:
        """The same job without some of its tasks."""
        return self.with_tasks([task for task in self.tasks if task.name not in names])

    def with_tasks(self, tasks: Sequence[TaskSpec]) -> Self:
        """The same job of these tasks, in no more groups than there are tasks."""
        groups = self.fit.groups and min(self.fit.groups, len(tasks))
        return self.changed(tasks=tasks, fit={"groups": groups})

    def here(self) -> Self:
        """The same job in this process, on its CPU."""
        return self.changed(cluster={"workers": 0, "address": None, "gpus_per_worker": 0})

    def on_own_cluster(self) -> Self:
        """The same job of a merge that anybody may have made: where this user's jobs run."""
        own = is_own_cluster(self.cluster.address)
        return self if own else self.changed(cluster={"address": None})

    def digest(self) -> str:
        """SHA-256 of all that can change the result: not names, places, nor how it may grow later.

        Threads and GPUs do count: they change the order of floating-point sums. Models and data
        count by their resolved location, not by their content.
        """
        elsewhere = {"name", "recipe", "store", "catalog", "cluster", "growth", "route"}
        result = self.model_dump(mode="json", exclude=elsewhere)
        result["merge"].pop("memory")
        result["fit"].pop("checkpoint_every")
        result["threads_per_worker"] = self.cluster.threads_per_worker
        if self.cluster.gpus_per_worker:
            result["gpus_per_worker"] = 1  # a part of one computes as a whole one does
        return _hash(result)

    def submission_hash(self) -> str:
        """SHA-256 of the whole job, where it runs and goes included, but for the catalog."""
        return _hash({name: value for name, value in self.record().items() if name != "catalog"})

    def record(self) -> dict[str, Any]:
        """The job as JSON types, locations resolved and without a password, to keep and to show."""
        record = self.model_dump(mode="json")
        record["catalog"] = shown_url(str(self.catalog))  # no Location: it is kept as JSON
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The job that ``record()`` described; its locations are taken as they are."""
        return cls.read(Document("the recorded job", upgraded(record)))


def _hash(record: Mapping[str, Any]) -> str:
    canonical = json.dumps(as_hashed(record), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def load_spec(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """The job in the file ``path``, with ``key.path=value`` overrides laid over it.

    Relative paths, in the file and in overrides, start from the file's folder.
    """
    document = read_document(Path(path))
    for text in overrides:
        document = document.override(text)
    return _validated(document, Path(path).absolute().parent)


def parse_spec(value: Mapping[str, Any], *, folder: Path | None = None) -> JobSpec:
    """The job that a mapping describes; relative paths start from ``folder`` (the current one)."""
    return _validated(Document("the job", value), Path.cwd() if folder is None else folder)


def _validated(document: Document, folder: Path) -> JobSpec:
    if isinstance(document.value, Mapping):
        # `fit:` with every field below it commented out is nothing in YAML: the defaults are meant
        fields = JobSpec.model_fields
        given = {k: v for k, v in document.value.items() if v is not None or k not in fields}
        document = replace(document, value=completed(given))
    spec = JobSpec.read(document, folder)
    kinds = {task.kind for task in spec.tasks}
    if spec.objective.distance != "l1" and kinds.isdisjoint(BY_DISTANCE):
        raise SpecError(
            f"{document.origin(('objective', 'distance'))}: objective.distance: expected a task of "
            f"kind {' or '.join(BY_DISTANCE)}, which it compares, found {', '.join(sorted(kinds))}"
        )
    return spec
