"""Write a merge of whole checkpoints as a folder that appears when all of it is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from tintray.checkpoints.model_folder import ModelFolder
from tintray.checkpoints.safetensors_files import TensorInfo
from tintray.errors import StorageError
from tintray.merging.files.memory import MEMORY, mebibytes
from tintray.merging.files.pieces import MergedPiece
from tintray.merging.files.sharded_writer import ShardedWriter
from tintray.merging.files.streaming import Merging, Sources
from tintray.merging.registry import Recipe
from tintray.new_folder import new_folder

SHARD = 5 * 10**9
"""Bytes of one output file at most, as save_pretrained cuts them."""


Progress = Callable[[int, int], None]
"""Told after each piece: numbers merged so far, and numbers in all."""


def merge_checkpoints(
    base: ModelFolder,
    experts: Mapping[str, ModelFolder],
    output: Path,
    recipe: Recipe,
    *,
    scale: float | None = None,
    memory: int = MEMORY,
    shard_bytes: int = SHARD,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Path:
    """Merge checkpoints of one architecture, heads included, into the folder ``output``.

    The folder appears when all of it is there: interrupted, it leaves nothing. It holds the base's
    configuration and preprocessing. A method that gives each task a backbone of its own writes a
    folder for each below it.

    ``scale`` is what Σ D is multiplied by; left out, the method's own. The merge holds at most
    ``memory`` bytes, an output file at most ``shard_bytes`` of tensors. The method computes on
    ``device``, a tensor or a piece of one at a time.

    Raises
    ------
    CheckpointError, SpecError
        If the experts do not match, or the method cannot be run as asked; nothing is written then.
    StorageError
        If ``output`` cannot be written, or the disk has no room for it.
    """
    with ExitStack() as stack:
        stack.enter_context(_one_thread(recipe))
        sources = Sources.open(base, experts, stack)
        merging = Merging(sources, recipe, scale=scale, memory=memory, device=device)
        beside = {path.name: path for path in beside_weights(base)}
        given = (merging.infos, merging.pieces(), output, beside, merging.outputs)
        write_folder(*given, shard_bytes=shard_bytes, progress=progress)
    return output


def write_folder(
    infos: Sequence[TensorInfo],
    pieces: Iterable[MergedPiece],
    output: Path,
    beside: Mapping[str, Path | bytes],
    outputs: Sequence[str] = ("",),
    *,
    shard_bytes: int = SHARD,
    progress: Progress | None = None,
) -> None:
    """Write all tensors into the folder ``output``, which appears when all of it is there.

    ``beside`` are the files that lie beside the weights: names to contents, or to what is copied.
    ``outputs`` are the folders that are written, below ``output``; ``""`` is itself.

    Raises
    ------
    InputError
        If ``output`` exists or cannot be made.
    StorageError
        If it cannot be written, or the disk has no room for it.
    """
    _check_room(sum(info.numel * info.itemsize for info in infos) * len(outputs), output)
    with new_folder(output) as partial, ExitStack() as stack:
        for name in outputs:
            (partial / name).mkdir(exist_ok=True)
            for file, content in beside.items():
                if isinstance(content, bytes):
                    (partial / name / file).write_bytes(content)
                else:
                    shutil.copyfile(content, partial / name / file)
        writers = [ShardedWriter(partial / name, infos, shard_bytes) for name in outputs]
        for writer in writers:
            stack.callback(writer.close)
        _write_weights(writers, pieces, sum(info.numel for info in infos), progress)


def beside_weights(base: ModelFolder) -> list[Path]:
    """The files that the result takes over from the base."""
    return [base.folder / "config.json", *base.preprocessor_files, *base.generation_files]


def _check_room(size: int, output: Path) -> None:
    """Refuse a disk that has no room for so many bytes, before anything is computed."""
    there = next(path for path in output.absolute().parents if path.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise StorageError(
            f"{output} cannot be written: it needs {mebibytes(size)}, {mebibytes(free)} are "
            f"free on the disk of {there}; make room or name another folder"
        )


@contextmanager
def _one_thread(recipe: Recipe) -> Iterator[None]:
    """Keep torch from sharing out pieces that are too small for it; reading has its own thread."""
    before = torch.get_num_threads()
    if recipe.method.elementwise:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_weights(
    writers: Sequence[ShardedWriter],
    pieces: Iterable[MergedPiece],
    total: int,
    progress: Progress | None,
) -> None:
    done = 0
    for info, numbers in pieces:
        for writer, row in zip(writers, numbers, strict=True):
            writer.write(info, row.contiguous())
        done += numbers.shape[1]
        del numbers, row  # a large tensor must go before the next one is merged
        if progress is not None:
            progress(done, total)
    for writer in writers:
        writer.finish()
