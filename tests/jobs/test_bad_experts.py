"""An expert that guesses is told before the fit, and lifts no headline."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.tiny_zoo import TinyZoo
from tintray.jobs import api
from tintray.jobs.cli.tables import print_summary
from tintray.jobs.display.terminal import open_console
from tintray.jobs.events import Notice, PhaseStarted
from tintray.storage.artifacts.publish import parse_merge_url, read_manifest


def test_an_expert_that_always_answers_the_same_is_told_and_left_out(
    tiny: TinyZoo, tmp_path: Path
) -> None:
    zoo, events = tiny.copy(tmp_path / "zoo"), list[Any]()
    first = torch.tensor([100.0, 0, 0, 0, 0])
    for task in ("five", "four"):  # with a test set, and without
        path = zoo.folder / task / "model.safetensors"
        tensors = load_file(path)
        tensors["classifier.bias"] += first[: len(tensors["classifier.bias"])]
        save_file(tensors, path, metadata={"format": "pt"})
    spec = zoo.spec(tmp_path / "store", ("five", "four", "three"))
    summary = api.run(spec, on_event=events.append)
    phases = [event.phase if isinstance(event, PhaseStarted) else None for event in events]
    before = events[: phases.index("fitting")]
    told = [str(event) for event in before if isinstance(event, Notice)]
    assert any("task 'five': its expert cannot be told from one" in text for text in told)
    assert any("task 'four': its expert answers the same" in text for text in told)
    assert [task.at_chance for task in summary.tasks] == [True, True, False]
    assert summary.normalised_accuracy == summary.tasks[2].normalised
    assert [notice.split(":")[0] for notice in summary.notices] == ["task 'five'", "task 'four'"]
    table = api.evaluate("tiny", store=str(spec.store), catalog=str(spec.catalog))
    assert table.normalised_accuracy == summary.normalised_accuracy
    manifest = read_manifest(*parse_merge_url(summary.url))
    assert manifest["metrics"]["normalised_accuracy"] == summary.normalised_accuracy
    stream = io.StringIO()
    print_summary(summary, open_console(stream))
    assert "(100.0 %)" in stream.getvalue() and "note: task 'five'" in stream.getvalue()


def test_a_pool_of_one_class_is_fitted_and_told(tiny: TinyZoo, tmp_path: Path) -> None:
    zoo = tiny.copy(tmp_path / "zoo")
    arrays = zoo.arrays("three")
    same = arrays["y_train"].argmin().repeat(len(arrays["y_train"]))
    zoo.replace_arrays("three", x_train=arrays["x_train"][same], y_train=arrays["y_train"][same])
    summary = api.run(zoo.spec(tmp_path / "store", ("two", "three")))
    assert not any(task.at_chance for task in summary.tasks)
    (notice,) = summary.notices
    assert notice.startswith("task 'three': its expert answers the same for each of the 40")
