"""How task vectors lie to each other, and which tasks go together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny_models import BERT, model
from tintray.models.base_similarity import change
from tintray.models.structure import backbone_names
from tintray.numerics.low_rank import LowRank
from tintray.vectors.similarity import cosine, groups, halves, outliers, pairs_of
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


@pytest.mark.parametrize(
    ("scale", "far"),
    [
        ({}, {}),
        ({2: 1.4, 4: 0.4}, {}),
        ({3: 3.0}, {3: "its task vector is 3.0 times as long as the usual one"}),
        ({1: -1.0}, {1: "it points against the others (median cosine -0.50)"}),
    ],
)
def test_task_vectors_that_are_far_from_the_others(
    scale: dict[int, float], far: dict[int, str]
) -> None:
    """Of five that all have a cosine of a half with each other."""
    vectors = torch.eye(6, dtype=torch.float64)[:5] + torch.eye(6, dtype=torch.float64)[5]
    for task, factor in scale.items():
        vectors[task] *= factor
    assert outliers(vectors @ vectors.T) == far
    assert outliers(vectors[:2] @ vectors[:2].T) == {}


def test_sketches_tell_lengths_and_angles() -> None:
    """Of differences between models, without any two of them beside each other."""
    base, *experts = (model("BertForSequenceClassification", BERT) for _ in range(4))
    random = torch.Generator().manual_seed(0)
    matrices = [name for name in backbone_names(base) if base.get_parameter(name).ndim > 1]
    shapes = {name: base.get_parameter(name).shape for name in matrices}
    steps = {name: torch.randn(3, *shape, generator=random) for name, shape in shapes.items()}
    mix = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 3]])
    for expert, weights in zip(experts, mix, strict=True):
        expert.load_state_dict(base.state_dict())
        for name, step in steps.items():
            expert.get_parameter(name).data += torch.einsum("k,k...->...", weights, step)
    sketches = torch.stack([change(base, expert).sketch for expert in experts]).double()
    whole = torch.stack([torch.cat([torch.einsum("k,k...->...", w, s).flatten() for s in
                                    steps.values()]) for w in mix]).double()  # fmt: skip
    found, true = sketches @ sketches.T, whole @ whole.T
    lengths = true.diagonal().sqrt()
    assert ((found - true).abs() / (lengths[:, None] * lengths) < 0.1).all()
