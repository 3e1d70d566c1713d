"""Merge whole checkpoints, as a command asks for it: texts in, events out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tintray.checkpoints.model_folder import ModelFolder, open_model_folder
from tintray.errors import SpecError
from tintray.jobs.config.fields import memory_bytes
from tintray.jobs.config.job_file import ADAMERGING, MOST_SCALE, SURGERY
from tintray.jobs.engine.sources import cache_folder, local_folder
from tintray.jobs.events import Notice, OnEvent, StageStarted, TensorsMerged
from tintray.merging import recipe
from tintray.merging.declaration import Value
from tintray.merging.files.writing import merge_checkpoints


def merge_models(
    base: str,
    experts: Sequence[str],
    output: Path,
    *,
    method: str,
    parameters: Sequence[str],
    scale: float | None,
    seed: int,
    memory: str,
    shard: str,
    on_event: OnEvent,
) -> Path:
    """Merge the models at these locations into the folder ``output``; see ``merge_checkpoints``.

    Raises
    ------
    InputError
        If anything that was given cannot be used; nothing is written then.
    """
    if method in (*ADAMERGING, SURGERY):
        raise SpecError(
            f"--method: '{method}' learns on the tasks' unlabelled pools; run it as a job with "
            f"merge.method: {method}, or choose a method that needs no data"
        )
    found = recipe(method, _parameters(parameters), seed=seed)
    if scale is not None and not 0 < scale <= MOST_SCALE:
        raise SpecError(f"--scale: expected a number from 0 to {MOST_SCALE:g}, found {scale:g}")
    bound, largest = byte_size("--memory", memory), byte_size("--shard", shard)
    names = _names(experts)
    roles = {f"expert '{expert}'": expert for expert in experts}  # one may be given twice
    first, *others = open_alike(roles, base, on_event)
    opened = dict(zip(roles.values(), others, strict=True))
    many = "expert" if len(experts) == 1 else "experts"
    on_event(StageStarted("merging", f"{len(experts)} {many} by {method}"))
    return merge_checkpoints(
        first,
        {name: opened[expert] for name, expert in zip(names, experts, strict=True)},
        output,
        found,
        scale=scale,
        memory=bound,
        shard_bytes=largest,
        progress=lambda done, total: on_event(TensorsMerged(method, done, total)),
    )


def open_alike(
    others: Mapping[str, str],
    base: str,
    on_event: OnEvent,
    *,
    role: str = "the base",
    any_layers: bool = False,
) -> list[ModelFolder]:
    """The base and the others, roles to locations, opened; models of one meaning, or refused.

    With ``any_layers`` they may have different numbers of layers.

    Raises
    ------
    CheckpointError
        If one cannot be opened, or its tensors mean something else; see ``check_same_model``.
    """
    from tintray.models.comparing import check_same_classes, check_same_model

    cache = cache_folder()
    opened = [open_model_folder(local_folder(base, cache), role=role)]
    for name, location in others.items():
        opened.append(open_model_folder(local_folder(location, cache), role=name))
        alike = _of_as_many_layers(opened[-1], opened[0]) if any_layers else opened[-1]
        for text in check_same_model(opened[0], alike, role, name):
            on_event(Notice(text))
        for said, earlier in zip(others, opened[1:-1], strict=False):  # a base may name no classes
            check_same_classes(earlier, opened[-1], said, name)
    return opened


def _of_as_many_layers(model: ModelFolder, like: ModelFolder) -> ModelFolder:
    """The model, its configuration with the layers of another: tensors tell how many it has."""
    fields = (*LAYER_COUNTS, "layer_types")
    if not all((field in model.config) == (field in like.config) for field in fields):
        return model
    told = {field: like.config[field] for field in fields if field in like.config}
    return replace(model, config={**model.config, **told})


def _names(experts: Sequence[str]) -> list[str]:
    """What messages and folders call each expert: the last part of its location."""
    names = [expert.rstrip("/").rpartition("/")[2] for expert in experts]
    return (
        names
        if len(set(names)) == len(names)
        else [f"{n + 1}-{name}" for n, name in enumerate(names)]
    )


def _parameters(texts: Sequence[str]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, value in map(_parameter, texts):
        if name in found:
            raise SpecError(f"--parameter: '{name}' is given twice, expected one value for it")
        found[name] = value
    return found


def _parameter(text: str) -> tuple[str, Value]:
    name, mark, written = text.partition("=")
    try:
        value = float(written)
    except ValueError:
        mark = ""
    if not mark:
        raise SpecError(f"--parameter: expected NAME=NUMBER such as density=0.2, found {text!r}")
    return name.strip(), int(value) if value.is_integer() else value


LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""What configurations call the number of layers."""


def byte_size(option: str, text: str) -> int:
    """The bytes that an option's text says, such as ``2GiB``; refuses what is no size."""
    try:
        return memory_bytes(text)
    except ValueError as error:
        raise SpecError(f"{option}: {error}") from error
