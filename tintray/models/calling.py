"""Ask any model: inputs by name in, one tensor of answers out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tintray.data.labels import Answers
from tintray.errors import CheckpointError
from tintray.models.structure import head_modules

_ANSWERS = ("logits", "predicted_depth", "prediction")


def answer(module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """What the model answers: its logits, its depths, or the one tensor that it returns.

    A module that knows no argument called so is given its inputs by position.

    Raises CheckpointError if there is no such answer in what the model returns.
    """
    output = _call(module, inputs)
    if isinstance(output, Tensor):
        return output
    for name in _ANSWERS:
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    raise CheckpointError(
        f"{type(module).__name__} returns a {type(output).__name__} without answers; expected a "
        f"tensor, or an output with {', '.join(_ANSWERS)}: is it a model with a task head?"
    )


def _call(module: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    if not hasattr(module, "config"):
        known = inspect.signature(module.forward).parameters.values()
        by_name = any(p.kind is p.VAR_KEYWORD for p in known)
        if not by_name and not {p.name for p in known} >= inputs.keys():
            return module(*inputs.values())
        return module(**inputs)
    if getattr(module.config, "use_cache", False):
        return module(**inputs, use_cache=False)  # nothing is generated: keys are not kept
    return module(**inputs)


def answer_width(module: nn.Module) -> int:
    """How many classes or values a model answers with.

    Where nothing tells, as with a module from a factory, it is the width of the head's last tensor.
    """
    config = getattr(module, "config", None)
    owner = module if hasattr(module, "num_labels") else config
    told = int(getattr(owner, "num_labels", 0) or 0)
    if told:
        return told
    heads = tuple(f"{path}." for path in head_modules(module))
    last = [parameter for name, parameter in module.named_parameters() if name.startswith(heads)]
    return last[-1].shape[0] if last else 0


def answer_space(module: nn.Module, width: int, role: str = "the expert") -> Answers:
    """What a model answers with, for labels to be checked against.

    Raises CheckpointError if the two maps of its configuration, of classes and of names, contradict
    each other.
    """
    config = getattr(module, "config", None)
    by_number = getattr(config, "id2label", None) or {}
    for name, number in (getattr(config, "label2id", None) or {}).items():
        named = by_number.get(int(number), by_number.get(str(number)))
        if named is not None and named != name:
            raise CheckpointError(
                f"{role}: config.json calls class {number} {named!r} in id2label and {name!r} in "
                "label2id; expected each to be the inverse of the other"
            )
    names = {str(k): int(v) for k, v in (getattr(config, "label2id", None) or {}).items()}
    generic = all(name == f"LABEL_{index}" for name, index in names.items())
    return Answers(width, {} if generic else names)
