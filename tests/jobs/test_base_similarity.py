"""An expert that was not fine-tuned from the base: found, told of, and merged without harm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import ViTForImageClassification

import tintray
from tests.tiny_zoo import TASKS, TinyZoo
from tests.workbench import tiny_workbench
from tintray.jobs.events import Event, Notice
from tintray.models.base_similarity import change, is_unrelated


def from_another_start(model: ViTForImageClassification) -> ViTForImageClassification:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return ViTForImageClassification(model.config)


def test_experts_of_the_base_are_kin_and_a_new_model_is_not(tiny: TinyZoo) -> None:
    bench = tiny_workbench(tiny)
    for expert in bench.experts.values():
        found = change(bench.base, expert)
        assert not is_unrelated(found.similarity) and found.size > 0
    assert abs(change(bench.base, from_another_start(bench.base)).similarity) < 0.1
    same = change(bench.base, bench.base)
    assert (same.similarity, same.size, float(same.sketch.norm())) == (pytest.approx(1.0), 0, 0)


def test_its_coefficients_start_at_zero_and_the_others_do_not(
    tiny: TinyZoo, tmp_path: Path
) -> None:
    zoo, told = tiny.copy(tmp_path / "zoo"), []
    expert = ViTForImageClassification.from_pretrained(zoo.folder / "five")
    expert.vit.load_state_dict(from_another_start(expert).vit.state_dict())
    expert.save_pretrained(zoo.folder / "five")

    def listen(event: Event) -> None:
        told.extend([event.text] if isinstance(event, Notice) else [])

    spec = zoo.spec(tmp_path / "store", tint={"sites": "vit.layers.1"})
    assert any("tasks.five.expert" in notice for notice in tintray.validate(spec).notices)
    merge = tintray.run(spec, on_event=listen)
    assert sum("tasks.five.expert does not look fine-tuned" in text for text in told) == 1
    initial = merge.tensors("coefficients.safetensors")["initial"]
    assert [not row.any() for row in initial] == [name == "five" for name in TASKS]
    assert is_unrelated(merge.task("five").expert.base_similarity)
