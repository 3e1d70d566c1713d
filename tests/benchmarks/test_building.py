"""How zoos are built: whole or not at all, the same bytes in any number of processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.zoos.content import STAMP, is_current, replacing
from benchmarks.zoos.omniglot import build
from benchmarks.zoos.recipe import Architecture, Recipe, Schedule
from benchmarks.zoos.training import accuracy, fine_tune
from tintray.errors import InputError

MADE_FROM = {"recipe": ("a", 1)}


def put_together(directory: Path, made_from: Mapping[str, object] = MADE_FROM) -> None:
    with replacing(directory, made_from) as building:
        (building / "part").mkdir()
        (building / "part" / "one").write_text("one")


def test_a_folder_is_current_until_its_origin_or_a_file_changes(tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    zoo.mkdir()  # an empty one may be built in
    with replacing(zoo, {"recipe": "old"}) as building:
        (building / "old").touch()
    put_together(zoo)
    assert is_current(zoo, MADE_FROM) and not is_current(zoo, {"recipe": ("a", 2)})
    assert not (zoo / "old").exists()
    (zoo / "part/one").write_text("two")
    assert not is_current(zoo, MADE_FROM)


def test_a_build_that_fails_or_comes_second_leaves_the_earlier_one(tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    with replacing(zoo, MADE_FROM) as slow:
        put_together(zoo)
        (slow / "late").touch()
    with pytest.raises(ZeroDivisionError), replacing(zoo, {"recipe": "new"}):
        raise ZeroDivisionError
    assert is_current(zoo, MADE_FROM) and not (zoo / "late").exists()
    assert list(tmp_path.iterdir()) == [zoo]


def test_files_of_others_are_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is not empty and holds no zoo"):
        put_together(tmp_path)
    with pytest.raises(InputError, match="is a file, expected a folder"):
        put_together(tmp_path / "thesis.txt/zoo")
    put_together(tmp_path / "zoo", {"recipe": "old"})
    (tmp_path / "zoo/notes.txt").write_text("precious")
    with pytest.raises(InputError, match=r"'notes\.txt'"):
        put_together(tmp_path / "zoo")
    assert (tmp_path / "zoo/notes.txt").read_text() == "precious"


class Classifier(nn.Module):
    """The least that a transformers image classifier is."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 6)
        self.classifier = nn.Linear(6, 2)

    def forward(self, pixel_values: torch.Tensor) -> object:
        features = torch.tanh(self.backbone(pixel_values.flatten(1)))
        return type("Output", (), {"logits": self.classifier(features)})


@pytest.mark.parametrize("rate", [1e-2, 1e-9])
def test_fine_tuning_repeats_itself_and_trains_the_head_first(rate: float) -> None:
    schedule = Schedule(epochs=10, learning_rate=rate, head_epochs=10, head_learning_rate=1e-1)

    def trained(seed: int) -> tuple[float, torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        model, pixels = Classifier(), torch.randn(256, 1, 2, 2)
        before, labels = model.backbone.weight.detach().clone(), pixels.sum((1, 2, 3)) > 0
        fine_tune(model, pixels, labels.long(), schedule, seed=seed)
        return accuracy(model, pixels, labels.long()), before, model.backbone.weight.detach()

    score, before, weight = trained(1)
    assert score > 0.9
    assert torch.equal(weight, trained(1)[2]) and not torch.equal(weight, trained(2)[2])
    assert torch.allclose(weight, before, atol=1e-6) == (rate == 1e-9)


def test_the_number_of_processes_changes_no_bit_and_a_finished_zoo_stays(
    drawings: Path, tmp_path: Path
) -> None:
    tiny = Schedule(epochs=1, learning_rate=1e-3, shift=2)
    size = Architecture(image_size=28, patch_size=14, hidden_size=8, layers=1, heads=2)
    recipe = Recipe(architecture=size, pretraining=tiny, fine_tuning=tiny)
    told: list[str] = []
    for name, workers in (("one", 1), ("two", 2), ("two", 1)):
        build(
            tmp_path / name,
            drawings,
            tasks=2,
            recipe=recipe,
            workers=workers,
            on_progress=told.append,
        )
    assert told[-1] == f"{tmp_path / 'two'} is up to date"
    one, two = (json.loads((tmp_path / name / STAMP).read_text()) for name in ("one", "two"))
    assert one == two
