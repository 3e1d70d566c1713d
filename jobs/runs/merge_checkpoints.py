"""Merge whole checkpoints, as a command or a mergekit file asks for it: texts in, events out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from tintray.checkpoints.model_folder import ModelFolder, open_model_folder
from tintray.errors import SpecError
from tintray.jobs.config.merge_sections import ADAMERGING, SURGERY
from tintray.jobs.config.mergekit import read_mergekit
from tintray.jobs.config.section import MOST_SCALE
from tintray.jobs.engine.sources import cache_folder, local_folder
from tintray.jobs.events import Notice, OnEvent, PhaseStarted, TensorsMerged, ignore
from tintray.limits import memory_bytes
from tintray.merging import recipe
from tintray.merging.declaration import Value
from tintray.merging.files import writing
from tintray.merging.files.tensor_files import TensorFiles
from tintray.merging.mergekit.composing import Composing
from tintray.merging.mergekit.planning import LAYER_COUNTS, composed_config, layer_counts, plan
from tintray.new_folder import check_new


def merge_checkpoints(
    base: str,
    experts: Sequence[str],
    output: Path,
    *,
    method: str,
    parameters: Sequence[str] = (),
    scale: float | None = None,
    seed: int = 0,
    memory: str = "2GiB",
    shard: str = "5GB",
    device: str = "cpu",
    dry_run: bool = False,
    on_event: OnEvent | None = None,
) -> Path:
    """Merge checkpoints of one shape, heads included, out of core, into the folder ``output``.

    ``base`` and ``experts`` are folders, or ``hf://`` names. ``method`` needs no data, such as
    ``ties``; ``parameters`` are ``NAME=NUMBER`` each; left out, ``scale`` is the method's own.
    ``memory`` is the most that it may hold, ``shard`` the size of an output file at most. The
    method computes on ``device``: ``"cpu"``, or ``"cuda"``, which rounds in its own way. With
    ``dry_run`` all of it is checked, and nothing written.

    Raises InputError if anything that was given cannot be used; nothing is written then.
    """
    on_event = on_event or ignore
    if device != "cpu" and not torch.cuda.is_available():
        raise SpecError(f"--device: expected cpu, since torch finds no GPU here, found '{device}'")
    if method in (*ADAMERGING, SURGERY):
        raise SpecError(
            f"--method: '{method}' learns on the tasks' unlabelled pools; run it as a job with "
            f"merge.method: {method}, or choose a method that needs no data"
        )
    how = recipe(method, _parameters(parameters), seed=seed)
    if scale is not None and not 0 < scale <= MOST_SCALE:
        raise SpecError(f"--scale: expected a number from 0 to {MOST_SCALE:g}, found {scale:g}")
    bound, largest = _bytes("--memory", memory), _bytes("--shard", shard)
    names = _names(experts)
    roles = {f"expert '{expert}'": expert for expert in experts}  # one may be given twice
    first, *others = _open_alike(roles, base, on_event)
    opened = dict(zip(roles.values(), others, strict=True))
    check_new(Path(output))
    if dry_run:
        return Path(output)
    many = "expert" if len(experts) == 1 else "experts"
    on_event(PhaseStarted("merging", f"{len(experts)} {many} by {method}"))
    return writing.merge_checkpoints(
        first,
        {name: opened[expert] for name, expert in zip(names, experts, strict=True)},
        Path(output),
        how,
        scale=scale,
        memory=bound,
        shard_bytes=largest,
        device=device,
        progress=lambda done, total: on_event(TensorsMerged(method, done, total)),
    )


def compose(
    file: Path,
    output: Path,
    *,
    seed: int = 0,
    memory: str = "4GiB",
    shard: str = "5GB",
    dry_run: bool = False,
    on_event: OnEvent | None = None,
) -> Path:
    """Merge whole models as the mergekit file ``file`` says, out of core, into ``output``.

    With ``dry_run`` all of it is checked, and nothing written.

    Raises InputError if anything that was given cannot be used; nothing is written then.
    """
    on_event = on_event or ignore
    composition = read_mergekit(Path(file))
    bound, largest = _bytes("--memory", memory), _bytes("--shard", shard)
    for text in composition.notices:
        on_event(Notice(text))
    method = composition.blend.name
    leading, *others = composition.models
    locations = {model: model for model in others}
    folders = _open_alike(locations, leading, ignore, role=leading, any_layers=True)
    opened = dict(zip(composition.models, folders, strict=True))
    on_event(PhaseStarted("merging", f"{len(opened)} models by {method}"))
    with ExitStack() as stack:
        files = {
            model: stack.enter_context(TensorFiles.of(folder, model))
            for model, folder in opened.items()
        }
        planned = plan(composition, {model: of.tensors for model, of in files.items()})
        counts = layer_counts({tensor.info.name: tensor.info for tensor in planned})
        configs = {model: folder.config for model, folder in opened.items()}
        config = composed_config(composition, configs, counts)
        beside: dict[str, Path | bytes] = {
            path.name: path for path in writing.beside_weights(opened[leading])
        }
        beside["config.json"] = json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"
        composing = Composing(files, planned, composition.blend, memory=bound, seed=seed)
        if dry_run:
            check_new(Path(output))
            return Path(output)
        writing.write_folder(
            [tensor.info for tensor in planned],
            composing.pieces(),
            Path(output),
            beside,
            shard_bytes=largest,
            progress=lambda done, total: on_event(TensorsMerged(method, done, total)),
        )
    return Path(output)


def _open_alike(
    others: Mapping[str, str],
    base: str,
    on_event: OnEvent,
    *,
    role: str = "the base",
    any_layers: bool = False,
) -> list[ModelFolder]:
    """The base and the others, roles to locations, opened; models of one meaning, or refused.

    With ``any_layers`` they may have different numbers of layers.

    Raises CheckpointError if one cannot be opened, or its tensors mean something else; see
    ``check_same_model``.
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
    if len(set(names)) == len(names):
        return names
    return [f"{n}-{name}" for n, name in enumerate(names, start=1)]


def _parameters(texts: Sequence[str]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for text in texts:
        name, _, written = text.partition("=")
        try:
            value = float(written)
        except ValueError as error:
            expected = "expected NAME=NUMBER such as density=0.2"
            raise SpecError(f"--parameter: {expected}, found {text!r}") from error
        if name.strip() in values:
            said = f"'{name.strip()}' is given twice, expected one value for it"
            raise SpecError(f"--parameter: {said}")
        values[name.strip()] = int(value) if value.is_integer() else value
    return values


def _bytes(option: str, text: str) -> int:
    """The bytes that an option's text says, such as ``2GiB``; refuses what is no size."""
    try:
        return memory_bytes(text)
    except ValueError as error:
        raise SpecError(f"{option}: {error}") from error
