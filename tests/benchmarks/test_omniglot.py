"""The Omniglot zoo: tasks from one file, no drawing of a test in any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tintray
from benchmarks.zoos.omniglot import TRAINING_DRAWERS, Omniglot, build
from benchmarks.zoos.recipe import Architecture, Recipe, Schedule
from tintray.checkpoints.model_folder import open_model_folder
from tintray.errors import InputError
from tintray.jobs.config.job_file import load_spec
from tintray.jobs.engine.job_size import adapter_bytes
from tintray.models.adapters import read_adapter
from tintray.models.loading import load_expert

TINY = Recipe(
    architecture=Architecture(image_size=28, patch_size=14, hidden_size=8, layers=1, heads=2),
    pretraining=Schedule(epochs=1, learning_rate=1e-3, shift=2),
    fine_tuning=Schedule(epochs=1, learning_rate=1e-3, head_epochs=1, shift=2),
)
pytestmark = pytest.mark.usefixtures("training_here")


def test_an_alphabet_is_four_tasks_and_no_test_drawing_is_in_any_training(drawings: Path) -> None:
    found = Omniglot(drawings)
    assert list(found.tasks)[:2] == ["alphabet_of_the_magi_0", "alphabet_of_the_magi_90"]
    upright, turned = found.task("futurama_new_0"), found.task("futurama_new_90")
    assert len(upright["x_test"]) == 5 * (20 - TRAINING_DRAWERS)
    assert np.array_equal(np.rot90(upright["x_test"], 1, (1, 2)), turned["x_test"])
    assert set(upright["y_train"]) == set(upright["y_test"]) == set(range(5))
    base = found.base()
    assert list(np.bincount(base["y_train"])) == [TRAINING_DRAWERS] * 3
    assert list(base["class_names"]) == ["0.0", "0.1", "0.2"]
    trained, tested = {image.tobytes() for image in base["x_train"]}, set()
    for name in found.tasks:
        trained |= {image.tobytes() for image in found.task(name)["x_train"]}
        tested |= {image.tobytes() for image in found.task(name)["x_test"]}
    assert len(found.tasks) == 8 and not trained & tested


def test_a_file_or_a_number_that_is_none_is_refused(drawings: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(InputError, match=r"--data: '.*other.npz' has no array 'y_char"):
        Omniglot(tmp_path / "other.npz")
    with pytest.raises(InputError, match=r"--tasks: expected 1 to 8, found 9"):
        build(tmp_path / "zoo", drawings, tasks=9)
    with pytest.raises(InputError, match=r"--lora: expected a rank of 1 or more, found 0"):
        build(tmp_path / "zoo", drawings, lora=0)


def test_experts_can_be_lora_adapters(drawings: Path, tmp_path: Path) -> None:
    zoo = build(tmp_path / "zoo", drawings, tasks=2, lora=2, recipe=TINY, workers=1)
    spec = load_spec(zoo / "job.yaml")
    assert [task.name for task in spec.tasks] == ["alphabet_of_the_magi_0", "futurama_new_0"]
    base = open_model_folder(zoo / "base")
    for task in spec.tasks:
        checkpoint = open_model_folder(task.expert, base=base)
        assert checkpoint.adapter is not None
        expert: Any = load_expert(checkpoint)
        assert expert.config.id2label[0] == "0"
        adapter = read_adapter(checkpoint, expert, task.name)
        assert adapter.rank == 2
        assert len(adapter.products) == 6  # attention's four and the two of the block's MLP
        assert all(product.up.abs().max() > 0 for product in adapter.products.values())
        assert "classifier.weight" in adapter.tensors
        numbers = sum(p.up.numel() + p.down.numel() for p in adapter.products.values())
        numbers += sum(tensor.numel() for tensor in adapter.tensors.values())
        assert adapter_bytes(spec)[task.name] == 4 * numbers  # what a plan takes them for
    settings = [f"store={tmp_path / 'store'}", "cluster.workers=0", "fit.rounds=20"]
    summary = tintray.run(load_spec(zoo / "job.yaml", settings)).summary()
    assert min(task.expert or 0 for task in summary.tasks) > 0
    assert np.mean([task.normalised for task in summary.tasks]) > 0.7  # they hardly learned
    # A merging method alone multiplies the products out, and leaves what no adapter changes.
    merge = tintray.run(load_spec(zoo / "job.yaml", [*settings, "merge.method=average"]))
    experts = [load_expert(open_model_folder(t.expert, base=base)) for t in spec.tasks]
    for key, merged in merge.for_task(spec.tasks[0].name).state_dict().items():
        if not key.startswith("classifier"):
            mean = torch.stack([expert.state_dict()[key] for expert in experts]).mean(0)
            assert torch.allclose(merged, mean, atol=1e-5), key
