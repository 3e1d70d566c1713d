"""Open a base or an expert: a folder as ``save_pretrained`` writes it, looked at before it is read.

Only safetensors are opened. A pickle may run code when it is loaded, so it is refused with the way
to convert it; those of the hub that have no other form are read for their weights alone (``hub``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tintray.errors import CheckpointError, nearest
from tintray.safetensors_files import tensors_in

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
GENERATION = "generation_config.json"
HEAD_FILE = "zero_shot_head.safetensors"
_TOWERS = ("CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
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


TEMPLATES = ("a photo of a {}.",)
"""The prompt of a zero-shot head, where the job names none."""


@dataclass(frozen=True)
class ZeroShot:
    """What the head of a CLIP vision tower is made of: names of classes, prompts with ``{}``."""

    classes: tuple[str, ...]
    templates: tuple[str, ...] = TEMPLATES


@dataclass(frozen=True)
class Checkpoint:
    """A model folder whose files are there and readable; no tensor has been read yet."""

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    dtypes: frozenset[str]  # in which the tensors are stored, as safetensors spells them: "F32"
    adapter: dict[str, Any] | None = None  # PEFT's configuration, of an adapter on ``base``
    base: Checkpoint | None = None
    factory: str | None = None  # ``package.module:function`` that builds the module
    zero_shot: ZeroShot | None = None  # what the head of a CLIP vision tower is made of

    @property
    def is_tower(self) -> bool:
        """Whether it is a CLIP vision tower, which takes its head from texts."""
        return self.base is not None and self.adapter is None

    @property
    def has_head(self) -> bool:
        """Whether a CLIP vision tower's folder has a head of its own, as exports do."""
        return (self.folder / HEAD_FILE).is_file()

    def without_texts(self) -> Checkpoint:
        """The same, not to be given a head of texts when it is loaded: that takes computing."""
        return replace(self, zero_shot=None)

    def with_classes(self, zero_shot: ZeroShot, names: Sequence[str] | None = None) -> Checkpoint:
        """A CLIP vision tower with a head for these classes.

        ``names`` are what labels in data call them, where that is not what prompts do.
        """
        named = _names(zero_shot.classes if names is None else names) | {
            "zero_shot_classes": list(zero_shot.classes),
            "zero_shot_templates": list(zero_shot.templates),
        }
        return replace(self, config={**self.config, **named}, zero_shot=zero_shot)

    @property
    def preprocessor_files(self) -> tuple[Path, ...]:
        """The files that say how inputs are prepared, as far as the folder has them.

        An adapter's, or a CLIP tower's, are its base's where it has none of its own.
        """
        found = (self.folder / name for name in _PREPROCESSORS)
        own = tuple(path for path in found if path.is_file())
        return own or (() if self.base is None else self.base.preprocessor_files)

    @property
    def generation_files(self) -> tuple[Path, ...]:
        """The file that says how a model writes, if there is one; an adapter's, or its base's."""
        own = self.folder / GENERATION
        if own.is_file():
            return (own,)
        return () if self.base is None else self.base.generation_files

    @property
    def preparing_folder(self) -> Path:
        """The folder that has them."""
        files = self.preprocessor_files
        return files[0].parent if files else self.folder

    def configs(self) -> dict[str, bytes]:
        """What is needed to build the model and to prepare its inputs: file name -> content."""
        path = self.folder / "config.json"
        if self.base is None and path.is_file():
            config = path.read_bytes()
        else:
            config = json.dumps(self.config, indent=2, sort_keys=True).encode()
        files = (*self.preprocessor_files, *self.generation_files)
        return {"config.json": config, **{path.name: path.read_bytes() for path in files}}

    def digest(self) -> str:
        """sha256 over configuration, preprocessing and weights: what every output depends on."""
        total = hashlib.sha256()
        total.update((self.factory or "").encode())
        configuration = self.folder / ("config.json" if self.adapter is None else ADAPTER_CONFIG)
        known = (configuration,) if configuration.is_file() else ()
        for path in (*known, *self.preprocessor_files, *self.generation_files, *self.weights):
            total.update(path.name.encode())
            total.update(file_sha256(path).encode())
        if self.is_tower and self.has_head:
            total.update(file_sha256(self.folder / HEAD_FILE).encode())
        if self.zero_shot is not None:
            told = [self.zero_shot.classes, self.zero_shot.templates]
            total.update(json.dumps(told).encode())
        if self.base is not None:
            total.update(self.base.digest().encode())
        return total.hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file, hexadecimal; reads it in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_checkpoint(
    location: str | Path,
    *,
    role: str = "expert",
    base: Checkpoint | None = None,
    factory: str | None = None,
) -> Checkpoint:
    """Look at a model folder, a ``file://`` URL or a hub id, and refuse what could not be loaded.

    Parameters
    ----------
    location
        A folder, ``file://…``, or a hub id such as ``google/vit-base-patch16-224``.
    role
        How messages call it: ``"base"`` or ``"expert 'mnist'"``.
    base
        What it was fine-tuned from; an adapter cannot be opened without.
    factory
        The function that builds the module, where it is none of transformers'; the folder then
        needs no ``config.json``.

    Raises
    ------
    CheckpointError
        If the folder, its ``config.json`` or its safetensors are missing or damaged.
    """
    folder = _folder(location, role)
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "model.safetensors").is_file():
        return _open_adapter(folder, role, base)
    bare = factory is not None and not (folder / "config.json").is_file()
    config = {} if bare else _read_config(folder, role)
    weights = _weight_files(folder, role)
    dtypes = frozenset[str]().union(*(_stored_types(path, role) for path in weights))
    tower = base is not None and (config.get("architectures") or [""])[0] in _TOWERS
    if tower and factory is None:
        return Checkpoint(folder, tower_config(config), weights, dtypes, base=base)
    return Checkpoint(folder, config, weights, dtypes, factory=factory)


def tower_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the vision tower in a CLIP model's, or a tower's own."""
    whole = "vision_config" in config
    tower = config["vision_config"] if whole else config
    known = {"projection_dim": config.get("projection_dim", 512)} if whole else {}
    labels = {} if "id2label" in tower else _names(["LABEL_0"])
    own = {"model_type": "clip_vision_model", "architectures": ["CLIPZeroShotClassifier"]}
    return {**tower, **known, **labels, **own}


def zero_shot_of(config: Mapping[str, Any]) -> ZeroShot:
    """What a task's head was made of, from the ``config.json`` that its merge keeps."""
    return ZeroShot(tuple(config["zero_shot_classes"]), tuple(config["zero_shot_templates"]))


def _names(classes: Sequence[str]) -> dict[str, Any]:
    """Names of classes, as a ``config.json`` has them."""
    return {
        "id2label": {str(index): name for index, name in enumerate(classes)},
        "label2id": {name: index for index, name in enumerate(classes)},
    }


def _open_adapter(folder: Path, role: str, base: Checkpoint | None) -> Checkpoint:
    if base is None:
        raise CheckpointError(
            f"{role}: {folder} holds an adapter, not a model; expected the model that it belongs to"
        )
    adapter = _read_config(folder, role, ADAPTER_CONFIG)
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{role}: {folder} has no {ADAPTER_WEIGHTS}")
    types = frozenset(_stored_types(weights, role))
    _check_named_base(adapter, base, role, folder)
    own = _read_config(folder, role) if (folder / "config.json").is_file() else {}
    config = {**base.config, **own, **_of_task(adapter, base, own, weights)}
    return Checkpoint(folder, config, (weights,), types, adapter, base)


_TASKS = {
    "SEQ_CLS": "SEQUENCE_CLASSIFICATION",
    "TOKEN_CLS": "TOKEN_CLASSIFICATION",
    "CAUSAL_LM": "CAUSAL_LM",
    "SEQ_2_SEQ_LM": "SEQ_TO_SEQ_CAUSAL_LM",
    None: "IMAGE_CLASSIFICATION",
}


def _of_task(
    adapter: dict[str, Any], base: Checkpoint, own: dict[str, Any], weights: Path
) -> dict[str, Any]:
    """The class and the labels of what an adapter makes of its base; PEFT keeps neither."""
    from transformers.models.auto import modeling_auto

    found: dict[str, Any] = {}
    task = _TASKS.get(adapter.get("task_type"))
    mapping = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {})
    architecture = mapping.get(base.config.get("model_type"))
    if architecture is not None and "architectures" not in own:
        found["architectures"] = [architecture]
    width = _head_width(weights)
    if width is not None and "id2label" not in own:
        found |= _names([f"LABEL_{index}" for index in range(width)])
    return found


def _head_width(weights: Path) -> int | None:
    """How many classes the head in an adapter's file has; None where it has no head."""
    from safetensors import safe_open

    width = None
    with safe_open(weights, framework="pt") as file:
        for key in sorted(file.keys()):
            name = key.removeprefix("base_model.model.").replace("modules_to_save.", "")
            head = name.split(".")[0] in ("classifier", "score", "head", "classification_head")
            if head and name.endswith(".weight") and ".lora_" not in name:
                width = int(file.get_slice(key).get_shape()[0])  # its last layer's
    return width


def _check_named_base(adapter: dict[str, Any], base: Checkpoint, role: str, folder: Path) -> None:
    """Refuse an adapter that says by a hub id that it belongs to another model than the base."""
    named, known = adapter.get("base_model_name_or_path"), base.config.get("_name_or_path")
    hub = all(
        isinstance(n, str) and _HUB_ID.fullmatch(n) and not Path(n).exists() for n in (named, known)
    )
    if hub and named != known:
        raise CheckpointError(
            f"{role}: {folder / ADAPTER_CONFIG} belongs to {named!r}; the base is {known!r}, "
            "expected an adapter for this base"
        )


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
    from tintray.hub import download

    return download(text, role)


def _read_config(folder: Path, role: str, name: str = "config.json") -> dict[str, Any]:
    path = folder / name
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
    """The types of a safetensors file's tensors; refuses a damaged one."""
    return {info.dtype for info in tensors_in(path, role)}
