"""The merge that a change starts from, and what of its tasks is at hand without their experts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from tintray.checkpoints.model_folder import open_model_folder
from tintray.errors import CheckpointError, InputError, NotFoundError
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.locations import catalog_location, store_location
from tintray.jobs.engine.base_model import SplitModel, load_base_model, split_for
from tintray.jobs.engine.finding import blobs_of, load_merge, locate
from tintray.jobs.engine.published_tasks import PublishedTask
from tintray.jobs.engine.sources import cache_folder, local_folder
from tintray.jobs.runs.catalog_entries import enter
from tintray.jobs.runs.change import Change, part_of
from tintray.models.loading import load_base
from tintray.published.files import (
    BACKBONE,
    config_file,
    reference_file,
    routing_file,
    tint_file,
)
from tintray.published.manifest import Manifest, Unit
from tintray.published.merge import Merge
from tintray.published.signatures import digest
from tintray.storage.artifacts.blobs import BlobRef, blob_key
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.publish import MergeRef, parse_merge_url
from tintray.storage.catalog.catalog import Catalog

_THREADS = 4  # a store over a network mostly waits


@dataclass(frozen=True)
class Parent:
    """A published merge in a store, about to grow."""

    merge: Merge
    store: ArtifactStore
    ref: MergeRef
    spec: JobSpec  # its job, with the store and the catalog that are in use now

    @property
    def manifest(self) -> Manifest:
        """The manifest, as published."""
        return self.merge.manifest

    @cached_property
    def coefficients(self) -> Tensor:
        """Λ [K, L]; rows in the order of the tasks."""
        return self.merge.coefficients

    @cached_property
    def digest(self) -> str:
        """What tells this merge from any that somebody may put in its place."""
        return digest(self.manifest)

    @cached_property
    def ancestry(self) -> tuple[Parent, ...]:
        """All ancestors that are still there, the nearest first."""
        return tuple(ancestors(self))

    def row(self, task: str) -> Tensor:
        """λ [L] of a task."""
        return self.coefficients[self.merge.tasks.index(task)]

    def expert(self, task: str) -> str:
        """The hash of a task's expert."""
        return self.merge.task(task).expert.sha256

    @property
    def backbone(self) -> BlobRef:
        """The merged backbone, as an artifact."""
        return blobs_of(self.manifest)[BACKBONE]

    def files(self, task: str) -> dict[str, BlobRef]:
        """A task's own files: tint, configuration, what tells and what compares its examples."""
        own = (tint_file(task), routing_file(task), reference_file(task))
        prefix = config_file(task, "")
        return {
            name: ref
            for name, ref in blobs_of(self.manifest).items()
            if name in own or name.startswith(prefix)
        }

    def published_tasks(self, tasks: Sequence[str]) -> dict[str, PublishedTask]:
        """How tasks are taken up again without their experts.

        Raises NotFoundError if an artifact that this needs is gone from the store; with its kind
        and what to do.
        """
        for name in tasks:
            self.check_artifact(name, "self-labels", self.merge.task(name).pool.labels)
        return {name: self.published_task(name) for name in tasks}

    def published_task(self, task: str) -> PublishedTask:
        """What stands in for a task's expert."""
        entry = self.merge.task(task)
        test = (entry.test.sha256, entry.test.outputs) if entry.test else (None, None)
        return PublishedTask(
            *(self.merge.url, self.digest, task),
            *(entry.expert.sha256, entry.pool.sha256, test[0]),
            *(entry.pool.labels, test[1]),
        )

    def check_files(self, leaving: Iterable[str]) -> None:
        """Raise :class:`NotFoundError` if a file that a child has too is gone.

        ``leaving`` are the tasks whose own files it will not have.
        """

        without = {name for task in leaving for name in self.files(task)}
        files = {n: ref.sha256 for n, ref in self.manifest.files.items() if n not in without}
        with as_input_error(), ThreadPoolExecutor(_THREADS) as pool:
            there = pool.map(self.store.exists, map(blob_key, files.values()))
            missing = [name for name, known in zip(files, there, strict=True) if not known]
        if missing:
            name, *others = missing
            more = f" and {len(others)} more" if others else ""
            raise NotFoundError(
                f"{name}{more} of {self.ref} (artifact {files[name][:12]}…) is gone from "
                f"{self.store.url}; expected what the merge was published with, copy it back"
            )

    def check_artifact(self, task: str, kind: str, sha256: str) -> None:
        """Raise :class:`NotFoundError` if what a change needs of a task is gone."""
        with as_input_error():
            there = self.store.exists(blob_key(sha256))
        if not there:
            raise NotFoundError(
                f"the {kind} of task '{task}' of {self.ref} (artifact {sha256[:12]}…) are gone "
                f"from {self.store.url}; expected what the merge was published with, copy it back "
                f"or `tintray refresh-task {self.ref} {task}`"
            )


def open_parent(merge: str, *, store: str, catalog: str) -> Parent:
    """The merge that ``merge`` means.

    Raises NotFoundError if there is none; InputError if it is a folder that was copied out of its
    store: a child has no place to go then.
    """
    url = locate(merge, catalog)
    if "/merges/" not in url:
        raise InputError(
            f"{merge} is a copy outside of a store; expected a merge in a store, such as NAME/v1 "
            "or STORE/merges/NAME/v1, since its child is published beside it"
        )
    opened = load_merge(url)
    place, ref = parse_merge_url(url)
    here = Path.cwd()
    _ = opened.factory  # a merge of one that may not run does not grow
    spec = JobSpec.from_record(opened.manifest.job.to_json()).on_own_cluster()
    spec = spec.changed(
        tint={"sites": opened.manifest.site} if spec.tint.auto else {},
        store=store_location(place.url, here),
        catalog=catalog_location(catalog, here),
        name=ref.name,
    )
    return Parent(opened, place, ref, spec)


def make_known(parent: Parent, catalog: Catalog) -> None:
    """Enter the parent in a catalog that does not know it: a child names it there."""
    try:
        catalog.merges.find(str(parent.ref))
    except NotFoundError:
        enter(catalog, parent.store, parent.manifest, parent.coefficients)


def ancestors(parent: Parent) -> Iterator[Parent]:
    """The merge's parent, that one's, and so on; those that were removed are passed over."""
    return (version for _, version in line(parent) if version is not None)


def line(parent: Parent) -> Iterator[tuple[str, Parent | None]]:
    """What the merge grew from, the nearest first: its name, and itself if it is still there.

    What a removed version grew from is what the catalog remembers of it.
    """
    ref, seen = parent.manifest.parent, {str(parent.ref)}
    while ref is not None and ref not in seen:
        seen.add(ref)
        name, _, version = ref.partition("/v")
        try:
            opened = load_merge(f"{parent.store.url}/merges/{name}/v{version}")
        except NotFoundError:
            yield ref, None
            ref = _remembered(parent, ref)
            continue
        yield ref, Parent(opened, parent.store, MergeRef(name, int(version)), parent.spec)
        ref = opened.manifest.parent


def _remembered(parent: Parent, ref: str) -> str | None:
    url = str(parent.spec.catalog)
    with suppress(NotFoundError), as_input_error(), Catalog.open(url, create=False) as catalog:
        before = catalog.merges.parent(ref)
        return None if before is None else before.ref
    return None


def unchanged_since(ancestor: Parent, parent: Parent) -> frozenset[str]:
    """The tasks that both have, with the same expert and the same pool."""
    both = set(ancestor.merge.tasks) & set(parent.merge.tasks)
    return frozenset(n for n in both if ancestor.merge.task(n).same_source(parent.merge.task(n)))


SUMS = ("task_arithmetic", "average", "base")
"""Starts of Λ whose directions are the task vectors themselves, whichever other tasks there are."""


def child_base(parent: Parent, change: Change, spec: JobSpec) -> SplitModel:
    """Open the base and lay out what is shared; no old expert is read.

    Raises CheckpointError if the base is not the one that the merge was made from; InputError if a
    merge of another method would have to be taken apart.
    """
    if change.operation == "remove":
        base = _without_experts(parent, spec)
    else:
        base = load_base_model(part_of(spec, change.names))
    expected = parent.manifest.base.sha256
    if base.digest != expected:
        raise CheckpointError(
            f"base: {spec.base} is not what {parent.ref} was made from (sha256 "
            f"{base.digest[:12]}…, expected {expected[:12]}…); put that base back"
        )
    if Unit.all_of(base.partition.layout) != parent.manifest.units:
        raise InputError(
            f"{parent.ref} was laid out otherwise, by another version of tintray; run its job again"
        )
    return base


def _without_experts(parent: Parent, spec: JobSpec) -> SplitModel:
    cache = cache_folder()
    folder = open_model_folder(local_folder(spec.base, cache), role="base", factory=spec.factory)
    module = load_base(
        folder,
        like=parent.published_task(parent.merge.tasks[0]).model_folder(cache),
        as_stored=True,
    )
    # No expert is opened: a member takes its tasks' configurations.
    return SplitModel(folder.digest(), split_for(module, spec), ("", ""))


def sums_task_vectors(spec: JobSpec) -> bool:
    """Whether a merge's backbone is θ₀ + Λ·T, so that a task can be taken off or added to it."""
    return spec.merge.learned and spec.merge.init in SUMS
