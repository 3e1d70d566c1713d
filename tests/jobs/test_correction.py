"""What all tasks add to the merged backbone together: Adam's steps, whoever holds which stretch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tintray
from tests.tiny_zoo import TinyZoo
from tintray.jobs.events import RoundDone
from tintray.numerics.layout import build_layout
from tintray.vectors import correction
from tintray.vectors.correction import Correction, orthogonal


def test_it_moves_as_torch_moves_a_parameter() -> None:
    random = torch.Generator().manual_seed(0)
    layout = build_layout({"a": (20,)})
    ours, theirs = Correction(layout), nn.Parameter(torch.zeros(20))
    adam = torch.optim.Adam([theirs])
    for rate in (1e-2, 3e-3, 1e-2):
        gradient = torch.randn(20, generator=random)
        ours.update(gradient, rate)
        adam.param_groups[0]["lr"] = rate
        theirs.grad = gradient.clone()
        adam.step()
    assert torch.allclose(ours.values, theirs.detach(), atol=1e-7)
    other = Correction(layout)
    other.load_state_dict(ours.state_dict())
    ours.update(gradient, 1e-2)
    other.update(gradient, 1e-2)
    assert torch.equal(ours.values, other.values)


def test_muon_moves_matrices_as_torch_does_and_all_else_by_adam(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However the tensors are spread: a stretch of them moves as it does among all."""
    monkeypatch.setattr(correction, "resolve", lambda *_: "bfloat16")
    shapes = {"embeddings.word.weight": (6, 4), "a.weight": (4, 8), "a.bias": (4,)}
    shapes |= {"conv.weight": (4, 2, 3, 3), "conv.bias": (4,)}
    layout = build_layout(shapes)
    random, rate = torch.Generator().manual_seed(0), 2e-3
    gradients = [torch.randn(layout.numel, generator=random) for _ in range(4)]
    whole = Correction(layout, "muon")
    parts = [Correction(layout.part(stretch), "muon") for stretch in (range(1), range(1, 5))]
    bounds = [layout.bounds(stretch) for stretch in (range(1), range(1, 5))]
    theirs = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    theirs["conv.weight"] = nn.Parameter(torch.zeros(4, 18))
    matrices = [theirs.pop("a.weight"), theirs.pop("conv.weight")]
    muon = torch.optim.Muon(matrices, rate, weight_decay=0, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.Adam(theirs.values(), rate / 4)
    resumed = Correction(layout, "muon")
    for round_, gradient in enumerate(gradients):
        if round_ == 2:
            resumed.load_state_dict(whole.state_dict())
        views = layout.views(gradient)
        matrices[0].grad = views["a.weight"].clone()
        matrices[1].grad = views["conv.weight"].reshape(4, 18).clone()
        for name, parameter in theirs.items():
            parameter.grad = views[name].clone()
        for optimiser in (muon, adam):
            optimiser.step()
        whole.update(gradient, rate)
        for part, stretch in zip(parts, bounds, strict=True):
            part.update(gradient[stretch], rate)
        if round_ > 1:
            resumed.update(gradient, rate)
    found = layout.views(whole.values)
    assert torch.equal(found["a.weight"], matrices[0])
    assert torch.equal(found["conv.weight"].flatten(1), matrices[1])
    assert all(torch.allclose(found[n], p, atol=1e-7) for n, p in theirs.items())
    assert torch.equal(torch.cat([part.values for part in parts]), whole.values)
    assert torch.equal(resumed.values, whole.values)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (3, 8, 24), (3, 24, 8)])
def test_where_there_is_no_bfloat16_matrices_are_made_orthogonal_in_float32(
    shape: tuple[int, ...],
) -> None:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact, rounded = (orthogonal(given, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert exact.dtype == torch.float32
    assert torch.linalg.svdvals(exact).sub(1).abs().max() < 0.4
    assert torch.allclose(exact, rounded.float(), atol=0.03)


def test_the_precision_of_muon_is_that_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, made = build_layout({"a.weight": (8, 24)}), []
    gradient = torch.randn(layout.numel, generator=torch.Generator().manual_seed(0))
    for precision in ("float32", "bfloat16"):
        monkeypatch.setattr(correction, "resolve", lambda *_, p=precision: p)
        made.append(Correction(layout, "muon"))
        made[-1].update(gradient, 1e-2)
    assert torch.allclose(made[0].values, made[1].values, atol=1e-3)
    assert not torch.equal(made[0].values, made[1].values)


def test_it_lowers_the_loss_and_no_number_of_shards_changes_it(
    tiny: TinyZoo, tmp_path: Path
) -> None:
    found = []
    for number, (rate, shards) in enumerate(((0.0, 1), (1e-3, 1), (1e-3, 3))):
        fit, events = {"correction_lr": rate, "rounds": 12}, list[Any]()
        spec = tiny.spec(tmp_path / str(number), fit=fit, cluster={"shards": shards})
        manifest = tintray.run(spec, on_event=events.append).manifest
        assert manifest.corrected == (rate > 0)
        loss = [event.loss for event in events if isinstance(event, RoundDone)][-1]
        found.append((loss, manifest.files["backbone.safetensors"].sha256))
    assert found[1][0] < found[0][0]
    assert found[1][1] == found[2][1] != found[0][1]
