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
from torch import nn

import tintray
from tests import tiny_models as tiny
from tintray.errors import CheckpointError, SpecError
from tintray.jobs import api
from tintray.models.factories import build, find, load

FACTORY = "tests.e2e.test_factory:make"


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
    body = {name: tensor for name, tensor in base.state_dict().items() if "fc" not in name}
    for seed, (name, classes) in enumerate({"reds": 2, "rgb": 3}.items()):
        expert, random = Net(classes), np.random.default_rng(seed)
        expert.load_state_dict(body, strict=False)
        for split in ("test", "train"):
            labels = random.integers(0, classes, 40)
            images = random.integers(0, 120, (40, 16, 16, 3)).astype(np.uint8)
            for image, label in zip(images, labels, strict=True):
                image[..., label] += 100
            np.savez(folder / f"{name}_{split}.npz", x_train=images, y_train=labels)
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


@pytest.fixture(scope="module")
def summary(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A merge of modules of a factory, published."""
    kinds = dict.fromkeys(("reds", "rgb"), "classification")
    options = {"suffix": ".npz", "factory": FACTORY}
    store = tmp_path_factory.mktemp("store")
    return api.run(tiny.job(zoo, kinds, store=str(store), **options))


def test_modules_of_a_factory_are_merged(summary: Any, tmp_path: Path) -> None:
    assert summary.normalised_accuracy > 0.9
    merge = tintray.load(summary.url, factory=FACTORY)
    module = merge.for_task("rgb")
    assert isinstance(module, Net)
    assert module(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    folder = merge.export("rgb", tmp_path / "exported")
    again = load(FACTORY, {"classes": 3}, [folder / "model.safetensors"], "x")
    images = torch.rand(4, 3, 16, 16)
    assert torch.allclose(again(images), module(images), atol=1e-5)


def test_no_code_runs_because_a_merge_says_so(
    summary: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Python, in a command, or as the parent of another merge."""
    catalog = f"sqlite:///{tmp_path}/catalog.db"
    place = {"store": summary.url.partition("/merges/")[0], "catalog": catalog}
    monkeypatch.setenv("TINTRAY_ALLOW_FACTORIES", "tests.e2e.test_fact tests.e2e.test_factory:mak")
    opened = tintray.load(summary.url, factory="tests.e2e.test_factory:broken", **place)
    for run in (
        lambda: opened.for_task("rgb"),
        lambda: opened.export("rgb", tmp_path / "exported"),
        opened.evaluate,
        opened.compare,
        lambda: opened.remove(["rgb"]),
    ):
        with pytest.raises(SpecError, match=rf"'{FACTORY}' builds its modules, and no code runs"):
            run()
    assert opened.summary().name == "tiny"


@pytest.mark.parametrize("allowed", [FACTORY, "tests.e2e", "x, tests"])
def test_a_merge_runs_a_factory_that_the_configuration_allows(
    summary: Any, allowed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text(f'allow_factories = "{allowed}"')
    monkeypatch.setenv("TINTRAY_ALLOW_FACTORIES", "")  # so that what is set is taken back
    monkeypatch.setenv("TINTRAY_CONFIG", str(tmp_path / "config.toml"))
    assert tintray.load(summary.url).factory == FACTORY


UNRELATED = [
    "subprocess:call",
    "os:system",
    "builtins:exec",
    "posix:system",
    "antigravity:fly",
    "importlib.util:module_from_spec",
    "torch.hub:load",
    "numpy:fromfile",
    "safetensors.torch:save_file",
    "tintray.checkpoints.hub:download",
    "tintray.storage.artifacts.folder:FolderStore",
]


@pytest.mark.parametrize("factory", UNRELATED)
def test_code_that_is_not_the_users_own_is_never_run(
    factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not even imported, which may run code too."""
    module = factory.partition(":")[0]
    imported: list[str] = []
    monkeypatch.setattr("importlib.import_module", imported.append)
    with pytest.raises(SpecError, match=rf"^factory: the module '{module}' .*allow_factories"):
        build(factory, {"touch": 0})
    assert imported == []


def test_an_installed_package_may_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find("tests.e2e.test_factory:Net") is Net
    monkeypatch.setenv("TINTRAY_ALLOW_FACTORIES", "torch.nn")
    assert isinstance(build("torch.nn.modules.linear:Identity", {}), nn.Identity)
    with pytest.raises(SpecError, match=r"'Linear' of 'torch\.nn' is defined in 'torch\.nn\.mod"):
        build("torch.nn:Linear", {})


def test_what_a_module_only_imported_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lent.py").write_text(
        "import os, functools\nfrom subprocess import call\nfrom os import system as build\n"
        "part = functools.partial(call)\nrun = os.popen\ncalls = [call]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("call", "build", "part", "run", "calls", "os"):
        with pytest.raises(SpecError, match=r"is defined in|has no function"):
            build(f"lent:{name}", {})


BAD = {
    "tests.e2e.test_factory": "expected package.module:function",
    "tests.no_such:make": "module 'tests.no_such' cannot be imported",
    "tests.e2e.test_factory:mkae": r"no function 'mkae' \(did you mean 'make'",
    "tests.e2e.test_factory:broken": "failed with RuntimeError: no such model",
    "tests.e2e.test_factory:nothing": r"returned a int; expected a torch\.nn\.Module",
}


@pytest.mark.parametrize(("factory", "words"), BAD.items())
def test_factories_that_are_none_are_refused(factory: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        build(factory, {})


def test_weights_that_are_not_the_modules_are_refused(zoo: Path) -> None:
    assert find("tests.e2e.test_factory:make") is make
    files = [zoo / "rgb" / "model.safetensors"]
    with pytest.raises(CheckpointError, match=r"'fc\.\w+' has shape \[3"):
        load("tests.e2e.test_factory:make", {"classes": 2}, files, "tasks.rgb.expert")
