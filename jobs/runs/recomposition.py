"""The backbone of a merge, put together again from Λ and the task vectors that it names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from safetensors import safe_open
from torch import Tensor

from tintray.checkpoints.tensors import read_tensors
from tintray.jobs.engine.sources import cache_folder
from tintray.jobs.runs.parent import Parent, ancestors
from tintray.numerics.layout import Layout
from tintray.numerics.low_rank import LowRank
from tintray.storage.artifacts.blobs import BlobRef, fetch_blob
from tintray.vectors.stacks import Row
from tintray.vectors.task_vectors import row_of


def recomposed(
    layout: Layout, base: Mapping[str, Tensor], rows: Iterable[tuple[Tensor, Mapping[str, Row]]]
) -> Tensor:
    """θ [P] = θ₀ + Σₖ λₖ τₖ for rows (λₖ [L], τₖ by name), one at a time, summed in float64.

    Without a row it is as if that task had never been merged: its part is left out, not taken off.
    """
    theta = layout.flatten(base).double()
    for coefficients, vector in rows:
        spread = layout.spread(coefficients[None].double())[0]
        for share, slot in zip(spread, layout.slots, strict=True):
            row = vector.get(slot.name)
            if row is not None:
                dense = row.dense() if isinstance(row, LowRank) else row
                theta[slot.start : slot.stop] += share * dense.reshape(-1).double()
    return theta.float()


def without(parent: Parent, layout: Layout, base: BlobRef, names: Iterable[str]) -> Tensor:
    """The parent's backbone θ [P] as if these tasks had never been merged.

    A correction that all tasks learned together stays, see ``correction_from``: then the tasks'
    own part is taken off.

    Raises
    ------
    NotFoundError
        If a task vector that this needs is gone from the store.
    """
    gone = set(names)
    corrected = parent.manifest.corrected
    tasks = [task for task in contributors(parent) if (task in gone) == corrected]
    for task in tasks:
        parent.check_artifact(task, "task vector", parent.merge.task(task).task_vector)
    start = parent.merge.backbone
    if not corrected:
        start = read_tensors(fetch_blob(parent.store, base, cache_folder()))
    sign = -1 if corrected else 1
    rows = ((sign * parent.row(task), _vector(parent, layout, task)) for task in tasks)
    return recomposed(layout, start, rows)


def _vector(parent: Parent, layout: Layout, task: str) -> dict[str, Row]:
    path = fetch_blob(parent.store, parent.merge.task(task).task_vector, cache_folder())
    with safe_open(path, framework="pt") as file:
        known = frozenset(file.keys())
        return {slot.name: row_of(known, file.get_tensor, slot.name) for slot in layout.slots}


def contributors(parent: Parent) -> tuple[str, ...]:
    """The tasks that have a part in the backbone: those that came with a tint alone have none."""
    return tuple(task for task in parent.merge.tasks if bool(parent.row(task).any()))


def correction_from(parent: Parent) -> dict[str, str]:
    """Tasks that the shared correction was learned from, and their experts' hashes; {} if none.

    It is one sum over all of them: a task's part in it cannot be told from the others'.
    """
    known = parent.manifest.correction_from
    if known is None and parent.manifest.corrected:  # a merge of version 0.1.0
        first = [parent, *parent.ancestry][-1].merge
        known = {task: first.task(task).expert.sha256 for task in first.tasks}
    return known or {}


def same_backbone(parent: Parent, names: Iterable[str]) -> Parent | None:
    """The ancestor whose backbone is the parent's without these tasks, if there is one.

    A backbone is a function of base, task vectors and Λ: where all of these are the same, the
    ancestor's is the one that is wanted, to the last bit.
    """
    wanted = set(contributors(parent)) - set(names)
    for found in ancestors(parent):
        if found.manifest.base.sha256 != parent.manifest.base.sha256:
            return None
        if set(contributors(found)) == wanted and all(
            found.merge.task(task).task_vector == parent.merge.task(task).task_vector
            and torch.equal(found.row(task), parent.row(task))
            for task in wanted
        ):
            return found
    return None
