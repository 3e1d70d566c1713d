"""Experts of which 30 % of the self-labels are wrong: filters lessen the harm."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.tiny_zoo import TinyZoo
from tests.workbench import SETTINGS, tiny_workbench
from tintray.tasks.confidence import ConfidenceFilter, Filter
from tintray.vectors.coefficients import Coefficients

BAD = ("five", "four")
SHARE, ROUNDS = 0.3, 30


def agreement_with_clean_experts(tiny: TinyZoo, filter_: Filter) -> float:
    """What a fit keeps of two experts, of whose labels a share is another class, and half as sure.

    A label that is wrong and as sure as a right one nothing can tell apart; experts that were
    trained badly are less sure.
    """
    bench = tiny_workbench(tiny)
    clean = {name: bench.labels[name].clone() for name in BAD}
    random = torch.Generator().manual_seed(0)
    for name in BAD:
        labels = bench.labels[name]
        rows = torch.randperm(len(labels), generator=random)[: int(SHARE * len(labels))]
        labels[rows] = 0.5 * labels[rows].roll(1, -1)
    group = bench.group(replace(SETTINGS, batch_size=10, seed=0))
    for task in group.tasks:
        task.confidence_filter = ConfidenceFilter(filter_, threshold=None)
    coefficients, vectors = Coefficients(bench.uniform(0.3)), bench.vectors
    for round_ in range(ROUNDS):
        gradient = group.step(vectors.merge(coefficients.values), round_, 1e-2).gradient
        coefficients.update(vectors.project(gradient), 1e-2)
    group._fused.bind(vectors.merge(coefficients.values), None)
    shares = []
    for task in (task for task in group.tasks if task.name in BAD):
        with torch.inference_mode():
            answers = group._fused.forward([task.pool.batch(slice(None))], [task.layer])[0]
        expert = clean[task.name]
        same = answers[:, : expert.shape[-1]].argmax(-1) == expert.argmax(-1)
        shares.append(same.float().mean().item())
    return sum(shares) / len(shares)


def test_a_bad_expert_harms_less_with_a_filter_than_without(tiny: TinyZoo) -> None:
    filters: tuple[Filter, ...] = ("none", "agreement", "threshold")
    shares = {filter_: agreement_with_clean_experts(tiny, filter_) for filter_ in filters}
    assert shares["none"] < shares["agreement"] < shares["threshold"], shares
    assert shares["threshold"] > shares["none"] + 0.03, shares
