"""Bad input through the command line: exit code 2, one sentence, no merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from tests.answers import call
from tests.tiny_zoo import TinyZoo

Job = dict[str, Any]
Damage = Callable[[TinyZoo, Job], object]


@dataclass(frozen=True)
class Case:
    """One thing that is wrong with a zoo or its job, and the words that must say so."""

    name: str
    damage: Damage
    words: tuple[str, ...]


def weights(task: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Change an expert's tensors, under the names that the file gives them."""

    def damage(zoo: TinyZoo, job: Job) -> None:
        path = zoo.folder / task / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def other_model(task: str, kind: str = "vit", **sizes: int) -> Damage:
    """Put an expert of other sizes, or of another class, in the place of one."""

    def damage(zoo: TinyZoo, job: Job) -> None:
        ordinary = {
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "image_size": 16,
            "patch_size": 4,
            "num_labels": 5,
        }
        config, cls = {
            "vit": (ViTConfig, ViTForImageClassification),
            "deit": (DeiTConfig, DeiTForImageClassification),
        }[kind]
        cls(config(**(ordinary | sizes))).save_pretrained(zoo.folder / task)

    return damage


def arrays(task: str, **changed: Any) -> Damage:
    return lambda zoo, job: zoo.replace_arrays(task, **changed)


def truncated(zoo: TinyZoo, job: Job) -> None:
    path = zoo.folder / "five" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pickled(zoo: TinyZoo, job: Job) -> None:
    path = zoo.folder / "five" / "model.safetensors"
    torch.save(load_file(path), zoo.folder / "five" / "pytorch_model.bin")
    path.unlink()


def wrong_head(zoo: TinyZoo, job: Job) -> None:
    path = zoo.folder / "five" / "config.json"
    config = json.loads(path.read_text())
    config["id2label"] = {str(n): f"class {n}" for n in range(7)}
    config["label2id"] = {f"class {n}": n for n in range(7)}
    path.write_text(json.dumps(config))


def image_of_two_channels(zoo: TinyZoo, job: Job) -> None:
    zoo.replace_arrays("five", x_train=np.zeros((9, 16, 16, 2), np.uint8))


def images_that_cannot_be_read(zoo: TinyZoo, job: Job) -> None:
    """A folder of three images, of which one is cut short and one has 16 bits a pixel."""
    folder = zoo.folder / "pictures"
    folder.mkdir()
    for number in range(3):
        kind = np.uint16 if number == 2 else np.uint8
        Image.fromarray(np.full((16, 16), 90, kind)).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:45])
    job["tasks"][2]["pool"] = {"path": "pictures", "max_bad": 1}


def at(*path: str | int, value: Any = None, rename: str | None = None) -> Damage:
    """Change, rename or (with no value) remove one field of the job."""

    def damage(zoo: TinyZoo, job: Job) -> None:
        section: Any = job
        for step in path[:-1]:
            section = section[step]
        old = section.pop(path[-1]) if rename or value is None else None
        if rename or value is not None:
            section[rename or path[-1]] = old if rename else value

    return damage


def fill(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    name = "vit.encoder.layer.1.output.dense.weight"
    return lambda tensors: tensors[name].view(-1)[7:9].fill_(value)


QUERY = "vit.encoder.layer.1.attention.attention.query.weight"

CASES = [
    # the job file; what is wrong with fields alone is in tests/jobs/test_spec.py
    Case("a site that does not exist", at("tint", value={"site": "vit.layer.1"}),
         ("tint.site", "'vit.layer.1'", "did you mean 'vit.layers.1'")),
    Case("a site on disk that does not exist", at("tint", value={"site": "vit.encoder.layer.7"}),
         ("tint.site", "'vit.encoder.layer.7'", "did you mean")),
    # files
    Case("an expert that is a file", at("tasks", 2, "expert", value="five.npz"),
         ("tasks.five.expert", "five.npz", "folder")),
    Case("an expert without weights",
         lambda zoo, job: (zoo.folder / "five" / "model.safetensors").unlink(),
         ("tasks.five.expert", "no model.safetensors")),
    Case("a base without weights",
         lambda zoo, job: (zoo.folder / "base" / "model.safetensors").unlink(),
         ("base", "no model.safetensors")),
    Case("a pickle", pickled, ("tasks.five.expert", "pytorch_model.bin", "pickle", "convert")),
    Case("truncated weights", truncated,
         ("tasks.five.expert", "model.safetensors", "cut short", "cut short")),
    Case("a first expert without a config",
         lambda zoo, job: (zoo.folder / "two" / "config.json").unlink(),
         ("tasks.two.expert", "no config.json")),
    Case("no preprocessor",
         lambda zoo, job: (zoo.folder / "five" / "preprocessor_config.json").unlink(),
         ("tasks.five.expert", "preprocessor_config.json")),
    Case("data that is no archive", lambda zoo, job: (zoo.folder / "five.npz").write_text("text"),
         ("tasks.five.pool", "five.npz", "cannot be read")),
    # tensors
    Case("another hidden size", other_model("five", hidden_size=32),
         ("tasks.five.expert", "config.json", "hidden_size=32", "the base has 16")),
    Case("fewer layers", other_model("five", num_hidden_layers=2),
         ("tasks.five.expert", "num_hidden_layers=2", "the base has 3")),
    Case("more layers", other_model("five", num_hidden_layers=4),
         ("tasks.five.expert", "num_hidden_layers=4", "the base has 3")),
    Case("another kind of model", other_model("five", kind="deit"),
         ("tasks.five.expert", "model_type='deit'", "the base has 'vit'")),
    Case("another kind of model first", other_model("two", kind="deit"),
         ("tasks.two.expert", "model_type='deit'", "the base has 'vit'")),
    Case("a missing tensor", weights("five", lambda tensors: tensors.pop(QUERY)),
         ("tasks.five.expert", "lacks tensor 'vit.layers.1.attention.q_proj.weight'")),
    Case("a missing head", weights("five", lambda tensors: tensors.pop("classifier.bias")),
         ("tasks.five.expert", "lacks tensor 'classifier.bias'")),
    Case("an extra tensor",
         weights("five", lambda tensors: tensors.update({"vit.adapter.weight": torch.ones(2)})),
         ("tasks.five.expert", "has tensor 'vit.adapter.weight'")),
    Case("a tensor with NaN", weights("five", fill(torch.nan)),
         ("tasks.five.expert", "'vit.layers.1.mlp.fc2.weight'", "2 of 512", "NaN or infinite")),
    Case("a tensor with infinity", weights("three", fill(-torch.inf)),
         ("tasks.three.expert", "'vit.layers.1.mlp.fc2.weight'", "2 of 512")),
    Case("a base with NaN", weights("base", fill(torch.nan)),
         ("base", "'vit.layers.1.mlp.fc2.weight'", "NaN or infinite")),
    Case("a head of another width than its configuration", wrong_head,
         ("tasks.five.expert", "'classifier.", "[5", "[7")),
    Case("names of classes for an expert that has a head",
         at("tasks", 2, "zero_shot", value={"classes": ["a", "b", "c", "d", "e"]}),
         ("tasks.five.zero_shot", "expected a CLIP vision tower", "ViTForImageClassification")),
    # data
    Case(
        "a head whose width is not the number of classes",
        arrays("five", class_names=np.array(["a", "b", "c"])),
        ("tasks.five.pool", "names 3 classes", "head has 5"),
    ),
    Case("an empty pool", arrays("five", x_train=np.zeros((0, 16, 16, 3), np.uint8)),
         ("tasks.five.pool", "'x_train'", "five.npz", "is empty")),
    Case("an empty test set", arrays("five", x_test=np.zeros((0, 16, 16, 3), np.uint8)),
         ("tasks.five.test", "'x_test'", "five.npz", "is empty")),
    Case("a split that is none", at("tasks", 2, "pool", "split", value="trian"),
         ("tasks.five.pool", "'x_trian'", "did you mean 'x_train'")),
    Case("images of two channels", image_of_two_channels,
         ("tasks.five.pool", "[9, 16, 16, 2]", "expected uint8")),
    Case("images that are cut short or of another mode", images_that_cannot_be_read,
         ("tasks.five.pool", "2 of 3 examples", "max_bad allows 1", "1.png")),
    Case("no labels to test by", arrays("five", y_test=None), ("tasks.five.test", "'y_test'")),
    Case("a label outside the head", arrays("five", y_test=np.arange(48) % 6),
         ("tasks.five.test", "'y_test'", "label 5", "5 classes", "0 to 4")),
    Case("fewer labels than examples", arrays("five", y_test=np.zeros(47, int)),
         ("tasks.five.test", "'y_test'", "47 labels", "48 examples")),
]  # fmt: skip


@pytest.fixture
def job(tiny: TinyZoo, tmp_path: Path) -> tuple[TinyZoo, Job]:
    """A zoo and a job that are well, to be damaged."""
    return tiny.copy(tmp_path / "zoo"), tiny.job(tmp_path / "store")


def damaged(job: tuple[TinyZoo, Job], damage: Damage) -> Path:
    """The job file, after something was done to the zoo or the job."""
    zoo, description = job
    damage(zoo, description)
    path = zoo.folder / "job.yaml"
    path.write_text(yaml.safe_dump(description, sort_keys=False))
    return path


def assert_refused(words: list[object], said: tuple[str, ...]) -> None:
    """Exit code 2, and on standard error one last sentence with all of the words."""
    sentence = call(*words).sentence
    assert [word for word in said if word not in sentence] == [], sentence


def nothing_published(store: Path) -> bool:
    return not list(store.glob("merges/**/*"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_run_refuses_it_in_one_sentence(
    job: tuple[TinyZoo, Job], tmp_path: Path, case: Case
) -> None:
    path = damaged(job, case.damage)
    assert_refused(["run", path], case.words)
    assert nothing_published(tmp_path / "store")
    # Nothing was computed on the way: there is no self-label, no task vector, no other artifact.
    assert not list((tmp_path / "store").glob("cache/**/*.json"))


@pytest.mark.parametrize("name", ["a tensor with NaN", "an empty pool", "a label outside the head"])
def test_validate_says_the_same(job: tuple[TinyZoo, Job], name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    path = damaged(job, case.damage)
    assert_refused(["validate", path], case.words)


def test_the_undamaged_job_is_accepted(job: tuple[TinyZoo, Job]) -> None:
    """What the cases above are refused for is what was done to them, and nothing else."""
    path = damaged(job, lambda zoo, job: None)
    assert call("run", path).code == 0


def test_a_job_that_was_refused_is_failed_in_the_catalog_with_the_sentence(
    job: tuple[TinyZoo, Job], tmp_path: Path
) -> None:
    from tintray.storage.catalog.catalog import Catalog

    path = damaged(job, weights("five", fill(torch.nan)))
    said = call("run", path).sentence.removeprefix("error: ")
    with Catalog.open(f"sqlite:///{tmp_path}/store/catalog.db", create=False) as catalog:
        (found,) = catalog.jobs.all()
        assert found.state == "failed"
        assert catalog.jobs.events(found.id)[-1].reason == said
        assert catalog.merges.all() == []
