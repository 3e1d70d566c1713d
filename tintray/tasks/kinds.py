"""The job file's words about tasks; imports nothing, so that a job file is read without torch.

Each name of a kind is that of a class in this folder; see ``tintray.tasks.kind``.
"""

from __future__ import annotations

from typing import Literal

KindName = Literal[
    "classification",
    "multi_label",
    "regression",
    "token_classification",
    "language_modelling",
    "seq2seq",
    "segmentation",
    "depth",
    "normals",
]
"""What a task predicts."""

Labels = Literal["soft", "hard", "entropy"]
"""The expert's probabilities, the class that it predicts, or neither (the merge's own entropy)."""

Distance = Literal["l1", "l2"]
"""Between two values: their difference's size, or its square."""

BY_DISTANCE: tuple[KindName, ...] = ("regression", "depth")
"""Kinds that are compared by a ``Distance``."""

Filter = Literal["none", "agreement", "top_p", "threshold", "weight"]
"""Which self-labels count: all; where both agree or the expert is surer; the surest; by weight."""
