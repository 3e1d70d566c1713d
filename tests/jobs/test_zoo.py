"""The digits zoo: honest experts that conflict, in folders that are whole or absent."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from benchmarks.zoos.content import STAMP, is_current, replacing
from benchmarks.zoos.digit_tasks import TASKS, load, pretraining_digits, split, task_arrays
from benchmarks.zoos.digits import build
from benchmarks.zoos.recipe import DIGITS, Architecture, Recipe, Schedule
from benchmarks.zoos.training import accuracy, fine_tune
from tests.training_here import training_here
from tintray.errors import InputError, SpecError
from tintray.jobs.config.job_file import load_spec

__all__ = ["training_here"]

TINY = Recipe(
    tasks=("parity", "turned"),
    architecture=Architecture(hidden_size=8, layers=1, heads=2),
    pretraining=Schedule(epochs=1, learning_rate=1e-3),
    fine_tuning=Schedule(epochs=1, learning_rate=1e-3, head_epochs=1),
)
EXAMPLE = Path(__file__).parents[2] / "examples" / "digits.yaml"
MADE_FROM = {"recipe": ("a", 1)}
KIB = 2**10


def put_together(directory: Path, made_from: Mapping[str, object] = MADE_FROM) -> None:
    with replacing(directory, made_from, size=KIB) as building:
        (building / "part").mkdir()
        (building / "part" / "one").write_text("one")


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


# Folders that are built once


def test_built_folder_is_current_until_its_origin_changes(tmp_path: Path) -> None:
    put_together(tmp_path / "zoo")
    assert is_current(tmp_path / "zoo", MADE_FROM)
    assert not is_current(tmp_path / "zoo", {"recipe": ("a", 2)})
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("harm", ["change", "remove", "tear the stamp"])
def test_built_folder_is_not_current_after_harm(tmp_path: Path, harm: str) -> None:
    put_together(tmp_path / "zoo")
    if harm == "change":
        (tmp_path / "zoo/part/one").write_text("two")
    elif harm == "remove":
        (tmp_path / "zoo/part/one").unlink()
    else:
        stamp = tmp_path / "zoo" / STAMP
        stamp.write_text(stamp.read_text()[:20])
    assert not is_current(tmp_path / "zoo", MADE_FROM)


def test_outdated_build_is_replaced_as_a_whole(tmp_path: Path) -> None:
    with replacing(tmp_path / "zoo", {"recipe": "old"}, size=KIB) as building:
        (building / "old").touch()
    put_together(tmp_path / "zoo")
    assert is_current(tmp_path / "zoo", MADE_FROM)
    assert not (tmp_path / "zoo/old").exists()
    assert hidden(tmp_path) == []


def test_failed_build_leaves_the_earlier_one_alone(tmp_path: Path) -> None:
    put_together(tmp_path / "zoo")
    with (
        pytest.raises(ZeroDivisionError),
        replacing(tmp_path / "zoo", {"recipe": "new"}, size=KIB) as building,
    ):
        (building / "new").write_text(str(1 / 0))
    assert is_current(tmp_path / "zoo", MADE_FROM)
    assert hidden(tmp_path) == []


def test_killed_build_is_invisible_and_cleared_by_the_next(tmp_path: Path) -> None:
    killed = """
        import os, signal, sys
        from pathlib import Path
        from benchmarks.zoos.content import replacing
        with replacing(Path(sys.argv[1]), {}, size=1024) as building:
            (building / "half").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    script = "\n".join(line[8:] for line in killed.splitlines())
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "zoo")], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "zoo").exists()
    assert len(hidden(tmp_path)) == 1
    put_together(tmp_path / "zoo")
    assert is_current(tmp_path / "zoo", MADE_FROM)
    assert hidden(tmp_path) == []


def test_of_two_builds_at_once_the_first_to_finish_stays(tmp_path: Path) -> None:
    with replacing(tmp_path / "zoo", MADE_FROM, size=KIB) as slow:
        put_together(tmp_path / "zoo")
        assert slow.is_dir()  # not taken for a leftover
        (slow / "late").touch()
    assert is_current(tmp_path / "zoo", MADE_FROM)
    assert not (tmp_path / "zoo/late").exists()
    assert hidden(tmp_path) == []


def test_empty_folder_may_be_built_in(tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()
    put_together(tmp_path / "zoo")
    assert is_current(tmp_path / "zoo", MADE_FROM)


def test_folder_of_others_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is not empty and holds no zoo") as caught:
        put_together(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_file_added_to_an_outdated_zoo_is_kept(tmp_path: Path) -> None:
    put_together(tmp_path / "zoo", {"recipe": "old"})
    (tmp_path / "zoo/notes.txt").write_text("precious")
    with pytest.raises(InputError, match=r"'notes\.txt'"):
        put_together(tmp_path / "zoo")
    assert (tmp_path / "zoo/notes.txt").read_text() == "precious"


@pytest.mark.parametrize("below", [".", "zoo"])
def test_file_in_the_way_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file' is a file, expected a folder"):
        put_together(tmp_path / "file" / below)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write to a read-only folder")
def test_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(InputError, match="zoo': Permission denied; name a folder"):
        put_together(tmp_path / "zoo")


def test_disk_without_room_is_found_before_any_work(tmp_path: Path) -> None:
    """A limit on file sizes stands in for a full disk: the kernel refuses in the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (KIB // 2, hard))
    try:
        with (
            pytest.raises(InputError, match=r"zoo': File too large; .* MiB free"),
            replacing(tmp_path / "zoo", MADE_FROM, size=KIB),
        ):
            pytest.fail("work began")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


# The tasks


def test_every_digit_is_in_exactly_one_part() -> None:
    images, digits = load()
    parts = split()
    everything = np.concatenate([parts.pretraining, parts.pool, parts.test])
    assert sorted(everything) == list(range(len(images)))
    for part in (parts.pretraining, parts.pool, parts.test):
        assert np.ptp(np.bincount(digits[part])) <= 0.1 * len(part) / 10 + 2


def test_no_test_image_was_seen_in_training() -> None:
    seen = {image.tobytes() for image in pretraining_digits()[0]}
    seen |= {image.tobytes() for image in task_arrays("digits")["x_train"]}
    assert not seen & {image.tobytes() for image in task_arrays("digits")["x_test"]}


@pytest.mark.parametrize("name", TASKS)
def test_tasks_show_the_same_digits_in_the_same_places(name: str) -> None:
    plain, shown = task_arrays("digits"), task_arrays(name)
    for half in ("train", "test"):
        images, digits = plain[f"x_{half}"].astype(np.uint8), plain[f"y_{half}"].astype(np.int64)
        assert np.array_equal(shown[f"x_{half}"], TASKS[name].show(images))
        assert np.array_equal(shown[f"y_{half}"], TASKS[name].ask(digits))
        assert shown[f"x_{half}"].dtype == np.uint8
        assert shown[f"x_{half}"].shape[1:] == (8, 8)
        assert set(shown[f"y_{half}"]) == set(range(len(shown["class_names"])))


def test_misspelt_task_is_answered_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="did you mean 'mirrored'"):
        task_arrays("mirored")


# Training


class Classifier(nn.Module):
    """The least that a transformers image classifier is."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 6)
        self.classifier = nn.Linear(6, 2)

    def forward(self, pixel_values: torch.Tensor) -> object:
        features = torch.tanh(self.backbone(pixel_values.flatten(1)))
        return type("Output", (), {"logits": self.classifier(features)})


def trained(seed: int) -> tuple[float, torch.Tensor]:
    torch.manual_seed(0)
    model = Classifier()
    pixels = torch.randn(256, 1, 2, 2)
    labels = (pixels.sum((1, 2, 3)) > 0).long()
    schedule = Schedule(epochs=10, learning_rate=1e-2, head_epochs=2)
    fine_tune(model, pixels, labels, schedule, seed=seed)
    return accuracy(model, pixels, labels), model.backbone.weight.detach()


def test_fine_tuning_learns_and_repeats_itself() -> None:
    score, weight = trained(seed=1)
    assert score > 0.95
    assert torch.equal(weight, trained(seed=1)[1])
    assert not torch.equal(weight, trained(seed=2)[1])


def test_head_is_trained_before_the_backbone_moves() -> None:
    torch.manual_seed(0)
    model = Classifier()
    before = model.backbone.weight.detach().clone()
    pixels = torch.randn(256, 1, 2, 2)
    labels = (pixels.sum((1, 2, 3)) > 0).long()
    untrained = accuracy(model, pixels, labels)
    nearly_still = Schedule(epochs=1, learning_rate=1e-9, head_epochs=10, head_learning_rate=1e-1)
    fine_tune(model, pixels, labels, nearly_still, seed=0)
    assert accuracy(model, pixels, labels) > max(untrained, 0.9)
    assert torch.allclose(model.backbone.weight, before, atol=1e-6)


# The zoo


@pytest.fixture(scope="module")
def tiny_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "zoo", recipe=TINY, workers=2)


def test_number_of_processes_does_not_change_a_bit(
    tiny_zoo: Path, training_here: None, tmp_path: Path
) -> None:
    """Two of them, or none but this one."""
    serial = build(tmp_path / "zoo", recipe=TINY, workers=1)
    assert json.loads((serial / STAMP).read_text()) == json.loads((tiny_zoo / STAMP).read_text())


def test_finished_zoo_is_not_built_again(tiny_zoo: Path) -> None:
    before = (tiny_zoo / STAMP).stat()
    lines: list[str] = []
    build(tiny_zoo, recipe=TINY, on_progress=lines.append)
    assert lines == [f"{tiny_zoo} is up to date"]
    assert (tiny_zoo / STAMP).stat().st_ino == before.st_ino


def test_experts_load_as_ordinary_transformers_folders(tiny_zoo: Path) -> None:
    base = AutoModelForImageClassification.from_pretrained(tiny_zoo / "base")
    for name in TINY.tasks:
        with np.load(tiny_zoo / "data" / f"{name}.npz", allow_pickle=False) as data:
            image, class_names = data["x_test"][0], list(data["class_names"])
        processor = AutoImageProcessor.from_pretrained(tiny_zoo / name)
        pixels = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
        scaled = torch.from_numpy(image).float() / 127.5 - 1
        assert torch.allclose(pixels, scaled.expand(1, 3, 8, 8), atol=1e-6)
        expert = AutoModelForImageClassification.from_pretrained(tiny_zoo / name)
        assert expert(pixel_values=pixels).logits.shape == (1, len(class_names))
        assert [expert.config.id2label[i] for i in range(len(class_names))] == class_names
        shapes = {key: value.shape for key, value in expert.vit.state_dict().items()}
        assert shapes == {key: value.shape for key, value in base.vit.state_dict().items()}


def test_example_job_finds_all_that_the_zoo_holds(tmp_path: Path) -> None:
    zoo = tmp_path / "zoo" / "digits"
    for folder in ("base", "data", *DIGITS.tasks):
        (zoo / folder).mkdir(parents=True)
    for name in DIGITS.tasks:
        (zoo / "data" / f"{name}.npz").touch()
    (tmp_path / "examples").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "examples")
    spec = load_spec(tmp_path / "examples" / EXAMPLE.name)  # refuses a path that leads nowhere
    assert [task.name for task in spec.tasks] == list(DIGITS.tasks)
    for task in spec.tasks:
        assert task.test is not None
        assert {Path(task.pool.path).stem, Path(task.test.path).stem} == {task.name}
        assert Path(task.expert).name == task.name


@pytest.mark.slow
def test_experts_are_good_and_their_average_is_not(pytestconfig: pytest.Config) -> None:
    """Three of the eight: each is trained by itself, in some twelve seconds."""
    assert pytestconfig.cache is not None
    recipe = replace(DIGITS, tasks=("turned", "mirrored", "inverted"))
    folder = pytestconfig.cache.mkdir("zoo") / "three-digits"  # kept from one run to the next
    zoo = build(folder, recipe=recipe)
    models = {
        name: AutoModelForImageClassification.from_pretrained(zoo / name) for name in recipe.tasks
    }
    alone = scores(zoo, models)
    backbones = [model.vit.state_dict() for model in models.values()]
    average = {
        key: torch.stack([backbone[key] for backbone in backbones]).mean(0) for key in backbones[0]
    }
    for model in models.values():
        model.vit.load_state_dict(average)
    assert np.mean(alone) >= 0.93
    assert min(alone) >= 0.88
    assert np.mean(scores(zoo, models)) <= np.mean(alone) - 0.10


def scores(zoo: Path, models: dict[str, nn.Module]) -> list[float]:
    """The test accuracy of each task's model."""
    answers = []
    for name, model in models.items():
        with np.load(zoo / "data" / f"{name}.npz", allow_pickle=False) as data:
            images, labels = data["x_test"], torch.from_numpy(data["y_test"])
        processor = AutoImageProcessor.from_pretrained(zoo / name)
        pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")
        answers.append(accuracy(model, pixels["pixel_values"], labels))
    return answers
