"""Models on the Hugging Face hub: downloaded once, and old ones turned into safetensors.

Some public models, CLIP ViT-B/32 among them, have no safetensors on their main branch. Theirs are
read with torch's unpickler for weights alone, which builds tensors and runs no code, and written
anew on this machine.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tintray.errors import CheckpointError
from tintray.files import foreign

_FILES = ["*.json", "*.txt", "*.safetensors", "*.model", "*.jinja"]
_OLD = "pytorch_model*.bin"


def download(hub_id: str, role: str) -> Path:
    """The folder of a model on the hub, on this machine.

    Raises CheckpointError if there is no such model, the hub cannot be reached, or its weights
    cannot be read.
    """
    folder = _snapshot(hub_id, role, _FILES)
    if any(folder.glob("*.safetensors")):
        return folder
    return converted(_snapshot(hub_id, role, [*_FILES, _OLD, "pytorch_model.bin.index.json"]), role)


def _snapshot(hub_id: str, role: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{role}: {hub_id!r} is neither a folder nor a model that the hub lets you read; "
            "check the spelling, or log in if it is private"
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointError(
            f"{role}: {hub_id!r} is neither a folder nor a name of the hub such as org/model"
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{role}: {hub_id!r} is not a folder here and the hub could not be reached; "
            "download it first and give its folder"
        ) from error


def converted(folder: Path, role: str) -> Path:
    """A copy of a snapshot whose weights are safetensors, made once; the snapshot, if it has none.

    Raises CheckpointError if the old files hold anything but tensors.
    """
    old = sorted(folder.glob(_OLD))
    if not old:
        return folder  # whoever opens it says what is missing
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tintray" / "models"
    target = cache / folder.parent.parent.name / folder.name  # models--org--name, its commit
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        tensors: dict[str, Tensor] = {}
        for path in old:
            tensors |= _weights(path, role)
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        for path in folder.iterdir():
            if path.is_file() and not path.name.startswith("pytorch_model"):
                shutil.copyfile(path, partial / path.name)
        if not target.is_dir():  # another process may have been first
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _weights(path: Path, role: str) -> dict[str, Tensor]:
    """The tensors of an old file; of several that share memory, the first."""
    with foreign(f"{role}: {path} holds more than weights, or is damaged"):
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(f"{role}: {path} holds more than weights; expected tensors by name")
    tensors: dict[str, Tensor] = {}
    seen: set[tuple[int, int, torch.Size]] = set()
    for name, tensor in state.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape)
        if place not in seen:
            seen.add(place)
            tensors[name] = tensor.contiguous().clone()
    return tensors
