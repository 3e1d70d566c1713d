"""Where a model takes a *prompt*: what a task adds to every token before the shared layers.

A prompt tells the shared layers which task they compute. It is kept in tensors that the model has
anyway, so that a tinted model stays an ordinary one: the table of learned positions where there is
one (a product of low rank is added to it); else the table of tokens; else, in models of images in
stages, the normalisation at the entry of each stage, of which every task has its own; else the
first normalisation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from tintray.errors import SpecError
from tintray.models.structure import head_modules, is_norm

_POSITIONS = re.compile(
    r"(^|\.)(position(al)?_embeddings?|pos_embed(ding)?s?|embed_positions|wpe|wp)(\.weight)?$"
)
_ENTRIES = re.compile(r"(^|[._])(embed\w*|patch_embed\w*|downsampl\w*|stem)([._]|$)")


@dataclass(frozen=True)
class Prompt:
    """Names of the tables that a product is added to, or paths of the norms that tasks own."""

    tables: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()


def find_prompt(module: nn.Module) -> Prompt:
    """Where ``module`` takes a prompt; see the module.

    Raises ``SpecError`` if it has none of these places.
    """
    heads = tuple(f"{path}." for path in head_modules(module))
    tables = tuple(
        name
        for name, tensor in module.named_parameters()
        if _POSITIONS.search(name) and tensor.ndim > 1 and not name.startswith(heads)
    )
    if not tables:
        tables = _token_table(module)
    if tables:
        return Prompt(tables=tables)
    norms = [
        path
        for path, child in module.named_modules()
        if is_norm(child) and not f"{path}.".startswith(heads)
    ]
    if not norms:
        raise SpecError(
            f"tint.sites: {type(module).__name__} has no place for a prompt: no table of positions "
            "or tokens, and no normalisation layer; name other sites"
        )
    entries = tuple(path for path in norms if _ENTRIES.search(path))
    return Prompt(norms=entries or (norms[0],))


def _token_table(module: nn.Module) -> tuple[str, ...]:
    """The weight of the input embeddings, by the name under which it is known."""
    own: Any = module
    try:
        table = own.get_input_embeddings() if hasattr(own, "get_input_embeddings") else None
    except NotImplementedError:
        return ()
    if not isinstance(table, nn.Embedding):
        return ()
    names = [name for name, tensor in module.named_parameters() if tensor is table.weight]
    return tuple(names)
