"""One probe of placement, as a worker runs it: a tint layer learned under a backbone that stays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tintray import models
from tintray.evaluation import score
from tintray.layout import Layout, Theta
from tintray.partition import partition
from tintray.placement import suffix_share
from tintray.pools import Pool
from tintray.prefix import NoPrefixError, PrefixModel, fit_tints
from tintray.schedule import schedule
from tintray.step import StepSettings, TaskState
from tintray.tasks import Kind
from tintray.tint import FusedModel, TintLayer

LEARNED = 192
"""Pool examples that a probe learns from; as many again at most are judged by."""

JUDGED = 128


@dataclass(frozen=True)
class Candidate:
    """One task at one candidate site.

    Attributes
    ----------
    expert, pool, labels
        The task's, whole.
    theta, layout
        The starting backbone, and how it is laid out; it holds every tensor but the head's.
    """

    task: str
    kind: Kind
    site: str
    expert: nn.Module
    pool: Pool
    labels: Tensor
    theta: Theta
    layout: Layout


def probe(
    candidate: Candidate, base: nn.Module, settings: StepSettings, steps: int, rate: float
) -> tuple[float, float]:
    """Learn a tint layer for ``steps``: agreement on other examples, and image passes spent."""
    task, site = candidate.task, candidate.site
    split = partition(base, site)
    layer = TintLayer.of_expert(
        task, models.private_state(candidate.expert, split.private), split.site
    )
    count = min(LEARNED, max(1, len(candidate.pool) // 2))
    total = min(count + JUDGED, len(candidate.pool))
    pool, labels = _cut(candidate.pool, total), candidate.labels[:total]
    theta = split.layout.flatten(candidate.layout.views(candidate.theta))
    model, pool, saved = _model(candidate.expert, split.layout, split.private, split.site, pool,
                                layer, theta)  # fmt: skip
    learner = TaskState(task, layer, _rows(pool, slice(0, count)), labels[:count])
    options = replace(settings, precision="float32", features=0.0)
    fit_tints([learner], model, theta, options, schedule(rate, "cosine", steps), steps)
    with torch.inference_mode():
        answers = model.forward([pool.batch(slice(count, total))], [layer])[0]
    expert = labels[count:]
    found = score(task, candidate.kind, answers[:, : expert.shape[-1]], expert, None).agreement
    share = suffix_share(base, site) if saved else 1.0
    forward = total / 3  # a forward pass is about a third of one there and back
    return found, forward + share * steps * settings.batch_size


def _model(
    expert: nn.Module,
    layout: Layout,
    private: tuple[str, ...],
    site: tuple[str, ...],
    pool: Pool,
    layer: TintLayer,
    theta: Tensor,
) -> tuple[FusedModel, Pool, bool]:
    """A model that begins at the site, its pool, and whether there is such a shortcut."""
    prefix = PrefixModel(expert, layout, private, site)
    prefix.bind(theta, None)
    try:
        return prefix, prefix.cached(pool, layer), True
    except NoPrefixError:
        whole = FusedModel(expert, layout, private)
        whole.bind(theta, None)
        return whole, pool, False


def _cut(pool: Pool, total: int) -> Pool:
    return _rows(pool, slice(0, total))


def _rows(pool: Pool, rows: slice) -> Pool:
    return replace(pool, inputs={name: tensor[rows] for name, tensor in pool.inputs.items()})
