"""Write a published merge for others: as an adapter on its base, for LoRA servers, as ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import nn

from tintray.checkpoints.model_folder import ModelFolder, open_model_folder
from tintray.errors import CheckpointError, InputError
from tintray.jobs.engine.sources import cache_folder, local_folder
from tintray.jobs.runs.evaluate import check_same, read_pool
from tintray.models.loading import load_base
from tintray.pools import sequences
from tintray.pools.pool import Pool
from tintray.published import adapter_export
from tintray.published.exported import Exported
from tintray.published.merge import Merge


def export_adapter(merge: Merge, task: str | None, directory: Path) -> Path:
    """Write one task's adapter for PEFT, or one of all tasks plus their tint layers.

    Raises CheckpointError if the base is gone, or another one by now; else as
    ``adapter_export.export_adapter``.
    """
    base = _base(merge, merge.tasks[0] if task is None else task)
    return adapter_export.export_adapter(merge, task, directory, base)


def export_peft(
    merge: Merge, directory: Path, tasks: Sequence[str] | None = None, rank: int | None = None
) -> Exported:
    """Write the backbone and one adapter per task; see ``peft_export.export_peft``."""
    from tintray.published import peft_export

    return peft_export.export_peft(merge, directory, tasks, rank, partial(_some, merge, 512))


def export_onnx(merge: Merge, directory: Path, tasks: Sequence[str] | None = None) -> Exported:
    """Write one ONNX file per task, checked on its pool; see ``onnx_export.export_onnx``."""
    from tintray.published import onnx_export

    return onnx_export.export_onnx(merge, directory, partial(_some, merge, 8), tasks)


def _some(merge: Merge, most: int, task: str, module: nn.Module) -> Pool:
    """The first examples of a task's pool."""
    entry = merge.task(task)
    source, pool = read_pool(merge, entry, entry.pool)
    check_same(task, source, pool, entry.pool)
    return sequences.completed(module, pool[:most])


def _base(merge: Merge, task: str) -> nn.Module:
    """The base that a merge was made from, in the class of a task's expert."""
    if merge.manifest.job.factory:
        raise InputError(
            f"{merge.url} is of modules of a factory; expected models of transformers, for which "
            "PEFT has adapters"
        )
    known = merge.manifest.base
    base = open_model_folder(local_folder(known.source, cache_folder()), role="the base")
    if base.digest() != known.sha256:
        raise CheckpointError(
            f"the base: {known.source} is not what {merge.url} was made from (sha256 "
            f"{base.digest()[:12]}…, expected {known.sha256[:12]}…); put that base back"
        )
    return load_base(base, like=ModelFolder(base.folder, merge.config(task), ()))
