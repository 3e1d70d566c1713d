"""A task group's round: batches that rewind, metrics, losses that are not finite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.tiny_models import RESNET, model
from tests.tiny_zoo import TinyZoo
from tests.workbench import SETTINGS, Workbench, tiny_workbench
from tintray.errors import FitError
from tintray.pools.pool import Pool
from tintray.tinting.self_labels import predict_features
from tintray.tinting.step import TaskGroup


@pytest.fixture(scope="module")
def bench(tiny: TinyZoo) -> Workbench:
    return tiny_workbench(tiny, site="vit.layers.2")


def tints(group: TaskGroup) -> list[torch.Tensor]:
    return [p.detach().clone() for task in group.tasks for p in task.layer.parameters]


def same(ones: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def test_a_group_that_goes_back_goes_on_bit_for_bit(bench: Workbench) -> None:
    theta = bench.vectors.merge(bench.uniform(0.3))
    whole = bench.group()
    for round_ in range(4):
        expected = whole.step(theta, round_, 1.0).gradient.clone()
    first = bench.group()
    for round_ in range(2):
        first.step(theta, round_, 1.0)
    states = [task.state_dict() for task in first.tasks]
    first.step(theta, 2, 1.0)  # the round that is lost
    resumed = bench.group()
    for task, state in zip(resumed.tasks, states, strict=True):
        task.load_state_dict(state)
    for round_ in (2, 3):
        found = resumed.step(theta, round_, 1.0).gradient
    assert torch.equal(found, expected)
    assert same(tints(resumed), tints(whole))


def test_a_step_depends_on_theta_round_and_group_alone_and_only_reads_theta(
    bench: Workbench,
) -> None:
    theta = bench.vectors.merge(bench.uniform(0.3))
    before, group, other, alone = theta.clone(), bench.group(), bench.group(), bench.group()
    other._fused.bind(torch.zeros_like(theta), None)
    torch.manual_seed(99)
    found, expected = group.step(theta, 5, 1.0), other.step(theta.clone(), 5, 1.0)
    assert torch.equal(theta, before)
    assert torch.equal(found.gradient, expected.gradient)
    assert found.metrics == expected.metrics
    assert same(tints(group), tints(other)) and not same(tints(group), tints(alone))
    alone._fused.bind(theta, None)  # without learning the backbone only tints move
    assert alone.step(None, 5, 1.0).gradient.count_nonzero() == 0
    assert same(tints(alone), tints(group))


def test_steps_lower_the_loss(bench: Workbench) -> None:
    theta = bench.vectors.merge(bench.uniform(0.3))
    group = bench.group(replace(SETTINGS, batch_size=40))
    losses = [
        sum(metrics.loss for metrics in group.step(theta, n, 0.5).metrics.values())
        for n in range(8)
    ]
    assert losses[-1] < 0.8 * losses[0]


def test_metrics_of_experts_that_are_their_own_merge(tiny: TinyZoo) -> None:
    bench = tiny_workbench(tiny, ("three",))
    theta = bench.vectors.merge(bench.uniform(1.0))
    metrics = bench.group(replace(SETTINGS, filter="agreement")).step(theta, 0, 0.0).metrics
    assert metrics["three"].agreement == 1.0
    assert metrics["three"].selected_fraction == 1.0
    entropy = torch.distributions.Categorical(logits=bench.labels["three"]).entropy().max()
    assert 0 <= metrics["three"].loss <= entropy


@pytest.mark.parametrize("path", ["head", "vit.layers.0", "vit.layers.2"])
def test_features_draw_the_merge_towards_its_experts_at_a_depth(
    bench: Workbench, path: str
) -> None:
    """At a shared module, at the tint layer, and at the head."""
    features = {n: predict_features(e, bench.pools[n], path) for n, e in bench.experts.items()}

    def losses(weight: float, coefficient: float, only: str | None = None) -> list[float]:
        settings = replace(SETTINGS, features=weight, filter="none")
        group = bench.group(settings, only)
        group._fused.capture(path)
        for task in group.tasks:
            task.features = features[task.name]
        found = group.step(bench.vectors.merge(bench.uniform(coefficient)), 0, 0.0)
        assert weight == 0 or found.gradient.count_nonzero() > 0
        return [metrics.loss for metrics in found.metrics.values()]

    plain, with_features = losses(0.0, 0.3), losses(2.0, 0.3)
    assert all(more > less for more, less in zip(with_features, plain, strict=True))


def test_a_merge_that_is_its_expert_is_at_no_distance_from_it(tiny: TinyZoo) -> None:
    bench = tiny_workbench(tiny, ("three",), site="vit.layers.2")
    found = []
    for weight in (0.0, 5.0):
        group = bench.group(replace(SETTINGS, features=weight))
        group._fused.capture("head")
        three = bench.experts["three"], bench.pools["three"]
        group.tasks[0].features = predict_features(*three, "head")
        step = group.step(bench.vectors.merge(bench.uniform(1.0)), 0, 0.0)
        found.append(step.metrics["three"].loss)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_names_task_and_round_and_moves_nothing(
    bench: Workbench, value: float
) -> None:
    group = bench.group()
    group.tasks[1].labels = torch.full_like(group.tasks[1].labels, value)
    before = tints(group)
    with pytest.raises(FitError, match=r"task 'three': the loss of round 8 is not finite.*tint_lr"):
        group.step(bench.vectors.merge(bench.uniform(0.3)), 7, 1e-2)
    assert same(tints(group), before)
    assert all(p.grad is None for task in group.tasks for p in task.layer.parameters)


def test_layers_that_do_not_learn_stay_their_experts(tiny: TinyZoo) -> None:
    bench = tiny_workbench(tiny, ("three", "five"))
    group = bench.group()
    for task, layer in zip(group.tasks, bench.layers(), strict=True):
        assert list(layer.rates) == ["classifier.weight", "classifier.bias"]
        own = bench.experts[task.name].state_dict()
        assert all(torch.equal(layer.tensors[name], own[name]) for name in layer.tensors)
    frozen = bench.group()
    for task in frozen.tasks:
        task.layer.rates, task.optimiser = {}, None
    theta = bench.vectors.merge(bench.uniform(0.3))
    gradient = group.step(theta, 0, 1.0).gradient
    assert torch.allclose(frozen.step(theta, 0, 1.0).gradient, gradient, atol=1e-6)


def resnets() -> Workbench:
    """Two experts with batch normalisation, whose last maps have one pixel."""
    config = RESNET | {"embedding_size": 4, "hidden_sizes": [4, 8], "num_labels": 3}
    torch.manual_seed(0)
    base, *experts = (model("ResNetForImageClassification", config).eval() for _ in range(3))
    pixels = torch.randn(24, 3, 8, 8)
    pools = {name: Pool({"pixel_values": pixels}, None, None, name) for name in ("a", "b")}
    return Workbench(base, dict(zip("ab", experts, strict=True)), pools)


@pytest.mark.parametrize("features", [True, False], ids=["features", "batch normalisation"])
def test_every_batch_size_can_be_cut_and_stepped(bench: Workbench, features: bool) -> None:
    """Wherever a cut leaves one example alone: of one task's batch, or beside another's."""
    bench = bench if features else resnets()
    settings = replace(SETTINGS, features=float(features), micro_batch=8)
    theta = bench.vectors.merge(bench.uniform(0.1))
    captured = {n: predict_features(e, bench.pools[n], "head") for n, e in bench.experts.items()}
    for batch_size in range(1, 21):
        group = bench.group(replace(settings, batch_size=batch_size))
        if features:
            group._fused.capture("head")
            for task in group.tasks:
                task.features = captured[task.name]
        found = group.step(theta, 0, 0.1)
        assert found.gradient.isfinite().all()
        assert max(metrics.loss for metrics in found.metrics.values()) < 1e4, batch_size


def test_a_pool_of_one_example_keeps_its_experts_statistics() -> None:
    bench = resnets()
    group = bench.group()
    group._fused.bind(bench.vectors.merge(bench.uniform(0.1)), None)
    (layer, *_) = (task.layer for task in group.tasks)
    before = {name: tensor.clone() for name, tensor in layer.tensors.items()}
    group._fused.estimate(layer, bench.pools["a"][:1])
    for name, tensor in layer.tensors.items():
        assert tensor.isfinite().all(), name
    deepest = [name for name in before if name.endswith("running_var")][-1]
    assert torch.equal(layer.tensors[deepest], before[deepest])
