"""Merge whole models as a mergekit file says: from the typed recipe to a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tintray.checkpoints.model_folder import ModelFolder
from tintray.jobs.events import Notice, OnEvent, StageStarted, TensorsMerged, ignore
from tintray.jobs.runs.merge_checkpoints import LAYER_COUNTS, byte_size, open_alike
from tintray.merging.files.tensor_files import TensorFiles
from tintray.merging.files.writing import beside_weights, write_folder
from tintray.merging.mergekit.composing import Composing
from tintray.merging.mergekit.composition import Composition
from tintray.merging.mergekit.planning import layer_counts, plan

_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def compose_models(
    composition: Composition,
    output: Path,
    *,
    seed: int,
    memory: str,
    shard: str,
    on_event: OnEvent,
) -> Path:
    """Merge the models of a composition into the folder ``output``.

    Raises
    ------
    InputError
        If anything that was given cannot be used; nothing is written then.
    """
    bound, largest = byte_size("--memory", memory), byte_size("--shard", shard)
    for text in composition.notices:
        on_event(Notice(text))
    method = composition.blend.name
    base, *others = composition.models
    locations = {model: model for model in others}
    found = open_alike(locations, base, ignore, role=base, any_layers=True)
    opened = dict(zip(composition.models, found, strict=True))
    on_event(StageStarted("merging", f"{len(composition.models)} models by {method}"))
    with ExitStack() as stack:
        files = {
            model: stack.enter_context(TensorFiles.of(checkpoint, model))
            for model, checkpoint in opened.items()
        }
        tables = {model: found.tensors for model, found in files.items()}
        planned = plan(composition, tables)
        merging = Composing(files, planned, composition.blend, memory=bound, seed=seed)
        leading = opened[composition.models[0]]
        counts = layer_counts({tensor.info.name: tensor.info for tensor in planned})
        beside: dict[str, Path | bytes] = {path.name: path for path in beside_weights(leading)}
        config = composed_config(composition, leading, opened, counts)
        beside["config.json"] = json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"
        write_folder(
            merging,
            output,
            beside,
            shard_bytes=largest,
            progress=lambda done, total: on_event(TensorsMerged(method, done, total)),
        )
    return output


def composed_config(
    composition: Composition,
    leading: ModelFolder,
    opened: Mapping[str, ModelFolder],
    counts: Mapping[str, int],
) -> dict[str, Any]:
    """The leading model's configuration, with the result's type of numbers and count of layers."""
    config = dict(leading.config)
    stored = composition.out_dtype or composition.dtype
    if stored is not None:
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = _NAMES[stored]
    if composition.slices[0].sources[0].layers is None:
        return config
    (count,) = counts.values()
    for key in LAYER_COUNTS:
        if key in config:
            config[key] = count
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = [
            opened[source.model].config["layer_types"][layer]
            for source in (part.sources[0] for part in composition.slices)
            for layer in range(*(source.layers or (0, 0)))
        ]
    return config
