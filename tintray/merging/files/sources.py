"""The checkpoints that a merge reads, matched tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

from tintray.checkpoints.model_folder import ModelFolder
from tintray.checkpoints.safetensors_files import is_rebuilt
from tintray.errors import CheckpointError
from tintray.merging.files.tensor_files import TensorFiles


@dataclass(frozen=True)
class Sources:
    """What a merge reads: the base, and for each task its expert, or its task vector.

    Attributes
    ----------
    differences
        Whether ``experts`` hold task vectors already.
    statistics
        Kind to files with tensors of the same names: one per task, or one for all.
    """

    base: TensorFiles
    experts: Sequence[TensorFiles]
    tasks: tuple[str, ...]
    differences: bool = False
    statistics: Mapping[str, Sequence[TensorFiles]] = field(default_factory=dict)

    @classmethod
    def open(cls, base: ModelFolder, experts: Mapping[str, ModelFolder], stack: ExitStack) -> Self:
        """Open checkpoints whose tensors match, to be closed with ``stack``.

        Raises
        ------
        CheckpointError
            Naming the first tensor that an expert lacks, has in another shape, or has beside.
        """
        opened = stack.enter_context(TensorFiles.of(base, "the base"))
        files = []
        for task, checkpoint in experts.items():
            found = stack.enter_context(TensorFiles.of(checkpoint, f"expert '{task}'"))
            _check_match(opened, found)
            files.append(found)
        return cls(opened, files, tuple(experts))


def _check_match(base: TensorFiles, expert: TensorFiles) -> None:
    for name, info in base.tensors.items():
        if is_rebuilt(name):
            continue
        if name not in expert.tensors:
            raise CheckpointError(
                f"{expert.role} lacks tensor '{name}', which {base.role} has with shape "
                f"{list(info.shape)}; expected an expert fine-tuned from this base"
            )
        shape = expert.tensors[name].shape
        if shape != info.shape:
            raise CheckpointError(
                f"{expert.role}: tensor '{name}' has shape {list(shape)}; {base.role} has "
                f"{list(info.shape)}; expected an expert fine-tuned from this base, and of its "
                "shape: experts with heads of their own are merged by a job"
            )
        if expert.tensors[name].floating != info.floating:
            raise CheckpointError(
                f"{expert.role}: tensor '{name}' is stored as {expert.tensors[name].dtype}, "
                f"{base.role} has it as {info.dtype}; expected fractions, or whole numbers, in both"
            )
    extra = sorted(n for n in expert.tensors.keys() - base.tensors.keys() if not is_rebuilt(n))
    if extra:
        raise CheckpointError(
            f"{expert.role} has tensor '{extra[0]}', which {base.role} lacks; expected an expert "
            "fine-tuned from this base"
        )
