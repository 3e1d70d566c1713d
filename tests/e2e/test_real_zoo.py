"""The same on real experts: a small ViT fine-tuned on data sets that exist."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

import tintray
from tests.conftest import Published
from tintray.jobs import api
from tintray.jobs.events import Notice, RoundDone

pytestmark = pytest.mark.zoo

# Test accuracy of each expert in per cent, as who made them measured it.
EXPERTS = {"mnist": 92.6, "eurosat": 80.2, "quickdraw5": 90.1}
EXAMPLES = 160  # of each split: enough to see, few enough to be quick


@pytest.fixture(scope="module")
def real(real_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Three experts of different kinds, 24 rounds, the last block tinted."""
    folder = tmp_path_factory.mktemp("real")
    for task in EXPERTS:
        with np.load(real_zoo / "data/vision" / f"{task}.npz") as arrays:
            np.savez(folder / f"{task}.npz", **{k: arrays[k][:EXAMPLES] for k in arrays.files})
    spec = tintray.parse_spec(job(real_zoo, folder, {"sites": "vit.encoder.layer.5"}))
    events: list[Any] = []
    return Published(spec, api.run(spec, on_event=events.append), events)


def job(real_zoo: Path, folder: Path, tint: Mapping[str, Any]) -> dict[str, Any]:
    tasks = [
        {"name": task, "expert": str(real_zoo / "zoo" / task)}
        | {"pool": {"path": str(folder / f"{task}.npz")}}
        | {"test": {"path": str(folder / f"{task}.npz"), "split": "test"}}
        for task in EXPERTS
    ]
    document = {"name": "real", "base": str(real_zoo / "zoo/base"), "tasks": tasks, "tint": tint}
    fit = {"fit": {"rounds": 24}, "cluster": {"workers": 0}}
    return document | fit | {"store": str(folder / "store")}


def test_experts_are_as_good_as_who_made_them_says(real: Published) -> None:
    """So images reach them as they did in training."""
    for task in real.summary.tasks:
        assert 100 * task.expert == pytest.approx(EXPERTS[task.name], abs=7), task.name


def test_none_is_said_to_be_far_from_the_rest(real: Published) -> None:
    told = [event.text for event in real.events if isinstance(event, Notice)]
    assert not [text for text in told if "far from the rest" in text]


def test_a_fit_raises_agreement(real: Published) -> None:
    rounds = [event for event in real.events if isinstance(event, RoundDone)]
    early, late = (
        np.mean([list(event.agreement.values()) for event in part])
        for part in (rounds[:5], rounds[-5:])
    )
    assert late > early + 0.1


def test_an_export_answers_exactly_as_the_merge(real: Published, tmp_path: Path) -> None:
    merge = tintray.load(real.summary.url)
    for task in EXPERTS:
        source = next(t.test.path for t in real.spec.tasks if t.name == task and t.test)
        with np.load(source) as arrays:
            images = arrays["x_test"][:32]
        model = AutoModelForImageClassification.from_pretrained(merge.export(task, tmp_path / task))
        processor = AutoImageProcessor.from_pretrained(tmp_path / task)
        rgb = [np.stack([i] * 3, -1) if i.ndim == 2 else i for i in images]
        pixels = processor(rgb, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            exported = model(pixel_values=pixels).logits
            assert torch.equal(exported, merge.for_task(task)(pixel_values=pixels).logits)


def test_the_merge_is_smaller_than_its_experts(real: Published) -> None:
    summary = real.summary
    block = 4 * 128 + 4 * (128 * 128 + 128) + 2 * 128 * 512 + 512 + 128
    merge = tintray.load(summary.url)
    heads = {task: 129 * len(merge.config(task)["id2label"]) for task in EXPERTS}
    owned = {task: block + head for task, head in heads.items()}
    assert summary.tint_parameters_per_task == owned
    separate = summary.backbone_parameters * len(EXPERTS) + sum(heads.values())
    assert summary.separate_parameters == separate
    assert summary.merged_parameters < summary.separate_parameters
    stored = sum(path.stat().st_size for path in (real.folder / "tints").iterdir())
    stored += (real.folder / "backbone.safetensors").stat().st_size
    private = sum(owned.values())
    assert stored == pytest.approx(4 * (summary.backbone_parameters - block + private), rel=0.01)
