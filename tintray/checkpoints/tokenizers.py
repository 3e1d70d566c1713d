"""Tokenizers beside a model: whether there is one, and whether two number tokens alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tintray.errors import CheckpointError

_COMMON = 0.9  # of the tokens of the smaller vocabulary, which the other one has to know


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's folder has the files of a tokenizer."""
    return any(
        (folder / name).is_file()
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json")
    )


def check_same_tokens(reference: Any, tokenizer: Any, reference_role: str, role: str) -> None:
    """Refuse a tokenizer that numbers tokens otherwise than ``reference``.

    All tasks share one table of embeddings, so a number has to be the same token for each of them.
    Either may know tokens that the other does not, such as one for padding.

    Raises
    ------
    CheckpointError
        Naming a token and both its numbers, or how few tokens they have in common.
    """
    known, found = reference.get_vocab(), tokenizer.get_vocab()
    common = known.keys() & found.keys()
    expected = "expected one tokenizer for all tasks, which share the embeddings"
    for token in sorted(common, key=lambda token: (found[token], token)):
        if known[token] != found[token]:
            raise CheckpointError(
                f"{role}: its tokenizer has the token {token!r} as number {found[token]}, and that "
                f"of {reference_role} as {known[token]}; {expected}"
            )
    if len(common) < _COMMON * min(len(known), len(found)):
        raise CheckpointError(
            f"{role}: its tokenizer has {len(found):,} tokens, of which that of {reference_role} "
            f"knows {len(common):,}; {expected}"
        )
