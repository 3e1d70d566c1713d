"""Jobs that tint several modules, or by a low-rank product, end in merges like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

import tintray
from tests.tiny_zoo import TEST, TinyZoo
from tintray.jobs import api
from tintray.jobs.config.job_file import parse_spec

SITES: list[dict[str, Any]] = [
    {"site": "vit.layers.1", "rank": 2},
    {"site": "norms"},
    {"site": "*.attention"},
]


@pytest.mark.parametrize("tint", SITES, ids=["low rank", "norms", "pattern"])
def test_a_merge_answers_alike_wherever_it_is_asked(
    tiny: TinyZoo, tmp_path: Path, tint: dict[str, Any]
) -> None:
    """In the fit's own evaluation, measured again, as a module, and exported."""
    spec = parse_spec(tiny.job(tmp_path / "store", tint=tint), folder=tiny.folder)
    summary = tintray.run(spec)
    merge = tintray.load(summary.url)
    again = api.evaluate(summary.url, store=str(spec.store), catalog=spec.catalog)
    assert [t.merged for t in again.tasks] == pytest.approx([t.merged for t in summary.tasks])
    five = next(task for task in summary.tasks if task.name == "five")
    arrays = tiny.arrays("five")
    exported = merge.export("five", tmp_path / "five")
    processor = AutoImageProcessor.from_pretrained(exported)
    images = [Image.fromarray(image).convert("RGB") for image in arrays["x_test"]]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    models = (merge.for_task("five"), AutoModelForImageClassification.from_pretrained(exported))
    for model in models:
        with torch.inference_mode():
            answers = model.eval()(pixel_values=pixels).logits.argmax(-1).numpy()
        right = float(np.mean(answers == arrays["y_test"]))
        assert right == pytest.approx(five.merged, abs=1.5 / TEST)
    assert five.tint_parameters > 0
