"""CLIP vision towers with heads made of texts: the classic setting of model merging."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

import tintray
from tests import tiny_models as tiny
from tests.elsewhere import in_truth
from tests.jobs.test_elsewhere import HEAVY, apart, filled
from tintray.checkpoints.model_folder import ZeroShot, open_model_folder
from tintray.errors import CheckpointError, SpecError
from tintray.jobs import api
from tintray.models import clip
from tintray.models.calling import answer
from tintray.models.loading import load_expert
from tintray.tasks.registry import find_kind

COLOURS = {"w0": (220, 40, 40), "w1": (40, 220, 40), "w2": (40, 40, 220)}
SHADES = {"w3": 60, "w4": 190}
TEMPLATES = ["w10 w11 {}", "w12 {}"]


def processor() -> Any:
    from transformers import CLIPImageProcessor

    size = {"height": 16, "width": 16}
    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)


def pictures(task: str, count: int, seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    images = random.normal(0, 45, (count, 16, 16, 3))
    values = list(COLOURS.values()) if task == "colours" else list(SHADES.values())
    labels = random.integers(0, len(values), count)
    images += np.array(values)[labels].reshape(count, 1, 1, -1) * 0.5 + 50
    return np.clip(images, 0, 255).astype(np.uint8), labels


def pixels(images: Any) -> torch.Tensor:
    found: torch.Tensor = processor()(list(images), return_tensors="pt")["pixel_values"]
    return found


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP that has learned what colours are called, and two towers fine-tuned from its own."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    text = {"num_hidden_layers": 1, "max_position_embeddings": 16, "projection_dim": 8}
    text |= {"bos_token_id": 2, "eos_token_id": 3}
    vision = tiny.SIZES | {"image_size": 16, "patch_size": 8, "projection_dim": 8}
    configs = {"text_config": tiny.BERT | text, "vision_config": vision}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(**configs, projection_dim=8, logit_scale_init_value=2.0))
    model.train()
    images, labels = pictures("colours", 32, 0)
    texts = [TEMPLATES[n % 2].replace("{}", list(COLOURS)[label]) for n, label in enumerate(labels)]
    tokens = dict(tiny.tokenizer()(texts, padding=True, return_tensors="pt"))
    tokens.pop("token_type_ids", None)
    same = torch.tensor(labels[:, None] == labels[None, :])
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(20):
        logits = model(pixel_values=pixels(images), **tokens).logits_per_image
        loss = -(logits.log_softmax(-1).exp() * same).sum(-1).log().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    model.save_pretrained(folder / "base")
    tiny.tokenizer().save_pretrained(folder / "base")
    processor().save_pretrained(folder / "base")
    base = open_model_folder(folder / "base")
    for name, classes in {"colours": COLOURS, "shades": SHADES}.items():
        model.vision_model.save_pretrained(folder / name)  # the tower alone, as on the hub
        opened = open_model_folder(folder / name, base=base)
        told = opened.with_classes(ZeroShot(tuple(classes), tuple(TEMPLATES)))
        expert: Any = load_expert(told)
        images, labels = pictures(name, 48, 1)
        tests, right = pictures(name, 40, 2)
        names = {} if name == "shades" else {"class_names": np.array(list(classes))}
        arrays = {"x_train": images, "y_train": labels, "x_test": tests, "y_test": right}
        np.savez(folder / f"{name}.npz", **arrays, **names)
        batch, target = pixels(images), torch.tensor(labels)
        optimiser = torch.optim.Adam(expert.vision_model.parameters(), lr=3e-3)
        for _ in range(40):
            loss = torch.nn.functional.cross_entropy(expert(batch).logits, target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        expert.vision_model.save_pretrained(folder / name)
    return folder


def job(folder: Path, store: Path, rounds: int = 2, **shades: Any) -> Any:
    """The data of one task name its classes; those of the other one are named by the job."""
    from tintray.jobs.config.job_file import parse_spec

    tasks: list[dict[str, Any]] = [
        {"name": name, "expert": name, "pool": {"path": f"{name}.npz"}}
        | {"test": {"path": f"{name}.npz", "split": "test"}}
        | {"zero_shot": {**own, "templates": TEMPLATES}}
        for name, own in {"colours": {}, "shades": {"classes": list(SHADES)}}.items()
    ]
    fit = {"rounds": rounds, "batch_size": 8, "precision": "float32"}
    document = {"name": "clip", "base": "base", "tasks": [tasks[0], tasks[1] | shades], "fit": fit}
    document |= {"cluster": {"workers": 0}, "store": str(store)}
    return parse_spec(document, folder=folder)


def test_towers_are_merged_and_exported_for_transformers(zoo: Path, tmp_path: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    spec = job(zoo, tmp_path / "store", rounds=30)
    summary = api.run(spec)
    assert min(task.expert or 0 for task in summary.tasks) > 0.9
    assert summary.normalised_accuracy > 0.9
    merge = tintray.load(summary.url)
    assert "classifier.weight" in merge.tint("shades")
    assert "visual_projection.weight" in merge.backbone  # shared, in memory once
    batch = pixels(pictures("colours", 5, 9)[0])
    exported = merge.export("colours", tmp_path / "colours")
    tower = CLIPVisionModelWithProjection.from_pretrained(exported).eval()
    head = load_file(exported / "zero_shot_head.safetensors")["weight"]
    module = merge.for_task("colours")
    with torch.inference_mode():
        logits = answer(module, {"pixel_values": batch})
        plain = normalize(tower(pixel_values=batch).image_embeds) @ head.T
        ours = clip.CLIPZeroShotClassifier.open(exported)(batch).logits
    assert torch.allclose(plain, logits, atol=1e-5)
    assert torch.allclose(ours, logits, atol=1e-5)
    assert tower.config.id2label == {0: "w0", 1: "w1", 2: "w2"}
    card = (exported / "README.md").read_text()
    assert "CLIPVisionModelWithProjection.from_pretrained(FOLDER)" in card
    again = api.evaluate(summary.url, store=spec.store, catalog=spec.catalog)
    assert [task.merged for task in again.tasks] == [task.merged for task in summary.tasks]
    # an export is an expert again, with the head that it has learned
    base = open_model_folder(zoo / "base")
    expert = load_expert(open_model_folder(exported, base=base))
    with torch.inference_mode():
        found = answer(expert, {"pixel_values": batch})
    assert torch.allclose(found, logits, atol=1e-5)


def test_a_merge_takes_in_another_tower(zoo: Path, tmp_path: Path) -> None:
    spec = job(zoo, tmp_path / "store", rounds=10)
    block = spec.changed(tint={"sites": "vision_model.encoder.layers.0"})
    summary = tiny.check_growth(block, tmp_path)
    again = tintray.load(summary.url, catalog=spec.catalog).evaluate()
    assert again.tasks[-1].merged == summary.tasks[-1].merged > 0.5
    exported = tintray.load(summary.url).export("shades", tmp_path / "shades")
    assert load_file(exported / "zero_shot_head.safetensors")["weight"].shape[0] == len(SHADES)


def test_a_head_of_texts_is_what_clip_answers(zoo: Path) -> None:
    from transformers import CLIPModel

    whole = CLIPModel.from_pretrained(zoo / "base").eval()
    base = open_model_folder(zoo / "base")
    tower = open_model_folder(zoo / "base", base=base)
    expert = load_expert(tower.with_classes(ZeroShot(tuple(COLOURS), ("w10 w11 {}",))))
    texts = tiny.tokenizer()([f"w10 w11 {name}" for name in COLOURS], return_tensors="pt")
    batch = pixels(pictures("colours", 4, 3)[0])
    with torch.inference_mode():
        known = {"input_ids": texts["input_ids"], "attention_mask": texts["attention_mask"]}
        expected = whole(pixel_values=batch, **known).logits_per_image
        found = answer(expert, {"pixel_values": batch})
    assert torch.allclose(found, expected, atol=1e-4)


def test_the_text_tower_runs_once_for_a_head(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Mock(wraps=clip.text_head)
    monkeypatch.setattr(clip, "text_head", asked)
    for _ in range(2):
        api.run(job(zoo, tmp_path / "store"))
    found = [call.args[1].classes for call in asked.call_args_list]
    assert found == [tuple(COLOURS), tuple(SHADES)]


def averaged(folder: Path, store: Path, gpus: int) -> dict[str, torch.Tensor]:
    """The heads of a merge by a method."""
    spec = job(folder, store).changed(
        merge={"method": "average"}, cluster={"gpus_per_worker": gpus}, tint={"sites": "head"}
    )
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(clip, "load_weights", in_truth(filled(clip.load_weights)))
        merge = tintray.load(api.run(spec).url)
    return {task: merge.tint(task)["classifier.weight"] for task in merge.tasks}


def test_a_head_of_texts_is_made_where_the_job_computes(zoo: Path, tmp_path: Path) -> None:
    here = averaged(zoo, tmp_path / "here", 0)
    there, in_memory = apart(averaged, zoo, tmp_path / "there", 1)
    assert HEAVY.isdisjoint(in_memory)
    assert here.keys() == there.keys()
    for task, head in here.items():
        torch.testing.assert_close(there[task], head)
    tower = open_model_folder(zoo / "colours", base=open_model_folder(zoo / "base"))
    named = tower.with_classes(ZeroShot(("w0",)))
    assert clip.head_key(named, "x", "cuda") != clip.head_key(named, "x")  # GPUs round otherwise


def test_labels_keep_the_names_of_the_data_whatever_prompts_say(zoo: Path, tmp_path: Path) -> None:
    """A data set says dense_residential, its prompts say it in two words, or in others."""
    from PIL import Image

    from tintray.data.labels import Answers
    from tintray.data.source import DataSource
    from tintray.jobs.engine.configs import TaskConfig
    from tintray.jobs.engine.task_files import open_expert

    for name in ("a_red_one", "green"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "train" / name / "0.png")
    data = DataSource(str(tmp_path))
    order = TaskConfig(
        "x", "classification", str(zoo / "colours"), data, None, base=str(zoo / "base")
    )
    plain = open_expert(order, tmp_path)
    told = open_expert(replace(order, classes=("w0", "w1")), tmp_path)
    for found, classes in ((plain, ("a_red_one", "green")), (told, ("w0", "w1"))):
        assert found.zero_shot is not None
        assert found.zero_shot.classes == classes
        assert found.config["label2id"] == {"a_red_one": 0, "green": 1}
        known = Answers(2, found.config["label2id"])
        assert find_kind("classification").read_labels(data, [0, 1], known, "x").tolist() == [0, 1]
    base = open_model_folder(zoo / "base")
    heads = [clip.text_head(base, ZeroShot((n,)), "x") for n in ("w0_w1", "w0 w1")]
    assert torch.equal(*heads)


def test_what_a_head_cannot_be_made_of_is_refused(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"zero_shot\.classes: .* does not name its classes"):
        api.run(job(zoo, tmp_path, zero_shot={}))
    with pytest.raises(SpecError, match=r"shades\.zero_shot\.templates: .*'\{\}'.* 'a photo'"):
        job(zoo, tmp_path, zero_shot={"templates": ["a photo"]})
    with pytest.raises(SpecError, match=r"a different name for each class, found 'w1' twice"):
        job(zoo, tmp_path, zero_shot={"classes": ["w1", "w1"]})
    spec = job(zoo, tmp_path, zero_shot={"classes": ["w3", "w4", "w5"]})
    summary = api.run(spec)  # a class that no example has is no mistake
    assert summary.tasks[1].merged >= 0
    tower = open_model_folder(zoo / "shades", base=open_model_folder(zoo / "shades"))
    with pytest.raises(CheckpointError, match=r"has the tensor 'visual_projection\.weight'"):
        load_expert(tower)
    with pytest.raises(CheckpointError, match=r"has no text tower"):
        clip.text_head(open_model_folder(zoo / "shades"), ZeroShot(("w1",)), "tasks.x.expert")
