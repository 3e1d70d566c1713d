"""The fused model: shared layers see one batch, private ones part by task."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_models import SEGFORMER, model
from tests.tiny_zoo import CLASSES, TinyZoo
from tests.workbench import Workbench, tiny_workbench
from tintray.models.norms import norm_buffers
from tintray.models.structure import head_modules, private_state
from tintray.numerics.layout import Layout
from tintray.numerics.sites import TintSite
from tintray.tinting.partition import Partition, partition
from tintray.tinting.tint_layers import FusedModel, TintLayer, with_low_rank


def outputs(bench: Workbench, sizes: list[int], coefficient: float) -> list[torch.Tensor]:
    fused = bench.group()._fused
    fused.bind(bench.vectors.merge(bench.uniform(coefficient)), None)
    batches = [
        pool.batch(slice(0, size)) for pool, size in zip(bench.pools.values(), sizes, strict=True)
    ]
    with torch.inference_mode():
        return fused.forward(batches, bench.layers())


SITES = ["head", "vit.layers.1", "vit.embeddings", "vit.layers.0.mlp.fc1", "norms", "*.attention"]


@pytest.mark.parametrize(
    "sites",
    [
        *((TintSite(site),) for site in SITES),
        *((TintSite(site, 3),) for site in ("vit.layers.1", "*.mlp", "prompt")),
        (TintSite("prompt"), TintSite("head"), TintSite("vit.layers.1", 2), TintSite("*.0.mlp")),
    ],
    ids=lambda sites: ", ".join(map(str, sites)),
)
def test_each_task_is_answered_as_by_a_model_of_its_own(
    tiny: TinyZoo, sites: tuple[TintSite, ...]
) -> None:
    """Batches of different sizes, heads of different widths, tints at several depths."""
    bench = tiny_workbench(tiny, sites=sites)
    sizes = [5, 1, 7, 3]
    found = outputs(bench, sizes, 0.4)
    theta = bench.layout.views(bench.vectors.merge(bench.uniform(0.4)))
    for layer, logits, size in zip(bench.layers(), found, sizes, strict=True):
        batch = bench.pools[layer.task].batch(slice(0, size))
        own = with_low_rank(theta, layer.tensors)
        with torch.inference_mode():
            expected = torch.func.functional_call(bench.experts[layer.task], own, (), batch).logits
        classes = CLASSES[layer.task]
        assert logits.shape == (size, max(CLASSES.values()))
        assert torch.allclose(logits[:, :classes], expected, atol=1e-5), layer.task
        assert logits[:, classes:].count_nonzero() == 0


def test_with_coefficients_of_zero_every_task_is_the_base_under_its_own_head(tiny: TinyZoo) -> None:
    bench = tiny_workbench(tiny)
    for (name, expert), logits in zip(
        bench.experts.items(), outputs(bench, [4] * 4, 0.0), strict=True
    ):
        with torch.inference_mode():
            hidden = bench.base.base_model(**bench.pools[name].batch(slice(0, 4)))[0][:, 0]
            expected = expert.classifier(hidden)
        assert torch.allclose(logits[:, : CLASSES[name]], expected, atol=1e-5)


def test_private_tensors_are_counted_at_the_site(tiny: TinyZoo) -> None:
    bench = tiny_workbench(tiny, site="vit.layers.2")
    block = sum(p.numel() for p in bench.base.get_submodule("vit.layers.2").parameters())
    for layer in bench.layers():
        assert layer.count(bench.paths) == block == sum(p.numel() for p in layer.parameters)
        assert layer.count(head_modules(bench.base)) == 17 * CLASSES[layer.task]


def test_a_site_whose_name_begins_another_one_is_not_it(tiny: TinyZoo) -> None:
    """``vit.layers.1`` is not ``vit.layers.10``."""
    tensors = {"vit.layers.1.w": torch.ones(2), "vit.layers.10.w": torch.ones(3)}
    rates = Partition(torch.nn.Module(), (), (), Layout((), ()), rates={"vit.layers.1.": 0.5})
    layer = TintLayer.of_expert("t", tensors, rates.rate)
    assert layer.rates == {"vit.layers.1.w": 0.5}
    assert layer.count(("vit.layers.1",)) == 2


def test_a_low_rank_tint_of_full_rank_begins_as_the_expert(tiny: TinyZoo) -> None:
    """With coefficients of zero the site is θ₀ + τ; it costs rank·(m + n) per weight."""
    bench = tiny_workbench(tiny, site="vit.layers.1", rank=16)
    for layer in bench.layers():
        expert = bench.experts[layer.task]
        base = {n: bench.base.get_parameter(n) for n in bench.low_rank}
        full = with_low_rank(base, layer.tensors)
        for name in bench.low_rank:
            assert torch.allclose(full[name], expert.get_parameter(name), atol=1e-5)
    weights = [bench.base.get_parameter(name).shape for name in bench.low_rank]
    assert len(weights) == 6
    thin = tiny_workbench(tiny, site="vit.layers.1", rank=2)
    assert thin.layers()[0].count(thin.paths) == sum(2 * (m + n) for m, n in weights)


def test_a_transposed_layer_has_a_low_rank_form_too() -> None:
    """GPT-2 keeps its weights as [in, out]."""
    from transformers.pytorch_utils import Conv1D

    from tintray.models.norms import BatchSegments
    from tintray.tinting.per_task import PerTaskLowRankLinear

    torch.manual_seed(0)
    shared = Conv1D(5, 3)
    own = [
        {"c.weight.low_rank.up": torch.randn(3, 2), "c.weight.low_rank.down": torch.randn(2, 5)}
        for _ in range(2)
    ]
    segments = BatchSegments(
        [1, 3], [TintLayer(str(n), tensors, {}) for n, tensors in enumerate(own)]
    )
    given = torch.randn(4, 6, 3)
    found = PerTaskLowRankLinear("c.weight", shared, segments)(given)
    for tensors, rows in zip(own, (slice(0, 1), slice(1, 4)), strict=True):
        weight = with_low_rank({"c.weight": shared.weight}, tensors)["c.weight"]
        expected = given[rows] @ weight + shared.bias
        assert torch.allclose(found[rows], expected, atol=1e-5)


@pytest.mark.parametrize("site", ["segformer.stages.0", "segformer.stages.1.blocks.0"])
def test_a_decoder_is_given_the_features_of_tinted_stages(site: str) -> None:
    """transformers captures the stages' outputs by hooks on layers of their classes."""
    torch.manual_seed(0)
    name = "SegformerForSemanticSegmentation"
    experts = [model(name, SEGFORMER, num_labels=3).eval() for _ in range(2)]
    split = partition(experts[0], [TintSite(site)])
    fused = FusedModel(experts[0], split.layout, split.private)
    theta = torch.cat([experts[0].get_parameter(s.name).flatten() for s in split.layout.slots])
    fused.bind(theta.detach().clone(), None)
    fused.use_statistics("running")
    layers = [
        TintLayer.of_expert(
            f"t{number}", private_state(expert, split.private) | norm_buffers(expert), split.rate
        )
        for number, expert in enumerate(experts)
    ]
    images = torch.rand(5, 3, 16, 16)
    with torch.inference_mode():
        found = fused.forward([{"pixel_values": images[:2]}, {"pixel_values": images[2:]}], layers)
        for number, stretch in enumerate((slice(0, 2), slice(2, 5))):
            own = dict(split.layout.views(theta)) | layers[number].tensors
            expected = torch.func.functional_call(
                experts[0], own, (), {"pixel_values": images[stretch]}
            ).logits
            assert torch.allclose(found[number], expected, atol=1e-5)
