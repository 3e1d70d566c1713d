"""Which files of a folder are the model: one file, or parts with an index, or an adapter.

A folder that holds two of these is refused, since others may load the one that was not meant. What
else is in it, weights in other formats for instance, does not matter. Only safetensors are opened:
a pickle may run code when it is loaded, so it is refused with the way to convert it; those of the
hub that have no other form are read for their weights alone (``hub``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tintray.checkpoints.safetensors_files import (
    TensorInfo,
    is_rebuilt,
    merged_tables,
    tensors_in,
)
from tintray.errors import CheckpointError
from tintray.files import file_in, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def holds_adapter(folder: Path, role: str) -> bool:
    """Whether a folder holds an adapter rather than a model.

    Raises CheckpointError if it holds two models, both named.
    """
    known = (WEIGHTS, INDEX, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    names = [name for name in known if os.path.lexists(folder / name)]
    adapter = [name for name in names if name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    found = [name for name in names if name not in adapter] + adapter[:1]
    if len(found) > 1:
        raise CheckpointError(
            f"{role}: {folder} holds two models, {found[0]} and {found[1]}; expected one of them, "
            "move the files of the other away"
        )
    return bool(adapter)


def weight_files(folder: Path, role: str) -> tuple[tuple[Path, ...], dict[str, TensorInfo]]:
    """The files of a whole model, and their tensors by name; none is read.

    Raises CheckpointError if one of them is missing, damaged, a link to elsewhere, or not what the
    index says.
    """
    index = file_in(folder, INDEX, role)
    if index is not None:
        return _parts(folder, index, role)
    single = file_in(folder, WEIGHTS, role)
    if single is not None:
        return (single,), tensors_of((single,), role)
    pickles = sorted(path for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{role}: {pickles[0]} is a pickle, which can run code when loaded; convert it "
            "once with AutoModel.from_pretrained(folder).save_pretrained(folder), where you trust "
            "it, to get model.safetensors"
        )
    raise CheckpointError(f"{role}: {folder} has no {WEIGHTS}")


def tensors_of(files: tuple[Path, ...], role: str) -> dict[str, TensorInfo]:
    """The tensors of the files of one model, by name."""
    tables = [tensors_in(path, role, number=number) for number, path in enumerate(files)]
    return merged_tables(tables, role)


def _parts(folder: Path, index: Path, role: str) -> tuple[tuple[Path, ...], dict[str, TensorInfo]]:
    placed = read_json(index, role).get("weight_map")
    if not (
        isinstance(placed, dict) and placed and all(isinstance(n, str) for n in placed.values())
    ):
        raise CheckpointError(
            f"{role}: {index} is not a safetensors index: expected the name of a file for each "
            "tensor in 'weight_map'"
        )
    names = sorted(set(placed.values()))
    files = tuple(_part(folder, name, index, role) for name in names)
    tensors = tensors_of(files, role)
    for name in sorted(placed.keys() | tensors.keys()):
        found = names[tensors[name].file] if name in tensors else "none"
        if placed.get(name) != found:
            raise CheckpointError(
                f"{role}: {index} says that tensor '{name}' is in {placed.get(name, 'none')} of "
                f"its files, and it is in {found}; were the parts of two models mixed?"
            )
    return files, tensors


def _part(folder: Path, name: str, index: Path, role: str) -> Path:
    if Path(name).name != name or "\\" in name or "\0" in name or not name.endswith(".safetensors"):
        raise CheckpointError(
            f"{role}: {index} names the file {name!r}; expected a .safetensors file beside it"
        )
    path = file_in(folder, name, role)
    if path is None:
        raise CheckpointError(f"{role}: {index} names {name}, which is not in {folder}")
    return path


def read_config(folder: Path, role: str, name: str = "config.json") -> dict[str, Any]:
    """A model's ``config.json`` or an adapter's, an object whose own fields can be relied on.

    Raises CheckpointError if it is missing or not JSON, or a field that is read here is of another
    type.
    """
    path = file_in(folder, name, role)
    if path is None:
        raise CheckpointError(
            f"{role}: {folder} has no {name}; expected a folder that save_pretrained wrote"
        )
    config = read_json(path, role)
    if name != ADAPTER_CONFIG:
        _check_fields(config, f"{role}: {path}")
    return config


def _check_fields(config: Mapping[str, Any], where: str) -> None:
    kinds: dict[str, type] = {"architectures": list, "model_type": str, "_name_or_path": str}
    kinds |= dict.fromkeys(("id2label", "label2id", "quantization_config", "vision_config"), dict)
    for name, kind in kinds.items():
        value = config.get(name) or kind()
        texts = value if kind is list and isinstance(value, list) else []
        if not isinstance(value, kind) or not all(isinstance(text, str) for text in texts):
            raise CheckpointError(
                f"{where} has {name}={value!r}; expected it as save_pretrained writes it"
            )
    for name in ("id2label", "label2id"):
        numbers = config.get(name) or {}
        for number in numbers if name == "id2label" else numbers.values():
            if not str(number).lstrip("-").isdecimal():
                raise CheckpointError(
                    f"{where} has {name} with the class {number!r}; expected whole numbers"
                )


def check_not_packed(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str
) -> None:
    """Refuse weights that a quantisation packed into fewer bits.

    Raises CheckpointError, naming the method and a tensor.
    """
    for name, info in sorted(tensors.items()):
        if not (info.floating or is_rebuilt(name) or name.endswith("num_batches_tracked")):
            how = (config.get("quantization_config") or {}).get("quant_method")
            raise CheckpointError(
                f"{where} is quantised ({how}): tensor '{name}' is stored as {info.dtype}; "
                "expected plain weights, save the model once after transformers' dequantize()"
            )
