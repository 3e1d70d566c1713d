"""Exports for PEFT, loaded and asked as their users would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tintray.models.calling import answer
from tintray.published.exported import Exported


def load(merge: Any, found: Exported) -> Any:
    """The backbone with an adapter for each task."""
    import transformers
    from peft import PeftModel

    architecture = merge.config(found.tasks[0].task)["architectures"][0]
    folder = Path(found.path)
    base = getattr(transformers, architecture).from_pretrained(folder / "base").eval()
    first, *others = found.tasks
    model = PeftModel.from_pretrained(base, folder / first.path, adapter_name=first.task)
    for task in others:
        model.load_adapter(folder / task.path, task.task)
    return model.eval()


class Mixed(nn.Module):
    """A PEFT model whose batch has a task for each example."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names, self.config = model, list(names), model.config

    def forward(self, **given: Any) -> Any:
        return self.model(**given, adapter_names=self.names)


def check(merge: Any, found: Exported, inputs: Mapping[str, Tensor], atol: float = 1e-3) -> None:
    """Each task answers as the merge does: alone, and in a batch of all tasks if there is one."""
    model, names = load(merge, found), [task.task for task in found.tasks]
    expected: dict[str, Tensor] = {}
    with torch.inference_mode():
        for name in names:
            model.set_adapter(name)
            expected[name] = answer(merge.for_task(name), inputs)
            _compare(answer(model, inputs), expected[name], atol)
        if not found.mixed:
            return
        batch = {key: torch.cat([tensor] * len(names)) for key, tensor in inputs.items()}
        if any("position_ids" in text for text in found.notices):
            ids = batch["input_ids"]
            batch["position_ids"] = torch.arange(ids.shape[1]).expand_as(ids)
        count = len(next(iter(inputs.values())))
        mixed = answer(Mixed(model, [name for name in names for _ in range(count)]), batch)
        for own, name in zip(mixed.split(count), names, strict=True):
            _compare(own, expected[name], atol)


def _compare(found: Tensor, expected: Tensor, atol: float) -> None:
    """Alike, and of classes that a task has not a probability of 0."""
    width = expected.shape[1]
    assert torch.allclose(found[:, :width], expected, atol=atol)
    if found.shape[1] > width:
        assert not found.softmax(1)[:, width:].any()
