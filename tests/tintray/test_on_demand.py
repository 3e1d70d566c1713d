"""Self-labels are asked for in the order of a fit, and say the same whenever that is."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tintray.numerics.randomness import sample
from tintray.pools.held_back import split_pool
from tintray.tinting import on_demand
from tintray.tinting.on_demand import DrawnLabels, LabelsOnDemand, asking

N, HELD, AT_ONCE, BATCH = 500, 40, 32, 16


class Expert:
    """Answers with its example's number and with the sum over its pass: batches can be told."""

    def __init__(self) -> None:
        self.read, self.asked = 0, [0]

    def __call__(self) -> nn.Module:
        self.read += 1
        return nn.Identity()

    def answers(self, module: nn.Module, rows: Tensor) -> Tensor:
        self.asked.append(self.asked[-1] + len(rows))
        passes = [torch.stack([p, p.sum().expand(len(p))], 1) for p in rows.split(AT_ONCE)]
        return torch.cat(passes).float()


def labels(expert: Expert, first: int) -> tuple[LabelsOnDemand, DrawnLabels, Tensor]:
    """Those of one pool, those that are drawn of it, and the rows that are held back."""
    learned, held = split_pool(N, HELD, 0, "task")
    known = LabelsOnDemand(
        asking("float32", learned, held, 0, "task", first), AT_ONCE, expert, expert.answers
    )
    assert known.ask_first(expert)
    return known, DrawnLabels(known, learned), held


@pytest.fixture
def many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_demand, "LEAST", 1)


@pytest.mark.usefixtures("many_steps")
@pytest.mark.parametrize("first", [1, 100, 300])
def test_an_answer_does_not_depend_on_when_it_was_asked_for(first: int) -> None:
    expert, at_once = Expert(), Expert()
    known, drawn, held = labels(expert, first)
    whole, _, _ = labels(at_once, 300)
    everything = whole.all()
    rows = known.rows
    assert set(held.tolist()) <= set(rows.tolist()) and len(rows) < N
    assert torch.equal(known.at(held), everything[held])
    learned = split_pool(N, HELD, 0, "task")[0]
    for round_ in range(40):  # more than an epoch
        index = sample(0, "task", round_, len(learned), BATCH)
        assert torch.equal(drawn[index], everything[learned[index]])
    assert torch.equal(known.all(), everything)
    assert torch.equal(everything[:, 0], torch.arange(N).float())
    assert expert.asked[-1] == N  # nothing twice


def test_no_more_is_asked_for_than_a_fit_comes_to() -> None:
    expert = Expert()
    known, drawn, _ = labels(expert, 64)
    assert expert.asked[-1] == HELD + 64
    for round_ in range(4):
        drawn[sample(0, "task", round_, N - HELD, BATCH)]
    assert (expert.read, len(known.rows)) == (1, HELD + 64)
    assert not (known.first[0][0] != known.outputs[0]).any()
    drawn[sample(0, "task", 4, N - HELD, BATCH)]
    assert expert.read == 2
    assert all(b - a <= on_demand.LEAST + AT_ONCE for a, b in pairwise(expert.asked[3:]))


def test_where_most_of_a_pool_is_drawn_all_of_it_is_asked_for_in_its_own_order() -> None:
    learned, held = split_pool(N, HELD, 0, "task")
    assert asking("float32", learned, held, 0, "task", 380).order is None
    some = asking("float32", learned, held, 0, "task", 300)
    assert some.order is not None and sorted(some.order.tolist()) == list(range(N))
    other_seed = asking("float32", learned, held, 1, "task", 300)
    assert len({of.digest(32) for of in (some, other_seed)} | {some.digest(64)}) == 3
