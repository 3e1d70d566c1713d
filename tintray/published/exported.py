"""What an export for servers wrote, as commands and Python tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ExportedTask:
    """A task's part of an export."""

    task: str
    path: str  # of its folder, in the export's
    numbers: int  # that its adapter or its model holds
    agreement: float | None = None  # with the merge on its pool; None: it is exact, or not measured
    difference: float | None = None  # greatest, of a logit from the merge's; None: not measured


@dataclass(frozen=True)
class Exported:
    """A folder for servers: a backbone with adapters, or ONNX files."""

    path: str
    form: str  # "peft" or "onnx"
    tasks: Sequence[ExportedTask]
    rank: int | None = None  # of all adapters
    exact: bool = True  # whether it answers as the merge does
    mixed: bool = False  # whether one batch can be of several tasks
    notices: Sequence[str] = ()
