"""Refuse experts that were not fine-tuned from the base, before anything is computed."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from tintray.checkpoints import Checkpoint, tower_config
from tintray.errors import CheckpointError
from tintray.models.loading import and_more
from tintray.structure import backbone_names, head_modules

_OF_NO_CONSEQUENCE = (
    "_name_or_path",
    "architectures",
    "dropout",
    "dtype",
    "finetuning_task",
    "gradient_checkpointing",
    "initializer",
    "label",
    "output_",
    "problem_type",
    "return_dict",
    "transformers_version",
    "use_cache",
    "zero_shot",
)


_FROM_BASE = "an expert fine-tuned from this base"
_EXPECTED = {
    "vocab_size": "one vocabulary for all tasks, which share the embeddings: give base and experts "
    "the same added tokens (resize_token_embeddings)",
    "tie_word_embeddings": "the head tied in all models, or in none",
}


def check_same_computation(
    base: Checkpoint, expert: Checkpoint, base_role: str, expert_role: str
) -> None:
    """Refuse an expert whose configuration or storage type differs from the base's.

    All tasks pass the same shared layers, so these must mean the same in every expert: a number of
    attention heads or an activation changes what tensors of equal shape compute. What concerns
    only training, labels or loading may differ.

    Raises
    ------
    CheckpointError
        Naming the field and both values.
    """
    known = tower_config(base.config) if expert.is_tower else base.config
    for field in sorted(known.keys() | expert.config.keys()):
        if any(part in field for part in _OF_NO_CONSEQUENCE):
            continue
        expected, found = known.get(field), expert.config.get(field)
        if field in known and field in expert.config and expected != found:
            raise CheckpointError(
                f"{expert_role}: {expert.folder / 'config.json'} has {field}={found!r}, "
                f"{base_role} has {expected!r}; expected {_EXPECTED.get(field, _FROM_BASE)}"
            )
    types, own = _floating(base.dtypes), _floating(expert.dtypes)
    if expert.adapter is None and types != own:
        raise CheckpointError(
            f"{expert_role} is stored as {', '.join(own)}, {base_role} as {', '.join(types)}; "
            "expected one type for both, since their difference would be mostly rounding: save "
            "both alike with save_pretrained"
        )


def _floating(types: Collection[str]) -> list[str]:
    """Types of weights; whole numbers are positions and counters, which old files have too."""
    return sorted(name for name in types if name.startswith(("F", "BF")))


def check_same_backbone(
    base: nn.Module, expert: nn.Module, base_role: str, expert_role: str
) -> None:
    """Refuse an expert whose backbone differs from the base's in a name or a shape.

    Raises
    ------
    CheckpointError
        Naming the tensor, the shape expected and the shape found.
    """
    if type(base) is not type(expert):
        raise CheckpointError(
            f"{expert_role} is a {type(expert).__name__}; the other experts and {base_role} are "
            f"{type(base).__name__}, and only models of one architecture can be merged"
        )
    one, other = head_modules(base), head_modules(expert)
    if bool(one) != bool(other):
        tied, free = (base_role, expert_role) if other else (expert_role, base_role)
        raise CheckpointError(
            f"{expert_role}: {free} has a head of its own ({', '.join(one or other)}), {tied} has "
            f"it tied to its embeddings; expected {_EXPECTED['tie_word_embeddings']}"
        )
    expected = {name: tuple(base.get_parameter(name).shape) for name in backbone_names(base)}
    found = {name: tuple(expert.get_parameter(name).shape) for name in backbone_names(expert)}
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(
                f"{expert_role} lacks tensor '{name}', which {base_role} has with shape "
                f"{list(shape)}; expected an expert fine-tuned from this base"
            )
        if found[name] != shape:
            raise CheckpointError(
                f"{expert_role}: tensor '{name}' has shape {list(found[name])}; {base_role} has "
                f"{list(shape)}; expected an expert fine-tuned from this base"
            )
    extra = sorted(found.keys() - expected.keys())
    if extra:
        raise CheckpointError(
            f"{expert_role} has tensor '{extra[0]}'{and_more(extra)}, which {base_role} lacks; "
            "expected an expert fine-tuned from this base"
        )
