"""What all tasks add to the merged backbone together: Adam's steps, whoever holds which stretch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tintray
from tests.tiny_zoo import TinyZoo
from tintray.jobs.config.job_file import parse_spec
from tintray.jobs.events import RoundDone
from tintray.published.manifest import Manifest
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


def fit(zoo: TinyZoo, store: Path, rate: float, **sections: Any) -> tuple[Manifest, float]:
    """The published manifest, and the loss of the last round."""
    fit = {"correction_lr": rate, "rounds": 12, **sections.pop("fit", {})}
    losses: list[float] = []

    def listen(event: object) -> None:
        if isinstance(event, RoundDone):
            losses.append(event.loss)

    job = zoo.job(store, fit=fit, **sections)
    merge = tintray.run(parse_spec(job, folder=zoo.folder), on_event=listen)
    return merge.manifest, losses[-1]


def backbone(manifest: Manifest) -> str:
    return manifest.files["backbone.safetensors"].sha256


@pytest.fixture(scope="module")
def corrected(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, float]:
    return fit(tiny, tmp_path_factory.mktemp("corrected"), 1e-3)


def test_it_lowers_the_loss_and_the_manifest_tells(
    tiny: TinyZoo, tmp_path: Path, corrected: tuple[Any, float]
) -> None:
    plain, loss = fit(tiny, tmp_path, 0.0)
    assert corrected[1] < loss
    assert (corrected[0].corrected, plain.corrected) == (True, False)


def test_the_result_does_not_depend_on_the_number_of_shards(
    tiny: TinyZoo, tmp_path: Path, corrected: tuple[Any, float]
) -> None:
    spread, _ = fit(tiny, tmp_path, 1e-3, cluster={"shards": 3})
    assert backbone(spread) == backbone(corrected[0])
