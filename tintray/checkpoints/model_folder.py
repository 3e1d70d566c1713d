"""Open a base or an expert: a folder as ``save_pretrained`` writes it, looked at before it is read.

What is measured, hashed and loaded are the same files: a file that changes in between is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

from tintray.checkpoints.safetensors_files import TensorInfo
from tintray.checkpoints.weight_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    check_not_packed,
    holds_adapter,
    read_config,
    tensors_of,
    weight_files,
)
from tintray.errors import CheckpointError, nearest
from tintray.files import Stamp, file_in, foreign, open_regular, read_bytes, stamp

GENERATION = "generation_config.json"
HEAD_FILE = "zero_shot_head.safetensors"
_TOWERS = ("CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection")
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
PREPROCESSORS = (
    *("preprocessor_config.json", "processor_config.json", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("added_tokens.json", "tokenizer.model", "spiece.model", "chat_template.jinja"),
)
"""The files that say how examples are prepared; whatever else lies beside a model is not used."""

_QUANTISED = "quantization_config"
_LARGEST = 128 * 2**20  # bytes of a file beside the weights: a tokenizer's may have 40 MB

TEMPLATES = ("a photo of a {}.",)
"""The prompt of a zero-shot head, where the job names none."""


@dataclass(frozen=True)
class ZeroShot:
    """What the head of a CLIP vision tower is made of: names of classes, prompts with ``{}``."""

    classes: tuple[str, ...]
    templates: tuple[str, ...] = TEMPLATES


@dataclass(frozen=True)
class ModelFolder:
    """A model folder whose files are there and readable; no tensor has been read yet."""

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...] = ()
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    adapter: dict[str, Any] | None = None  # PEFT's configuration, of an adapter on ``base``
    base: ModelFolder | None = None
    factory: str | None = None  # ``package.module:function`` that builds the module
    zero_shot: ZeroShot | None = None  # what the head of a CLIP vision tower is made of
    stamps: tuple[Stamp, ...] = ()  # of the weights, when they were looked at

    @property
    def is_tower(self) -> bool:
        """Whether it is a CLIP vision tower, which takes its head from texts."""
        return self.base is not None and self.adapter is None

    @property
    def has_head(self) -> bool:
        """Whether a CLIP vision tower's folder has a head of its own, as exports do."""
        return (self.folder / HEAD_FILE).is_file()

    def without_texts(self) -> ModelFolder:
        """The same, not to be given a head of texts when it is loaded: that takes computing."""
        return replace(self, zero_shot=None)

    def with_classes(self, zero_shot: ZeroShot, names: Sequence[str] | None = None) -> ModelFolder:
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
        """The files that say how inputs are prepared, as far as the folder has them."""
        return self._own_or_bases(PREPROCESSORS)

    @property
    def generation_files(self) -> tuple[Path, ...]:
        """The file that says how a model writes, if there is one."""
        return self._own_or_bases((GENERATION,))

    def _own_or_bases(self, names: Sequence[str]) -> tuple[Path, ...]:
        """Files of these names; an adapter's, or a CLIP tower's, are its base's if it has none."""
        own = tuple(path for name in names if (path := self.folder / name).is_file())
        return own or (() if self.base is None else self.base._own_or_bases(names))

    @property
    def preparing_folder(self) -> Path:
        """The folder that has them."""
        files = self.preprocessor_files
        return files[0].parent if files else self.folder

    def configs(self) -> dict[str, bytes]:
        """What is needed to build the model and to prepare its inputs: file name -> content."""
        path = self.folder / "config.json"
        if self.base is None and path.is_file() and _QUANTISED not in self.config:
            config = _content(path)
        else:
            known = {name: value for name, value in self.config.items() if name != _QUANTISED}
            config = json.dumps(known, indent=2, sort_keys=True).encode()
        files = (*self.preprocessor_files, *self.generation_files)
        return {"config.json": config, **{path.name: _content(path) for path in files}}

    @contextmanager
    def opened(self) -> Iterator[list[BufferedReader]]:
        """The files of the weights, as they were when the checkpoint was looked at.

        Raises CheckpointError if one of them is gone, or another by now.
        """
        with ExitStack() as stack:
            files = []
            for number, path in enumerate(self.weights):
                with foreign(f"{path} cannot be read"):
                    files.append(stack.enter_context(open_regular(path)))
                if self.stamps and stamp(files[-1].fileno()) != self.stamps[number]:
                    raise CheckpointError(
                        f"{path} has changed since it was looked at; expected files that stay as "
                        "they are while they are used"
                    )
            yield files

    def notices(self, role: str) -> list[str]:
        """What is worth telling of it though it is right."""
        how = (self.config.get(_QUANTISED) or {}).get("quant_method")
        said = f"{role}: config.json speaks of a quantisation ({how}), and the weights are plain"
        return [] if how is None else [f"{said}; it is left out"]

    def digest(self) -> str:
        """sha256 over configuration, preprocessing and weights: what every output depends on."""
        total = hashlib.sha256((self.factory or "").encode())
        configuration = self.folder / ("config.json" if self.adapter is None else ADAPTER_CONFIG)
        known = (configuration,) if configuration.is_file() else ()
        for path in (*known, *self.preprocessor_files, *self.generation_files):
            total.update(path.name.encode())
            total.update(file_sha256(path).encode())
        with self.opened() as files:
            for path, file in zip(self.weights, files, strict=True):
                total.update(path.name.encode())
                total.update(hashlib.file_digest(file, "sha256").hexdigest().encode())
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


def open_model_folder(
    location: str | Path,
    *,
    role: str = "expert",
    base: ModelFolder | None = None,
    factory: str | None = None,
) -> ModelFolder:
    """Look at a model folder, a ``file://`` URL or a hub id, and refuse what could not be loaded.

    ``role`` is how messages call it, such as ``"expert 'mnist'"``. An adapter cannot be opened
    without the ``base`` that it was fine-tuned from. Where ``factory`` names the function that
    builds the module, the folder needs no ``config.json``.

    Raises CheckpointError if the folder, its ``config.json`` or its safetensors are missing or
    damaged.
    """
    folder = _folder(location, role)
    for name in (*PREPROCESSORS, GENERATION, HEAD_FILE):
        file_in(folder, name, role)
    if holds_adapter(folder, role):
        return _open_adapter(folder, role, base)
    bare = factory is not None and not (folder / "config.json").exists()
    config = {} if bare else read_config(folder, role)
    weights, tensors = weight_files(folder, role)
    if config.get(_QUANTISED):
        check_not_packed(config, tensors, f"{role}: {folder}")
    tower = base is not None and (config.get("architectures") or [""])[0] in _TOWERS
    model = ModelFolder(folder, config, weights, tensors, stamps=tuple(map(stamp, weights)))
    if tower and factory is None:
        return replace(model, config=tower_config(config), base=base)
    return replace(model, factory=factory)


def _content(path: Path) -> bytes:
    return read_bytes(path, "the model", limit=_LARGEST)


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


def _open_adapter(folder: Path, role: str, base: ModelFolder | None) -> ModelFolder:
    if base is None:
        raise CheckpointError(
            f"{role}: {folder} holds an adapter, not a model; expected the model that it belongs to"
        )
    adapter = read_config(folder, role, ADAPTER_CONFIG)
    weights = file_in(folder, ADAPTER_WEIGHTS, role)
    if weights is None:
        raise CheckpointError(f"{role}: {folder} has no {ADAPTER_WEIGHTS}")
    tensors = tensors_of((weights,), role)
    _check_named_base(adapter, base, role, folder)
    own = read_config(folder, role) if (folder / "config.json").exists() else {}
    config = {**base.config, **own, **_of_task(adapter, base, own, tensors)}
    return ModelFolder(folder, config, (weights,), tensors, adapter, base, stamps=(stamp(weights),))


_TASKS = {
    "SEQ_CLS": "SEQUENCE_CLASSIFICATION",
    "TOKEN_CLS": "TOKEN_CLASSIFICATION",
    "CAUSAL_LM": "CAUSAL_LM",
    "SEQ_2_SEQ_LM": "SEQ_TO_SEQ_CAUSAL_LM",
    None: "IMAGE_CLASSIFICATION",
}


def _of_task(
    adapter: dict[str, Any],
    base: ModelFolder,
    own: dict[str, Any],
    tensors: Mapping[str, TensorInfo],
) -> dict[str, Any]:
    """The class and the labels of what an adapter makes of its base; PEFT keeps neither."""
    from transformers.models.auto import modeling_auto

    fields: dict[str, Any] = {}
    task = adapter.get("task_type")
    known = _TASKS.get(task) if task is None or isinstance(task, str) else None
    mapping = getattr(modeling_auto, f"MODEL_FOR_{known}_MAPPING_NAMES", {})
    architecture = mapping.get(base.config.get("model_type"))
    if architecture is not None and "architectures" not in own:
        fields["architectures"] = [architecture]
    width = _head_width(tensors)
    if width is not None and "id2label" not in own:
        fields |= _names([f"LABEL_{index}" for index in range(width)])
    return fields


def _head_width(tensors: Mapping[str, TensorInfo]) -> int | None:
    """How many classes the head in an adapter's file has; None where it has no head."""
    width = None
    for key in sorted(tensors):
        name = key.removeprefix("base_model.model.").replace("modules_to_save.", "")
        head = name.split(".")[0] in ("classifier", "score", "head", "classification_head")
        own = ".lora_" not in name and ".base_layer." not in name
        if head and name.endswith(".weight") and own and ".original_module." not in name:
            width = next(iter(tensors[key].shape), None)  # its last layer's
    return width


def _check_named_base(adapter: dict[str, Any], base: ModelFolder, role: str, folder: Path) -> None:
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
    with foreign(f"{role}: the folder {folder} cannot be opened"):  # too long a name, for one
        there = folder.exists()
    if folder.is_dir():
        return folder
    if there:
        raise CheckpointError(
            f"{role}: {folder} is a file; expected the folder that save_pretrained wrote, "
            "with config.json and model.safetensors in it"
        )
    if text.startswith((".", "/", "~", "file://")) or text.count("/") != 1:
        siblings = (p.name for p in folder.parent.iterdir()) if folder.parent.is_dir() else ()
        raise CheckpointError(
            f"{role}: the folder {folder} does not exist{nearest(folder.name, siblings)}"
        )
    from tintray.checkpoints.hub import download

    return download(text, role)
