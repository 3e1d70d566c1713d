"""A published merge, opened: verified on reading, one backbone for all tasks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Published
from tests.tiny_zoo import TinyZoo
from tintray.checkpoints.tensors import tensors_as_bytes
from tintray.errors import InputError, IntegrityError, NotFoundError
from tintray.jobs import api
from tintray.published.merge import open_folder


@pytest.fixture(scope="module")
def published(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A merge of base, experts and Λ, and of heads, alone."""
    alone: dict[str, Any] = {"fit": {"correction_lr": 0}, "tint": {"sites": "head"}}
    spec = tiny.spec(tmp_path_factory.mktemp("alone"), **alone)
    return Published(spec, api.run(spec))


@pytest.fixture
def copied(published: Published, tmp_path: Path) -> Path:
    """The merge's folder, carried out of its store."""
    folder = Path(shutil.copytree(published.folder, tmp_path / "merge"))
    for path in folder.rglob("*"):
        path.chmod(0o755)
    return folder


def test_every_tasks_model_is_the_one_backbone_and_its_own_tint(copied: Path) -> None:
    merge = open_folder(copied)
    backbone = load_file(copied / "backbone.safetensors")
    states = []
    for task in merge.tasks:
        own = load_file(copied / "tints" / f"{task}.safetensors")
        model = merge.for_task(task)
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        assert type(model).__name__ == "ViTForImageClassification"
        found = model.state_dict()
        assert found.keys() == backbone.keys() | own.keys()
        assert all(torch.equal(found[name], t) for name, t in (backbone | own).items())
        states.append(found)
    for name in states[0]:  # in memory once, or once for each task
        shared = 1 if name in backbone else len(merge.tasks)
        assert len({state[name].data_ptr() for state in states}) == shared, name


def test_backbone_is_what_base_experts_and_coefficients_say(
    copied: Path, published: Published
) -> None:
    """θ = θ₀ + Σ λ τ, worked out again from the published Λ and the checkpoints."""
    from transformers import ViTForImageClassification

    def weights(location: str) -> dict[str, torch.Tensor]:
        return ViTForImageClassification.from_pretrained(location).state_dict()

    merge = open_folder(copied)
    units = merge.manifest.units
    assert merge.coefficients.shape == (len(merge.tasks), len(units))
    assert units[-1].stop == sum(map(torch.numel, merge.backbone.values()))
    base = weights(published.spec.base)
    experts = [weights(task.expert) for task in published.spec.tasks]
    for column, unit in enumerate(units):
        name = unit.name
        theta = base[name].double()
        for row, expert in enumerate(experts):
            theta = theta + merge.coefficients[row, column].double() * (expert[name] - base[name])
        assert torch.allclose(merge.backbone[name].double(), theta, atol=1e-6), name


@pytest.mark.parametrize(
    "name", ["backbone.safetensors", "tints/five.safetensors", "configs/five/config.json"]
)
def test_a_damaged_file_is_named_and_not_used(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    merge = open_folder(copied)
    with pytest.raises(IntegrityError, match=rf"{name} is damaged: its sha256 is"):
        merge.for_task("five")
    if "five" in name:
        assert merge.for_task("two") is not None  # the other tasks do not read it


def test_what_is_no_merge_or_no_task_is_refused(copied: Path, tmp_path: Path) -> None:
    merge = open_folder(copied)
    for method in (merge.for_task, merge.tint, merge.config):
        with pytest.raises(NotFoundError, match=r"no task 'fivee' \(did you mean 'five'"):
            method("fivee")
    with pytest.raises(NotFoundError, match=r"no manifest\.json"):
        open_folder(tmp_path)
    (copied / "manifest.json").write_text("{")
    with pytest.raises(NotFoundError, match="not valid JSON"):
        open_folder(copied)


def test_export_takes_no_folder_that_is_full_or_cannot_be(copied: Path, tmp_path: Path) -> None:
    merge = open_folder(copied)
    target = tmp_path / "out"
    target.mkdir()
    merge.export("five", target)
    before = {path: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(InputError, match="exists and is not empty"):
        merge.export("two", target)
    assert {path: path.read_bytes() for path in target.iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        merge.export("five", tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_equal_tensors_are_equal_bytes() -> None:
    one, other = torch.rand(3, 4), torch.arange(5)
    assert tensors_as_bytes({"a": one, "b": other}) == tensors_as_bytes({"b": other, "a": one})
    assert tensors_as_bytes({"a": one.t()}) == tensors_as_bytes({"a": one.t().contiguous()})
    assert tensors_as_bytes({"a": one}) != tensors_as_bytes({"a": one + 1e-7})
