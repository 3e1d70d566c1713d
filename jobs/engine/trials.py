"""A site tried for one task by a worker: a tint layer learned under a backbone that stays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tintray.models.structure import private_state
from tintray.numerics.layout import Layout, Theta
from tintray.numerics.schedules import schedule
from tintray.numerics.sites import TintSite
from tintray.pools.pool import Pool
from tintray.tasks.evaluation import score
from tintray.tasks.kind import Kind
from tintray.tasks.outputs import Outputs
from tintray.tinting.partition import Partition, partition
from tintray.tinting.prefix import NoPrefixError, PrefixModel, fit_tints
from tintray.tinting.self_labels import ask
from tintray.tinting.site_search import suffix_share
from tintray.tinting.step import StepSettings, TaskState
from tintray.tinting.tint_layers import FusedModel, TintLayer

LEARNED = 192
"""Pool examples that a trial learns from; as many again at most are judged by."""

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
    labels: Outputs
    theta: Theta
    layout: Layout
    device: str = "cpu"  # where it computes; θ is there


def try_site(
    candidate: Candidate, base: nn.Module, settings: StepSettings, steps: int
) -> tuple[float, float]:
    """Learn a tint layer for ``steps``: agreement on other examples, and image passes spent."""
    task, site = candidate.task, candidate.site
    split = partition(base, [TintSite(site)])
    private, device = private_state(candidate.expert, split.private), candidate.device
    layer = TintLayer.of_expert(task, private, split.rate, device)
    count = min(LEARNED, max(1, len(candidate.pool) // 2))
    total = min(count + JUDGED, len(candidate.pool))
    pool, labels = candidate.pool[:total], candidate.labels[:total]
    theta = split.layout.flatten(candidate.layout.views(candidate.theta))
    model, pool, saved = _model(candidate, split, pool, layer, theta)
    learner = TaskState(
        task,
        layer,
        pool[:count],
        labels[:count],
        kind=candidate.kind,
    )
    options = replace(settings, precision="float32", features=0.0)
    pace = schedule(1.0, "cosine", steps)
    fit_tints([learner], model, theta, options, pace, steps, device)
    others = slice(count, total)
    judged = pool[others]
    with torch.inference_mode():
        answers = ask(
            lambda batch: model.forward([batch], [layer])[0], judged, candidate.kind, device
        )
    expert = labels[others]
    found = score(task, candidate.kind, answers, expert, None, judged.mask).agreement
    share = suffix_share(base, site) if saved else 1.0
    forward = total / 3  # a forward pass is about a third of one there and back
    return found, forward + share * steps * settings.batch_size


def _model(
    candidate: Candidate, split: Partition, pool: Pool, layer: TintLayer, theta: Tensor
) -> tuple[FusedModel, Pool, bool]:
    """A model that begins at the site, its pool, and whether there is such a shortcut."""
    of_site, device = (candidate.expert, split.layout, split.private), candidate.device
    prefix = PrefixModel(*of_site, split.site, device=device)
    prefix.bind(theta, None)
    try:
        return prefix, prefix.cached(pool, layer), True
    except NoPrefixError:
        whole = FusedModel(*of_site, device=device)
        whole.bind(theta, None)
        return whole, pool, False
