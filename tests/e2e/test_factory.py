"""Any ``nn.Module``, through a function of the user's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tintray.jobs import api
from torch import nn

import tintray
from tests import tiny_models as tiny
from tintray.errors import CheckpointError, SpecError
from tintray.models.factory import build, find


class Net(nn.Module):
    """A plain module: no configuration, no names of transformers'."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.ReLU())
        self.fc = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, 16, 16] to logits [N, C]."""
        found: torch.Tensor = self.fc(self.body(self.stem(x).relu()))
        return found


def make(config: Mapping[str, Any]) -> nn.Module:
    return Net(config.get("classes", 2))


def broken(config: Mapping[str, Any]) -> nn.Module:
    raise RuntimeError("no such model")


def nothing(config: Mapping[str, Any]) -> Any:
    return 3


def make_plain_zoo(folder: Path) -> Path:
    """A base and two experts that are plain modules, with their data, in ``folder``."""
    torch.manual_seed(0)
    base = Net(2)
    (folder / "base").mkdir(parents=True)
    save_file(base.state_dict(), folder / "base" / "model.safetensors")
    for seed, (name, classes) in enumerate({"reds": 2, "rgb": 3}.items()):
        expert = Net(classes)
        body = {n: t for n, t in base.state_dict().items() if not n.startswith("fc")}
        expert.load_state_dict(body, strict=False)
        random = np.random.default_rng(seed)
        for split in ("train", "test"):
            labels = random.integers(0, classes, 40)
            images = random.integers(0, 120, (40, 16, 16, 3)).astype(np.uint8)
            for image, label in zip(images, labels, strict=True):
                image[..., label] += 100
            np.savez(folder / f"{name}_{split}.npz", x_train=images, y_train=labels)
            if split == "train":
                x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
                adam = torch.optim.Adam(expert.parameters(), lr=1e-2)
                for _ in range(30):
                    loss = nn.functional.cross_entropy(expert(x), torch.from_numpy(labels))
                    adam.zero_grad()
                    loss.backward()
                    adam.step()
        (folder / name).mkdir()
        save_file(expert.state_dict(), folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps({"classes": classes}))
    return folder


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plain_zoo(tmp_path_factory.mktemp("factory"))


def test_modules_of_a_factory_are_merged(zoo: Path, tmp_path: Path) -> None:
    kinds = dict.fromkeys(("reds", "rgb"), "classification")
    options = {"suffix": ".npz", "factory": "tests.e2e.test_factory:make"}
    summary = api.run(tiny.job(zoo, kinds, store=str(tmp_path), **options))
    assert summary.normalised_accuracy > 0.9
    module = tintray.load(summary.url).for_task("rgb")
    assert isinstance(module, Net)
    assert module(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    folder = tintray.load(summary.url).export("rgb", tmp_path / "exported")
    from tintray.models.factory import load

    again = load(options["factory"], {"classes": 3}, [folder / "model.safetensors"], "x")
    images = torch.rand(4, 3, 16, 16)
    assert torch.allclose(again(images), module(images), atol=1e-5)


BAD = {
    "tests.e2e.test_factory": "expected package.module:function",
    "tests.no_such:make": "module 'tests.no_such' cannot be imported",
    "tests.e2e.test_factory:mkae": "no function 'mkae'; did you mean 'make'",
    "tests.e2e.test_factory:broken": "failed with RuntimeError: no such model",
    "tests.e2e.test_factory:nothing": r"returned a int; expected a torch\.nn\.Module",
}


@pytest.mark.parametrize(("factory", "words"), BAD.items())
def test_factories_that_are_none_are_refused(factory: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        build(factory, {})


def test_weights_that_are_not_the_modules_are_refused(zoo: Path) -> None:
    from tintray.models.factory import load

    assert find("tests.e2e.test_factory:make") is make
    files = [zoo / "rgb" / "model.safetensors"]
    with pytest.raises(CheckpointError, match=r"'fc\.\w+' has shape \[3"):
        load("tests.e2e.test_factory:make", {"classes": 2}, files, "tasks.rgb.expert")
