"""Kinds that answer for each pixel: maps [N, C, H, W], compared at the size of the answers.

Metrics are taken at the size of the labels, to which answers are enlarged.
"""

from __future__ import annotations

from abc import abstractmethod
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
        size = expert.shape[-2:]
        labels = functional.interpolate(labels[:, None].float(), size=size, mode="nearest")[:, 0]
        return super().with_labels(self.logits_last(expert), labels.long(), mask).movedim(-1, 1)

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


class MapKind(ValueKind):
    """Values for each pixel, [N, C, H, W], of which some labels may not be known."""

    axis = 1
    per_pixel = True

    @abstractmethod
    def known(self, labels: Tensor) -> Tensor:
        """Where labels [N, C, H, W] are known, bool [N, 1, H, W]."""

    def any_counts(self, labels: Tensor) -> bool:
        """Whether anything is known."""
        return bool(self.known(_maps(labels)).any())

    def with_labels(self, expert: Tensor, labels: Tensor, mask: Mask) -> Tensor:
        """The values that are known."""
        size = expert.shape[-2:]
        labels = functional.interpolate(_maps(labels), size=size, mode="nearest")
        return torch.where(self.known(labels), labels, _maps(expert)).view(expert.shape)


class Depth(MapKind):
    """A depth for each pixel: [N, H, W] or [N, 1, H, W], labels [N, H, W], positive where known."""

    name = "depth"
    dims = (3, 4)

    def known(self, labels: Tensor) -> Tensor:
        """Positive depths."""
        return labels > 0

    def fits(self, shape: Any, width: int) -> bool:
        """Whatever the model's configuration says of its width."""
        return len(shape) in self.dims

    def near(self, merged: Tensor, expert: Tensor) -> Tensor:
        """Within a factor of 1.25; a depth that is not positive is near none."""
        low, high = torch.minimum(merged, expert), torch.maximum(merged, expert)
        ratio = torch.where(low > 0, high / low.clamp_min(1e-8), torch.inf)
        return ratio < _NEAR_RATIO

    def measure(self, outputs: Tensor, labels: Tensor, mask: Mask) -> dict[str, float]:
        """Mean relative and mean absolute error, where a depth is known."""
        predicted = _enlarged(_maps(outputs), labels.shape[-2:])[:, 0]
        known = labels > 0
        error = (predicted - labels).abs()[known]
        return {
            "relative_error": float((error / labels[known]).mean()),
            "absolute_error": float(error.mean()),
        }

    def best_constant(self, labels: Tensor) -> Tensor:
        """The median of what is known."""
        known = labels[labels > 0]
        return torch.full_like(labels, float(known.median()) if len(known) else 1.0)[:, None]

    def parse_labels(self, column: LabelColumn) -> Tensor:
        """Maps of depths, float32."""
        depths = column.array("one depth for each pixel, [N, height, width]", ndim=(3,))
        return torch.from_numpy(depths.astype(np.float32))


class Normals(MapKind):
    """The direction of the surface at each pixel: [N, 3, H, W]; a label of 0 is not known."""

    name = "normals"
    dims = (4,)

    def known(self, labels: Tensor) -> Tensor:
        """Directions other than 0."""
        return labels.square().sum(1, keepdim=True) > 0

    def loss(self, merged: Tensor, expert: Tensor, distance: Distance) -> Tensor:
        """1 − cosine of the angle."""
        return direction_loss(merged, expert)

    def near(self, merged: Tensor, expert: Tensor) -> Tensor:
        """Within 11.25 degrees."""
        return degrees(merged, expert) < _NEAR_DEGREES

    def measure(self, outputs: Tensor, labels: Tensor, mask: Mask) -> dict[str, float]:
        """The mean angle, and the share of pixels within 11.25 degrees, where labels are known."""
        angles = degrees(_enlarged(outputs, labels.shape[-2:]), labels)[self.known(labels)[:, 0]]
        near = (angles < _NEAR_DEGREES).float().mean()
        return {"degrees": float(angles.mean()), "within_11_degrees": float(near)}

    def best_constant(self, labels: Tensor) -> Tensor:
        """The mean direction."""
        return labels.mean((0, 2, 3), keepdim=True).expand_as(labels)

    def parse_labels(self, column: LabelColumn) -> Tensor:
        """Maps of directions, float32 [N, 3, H, W]; in the file, the 3 may come last."""
        maps = column.array("a direction for each pixel, [N, height, width, 3]", ndim=(4,))
        if maps.shape[-1] == 3:
            maps = np.moveaxis(maps, -1, 1)
        if maps.shape[1] != 3:
            raise DataError(f"{column.where} is {list(maps.shape)}; expected [N, height, width, 3]")
        return torch.from_numpy(np.ascontiguousarray(maps.astype(np.float32)))


def degrees(one: Tensor, other: Tensor) -> Tensor:
    """Angles [N, H, W] between two maps of directions [N, 3, H, W]."""
    cosine = functional.cosine_similarity(one.double(), other.double(), dim=1)
    return cosine.clamp(-1, 1).arccos().rad2deg().float()


def _enlarged(maps: Tensor, size: Any) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _maps(values: Tensor) -> Tensor:
    """[N, C, H, W], also from [N, H, W]."""
    return values if values.ndim == 4 else values[:, None]
