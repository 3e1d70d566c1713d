"""What all tasks add to the merged backbone together: Adam's steps, whoever holds which stretch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import tintray
from tests.tiny_zoo import TinyZoo
from tintray.jobs.events import RoundDone
from tintray.vectors.correction import Correction


def test_it_moves_as_torch_moves_a_parameter() -> None:
    random = torch.Generator().manual_seed(0)
    ours, theirs = Correction(20), nn.Parameter(torch.zeros(20))
    adam = torch.optim.Adam([theirs])
    for rate in (1e-2, 3e-3, 1e-2):
        gradient = torch.randn(20, generator=random)
        ours.update(gradient, rate)
        adam.param_groups[0]["lr"] = rate
        theirs.grad = gradient.clone()
        adam.step()
    assert torch.allclose(ours.values, theirs.detach(), atol=1e-7)
    other = Correction(20)
    other.load_state_dict(ours.state_dict())
    ours.update(gradient, 1e-2)
    other.update(gradient, 1e-2)
    assert torch.equal(ours.values, other.values)


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
