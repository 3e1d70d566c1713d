"""Kinds that answer for each pixel: maps [N, C, H, W], compared at the size of the answers.

Metrics are taken at the size of the labels, to which answers are enlarged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tintray.data.labels import IGNORED, LabelColumn
from tintray.errors import DataError
from tintray.tasks.classes import ClassKind
from tintray.tasks.kinds import Distance
from tintray.tasks.losses import direction_loss
from tintray.tasks.outputs import Mask
from tintray.tasks.values import ValueKind

_NEAR_DEGREES = 11.25  # the usual threshold for surface normals
_NEAR_RATIO = 1.25  # and that for depths (δ < 1.25)


class Segmentation(ClassKind):
    """One class for each pixel: logits [N, C, H, W], labels int64 [N, H, W]."""

    name = "segmentation"
    dims = (4,)
    axis = 1
    per_pixel = True
    has_class_names = True

    def rows(self, outputs: Tensor, labels: Any, mask: Mask) -> tuple[Tensor, Tensor | None]:
        """One row for each pixel, at the size of the labels where there are some."""
        outputs = outputs if labels is None else _enlarged(outputs, labels.shape[-2:])
        return super().rows(self.logits_last(outputs), labels, mask)

    def measure(self, outputs: Tensor, labels: Tensor, mask: Mask) -> dict[str, float]:
        """Mean intersection over union of the classes that occur, and the share of right pixels."""
        predicted, classes = _enlarged(outputs, labels.shape[-2:]).argmax(1), outputs.shape[1]
        counted = labels != IGNORED
        pairs = labels[counted] * classes + predicted[counted]
        table = torch.bincount(pairs, minlength=classes * classes).view(classes, classes).double()
        right = table.diag()
        union = table.sum(0) + table.sum(1) - right
        present = table.sum(1) > 0
        return {
            "miou": float((right[present] / union[present]).mean()),
            "pixel_accuracy": float(right.sum() / table.sum()),
        }

    def with_labels(self, expert: Tensor, labels: Tensor, mask: Mask) -> Tensor:
        """Logits that are sure of each labelled pixel; ignored ones stay the expert's."""
        labels = _nearest(labels[:, None].float(), expert)[:, 0].long()
        return super().with_labels(self.logits_last(expert), labels, mask).movedim(-1, 1)

    def parse_labels(self, column: LabelColumn) -> Tensor:
        """Maps of class numbers."""
        shape = "one class for each pixel, [N, height, width]"
        classes = torch.from_numpy(column.array(shape, kinds="iu", ndim=(3,)).astype(np.int64))
        ignored = 255 if column.source.ignore is None else column.source.ignore
        void = (classes == ignored) | (classes == IGNORED)
        inside = classes[~void]
        if len(inside) and (inside.min() < 0 or inside.max() >= column.answers.width):
            worst = int(inside.min()) if inside.min() < 0 else int(inside.max())
            raise DataError(
                f"{column.where} holds label {worst}; the expert's head has {column.answers.width} "
                f"classes, so labels must be 0 to {column.answers.width - 1}, or {ignored} for none"
            )
        return classes.masked_fill(void, IGNORED)


class Depth(ValueKind):
    """A depth for each pixel: [N, H, W] or [N, 1, H, W], labels [N, H, W], positive where known."""

    name = "depth"
    dims = (3, 4)
    axis = 1
    per_pixel = True

    def fits(self, shape: Any, width: int) -> bool:
        """Whatever the model's configuration says of its width."""
        return len(shape) in self.dims

    def near(self, merged: Tensor, expert: Tensor) -> Tensor:
        """Within a factor of 1.25; a depth that is not positive is near none."""
        low, high = torch.minimum(merged, expert), torch.maximum(merged, expert)
        ratio = torch.where(low > 0, high / low.clamp_min(1e-8), torch.inf)
        return ratio < _NEAR_RATIO

    def any_counts(self, labels: Tensor) -> bool:
        """Whether a depth is known."""
        return bool((labels > 0).any())

    def measure(self, outputs: Tensor, labels: Tensor, mask: Mask) -> dict[str, float]:
        """Mean relative and mean absolute error, where a depth is known."""
        maps = outputs.unsqueeze(1) if outputs.ndim == 3 else outputs
        predicted = _enlarged(maps, labels.shape[-2:])[:, 0]
        known = labels > 0
        error = (predicted - labels).abs()[known]
        return {
            "relative_error": float((error / labels[known]).mean()),
            "absolute_error": float(error.mean()),
        }

    def with_labels(self, expert: Tensor, labels: Tensor, mask: Mask) -> Tensor:
        """The depths that are known."""
        labels = _nearest(labels[:, None], expert).view(expert.shape)
        return torch.where(labels > 0, labels, expert)

    def best_constant(self, labels: Tensor) -> Tensor:
        """The median of what is known."""
        known = labels[labels > 0]
        return torch.full_like(labels, float(known.median()) if len(known) else 1.0)[:, None]

    def parse_labels(self, column: LabelColumn) -> Tensor:
        """Maps of depths, float32."""
        found = column.array("one depth for each pixel, [N, height, width]", ndim=(3,))
        return torch.from_numpy(found.astype(np.float32))


class Normals(ValueKind):
    """The direction of the surface at each pixel: [N, 3, H, W]; a label of 0 is not known."""

    name = "normals"
    dims = (4,)
    axis = 1
    per_pixel = True

    def loss(self, merged: Tensor, expert: Tensor, distance: Distance) -> Tensor:
        """1 − cosine of the angle."""
        return direction_loss(merged, expert)

    def near(self, merged: Tensor, expert: Tensor) -> Tensor:
        """Within 11.25 degrees."""
        return degrees(merged, expert) < _NEAR_DEGREES

    def any_counts(self, labels: Tensor) -> bool:
        """Whether a direction is known."""
        return bool((labels != 0).any())

    def measure(self, outputs: Tensor, labels: Tensor, mask: Mask) -> dict[str, float]:
        """The mean angle, and the share of pixels within 11.25 degrees, where labels are known."""
        enlarged = _enlarged(outputs, labels.shape[-2:])
        angles = degrees(enlarged, labels)[labels.square().sum(1) > 0]
        near = (angles < _NEAR_DEGREES).float().mean()
        return {"degrees": float(angles.mean()), "within_11_degrees": float(near)}

    def with_labels(self, expert: Tensor, labels: Tensor, mask: Mask) -> Tensor:
        """The directions that are known."""
        labels = _nearest(labels, expert)
        return torch.where(labels.square().sum(1, keepdim=True) > 0, labels, expert)

    def best_constant(self, labels: Tensor) -> Tensor:
        """The mean direction."""
        return labels.mean((0, 2, 3), keepdim=True).expand_as(labels)

    def parse_labels(self, column: LabelColumn) -> Tensor:
        """Maps of directions, float32 [N, 3, H, W]; in the file, the 3 may come last."""
        found = column.array("a direction for each pixel, [N, height, width, 3]", ndim=(4,))
        if found.shape[-1] == 3:
            found = np.moveaxis(found, -1, 1)
        if found.shape[1] != 3:
            raise DataError(
                f"{column.where} is {list(found.shape)}; expected [N, height, width, 3]"
            )
        return torch.from_numpy(np.ascontiguousarray(found.astype(np.float32)))


def degrees(one: Tensor, other: Tensor) -> Tensor:
    """Angles [N, H, W] between two maps of directions [N, 3, H, W]."""
    cosine = functional.cosine_similarity(one.double(), other.double(), dim=1)
    return cosine.clamp(-1, 1).arccos().rad2deg().float()


def _enlarged(maps: Tensor, size: Any) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _nearest(maps: Tensor, like: Tensor) -> Tensor:
    """Labels [N, C, H, W] at the size of the answers, each pixel from its nearest."""
    return functional.interpolate(maps, size=like.shape[-2:], mode="nearest")
