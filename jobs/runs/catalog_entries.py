"""What a published merge is in the catalog: its row, its files, its coefficients by layer."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from tintray.errors import NotFoundError
from tintray.jobs.engine.finding import blobs_of
from tintray.published.files import BACKBONE, COEFFICIENTS
from tintray.published.manifest import Manifest
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.publish import MergeRef, manifest_digest
from tintray.storage.catalog.artifacts import KnownArtifact
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.merges import LayerSummary


def enter(
    catalog: Catalog,
    store: ArtifactStore,
    manifest: Manifest,
    coefficients: Tensor,
    *,
    job_id: str | None = None,
    token: int | None = None,
) -> None:
    """Enter a merge that is published in ``store``, as its manifest describes it, in a catalog.

    ``coefficients`` are Λ [K, L]; ``job_id`` is None for a merge that came from elsewhere. A parent
    that the catalog does not know is not entered as one.
    """
    ref, change, parent = MergeRef(manifest.name, manifest.version), manifest.change, None
    if manifest.parent is not None:
        with suppress(NotFoundError):
            parent = catalog.merges.find(manifest.parent).ref
    added = [] if change else [task.name for task in manifest.tasks]  # that the parent has not
    if change and change.operation == "add":
        added = list(change.tasks)
    fields = ("operation", "tasks", "mode", "to")  # what a history shows
    files = blobs_of(manifest)
    catalog.artifacts.record(
        [KnownArtifact(blob, _kind(name), {"file": name}) for name, blob in files.items()],
        job_id=job_id,
    )
    catalog.merges.record(
        *(ref.name, ref.version, f"{store.url}/{ref.key}", job_id, parent),
        manifest_sha256=manifest_digest(store, ref),
        metrics={
            **manifest.metrics.to_json(),
            "site": manifest.site,
            "method": manifest.job.merge.method,
            "tasks": len(manifest.tasks),
            "change": change and {field: getattr(change, field) for field in fields},
        },
        added=added,
        files=files,
        coefficients=[
            LayerSummary(
                unit.name,
                float(column.mean()),
                float(torch.std(column, correction=0)),
                float(column.min()),
                float(column.max()),
            )
            for unit, column in zip(manifest.units, coefficients.t(), strict=True)
        ],
        token=token,
    )


def _kind(file: str) -> str:
    """What the catalog calls a file of a merge."""
    if file in (BACKBONE, COEFFICIENTS):
        return file.removesuffix(".safetensors")
    kinds = {"tints": "tint", "routing": "routing", "references": "reference"}
    return kinds.get(file.partition("/")[0], "config")
