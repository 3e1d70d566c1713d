"""What a published merge is in the catalog: its row, its files, its coefficients by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tintray.errors import NotFoundError
from tintray.jobs.engine.finding import blobs_of
from tintray.published.files import BACKBONE, COEFFICIENTS
from tintray.published.manifest import Change, Manifest, Unit
from tintray.storage.catalog.artifacts import KnownArtifact
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.merges import LayerSummary


def enter(
    catalog: Catalog,
    manifest: Manifest,
    url: str,
    *,
    manifest_sha256: str,
    coefficients: Tensor,
    job_id: str | None = None,
    token: int | None = None,
) -> None:
    """Enter a published merge, as its manifest describes it, in a catalog.

    ``coefficients`` are Λ [K, L]; ``job_id`` is None for a merge that came from elsewhere. A parent
    that the catalog does not know is not entered as one.
    """
    files = blobs_of(manifest)
    catalog.artifacts.record(
        [KnownArtifact(ref, _kind(name), {"file": name}) for name, ref in files.items()],
        job_id=job_id,
    )
    catalog.merges.record(
        manifest.name,
        manifest.version,
        url,
        job_id,
        manifest_sha256=manifest_sha256,
        metrics={
            **manifest.metrics.to_json(),
            "site": manifest.site,
            "method": manifest.job.merge.method,
            "tasks": len(manifest.tasks),
            "change": _told(manifest.change),
        },
        parent=_known_parent(catalog, manifest),
        added=_added(manifest),
        files=files,
        coefficients=layer_summaries(manifest.units, coefficients),
        token=token,
    )


def _known_parent(catalog: Catalog, manifest: Manifest) -> str | None:
    if manifest.parent is None:
        return None
    try:
        return catalog.merges.find(manifest.parent).ref
    except NotFoundError:
        return None


def _told(change: Change | None) -> dict[str, Any] | None:
    """How a merge grew, as far as its history shows it."""
    if change is None:
        return None
    return {key: getattr(change, key) for key in ("operation", "tasks", "mode", "to")}


def _added(manifest: Manifest) -> list[str]:
    """The tasks that the merge has and its parent has not."""
    change = manifest.change
    if change is None:
        return [task.name for task in manifest.tasks]
    return list(change.tasks) if change.operation == "add" else []


def _kind(file: str) -> str:
    """What the catalog calls a file of a merge."""
    if file in (BACKBONE, COEFFICIENTS):
        return file.removesuffix(".safetensors")
    return "tint" if file.startswith("tints/") else "config"


def layer_summaries(units: Sequence[Unit], coefficients: Tensor) -> list[LayerSummary]:
    """The coefficients Λ [K, L] of every layer unit, over the tasks."""
    return [
        LayerSummary(
            unit.name,
            float(column.mean()),
            float(torch.std(column, correction=0)),
            float(column.min()),
            float(column.max()),
        )
        for unit, column in zip(units, coefficients.t(), strict=True)
    ]
