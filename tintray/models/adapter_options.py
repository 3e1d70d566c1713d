"""The options of PEFT's ``LoraConfig`` that are understood, and what each of them does.

An adapter's file holds factors; its configuration says what they mean. An option that is understood
may have any value of its type; any other, an option of a newer PEFT included, has to be off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from tintray.errors import CheckpointError
from tintray.files import foreign

_REASONS = {
    "what it is, where it comes from, how PEFT would load, train or run it": """
        peft_type task_type auto_mapping peft_version base_model_name_or_path revision
        inference_mode runtime_config
    """,
    "which modules have factors or are stored whole: the file says so too, and has to agree": """
        target_modules exclude_modules layers_to_transform layers_pattern modules_to_save bias
    """,
    "what the factors are multiplied with, and which way round a layer keeps its weight": """
        r lora_alpha rank_pattern alpha_pattern use_rslora fan_in_fan_out
    """,
    "training, and how the factors began (see _STARTS)": """
        lora_dropout init_lora_weights loftq_config eva_config corda_config lora_ga_config
    """,
    "parts of use_qalora and megatron_config, which have to be off": """
        qalora_group_size megatron_core
    """,
}
UNDERSTOOD = frozenset(" ".join(_REASONS.values()).split())
"""Options that may have any value of their type; any other may change what is computed."""

_OFF: tuple[Any, ...] = ([], {}, "")
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
        if name not in UNDERSTOOD and not (value is None or value is False or value in _OFF):
            raise CheckpointError(
                f"{where} has {name}={value!r}, which changes what PEFT computes in a way that is "
                "not read here; merge it into its base first (PEFT's merge_and_unload)"
            )


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


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
        said = f"{where} has the pattern {pattern!r}; expected names of modules, or a regular "
        said += "expression with at most two loops, none of them within another"
        if not is_plain(pattern):
            raise CheckpointError(said)
        with foreign(said):
            if re.match(rf"(.*\.)?({pattern})$", path):
                return value
    return default
