"""Open a base or an expert: a folder as ``save_pretrained`` writes it, looked at before it is read.

Only safetensors are opened. A pickle runs code when it is loaded, so it is refused with the way to
convert it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tintray.errors import CheckpointError, nearest

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_PREPROCESSORS = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Checkpoint:
    """A model folder whose files are there and readable; no tensor has been read yet."""

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    dtypes: frozenset[str]  # in which the tensors are stored, as safetensors spells them: "F32"

    @property
    def preprocessor_files(self) -> tuple[Path, ...]:
        """The files that say how inputs are prepared, as far as the folder has them."""
        found = (self.folder / name for name in _PREPROCESSORS)
        return tuple(path for path in found if path.is_file())

    def digest(self) -> str:
        """sha256 over configuration, preprocessing and weights: what every output depends on."""
        total = hashlib.sha256()
        for path in (self.folder / "config.json", *self.preprocessor_files, *self.weights):
            total.update(path.name.encode())
            total.update(file_sha256(path).encode())
        return total.hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file, hexadecimal; reads it in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_checkpoint(location: str | Path, *, role: str = "expert") -> Checkpoint:
    """Look at a model folder, a ``file://`` URL or a hub id, and refuse what could not be loaded.

    Parameters
    ----------
    location
        A folder, ``file://…``, or a hub id such as ``google/vit-base-patch16-224``.
    role
        How messages call it: ``"base"`` or ``"expert 'mnist'"``.

    Raises
    ------
    CheckpointError
        If the folder, its ``config.json`` or its safetensors are missing or damaged.
    """
    folder = _folder(location, role)
    config = _read_config(folder, role)
    weights = _weight_files(folder, role)
    dtypes = frozenset[str]().union(*(_stored_types(path, role) for path in weights))
    return Checkpoint(folder, config, weights, dtypes)


def _folder(location: str | Path, role: str) -> Path:
    text = str(location)
    folder = Path(text.removeprefix("file://"))
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(
            f"{role}: {folder} is a file; expected the folder that save_pretrained wrote, "
            "with config.json and model.safetensors in it"
        )
    if text.startswith((".", "/", "~", "file://")) or text.count("/") != 1:
        siblings = (p.name for p in folder.parent.iterdir()) if folder.parent.is_dir() else ()
        raise CheckpointError(
            f"{role}: the folder {folder} does not exist{nearest(folder.name, siblings)}"
        )
    return _download(text, role)


def _download(hub_id: str, role: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    patterns = ["*.json", "*.txt", "*.safetensors", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{role}: {hub_id!r} is neither a folder nor a model that the hub lets you read; "
            "check the spelling, or log in if it is private"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{role}: {hub_id!r} is not a folder here and the hub could not be reached; "
            "download it first and give its folder"
        ) from error


def _read_config(folder: Path, role: str) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{role}: {folder} has no config.json; expected a folder that save_pretrained wrote"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{role}: {path} is not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{role}: {path} must hold a JSON object")
    return config


def _weight_files(folder: Path, role: str) -> tuple[Path, ...]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            content = json.loads(index.read_text())
            names = sorted(set(content["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{role}: {index} is not a safetensors index") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{role}: {index} names {missing[0]}, which is not in {folder}")
        if "metadata" not in content:  # transformers reads it, and fails on its absence
            raise CheckpointError(
                f"{role}: {index} has no 'metadata'; expected an index that save_pretrained wrote"
            )
        return tuple(folder / name for name in names)
    single = folder / "model.safetensors"
    if single.is_file():
        return (single,)
    pickles = sorted(path for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{role}: {pickles[0]} is a pickle, which can run code when loaded; convert it "
            "once with AutoModel.from_pretrained(folder).save_pretrained(folder), where you trust "
            "it, to get model.safetensors"
        )
    raise CheckpointError(f"{role}: {folder} has no model.safetensors")


def _stored_types(path: Path, role: str) -> set[str]:
    """Check a safetensors file's size against its header; the types of its tensors.

    The file is 8 bytes of header length, a JSON header, and the tensors' bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size + 1
        raw = file.read(length) if length <= size - 8 else b""
    try:
        tensors = [v for k, v in json.loads(raw).items() if k != "__metadata__"]
        end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        types = {str(tensor["dtype"]) for tensor in tensors}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{role}: {path} is not a safetensors file (its header cannot be read); "
            "was the download interrupted?"
        ) from error
    if 8 + length + end != size:
        raise CheckpointError(
            f"{role}: {path} should be {8 + length + end:,} bytes by its header and is {size:,}; "
            "it was cut short or overwritten, copy it again"
        )
    return types
