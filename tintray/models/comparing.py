"""Refuse experts that were not fine-tuned from the base, before anything is computed.

Two models may share tensors only where their tensors mean the same: of equal configurations, as
transformers reads them, of equal tokens and, where heads are merged too, of equal classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from tintray.checkpoints.model_folder import ModelFolder, tower_config
from tintray.checkpoints.processors import check_same_tokens, has_tokenizer, load_processor
from tintray.errors import CheckpointError
from tintray.models.config_usage import computes_with, knows
from tintray.models.configs import configuration, named_class, own_part
from tintray.models.structure import backbone_names, check_tensors, head_modules

_REASONS = {
    "where it comes from, how it was written": """
        _name_or_path architectures dtype model_revision torch_dtype transformers.js_config
        transformers_version unsloth_fixed unsloth_version
    """,
    "what is asked of a call, or kept for the next one": """
        gradient_checkpointing keys_to_ignore_at_inference output_attentions
        output_hidden_states output_past output_scores pretraining_tp return_dict torchscript
        use_cache
    """,
    "what answers are called": """
        finetuning_task id2label label2id num_labels problem_type task_specific_params
        zero_shot_classes zero_shot_templates
    """,
    "what is drawn at random in training, or before it": """
        activation_dropout attention_dropout attention_probs_dropout_prob attn_dropout
        attn_pdrop classif_dropout classifier_dropout classifier_dropout_prob decoder_layerdrop
        drop_path_rate dropout dropout_rate embd_pdrop embedding_dropout encoder_layerdrop
        ffn_dropout hidden_dropout hidden_dropout_prob init_std initializer_factor
        initializer_range layerdrop pooler_dropout qa_dropout resid_dropout resid_pdrop
        seq_classif_dropout summary_first_dropout summary_last_dropout
    """,
}
OF_NO_CONSEQUENCE = frozenset(" ".join(_REASONS.values()).split())
"""Fields that change nothing of what a trained model computes, by their exact names."""

TOKENS = frozenset({"bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id"})
"""Numbers of tokens; they count where the class computes with them: see ``reading``."""

LENGTHS = frozenset({"max_position_embeddings", "n_ctx", "n_positions"})
"""How long a text may be; a table of positions has a shape, which is compared for itself."""

_SCALED = ("dynamic", "yarn", "longrope")  # rotary positions that depend on that length

_FROM_BASE = "an expert fine-tuned from this base"
_EXPECTED = {
    "vocab_size": "one vocabulary for all tasks, which share the embeddings: give base and experts "
    "the same added tokens (resize_token_embeddings)",
    "tie_word_embeddings": "the head tied in all models, or in none",
}
_ABSENT = object()


def check_same_computation(
    base: ModelFolder, expert: ModelFolder, base_role: str, expert_role: str
) -> list[str]:
    """Refuse an expert whose configuration gives the shared tensors another meaning than the base.

    All tasks pass the same shared layers, so these must mean the same in every expert: a number of
    attention heads or an activation changes what tensors of equal shape compute. Configurations are
    compared after transformers has read both. What concerns only training, labels or loading may
    differ. Gives what is worth telling though it is right, such as another type of numbers.

    Raises CheckpointError, naming the field and both values.
    """
    known = tower_config(base.config) if expert.is_tower else base.config
    names = expert.config.get("architectures") or known.get("architectures") or [None]
    cls = None if expert.factory is not None else named_class(names[0])
    ignored = _ignored(cls, known, expert.config)
    one, other = (
        _flat(config if cls is None else _as_read(config, cls, _file(owner, role)))
        for config, owner, role in ((known, base, base_role), (expert.config, expert, expert_role))
    )
    for field in sorted(one.keys() | other.keys()):
        expected, found = one.get(field, _ABSENT), other.get(field, _ABSENT)
        path = field.split(".")
        if not ignored.isdisjoint(path) or _same(expected, found):
            continue
        if expert.factory is not None and _ABSENT in (expected, found):
            continue  # only the factory knows its defaults
        if cls is not None and not knows(cls, path[-1]) and not knows(cls, path[0]):
            continue
        if path[-1] in TOKENS and None in (expected, found):
            continue  # a model that names no such token has none that could differ
        raise CheckpointError(
            f"{_file(expert, expert_role)} has {field}{_told(found)}, {base_role} has "
            f"{_told(expected).removeprefix('=')}; expected {_EXPECTED.get(field, _FROM_BASE)}"
        )
    return [*expert.notices(expert_role), *_other_numbers(base, expert, base_role, expert_role)]


def _as_read(config: Mapping[str, Any], cls: Any, where: str) -> dict[str, Any]:
    """The fields that transformers reads, and the type that the file itself speaks of."""
    fields: dict[str, Any] = configuration(config, cls, where).to_dict()
    own = own_part(dict(config), cls.config_class).get("model_type")
    return {**fields, "model_type": own or fields.get("model_type")}


def check_same_model(
    one: ModelFolder, other: ModelFolder, one_role: str, other_role: str
) -> list[str]:
    """Refuse two whole models whose tensors, heads included, do not mean the same.

    Their configurations, the numbers of their tokens and of their classes, and which of their
    tensors are whole numbers. A model without a tokenizer, or without names for its classes, has
    none that could differ. Gives what ``check_same_computation`` does.

    Raises CheckpointError, naming the field, the token, the class or the tensor, and both values.
    """
    told = check_same_computation(one, other, one_role, other_role)
    check_same_classes(one, other, one_role, other_role)
    for name in sorted(one.tensors.keys() & other.tensors.keys()):
        kinds = [model.tensors[name].floating for model in (one, other)]
        if kinds[0] != kinds[1]:
            raise CheckpointError(
                f"{other_role}: tensor '{name}' is stored as {other.tensors[name].dtype}, and as "
                f"{one.tensors[name].dtype} in {one_role}; expected fractions, or whole numbers, "
                "in both"
            )
    check_same_tokenizer(one, other, one_role, other_role)
    return told


def check_same_tokenizer(
    one: ModelFolder, other: ModelFolder, one_role: str, other_role: str
) -> None:
    """Refuse tokenizers that number tokens differently, where both models have one."""
    folders = [model.preparing_folder for model in (one, other)]
    if folders[0] != folders[1] and all(map(has_tokenizer, folders)):
        first = load_processor(one, one_role, text=True)
        second = load_processor(other, other_role, text=True)
        check_same_tokens(first, second, one_role, other_role)


def check_same_classes(
    one: ModelFolder, other: ModelFolder, one_role: str, other_role: str
) -> None:
    """Refuse heads that number classes differently, where both models name theirs.

    Raises CheckpointError, naming a class and both its names.
    """
    first, second = _classes(one.config), _classes(other.config)
    if first and second and first != second:
        number = min(n for n in first | second if first.get(n) != second.get(n))
        raise CheckpointError(
            f"{_file(other, other_role)} calls class {number} {second.get(number)!r}, {one_role} "
            f"calls it {first.get(number)!r}; expected the same classes in the same order, "
            "experts of different classes are merged by a job"
        )


def _classes(config: Mapping[str, Any]) -> dict[int, str]:
    """Names of a head's classes by number; none where they are but numbered."""
    named = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    return {} if all(name == f"LABEL_{number}" for number, name in named.items()) else named


def _file(model: ModelFolder, role: str) -> str:
    return f"{role}: {model.folder / 'config.json'}"


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Fields of a configuration, those of its parts by ``part.field``."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        path = f"{before}{name}"
        fields |= _flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return fields


def _same(one: Any, other: Any) -> bool:
    """Equal, and not as ``1 == True`` is; a field that says nothing is as one that is not there."""
    if one is None or one is _ABSENT:
        return other is None or other is _ABSENT
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _told(value: Any) -> str:
    return " not at all" if value is _ABSENT else f"={value!r}"


def _ignored(cls: Any, *configs: Mapping[str, Any]) -> frozenset[str]:
    """The fields that need not be equal for models of this class."""
    ignored = OF_NO_CONSEQUENCE
    if cls is None:
        return ignored
    ignored |= {name for name in TOKENS if not computes_with(cls, name)}
    rotary = {str(value) for config in configs for value in _rope_types(config)}
    return ignored if rotary & {*_SCALED} else ignored | LENGTHS


def _rope_types(config: Mapping[str, Any]) -> Iterator[Any]:
    for path, value in _flat(config).items():
        if re.fullmatch(r"(.*\.)?(rope_parameters|rope_scaling)(\..*)?\.(rope_)?type", path):
            yield value


def _other_numbers(
    base: ModelFolder, expert: ModelFolder, base_role: str, expert_role: str
) -> list[str]:
    types, own = (
        sorted({t.dtype for t in model.tensors.values() if t.floating}) for model in (base, expert)
    )
    if expert.adapter is not None or not (types and own) or types == own:
        return []
    return [
        f"{expert_role} is stored as {', '.join(own)}, {base_role} as {', '.join(types)}; both are "
        "read as float32, and their difference has the rounding of the coarser one"
    ]


def check_same_backbone(
    base: nn.Module, expert: nn.Module, base_role: str, expert_role: str
) -> None:
    """Refuse an expert whose backbone differs from the base's in a name or a shape.

    Raises CheckpointError, naming the tensor, the shape expected and the shape found.
    """
    if type(base) is not type(expert):
        raise CheckpointError(
            f"{expert_role} is a {type(expert).__name__}; the other experts and {base_role} are "
            f"{type(base).__name__}, and only models of one architecture can be merged"
        )
    one, two = head_modules(base), head_modules(expert)
    if bool(one) != bool(two):
        tied, free = (base_role, expert_role) if two else (expert_role, base_role)
        raise CheckpointError(
            f"{expert_role}: {free} has a head of its own ({', '.join(one or two)}), {tied} has "
            f"it tied to its embeddings; expected {_EXPECTED['tie_word_embeddings']}"
        )
    wanted = {name: base.get_parameter(name).shape for name in backbone_names(base)}
    found = {name: expert.get_parameter(name).shape for name in backbone_names(expert)}
    missing = [name for name in wanted if name not in found]
    other = [(n, found[n], shape) for n, shape in wanted.items() if found.get(n, shape) != shape]
    extra = sorted(found.keys() - wanted.keys())
    check_tensors(expert_role, base_role, missing, other, extra, _FROM_BASE)
