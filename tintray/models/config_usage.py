"""What the code of a class of transformers asks its configuration for, told without running it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from importlib import import_module
from types import CodeType, FunctionType
from typing import Any

_OF_MODELS = ("transformers.models.", "transformers.modeling_layers", "tintray.models.")
_MODELING = ("modeling_", "clip")  # beside a class lies its configuration, which computes nothing
_SHARED_CODE = ("masking_utils", "modeling_rope_utils", "integrations.sdpa_attention")


def computes_with(cls: Any, token: str) -> bool:
    """Whether a class of transformers looks at a special token when it answers.

    As RoBERTa counts positions from the padding token and heads of decoders search the last token
    that is none. Looking one up to build a module (``__init__``) is not computing with it.
    """
    names = {token, "padding_idx"} if token == "pad_token_id" else {token}
    return any(
        not names.isdisjoint(_names_in(code, texts=False))
        for name, code in _functions(cls)
        if name not in ("__init__", "_init_weights", "prepare_inputs_for_generation")
    )


def knows(cls: Any, field: str) -> bool:
    """Whether a class of transformers knows a field of its configuration at all.

    A field that is none of its own counts only if some code asks for it by name; trainers and
    exporters leave others.
    """
    own = {"model_type", *(f.name for f in fields(cls.config_class))}
    return field in own or field in _read_by(cls)


@cache
def _read_by(cls: Any) -> frozenset[str]:
    shared = (import_module(f"transformers.{name}") for name in _SHARED_CODE)
    of_all = (code for module in shared for _, code in _codes(vars(module)))
    own = (code for _, code in _functions(cls))
    return frozenset(name for code in (*own, *of_all) for name in _names_in(code, texts=True))


def _functions(cls: Any) -> Iterator[tuple[str, CodeType]]:
    """The functions of a model class with its bases, and of what the modules of these define."""
    owners = [owner for owner in cls.__mro__ if owner.__module__.startswith(_OF_MODELS)]
    for module in {owner.__module__ for owner in owners}:
        known = vars(import_module(module))
        yield from _codes(known)
        owners += [part for part in known.values() if isinstance(part, type)]
    for owner in dict.fromkeys(owners):
        headed = "For" in owner.__name__ and owner not in cls.__mro__
        module = owner.__module__.rpartition(".")[2]
        if owner.__module__.startswith(_OF_MODELS) and module.startswith(_MODELING) and not headed:
            yield from _codes(vars(owner))


def _codes(namespace: Mapping[str, object]) -> Iterator[tuple[str, CodeType]]:
    for name, found in namespace.items():
        function = inspect.unwrap(found) if callable(found) else found
        if isinstance(function, FunctionType):
            yield name, function.__code__


def _names_in(code: CodeType, *, texts: bool) -> Iterator[str]:
    """What a function asks for by name: as an attribute and, with ``texts``, by a text."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant, texts=texts)
        elif texts and isinstance(constant, str):
            yield constant
