"""Every objective against its definition, written out or taken from torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tintray.tasks.losses import (
    class_loss,
    direction_loss,
    feature_loss,
    feature_variance,
    multi_label_loss,
    token_loss,
    value_loss,
)
from tintray.tasks.outputs import top_tokens


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MERGED, EXPERT = _random(8, 5), _random(8, 5, seed=1)
MAPS, EXPERT_MAPS = _random(4, 3, 2, 2), _random(4, 3, 2, 2, seed=1)


def _gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    loss(at).sum().backward()
    assert at.grad is not None
    return at.grad


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_labels_have_the_gradient_of_the_divergence(temperature: float) -> None:
    target = (EXPERT / temperature).softmax(-1)

    def divergence(merged: Tensor) -> Tensor:
        logs = (merged / temperature).log_softmax(-1)
        return temperature**2 * functional.kl_div(logs, target, reduction="none").sum(-1)

    found = _gradient(lambda merged: class_loss(merged, EXPERT, "soft", temperature), MERGED)
    assert torch.allclose(found, _gradient(divergence, MERGED), atol=1e-6)


def test_each_loss_is_what_its_definition_gives() -> None:
    hard = functional.cross_entropy(MERGED, EXPERT.argmax(-1), reduction="none")
    entropy = torch.distributions.Categorical(logits=MERGED).entropy()
    yes_entropy = torch.distributions.Bernoulli(logits=MERGED).entropy().mean(-1)
    binary, target = functional.binary_cross_entropy_with_logits, (EXPERT > 0).float()
    difference = MAPS - EXPERT_MAPS
    for found, expected in (
        (class_loss(MERGED, EXPERT, "hard"), hard),
        (class_loss(MERGED, EXPERT, "entropy"), entropy),
        (multi_label_loss(MERGED, EXPERT, "entropy"), yes_entropy),
        (
            multi_label_loss(MERGED, EXPERT, "hard"),
            binary(MERGED, target, reduction="none").mean(-1),
        ),
        (value_loss(MAPS, EXPERT_MAPS), difference.abs().mean((1, 2, 3))),
        (value_loss(MAPS, EXPERT_MAPS, "l2"), difference.square().mean((1, 2, 3))),
        (direction_loss(2 * EXPERT_MAPS, EXPERT_MAPS), torch.zeros(4)),
        (direction_loss(-EXPERT_MAPS, EXPERT_MAPS), torch.full((4,), 2.0)),
    ):
        assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        class_loss,
        multi_label_loss,
        lambda merged, expert: class_loss(merged, expert, "soft", 3.0),
        lambda merged, expert: value_loss(merged, expert, "l2"),
        lambda merged, expert: token_loss(merged[:, None], top_tokens(expert[:, None], 3)),
        lambda merged, expert: feature_loss(merged, expert, feature_variance(expert)),
        lambda merged, expert: direction_loss(merged[:, :3, None, None], expert[:, :3, None, None]),
    ],
)
def test_a_merge_that_answers_as_its_expert_has_nothing_to_learn(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    assert _gradient(lambda merged: loss(merged, EXPERT), EXPERT).abs().max() < 1e-6
    assert _gradient(lambda merged: loss(merged, EXPERT), MERGED).abs().max() > 1e-3


def test_answers_of_one_example_are_averaged_where_the_mask_counts_them() -> None:
    merged, expert = _random(4, 3, 5), _random(4, 3, 5, seed=1)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]])
    tokens = torch.stack([class_loss(merged[:, i], expert[:, i]) for i in range(3)], 1)
    expected = [tokens[0, :2].mean(), tokens[1, 0], torch.tensor(0.0), tokens[3].mean()]
    assert torch.allclose(class_loss(merged, expert, mask=mask), torch.stack(expected))
    assert torch.allclose(class_loss(merged, expert), tokens.mean(1))


def test_all_tokens_give_the_divergence_and_fewer_never_more() -> None:
    merged, expert = _random(4, 3, 20), _random(4, 3, 20, seed=1)
    logs, target = merged.log_softmax(-1), expert.log_softmax(-1)
    full = functional.kl_div(logs, target, log_target=True, reduction="none").sum(-1).mean(-1)
    losses = [token_loss(merged, top_tokens(expert, k)) for k in (20, 8, 2)]
    assert torch.allclose(losses[0], full, atol=1e-5)
    assert (losses[1] <= losses[0] + 1e-5).all()
    assert (losses[2] <= losses[1] + 1e-5).all() and (losses[2] > 0).all()


def test_a_constant_answer_costs_one_in_features_of_any_scale() -> None:
    """Features that are all alike are measured by the pool's variance, or by their square."""
    pool, merged = 7 + 30 * _random(64, 6), _random(64, 6, seed=1)
    usual, mean = feature_variance(pool), pool.mean(0, keepdim=True).expand_as(pool)
    assert feature_loss(mean, pool, usual).mean().item() == pytest.approx(1.0, rel=1e-4)
    for rows in ([5], [5, 5, 5]):
        expected = (merged[rows] - pool[rows]).square().sum(-1) / usual
        assert torch.allclose(feature_loss(merged[rows], pool[rows], usual), expected)
    few = feature_loss(merged[:2], pool[:2], feature_variance(pool[:2]))
    assert torch.equal(feature_loss(merged[:2], pool[:2], usual), few)
    none = torch.zeros(2, 3)
    found = feature_loss(torch.ones(2, 3), none, feature_variance(none))
    assert torch.equal(found, torch.full((2,), 3.0))
