"""The fused model: shared layers see one batch, private ones part by task."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_zoo import CLASSES, TinyZoo
from tests.workbench import Workbench, tiny_workbench
from tintray import models


def outputs(bench: Workbench, sizes: list[int], coefficient: float) -> list[torch.Tensor]:
    fused = bench.group()._fused
    fused.bind(bench.vectors.merge(bench.uniform(coefficient)), None)
    batches = [
        pool.batch(slice(0, size)) for pool, size in zip(bench.pools.values(), sizes, strict=True)
    ]
    with torch.inference_mode():
        return fused.forward(batches, bench.layers())


@pytest.mark.parametrize("site", ["head", "vit.layers.1", "vit.embeddings", "vit.layers.0.mlp.fc1"])
def test_each_task_is_answered_as_by_a_model_of_its_own(tiny: TinyZoo, site: str) -> None:
    """Batches of different sizes, heads of different widths, tints at several depths."""
    bench = tiny_workbench(tiny, site=site)
    sizes = [5, 1, 7, 3]
    found = outputs(bench, sizes, 0.4)
    theta = bench.layout.views(bench.vectors.merge(bench.uniform(0.4)))
    for (name, expert), logits, size in zip(bench.experts.items(), found, sizes, strict=True):
        with torch.inference_mode():
            expected = torch.func.functional_call(
                expert, theta, (), bench.pools[name].batch(slice(0, size))
            ).logits
        assert logits.shape == (size, max(CLASSES.values()))
        assert torch.allclose(logits[:, : CLASSES[name]], expected, atol=1e-5), name
        assert logits[:, CLASSES[name] :].count_nonzero() == 0


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
        assert layer.count(models.head_modules(bench.base)) == 17 * CLASSES[layer.task]


def test_a_site_whose_name_begins_another_one_is_not_it(tiny: TinyZoo) -> None:
    """``vit.layers.1`` is not ``vit.layers.10``."""
    tensors = {"vit.layers.1.w": torch.ones(2), "vit.layers.10.w": torch.ones(3)}
    from tintray.tint import TintLayer

    layer = TintLayer.of_expert("t", tensors, ("vit.layers.1",))
    assert layer.trained == ("vit.layers.1.w",)
    assert layer.count(("vit.layers.1",)) == 2
