"""Kinds that predict values, which have no confidence: nothing of a pool is filtered."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tintray.data.labels import LabelColumn
from tintray.errors import DataError
from tintray.tasks.confidence import ConfidenceFilter
from tintray.tasks.kind import Comparison, Kind, LossConfig
from tintray.tasks.kinds import Distance
from tintray.tasks.losses import value_loss
from tintray.tasks.outputs import Mask, cut_alike, share, stretches

_NEAR_SPREAD = 0.25  # of the expert's standard deviation


class ValueKind(Kind):
    """A kind whose answers are values."""

    def loss(self, merged: Tensor, expert: Tensor, distance: Distance) -> Tensor:
        """[N]: how far the merge's values are from the expert's."""
        return value_loss(merged, expert, distance)

    @abstractmethod
    def near(self, merged: Tensor, expert: Tensor) -> Tensor:
        """Which values agree, bool [N, …]."""

    def compare(
        self, merged: Tensor, expert: Tensor, mask: Mask, chosen: ConfidenceFilter, loss: LossConfig
    ) -> Comparison:
        """The distance between values; all are selected."""
        merged, expert = cut_alike(merged, expert)
        agreement = self.agreement(merged.detach(), expert, mask)
        losses, ones = self.loss(merged, expert, loss.distance), torch.ones_like(agreement)
        return Comparison(losses, ones, agreement, ones)

    def agreement(self, merged: Tensor, expert: Tensor, mask: Mask) -> Tensor:
        """Where values are near each other."""
        return share(self.near(merged, expert))

    def constant(self, outputs: Tensor, mask: Mask) -> bool:
        """Whether the values of all examples are the same but for rounding."""
        first = outputs[:1]
        spreads = (float((outputs[s] - first).abs().max()) for s in stretches(len(outputs)))
        return max(spreads) <= 1e-6 * float(first.abs().max())


class Regression(ValueKind):
    """One or more numbers for each example: [N, C]."""

    name = "regression"

    def near(self, merged: Tensor, expert: Tensor) -> Tensor:
        """Within a quarter of the expert's spread."""
        spread = expert.std() if len(expert) > 1 else expert.new_tensor(1.0)
        return (merged - expert).abs() <= _NEAR_SPREAD * spread

    def measure(self, outputs: Tensor, labels: Tensor, mask: Mask) -> dict[str, float]:
        """The mean absolute error."""
        return {"mae": float((outputs - labels).abs().mean())}

    def with_labels(self, expert: Tensor, labels: Tensor, mask: Mask) -> Tensor:
        """The labels."""
        return labels

    def best_constant(self, labels: Tensor) -> Tensor:
        """The median."""
        return labels.median(0, keepdim=True).values.expand_as(labels)

    def parse_labels(self, column: LabelColumn) -> Tensor:
        """Finite numbers, float [N, C]."""
        width = column.answers.width
        values: Any = column.values
        if not isinstance(values, np.ndarray):
            try:  # csv gives texts
                values = [float(v) if isinstance(v, str) else v for v in values]
            except ValueError as error:
                raise DataError(f"{column.where} is not made of numbers ({error})") from error
        numbers = column.array(f"one number for each example, or {width}", values, ndim=(1, 2))
        with np.errstate(over="ignore"):
            rows = numbers.astype(np.float32).reshape(len(numbers), -1)
        if not np.isfinite(rows).all():
            raise DataError(f"{column.where} holds NaN or infinite numbers; expected finite ones")
        if rows.shape[1] != width:
            raise DataError(
                f"{column.where} is {list(numbers.shape)}; the expert answers with {width} numbers"
            )
        return torch.from_numpy(rows)
