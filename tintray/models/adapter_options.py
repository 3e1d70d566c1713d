"""The options of PEFT's ``LoraConfig`` that are understood, and what each of them does.

An adapter's file holds factors; its configuration says what they mean. Every option is on one of
the two lists below. One that is understood may have any value of its type; any other, an option of
a newer PEFT included, has to have the value that PEFT gives it by itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from tintray.errors import CheckpointError

UNDERSTOOD = {
    # what it is, and where it comes from
    "peft_type": "LORA, no other",
    "task_type": "the class of the model, of a base that is saved without a head",
    "auto_mapping": "the same, for PEFT's own loading",
    "peft_version": "who wrote it",
    "base_model_name_or_path": "which base it belongs to, where both are named by the hub",
    "revision": "of that base on the hub",
    "inference_mode": "whether PEFT would train it",
    "runtime_config": "how PEFT would run it",
    # which modules have factors: the file says so itself, and has to agree
    "target_modules": "the modules with factors",
    "exclude_modules": "modules that have none",
    "layers_to_transform": "the layers whose modules have factors",
    "layers_pattern": "what these layers are called",
    "modules_to_save": "modules that were trained whole, such as the head",
    "bias": "which biases were trained, whole",
    # what the factors are multiplied with
    "r": "the rank",
    "lora_alpha": "the scale, divided by the rank",
    "rank_pattern": "ranks of some modules",
    "alpha_pattern": "scales of some modules",
    "use_rslora": "the scale is divided by the square root of the rank",
    "fan_in_fan_out": "for layers that keep their weight as [in, out]; their class tells it",
    # what mattered in training, or before it, and changes nothing of the factors that were stored
    "lora_dropout": "in training",
    "init_lora_weights": "how the factors began; see _STARTS",
    "loftq_config": "of a beginning that is refused where it was used",
    "eva_config": "of the beginning 'eva', which chose ranks and factors",
    "corda_config": "of a beginning that is refused where it was used",
    "lora_ga_config": "of a beginning that is refused where it was used",
    "qalora_group_size": "of use_qalora, which has to be off",
    "megatron_core": "of megatron_config, which has to be off",
}
"""Options that may have any value, and what they say."""

DEFAULTS: dict[str, Any] = {
    "megatron_config": None,
    "trainable_token_indices": None,
    "use_dora": False,
    "velora_config": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "monteclora_config": None,
    "layer_replication": None,
    "lora_bias": False,
    "target_parameters": None,
    "use_bdlora": None,
    "arrow_config": None,
    "kasa_config": None,
    "ensure_weight_tying": False,
}
"""Options that change what is computed, or may: only PEFT's default is taken."""

_STARTS = (None, "", "gaussian", "eva", "orthogonal")  # or a switch; the base stays as it is


def check_options(config: Mapping[str, Any], where: str) -> None:
    """Refuse an adapter that is no plain sum of products, by the option that says so.

    Raises CheckpointError, naming the option, its value, and what to do.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{where} has peft_type={kind!r}; expected 'LORA', other adapters "
            "have to be merged into their base first (PEFT's merge_and_unload)"
        )
    for name, right, expected in _TYPES:
        if config.get(name) is not None and not right(config[name]):
            raise CheckpointError(f"{where} has {name}={config[name]!r}; expected {expected}")
    start = config.get("init_lora_weights")
    if not isinstance(start, bool) and (
        not _is_text(start) or (start or "").lower() not in _STARTS
    ):
        raise CheckpointError(
            f"{where} has init_lora_weights={start!r}, which may change the base "
            "too; save it as a plain adapter (PEFT's path_initial_model_for_weight_conversion)"
        )
    for name, value in config.items():
        if name not in UNDERSTOOD and not _is_default(name, value):
            raise CheckpointError(
                f"{where} has {name}={value!r}, which changes what PEFT computes in a way that is "
                "not read here; merge it into its base first (PEFT's merge_and_unload)"
            )


def _is_default(name: str, value: Any) -> bool:
    if name in DEFAULTS:
        return value is DEFAULTS[name] or value is None or value == [] or value == {}
    return value is None or value is False or value in ([], {}, "")


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e30 and math.isfinite(value)


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_texts(value: Any) -> bool:
    listed = value if isinstance(value, list) else [value]
    return all(isinstance(item, str) for item in listed)


def _maps(right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(right(item) for item in value.values())


_TYPES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("r", _is_rank, "a whole number above 0"),
    ("lora_alpha", _is_number, "a number"),
    ("rank_pattern", _maps(_is_rank), "whole numbers above 0 by the names of modules"),
    ("alpha_pattern", _maps(_is_number), "numbers by the names of modules"),
    ("use_rslora", _is_switch, "true or false"),
    ("fan_in_fan_out", _is_switch, "true or false"),
    ("target_modules", _is_texts, "names of modules"),
    ("modules_to_save", _is_texts, "names of modules"),
    ("task_type", _is_text, "a name"),
    ("bias", lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
)

_ATOM = r"[\w\-/]|\.|\\[.dwDW]|\[[\w\-.]+\]"
_GROUP = r"\((?:\?:)?[\w.\\\-|]*\)\??"
_PLAIN = re.compile(rf"(?:{_GROUP}|(?:{_ATOM})(?:[*+?]|\{{\d{{1,3}}\}})?|[\^$|])*")
_LOOPS = 2
_LONGEST = 500


def is_plain(pattern: str) -> bool:
    """Whether a regular expression takes no more than polynomial time: no loop within a loop.

    Names, classes of characters, alternatives without loops in them, and at most two loops.
    """
    loops = len(re.findall(r"(?<!\\)[*+]", pattern))
    return len(pattern) <= _LONGEST and loops <= _LOOPS and _PLAIN.fullmatch(pattern) is not None


def by_pattern(patterns: Mapping[str, Any] | None, path: str, default: Any, where: str) -> Any:
    """What a pattern of names gives a module; as PEFT, by the first that fits its path or its end.

    Raises CheckpointError if a pattern is no regular expression, or one that could take for ever.
    """
    for pattern, value in (patterns or {}).items():
        if not is_plain(pattern):
            raise CheckpointError(
                f"{where} has the pattern {pattern!r}; expected names of modules, or a regular "
                "expression with at most two loops, none of them within another"
            )
        try:
            if re.match(rf"(.*\.)?({pattern})$", path):
                return value
        except re.error as error:
            raise CheckpointError(
                f"{where} has the pattern {pattern!r}, which is no regular expression ({error})"
            ) from error
    return default
