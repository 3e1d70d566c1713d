"""Bad input through the command line: exit code 2, one sentence, no merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import DeiTConfig as DeiT
from transformers import DeiTForImageClassification, ViTForImageClassification
from transformers import ViTConfig as ViT

from tests.answers import call
from tests.tiny_zoo import TinyZoo
from tintray.storage.catalog.catalog import Catalog

Job = dict[str, Any]
Damage = Callable[[TinyZoo, Job], object]


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
        layers = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
        images = {"intermediate_size": 32, "image_size": 16, "patch_size": 4, "num_labels": 5}
        config: Any = ViT if kind == "vit" else DeiT
        model: Any = ViTForImageClassification if kind == "vit" else DeiTForImageClassification
        model(config(**(layers | images | sizes))).save_pretrained(zoo.folder / task)

    return damage


def arrays(task: str, **changed: Any) -> Damage:
    return lambda zoo, job: zoo.replace_arrays(task, **changed)


def without(file: str) -> Damage:
    return lambda zoo, job: (zoo.folder / file).unlink()


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


def images_that_cannot_be_read(zoo: TinyZoo, job: Job) -> None:
    """A folder of three images, of which one is cut short and one has 16 bits a pixel."""
    folder = zoo.folder / "pictures"
    folder.mkdir()
    for number in range(3):
        kind = np.uint16 if number == 2 else np.uint8
        Image.fromarray(np.full((16, 16), 90, kind)).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:45])
    job["tasks"][2]["pool"] = {"path": "pictures", "max_bad": 1}


def at(*path: str | int, value: Any) -> Damage:
    """Change one field of the job."""

    def damage(zoo: TinyZoo, job: Job) -> None:
        section: Any = job
        for step in path[:-1]:
            section = section[step]
        section[path[-1]] = value

    return damage


def fill(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    name = "vit.encoder.layer.1.output.dense.weight"
    return lambda tensors: tensors[name].view(-1)[7:9].fill_(value)


QUERY = "vit.encoder.layer.1.attention.attention.query.weight"

# What is wrong -> how, and the words that must say so. What is wrong with fields of the job file
# alone is in tests/jobs/test_spec.py.
CASES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "a site that does not exist": (at("tint", value={"sites": "vit.layer.1"}),
        ("tint.sites", "'vit.layer.1'", "did you mean 'vit.layers.1'")),
    "a site on disk that does not exist": (at("tint", value={"sites": "vit.encoder.layer.7"}),
        ("tint.sites", "'vit.encoder.layer.7'", "did you mean")),
    # files
    "an expert that is a file": (at("tasks", 2, "expert", value="five.npz"),
        ("tasks.five.expert", "five.npz", "folder")),
    "an expert without weights": (without("five/model.safetensors"),
        ("tasks.five.expert", "no model.safetensors")),
    "a base without weights": (without("base/model.safetensors"),
        ("base", "no model.safetensors")),
    "a pickle": (pickled, ("tasks.five.expert", "pytorch_model.bin", "pickle", "convert")),
    "truncated weights": (truncated, ("tasks.five.expert", "model.safetensors", "cut short")),
    "a first expert without a config": (without("two/config.json"),
        ("tasks.two.expert", "no config.json")),
    "no preprocessor": (without("five/preprocessor_config.json"),
        ("tasks.five.expert", "preprocessor_config.json")),
    "data that is no archive": (lambda zoo, job: (zoo.folder / "five.npz").write_text("text"),
        ("tasks.five.pool", "five.npz", "cannot be read")),
    # tensors
    "another hidden size": (other_model("five", hidden_size=32),
        ("tasks.five.expert", "config.json", "hidden_size=32", "the base has 16")),
    "fewer layers": (other_model("five", num_hidden_layers=2),
        ("tasks.five.expert", "num_hidden_layers=2", "the base has 3")),
    "another kind of model": (other_model("five", kind="deit"),
        ("tasks.five.expert", "model_type='deit'", "the base has 'vit'")),
    "another kind of model first": (other_model("two", kind="deit"),
        ("tasks.two.expert", "model_type='deit'", "the base has 'vit'")),
    "a missing tensor": (weights("five", lambda tensors: tensors.pop(QUERY)),
        ("tasks.five.expert", "lacks tensor 'vit.layers.1.attention.q_proj.weight'")),
    "a missing head": (weights("five", lambda tensors: tensors.pop("classifier.bias")),
        ("tasks.five.expert", "lacks tensor 'classifier.bias'")),
    "an extra tensor": (
        weights("five", lambda tensors: tensors.update({"vit.adapter.weight": torch.ones(2)})),
        ("tasks.five.expert", "has tensor 'vit.adapter.weight'")),
    "a tensor with NaN": (weights("five", fill(torch.nan)),
        ("tasks.five.expert", "'vit.layers.1.mlp.fc2.weight'", "2 of 512", "NaN or infinite")),
    "a tensor with infinity": (weights("three", fill(-torch.inf)),
        ("tasks.three.expert", "'vit.layers.1.mlp.fc2.weight'", "2 of 512")),
    "a base with NaN": (weights("base", fill(torch.nan)),
        ("base", "'vit.layers.1.mlp.fc2.weight'", "NaN or infinite")),
    "a head of another width than its configuration": (wrong_head,
        ("tasks.five.expert", "'classifier.", "[5", "[7")),
    "names of classes for an expert that has a head": (
        at("tasks", 2, "zero_shot", value={"classes": ["a", "b", "c", "d", "e"]}),
        ("tasks.five.zero_shot", "expected a CLIP vision tower", "ViTForImageClassification")),
    # data
    "a head whose width is not the number of classes": (
        arrays("five", class_names=np.array(["a", "b", "c"])),
        ("tasks.five.pool", "names 3 classes", "head has 5")),
    "an empty pool": (arrays("five", x_train=np.zeros((0, 16, 16, 3), np.uint8)),
        ("tasks.five.pool", "'x_train'", "five.npz", "is empty")),
    "an empty test set": (arrays("five", x_test=np.zeros((0, 16, 16, 3), np.uint8)),
        ("tasks.five.test", "'x_test'", "five.npz", "is empty")),
    "a split that is none": (at("tasks", 2, "pool", "split", value="trian"),
        ("tasks.five.pool", "'x_trian'", "did you mean 'x_train'")),
    "images of two channels": (arrays("five", x_train=np.zeros((9, 16, 16, 2), np.uint8)),
        ("tasks.five.pool", "[9, 16, 16, 2]", "expected uint8")),
    "images that are cut short or of another mode": (images_that_cannot_be_read,
        ("tasks.five.pool", "2 of 3 examples", "max_bad allows 1", "1.png")),
    "no labels to test by": (arrays("five", y_test=None), ("tasks.five.test", "'y_test'")),
    "a label outside the head": (arrays("five", y_test=np.arange(48) % 6),
        ("tasks.five.test", "'y_test'", "label 5", "5 classes", "0 to 4")),
    "fewer labels than examples": (arrays("five", y_test=np.zeros(47, int)),
        ("tasks.five.test", "'y_test'", "47 labels", "48 examples")),
}  # fmt: skip


@pytest.fixture
def damaged(tiny: TinyZoo, tmp_path: Path) -> Callable[[Damage], Path]:
    """The file of a job that is well, but for what was done to it or to its zoo."""
    zoo, job = tiny.copy(tmp_path / "zoo"), tiny.job(tmp_path / "store")

    def write(damage: Damage) -> Path:
        damage(zoo, job)
        path = zoo.folder / "job.yaml"
        path.write_text(yaml.safe_dump(job, sort_keys=False))
        return path

    return write


@pytest.mark.parametrize(
    ("case", "command"),
    [*((case, "run") for case in CASES), ("a tensor with NaN", "validate"),
     ("an empty pool", "validate"), ("a label outside the head", "validate")],
)  # fmt: skip
def test_it_is_refused_in_one_sentence(
    damaged: Callable[[Damage], Path], tmp_path: Path, case: str, command: str
) -> None:
    damage, words = CASES[case]
    sentence = call(command, damaged(damage)).sentence
    assert [word for word in words if word not in sentence] == [], sentence
    # Nothing was published, nor computed on the way: no self-label, no task vector.
    assert not [*tmp_path.glob("store/merges/**/*"), *tmp_path.glob("store/cache/**/*.json")]


def test_the_undamaged_job_is_accepted(damaged: Callable[[Damage], Path]) -> None:
    """What the cases above are refused for is what was done to them, and nothing else."""
    assert call("run", damaged(lambda zoo, job: None)).code == 0


def test_a_job_that_was_refused_is_failed_in_the_catalog_with_the_sentence(
    damaged: Callable[[Damage], Path], tmp_path: Path
) -> None:
    path = damaged(weights("five", fill(torch.nan)))
    said = call("run", path).sentence.removeprefix("error: ")
    with Catalog.open(f"sqlite:///{tmp_path}/store/catalog.db", create=False) as catalog:
        assert catalog.merges.all() == []
        (found,) = catalog.jobs.all()
        assert found.state == "failed"
        assert catalog.jobs.events(found.id)[-1].reason == said
