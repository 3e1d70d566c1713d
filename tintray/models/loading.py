"""Load a base or an expert as a module, with every tensor accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tintray.checkpoints.model_folder import GENERATION, ModelFolder
from tintray.checkpoints.safetensors_files import is_rebuilt
from tintray.errors import CheckpointError
from tintray.files import foreign, read_json
from tintray.models import configs
from tintray.models import factories as factory
from tintray.models.adapters import apply, read_adapter
from tintray.models.building import bounded, load_weights
from tintray.models.structure import check_tensors, head_modules


def _config_file(model: ModelFolder, role: str) -> str:
    return f"{role}: {model.folder / 'config.json'}"


def load_expert(
    model: ModelFolder,
    role: str = "expert",
    *,
    head: Tensor | None = None,
    device: str = "cpu",
    as_stored: bool = False,
) -> nn.Module:
    """Load a model as a module in float32, in evaluation mode, with every tensor accounted for.

    It is in memory. An adapter is merged into its base. A CLIP vision tower gets the ``head`` that
    is given, unit rows [C, d], or the one that its names of classes make, for which the text tower
    runs on ``device``. ``as_stored`` is that of ``load_base``; adapters, towers and modules of
    factories are float32 all the same.

    Raises CheckpointError if a tensor is missing, left over, of another shape than the config says,
    or not finite.
    """
    if model.factory is not None:
        where = f"{role}: {model.folder}"
        module = factory.load(model.factory, model.config, model.weights, where)
    elif model.is_tower:
        module = _tower(model, model, role, head, device)
    elif model.base is not None:
        module = load_base(model.base, like=model, role="base")
        apply(read_adapter(model, module, role), module)
    else:
        where = _config_file(model, role)
        cls = configs.model_class(model.config, where)
        config = configs.configuration(model.config, cls, where)
        module = _stored_or_float(cls, model, role, config, as_stored)
    _check_finite(module, role, model)
    return module


def load_base(
    model: ModelFolder, like: ModelFolder, role: str = "base", *, as_stored: bool = False
) -> nn.Module:
    """Load a base into the class of the experts, whatever head it was saved with, or without.

    The head of the result is untrained and stands for nothing. With ``as_stored`` parameters that
    are all stored in one type of 16 bits keep it, and stay in their files, mapped: numbers to read,
    which whoever computes with them turns into float32.
    """
    file = _config_file(like, role)
    if like.factory is not None:
        where = f"{role}: {model.folder}"
        module = factory.load(like.factory, like.config, model.weights, where, any_head=True)
    elif (cls := configs.model_class(like.config, file)).__name__ == "CLIPZeroShotClassifier":
        module = _tower(model, like, role, None)
    else:
        config = configs.configuration(like.config, cls, file)
        options = {"any_head": True, "room": like}
        module = _stored_or_float(cls, model, role, config, as_stored, **options)
    _check_finite(module, role, model)
    return module


def _stored_or_float(
    cls: Any, model: ModelFolder, role: str, config: Any, as_stored: bool, **options: Any
) -> nn.Module:
    """A module in float32; or, ``as_stored``, in the one type of 16 bits that its files have."""
    dtype = _only_type(model) if as_stored else torch.float32
    module = _from_pretrained(cls, model, role, config, dtype=dtype, **options)
    if any(t.is_floating_point() and t.dtype != torch.float32 for t in module.buffers()):
        # What a model computes for itself would be coarser than in float32.
        module = _from_pretrained(cls, model, role, config, **options)
    return module


def _only_type(model: ModelFolder) -> torch.dtype:
    """The type of 16 bits in which all numbers of a checkpoint are stored; else float32."""
    found = {info.dtype for info in model.tensors.values() if info.floating}
    types = {"BF16": torch.bfloat16, "F16": torch.float16}
    return types.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def _tower(
    model: ModelFolder, like: ModelFolder, role: str, head: Tensor | None, device: str = "cpu"
) -> nn.Module:
    """A CLIP vision tower as a classifier; a base's head stands for nothing."""
    from transformers import CLIPVisionConfig

    from tintray.models import clip

    cls = clip.CLIPZeroShotClassifier
    known = {*CLIPVisionConfig().to_dict(), "id2label", "label2id"}
    fields = {name: value for name, value in like.config.items() if name in known}
    config = configs.configuration(fields, cls, _config_file(like, role))
    module = _from_pretrained(cls, model, role, config, any_head=True, room=like)
    clip.finish(module, model, role, head, device)
    return module


def empty_module(
    config: Mapping[str, Any], made_by: str | None = None, *, numbers: int | None = None
) -> nn.Module:
    """A module of the class and shape in ``config`` (a ``config.json``); weights arbitrary.

    ``made_by`` is the factory of a module that is none of transformers'. ``numbers`` is how many
    the weights have that it is built for: one that would need many times as many is refused.

    Raises CheckpointError if the configuration is none that transformers reads, or promises too
    much.
    """
    if made_by is not None:
        return factory.build(made_by, config)
    from transformers import initialization

    where = "the config.json of the merge"
    cls = configs.model_class(config, where)
    read = configs.configuration(config, cls, where)
    with foreign(f"{where} cannot be built as a {cls.__name__}"), initialization.no_init_weights():
        if numbers is not None:
            with torch.device("meta"), bounded(numbers, where):
                cls(read)
        module: Any = cls(read)
        module.tie_weights()
    return cast(nn.Module, module.eval())


def _from_pretrained(
    cls: Any,
    model: ModelFolder,
    role: str,
    config: Any,
    *,
    any_head: bool = False,
    room: ModelFolder | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A module with the tensors of a checkpoint's own files, whatever else lies beside them."""
    quiet_transformers()
    where = f"{role}: {model.folder}"
    module, info = load_weights(cls, model, config, where, room=room, dtype=dtype)
    _set_generation(module, model, role)
    left = tuple(f"{path}." for path in head_modules(module)) if any_head else ()
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(left))
    mismatched = sorted(item for item in info["mismatched_keys"] if not item[0].startswith(left))
    # A base may hold what no expert uses: another head, a pooler, a text tower beside the images'.
    extra = sorted(
        name
        for name in info["unexpected_keys"]
        if not is_rebuilt(name)
        and (not any_head or (name.startswith(prefix) and ".pooler." not in f".{name}"))
    )
    check_tensors(where, f"a {cls.__name__}", missing, mismatched, extra)
    return cast(nn.Module, module.eval())


def _set_generation(module: Any, model: ModelFolder, role: str) -> None:
    """How a model writes, as its own file says; without one, as old configurations did."""
    if not (hasattr(module, "can_generate") and module.can_generate()):
        return
    own = model.folder / GENERATION
    if own.exists():
        module.generation_config = generation_config(own, role)
        return
    from transformers import GenerationConfig

    with foreign(f"{_config_file(model, role)} cannot be read as one of generation"):
        module.generation_config = GenerationConfig.from_model_config(dict(model.config))


def generation_config(path: Path, role: str) -> Any:
    """How a model writes, from a ``generation_config.json``.

    Raises CheckpointError if transformers cannot read it.
    """
    from transformers import GenerationConfig

    fields = read_json(path, role)
    with foreign(f"{role}: {path} cannot be read as a GenerationConfig"):
        return GenerationConfig.from_dict(fields)


def quiet_transformers() -> None:
    """Keep transformers' progress bars and load reports off the terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _check_finite(module: nn.Module, role: str, model: ModelFolder) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{role}: tensor '{name}' in {model.folder} has {bad:,} of {tensor.numel():,} "
                "values that are NaN or infinite; expected finite weights, was the training stable?"
            )
