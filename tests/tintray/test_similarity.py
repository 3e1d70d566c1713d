"""How task vectors lie to each other, and which tasks go together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tintray.numerics.low_rank import LowRank
from tintray.vectors.similarity import cosine, groups, halves, pairs_of
from tintray.vectors.stacks import make_stack


@pytest.mark.parametrize("format", ["f32", "low rank"])
def test_pairs_are_those_of_the_whole_vectors(format: str) -> None:
    random = torch.Generator().manual_seed(0)
    rows = [torch.randn(700, 30, generator=random) for _ in range(4)]
    rows[1][rows[1] < 0] = 0  # what does not move is opposed to nothing
    rows[3] = torch.zeros(700, 30)
    given: list[torch.Tensor | LowRank] = list(rows)
    if format == "low rank":
        up, down = torch.randn(700, 2, generator=random), torch.randn(2, 30, generator=random)
        given[0], rows[0] = LowRank(up, down), up @ down
    found = pairs_of(make_stack(given, (700, 30)).blocks(), 4)
    whole = torch.stack([row.flatten() for row in rows]).double()
    np.testing.assert_allclose(found.products, whole @ whole.T, rtol=1e-4, atol=1e-2)
    for one in range(4):
        for other in range(4):
            apart = int((whole[one] * whole[other] < 0).sum())
            both = int((whole[one] * whole[other] != 0).sum())
            assert (found.opposed[one, other], found.both[one, other]) == (apart, both)
    assert found.cosine[0, 0] == pytest.approx(1) and found.cosine[3].abs().sum() == 0
    assert found.sign_conflict[0, 0] == found.sign_conflict[3, 0] == 0
    expected = torch.nn.functional.cosine_similarity(whole[0], whole[2], dim=0)
    assert float(cosine(found.products)[0, 2]) == pytest.approx(float(expected), abs=1e-4)


BLOCKS = torch.block_diag(torch.full((3, 3), 0.5), torch.full((2, 2), 0.4), torch.ones(1, 1))
ORDER = [3, 0, 5, 1, 4, 2]  # tasks are not sorted by group
MIXED = (BLOCKS + 0.02)[ORDER][:, ORDER].fill_diagonal_(1)


def test_groups_are_what_is_close() -> None:
    assert groups(MIXED, least=0.1) == [[1, 3, 5], [0, 4], [2]]
    assert groups(MIXED, least=0.9) == [[n] for n in range(6)]
    assert groups(MIXED, least=-1) == [list(range(6))]
    assert groups(torch.ones(1, 1)) == [[0]]


def test_halves_cut_where_little_is_common() -> None:
    whole = torch.block_diag(torch.full((4, 4), 0.2), torch.full((3, 3), 0.2))
    affinity = (whole + 0.01).fill_diagonal_(1)
    affinity[0, 6] = affinity[6, 0] = -0.3  # what fights has nothing in common
    assert halves(affinity) == [[0, 1, 2, 3], [4, 5, 6]]
    assert halves(torch.eye(2)) == [[0], [1]]
    assert sorted(map(len, halves(torch.zeros(3, 3)))) == [1, 2]
