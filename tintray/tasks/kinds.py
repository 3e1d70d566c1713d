"""The kinds of task that there are; imports nothing, since the job file needs their names alone."""

from __future__ import annotations

from typing import Literal

Kind = Literal[
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
"""What a task predicts: :mod:`tintray.tasks.tasks` says what each is compared by."""
