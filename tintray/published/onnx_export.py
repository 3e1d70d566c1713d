"""A task's model as an ONNX file, checked with onnxruntime on the task's own examples.

::

    <task>/model.onnx       inputs by the names of transformers, the output ``logits``
    <task>/config.json      names of the classes; tokenizer or processor files beside it
    README.md

Batches may be of any size, texts of any length. Of a language model it is the whole forward pass,
without a cache of keys and values.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from tintray.errors import FitError, InputError, check_installed
from tintray.files import foreign
from tintray.models.calling import answer
from tintray.new_folder import check_new, new_folder
from tintray.pools.pool import Pool
from tintray.published.card import CARD
from tintray.published.export_cards import onnx_card
from tintray.published.exported import Exported, ExportedTask
from tintray.published.merge import Merge

CLOSE = 1e-4
"""How far the logits of a file may lie from those of the merge, beside the largest of them."""
_LARGEST = 1_500_000_000  # bytes of weights that one file can hold
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_onnx(
    merge: Merge,
    directory: Path,
    examples: Callable[[str, nn.Module], Pool],
    tasks: Sequence[str] | None = None,
) -> Exported:
    """Write one ONNX file for each of a merge's ``tasks`` (left out: all).

    ``examples`` gives some of a task's pool. Nothing is kept if a file answers otherwise than the
    merge does on them.

    Raises InputError if packages are missing, the pool is gone or the model cannot be written as
    ONNX, or as ``new_folder``; FitError if a file answers otherwise; NotFoundError for an unknown
    task; StorageError if it cannot be written.
    """
    check_installed("an export to ONNX", _PACKAGES, "onnx")
    check_new(directory, or_empty=True)
    names = list(dict.fromkeys(tasks or merge.tasks))
    for name in names:
        merge.task(name)
    written = []
    with new_folder(directory, or_empty=True) as partial:
        for name in names:
            module = merge.exportable(name)
            pool = examples(name, module)
            folder = partial / name
            folder.mkdir()
            _write(module, next(pool[:2].batches(2)), folder / "model.onnx", name)
            difference = _check(module, pool, folder / "model.onnx", name)
            merge.copy_configs(name, folder)
            config = json.dumps(merge.config(name), indent=2)
            (folder / "config.json").write_text(config, encoding="utf-8")
            numbers = sum(parameter.numel() for parameter in module.parameters())
            written.append(ExportedTask(name, name, numbers, difference=difference))
        found = Exported(str(directory), "onnx", written)
        (partial / CARD).write_text(onnx_card(merge.manifest, found), encoding="utf-8")
    return found


class _Answering(nn.Module):
    """A model that takes its inputs in order and gives its answers alone."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, list(names)

    def forward(self, *tensors: Tensor) -> Tensor:
        """What the model answers to a batch."""
        return answer(self.module, dict(zip(self.names, tensors, strict=True)))


def _write(module: nn.Module, batch: Mapping[str, Tensor], path: Path, task: str) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if len(next(iter(batch.values()))) < 2:  # an axis of one is taken for a constant
        batch = {name: torch.cat([tensor, tensor]) for name, tensor in batch.items()}
    what = f"task '{task}': its {type(module).__name__} cannot be written as ONNX"
    with foreign(what, InputError), _quiet():
        torch.onnx.export(
            _Answering(module, list(batch)),
            tuple(batch.values()),
            path,
            input_names=list(batch),
            output_names=["logits"],
            dynamic_shapes=(tuple(_axes(name, tensor) for name, tensor in batch.items()),),
            external_data=size > _LARGEST,
            dynamo=True,
            verbose=False,
        )


def _axes(name: str, tensor: Tensor) -> dict[int, str]:
    """Names of the axes that may be of any length."""
    axes = {0: "batch"}
    if not tensor.is_floating_point() and tensor.ndim == 2:
        axes[1] = "target" if name.startswith("decoder_") else "tokens"
    return axes


def _check(module: nn.Module, pool: Pool, path: Path, task: str) -> float:
    """The greatest difference between a file's answers and the model's, over one more and all."""
    import onnxruntime

    what = f"task '{task}': onnxruntime cannot run its file"
    with foreign(what, FitError):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = {found.name for found in session.get_inputs()}
    greatest = 0.0
    for batch in (next(pool[:1].batches(1)), next(pool.batches(len(pool)))):
        given = {name: tensor.numpy() for name, tensor in batch.items() if name in wanted}
        with foreign(what, FitError), torch.inference_mode():
            found = torch.from_numpy(session.run(["logits"], given)[0])
            expected = answer(module, batch)
        difference = float((found - expected).abs().max())
        allowed = CLOSE * max(1.0, float(expected.abs().max()))
        if not difference <= allowed:
            raise FitError(
                f"task '{task}': its ONNX file answers otherwise than the merge, by "
                f"{difference:.2g}; expected at most {allowed:.2g}, export the task without --onnx"
            )
        greatest = max(greatest, difference)
    return greatest


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on its own progress from whoever waits for it."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
