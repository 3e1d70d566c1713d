"""The published loop, written out as its paper and its released code describe it, beside ours.

SyMerge (arXiv 2412.19098), ``crosspseudoconf``: each task in turn merges the whole backbone inside
autograd, takes one batch, and one Adam (1e-2 for coefficients and head alike) steps; hard labels,
agreement filter, coefficients kept in [0, 1].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import tintray
from tests.tiny_zoo import TASKS, TinyZoo
from tests.workbench import tiny_workbench
from tintray.jobs.config.job_file import parse_spec
from tintray.numerics.randomness import sample
from tintray.published.merge import Merge

ROUNDS, BATCH, RATE = 5, 6, 1e-2


def run(zoo: TinyZoo, store: Path, rounds: int, *, published: bool) -> Merge:
    fit: dict[str, Any] = {"rounds": rounds, "batch_size": BATCH}
    sections: dict[str, Any] = {}
    if published:
        fit |= {"updates": "in_turn", "schedule": "constant"}
        fit |= {"coefficient_lr": RATE, "tint_lr": RATE, "correction_lr": 0.0}
        fit |= {"sampling": "even", "held_back": 0, "floor": False}
        objective = {"labels": "hard", "filter": "agreement", "temperature": 1.0}
        merge = {"scale": "own", "bounds": [0, 1]}
        sections = {"objective": objective, "merge": merge, "tint": {"sites": "head"}}
    job = zoo.job(store, fit=fit, **sections)
    return tintray.run(parse_spec(job, folder=zoo.folder))


def published_loop(zoo: TinyZoo) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Coefficients [K, L] and heads after ``ROUNDS``, by the loop as it is written."""
    bench = tiny_workbench(zoo)
    names = [slot.name for slot in bench.layout.slots]
    base = {name: bench.base.get_parameter(name).detach() for name in names}
    lambdas = nn.Parameter(torch.full((len(TASKS), len(names)), 0.3))
    heads = {
        task: {n: nn.Parameter(p.detach().clone()) for n, p in expert.classifier.named_parameters()}
        for task, expert in bench.experts.items()
    }
    adam = torch.optim.Adam([lambdas, *(p for h in heads.values() for p in h.values())], lr=RATE)
    for round_ in range(ROUNDS):
        for task, expert in bench.experts.items():
            merged = {}
            for column, name in enumerate(names):
                vectors = [e.get_parameter(name).detach() - base[name]
                           for e in bench.experts.values()]  # fmt: skip
                merged[name] = base[name] + sum(
                    weight * vector
                    for weight, vector in zip(lambdas[:, column], vectors, strict=True)
                )
            merged |= {f"classifier.{n}": p for n, p in heads[task].items()}
            index = sample(0, task, round_, len(bench.pools[task]), BATCH)
            logits = torch.func.functional_call(
                expert, merged, (), bench.pools[task].batch(index)
            ).logits
            target = bench.labels[task][index]
            sure, theirs = logits.detach().softmax(-1).max(-1), target.softmax(-1).max(-1)
            keep = (sure.indices == theirs.indices) | (theirs.values >= sure.values)
            losses = cross_entropy(logits, target.argmax(-1), reduction="none")
            adam.zero_grad(set_to_none=True)
            ((losses * keep).sum() / BATCH).backward()
            adam.step()
            with torch.no_grad():
                lambdas.clamp_(0, 1)
    return lambdas.detach(), {task: heads[task]["weight"].detach() for task in heads}


def test_updates_in_turn_are_the_published_loop(tiny: TinyZoo, tmp_path: Path) -> None:
    coefficients, heads = published_loop(tiny)
    merge = run(tiny, tmp_path, ROUNDS, published=True)
    assert (coefficients - 0.3).abs().max() > 2 * RATE, "it has to have moved"
    # Adam divides by tiny second moments: a rounding of a gradient near zero is a step of its own.
    assert (merge.coefficients - coefficients).abs().mean() < 1e-3
    for task, weight in heads.items():
        assert torch.allclose(merge.tint(task)["classifier.weight"], weight, atol=2e-3), task


@pytest.mark.parametrize("rounds", [40])
def test_our_default_is_not_worse(tiny: TinyZoo, tmp_path: Path, rounds: int) -> None:
    """By agreement with the experts, at the same data."""
    ours = run(tiny, tmp_path / "ours", rounds, published=False)
    theirs = run(tiny, tmp_path / "theirs", rounds, published=True)
    found = [merge.manifest.metrics.agreement for merge in (ours, theirs)]
    assert found[0] >= found[1] - 0.01
