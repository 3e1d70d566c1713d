"""An expert that was not fine-tuned from the base: found, told of, and merged without harm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import ViTForImageClassification

import tintray
from tests.tiny_zoo import TASKS, TinyZoo
from tests.workbench import Workbench, tiny_workbench
from tintray.checkpoints.tensors import read_tensors
from tintray.jobs.config.job_file import parse_spec
from tintray.jobs.events import Notice
from tintray.models.base_similarity import base_similarity, is_unrelated


@pytest.fixture(scope="module")
def bench(tiny: TinyZoo) -> Workbench:
    return tiny_workbench(tiny)


def test_experts_of_the_base_are_kin_and_a_new_model_is_not(bench: Workbench) -> None:
    for expert in bench.experts.values():
        assert not is_unrelated(base_similarity(bench.base, expert))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        other = ViTForImageClassification(bench.base.config)
    assert abs(base_similarity(bench.base, other)) < 0.1
    assert base_similarity(bench.base, bench.base) == pytest.approx(1.0)


@pytest.fixture
def foreign(tiny: TinyZoo, tmp_path: Path) -> TinyZoo:
    """The zoo, with the expert of ``five`` from another start."""
    zoo = tiny.copy(tmp_path / "zoo")
    expert = ViTForImageClassification.from_pretrained(zoo.folder / "five")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        expert.vit.load_state_dict(ViTForImageClassification(expert.config).vit.state_dict())
    expert.save_pretrained(zoo.folder / "five")
    return zoo


def test_its_coefficients_start_at_zero_and_the_others_do_not(
    foreign: TinyZoo, tmp_path: Path
) -> None:
    told: list[str] = []

    def listen(event: object) -> None:
        if isinstance(event, Notice):
            told.append(event.text)

    job = foreign.job(tmp_path / "store", tint={"site": "vit.layers.1"})
    spec = parse_spec(job, folder=foreign.folder)
    assert any("tasks.five.expert" in notice for notice in tintray.validate(spec).notices)
    merge = tintray.run(spec, on_event=listen)
    assert sum("tasks.five.expert does not look fine-tuned" in text for text in told) == 1
    initial = read_tensors(merge.file("coefficients.safetensors"))["initial"]
    zero = [not row.any() for row in initial]
    assert zero == [name == "five" for name in TASKS]
    assert is_unrelated(merge.task("five").expert.base_similarity)
