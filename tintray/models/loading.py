"""Load a base or an expert as a module, with every tensor accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tintray.adapters import apply, read_adapter
from tintray.checkpoints import Checkpoint
from tintray.errors import CheckpointError
from tintray.models import factory
from tintray.structure import head_modules


def model_class(checkpoint: Checkpoint, role: str) -> Any:
    """The transformers class that wrote the checkpoint, from ``architectures`` in its config."""
    names = checkpoint.config.get("architectures") or []
    found = _class(names[0]) if names else None
    if found is None:
        raise CheckpointError(
            f"{role}: {checkpoint.folder / 'config.json'} has architectures={names!r}; expected "
            f"the name of one transformers model class, as save_pretrained writes it"
        )
    return found


def _class(name: str) -> Any:
    """A model class of transformers, or ours."""
    if name == "CLIPZeroShotClassifier":
        from tintray.models.clip import CLIPZeroShotClassifier

        return CLIPZeroShotClassifier
    import transformers

    return getattr(transformers, name, None)


def load_expert(
    checkpoint: Checkpoint, role: str = "expert", *, head: Tensor | None = None
) -> nn.Module:
    """Load a model as a module in float32, in evaluation mode, with every tensor accounted for.

    An adapter is merged into its base. A CLIP vision tower gets the ``head`` that is given, unit
    rows [C, d], or the one that its names of classes make.

    Raises
    ------
    CheckpointError
        If a tensor is missing, left over, of another shape than the config says, or not finite.
    """
    if checkpoint.factory is not None:
        where = f"{role}: {checkpoint.folder}"
        module = factory.load(checkpoint.factory, checkpoint.config, checkpoint.weights, where)
    elif checkpoint.is_tower:
        module = _tower(checkpoint, checkpoint, role, head)
    elif checkpoint.base is not None:
        module = load_base(checkpoint.base, like=checkpoint, role="base")
        apply(read_adapter(checkpoint, module, role), module)
    else:
        module = _from_pretrained(model_class(checkpoint, role), checkpoint, role)
    _check_finite(module, role, checkpoint)
    return module


def load_base(checkpoint: Checkpoint, like: Checkpoint, role: str = "base") -> nn.Module:
    """Load a base into the class of the experts, whatever head it was saved with, or without.

    The head of the result is untrained and stands for nothing.
    """
    if like.factory is not None:
        where = f"{role}: {checkpoint.folder}"
        files = checkpoint.weights
        plain = factory.load(like.factory, like.config, files, where, any_head=True)
        _check_finite(plain, role, checkpoint)
        return plain
    import transformers

    cls = model_class(like, role)
    if cls.__name__ == "CLIPZeroShotClassifier":
        whole = _tower(checkpoint, like, role, None)
        _check_finite(whole, role, checkpoint)
        return whole
    config = transformers.AutoConfig.for_model(**like.config)
    module = _from_pretrained(cls, checkpoint, role, config=config, any_head=True)
    _check_finite(module, role, checkpoint)
    return module


def _tower(checkpoint: Checkpoint, like: Checkpoint, role: str, head: Tensor | None) -> nn.Module:
    """A CLIP vision tower as a classifier; a base's head stands for nothing."""
    from transformers import CLIPVisionConfig

    from tintray.models import clip

    known = {*CLIPVisionConfig().to_dict(), "id2label", "label2id"}
    config = CLIPVisionConfig(**{k: v for k, v in like.config.items() if k in known})
    cls = clip.CLIPZeroShotClassifier
    module = _from_pretrained(cls, checkpoint, role, config=config, any_head=True)
    clip.finish(module, checkpoint, role, head)
    return module


def empty_module(config: Mapping[str, Any], made_by: str | None = None) -> nn.Module:
    """A module of the class and shape in ``config`` (a ``config.json``); weights arbitrary.

    ``made_by`` is the factory of a module that is none of transformers'.
    """
    if made_by is not None:
        return factory.build(made_by, config)
    import transformers
    from transformers import initialization

    cls = _class(config["architectures"][0])
    with initialization.no_init_weights():
        module: Any = cls(transformers.AutoConfig.for_model(**config))
    module.tie_weights()
    found: nn.Module = module.eval()
    return found


def _from_pretrained(
    cls: Any, checkpoint: Checkpoint, role: str, *, config: Any = None, any_head: bool = False
) -> nn.Module:
    quiet_transformers()
    try:
        module, info = cls.from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"{role}: {checkpoint.folder} cannot be loaded as {cls.__name__}: {first_line}"
        ) from error
    heads = tuple(f"{path}." for path in head_modules(module))
    prefix = f"{getattr(module, 'base_model_prefix', '')}."

    def counts(name: str) -> bool:
        return not any_head or not name.startswith(heads)

    missing = sorted(name for name in info["missing_keys"] if counts(name))
    mismatched = sorted(item for item in info["mismatched_keys"] if counts(item[0]))
    # A base may hold what no expert uses: another head, a pooler, a text tower beside the images'.
    extra = sorted(
        name
        for name in info["unexpected_keys"]
        if not any_head or (name.startswith(prefix) and ".pooler." not in f".{name}")
    )
    where = f"{role}: {checkpoint.folder}"
    if missing:
        raise CheckpointError(
            f"{where} lacks tensor '{missing[0]}'{and_more(missing)}, which a {cls.__name__} needs"
        )
    if mismatched:
        name, found, expected = mismatched[0]
        raise CheckpointError(
            f"{where}: tensor '{name}' has shape {list(found)}; the model configuration expects "
            f"{list(expected)}{and_more(mismatched)}"
        )
    if extra:
        raise CheckpointError(
            f"{where} has tensor '{extra[0]}'{and_more(extra)}, unknown to a {cls.__name__}"
        )
    result: nn.Module = module.eval()
    return result


def and_more(found: list[Any]) -> str:
    """``" (and 3 more)"`` after the first of several."""
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""


def quiet_transformers() -> None:
    """Keep transformers' progress bars and load reports off the terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _check_finite(module: nn.Module, role: str, checkpoint: Checkpoint) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{role}: tensor '{name}' in {checkpoint.folder} has {bad:,} of {tensor.numel():,} "
                "values that are NaN or infinite; expected finite weights, was the training stable?"
            )
