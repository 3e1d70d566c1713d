"""Texts as tokens: what a model is given, and which of its answers count.

Padding is on the right whatever the tokenizer says: causal models are run over whole texts here,
never asked to continue a padded one.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tintray.data.reading import Examples
from tintray.data.source import DataSource
from tintray.errors import CheckpointError, DataError
from tintray.files import foreign
from tintray.tasks.kind import Kind

_UNLIMITED = 1_000_000  # tokenizers without a limit say 10**30
_DEFAULT_LENGTH = 512
_INT64 = 8  # bytes
_DIGITS = re.compile(r"\d[\d_]{4}")


@dataclass(frozen=True)
class Tokens:
    """N texts as tokens; see ``Pool`` for the fields."""

    inputs: dict[str, Tensor]
    mask: Tensor | None
    words: Tensor | None
    digest: str


def build_tokens(
    examples: Examples, tokenizer: Any, kind: Kind, order: DataSource, role: str
) -> Tokens:
    """Turn texts into tokens as the kind of task asks.

    Raises
    ------
    DataError
        If the tokenizer cannot: words without a fast tokenizer, a conversation without a template;
        or if the tokens take more memory than the order's limits allow.
    """
    with foreign(f"{role}: the expert's tokenizer cannot read the texts", DataError):
        return _build(examples, tokenizer, kind, order, role)


def _build(examples: Examples, tokenizer: Any, kind: Kind, order: DataSource, role: str) -> Tokens:
    limit = _limit(tokenizer, order.max_length)
    digest = _digest(examples, tokenizer, kind, limit)
    columns = examples.columns
    options = {"truncation": True, "max_length": limit}
    assistant: list[list[int]] | None = None
    if "messages" in columns:
        encoded, assistant = _chat(columns["messages"], tokenizer, options, role)
    elif "tokens" in columns:
        encoded = _words(columns["tokens"], tokenizer, options, role)
    else:
        encoded = tokenizer(columns["text"], columns.get("text_pair"), **options)
    _check_content(encoded, tokenizer, role)
    longest = max(len(row) for row in encoded["input_ids"])
    taken = len(examples) * longest * _INT64 * (len(encoded) + 2)  # and a mask and next tokens
    order.check_bytes(taken, f"{role}: {len(examples):,} texts of up to {longest:,} tokens")
    inputs = _padded(tokenizer, encoded)
    words = None
    if "tokens" in columns:
        words = [encoded.word_ids(row) for row in range(len(examples))]
    return Tokens(inputs, *kind.token_targets(inputs, words, assistant, role), digest)


def check_known(ids: Tensor, module: nn.Module, role: str) -> None:
    """Refuse tokens [N, S] beyond a model's embeddings.

    Raises
    ------
    CheckpointError
        Naming the largest number and how many embeddings there are.
    """
    get = getattr(module, "get_input_embeddings", None)
    rows = getattr(get() if get else None, "num_embeddings", None)
    if rows is not None and int(ids.max()) >= rows:
        raise CheckpointError(
            f"{role}: its tokenizer gives the token number {int(ids.max()):,}, and the model has "
            f"{rows:,} embeddings; expected the tokenizer that the expert was trained with"
        )


def _check_content(encoded: Any, tokenizer: Any, role: str) -> None:
    """Refuse texts that most of which the tokenizer knows nothing of: it is another model's."""
    nothing = {*tokenizer.all_special_ids}
    empty = sum(nothing.issuperset(row) for row in encoded["input_ids"])
    if empty > len(encoded["input_ids"]) / 2:
        raise DataError(
            f"{role}: the tokenizer of the expert ({type(tokenizer).__name__}) finds no known "
            f"token in {empty:,} of {len(encoded['input_ids']):,} texts; expected the tokenizer "
            "that the expert was trained with"
        )


def _limit(tokenizer: Any, max_length: int | None) -> int:
    known = int(min(tokenizer.model_max_length, _UNLIMITED))
    own = known if known < _UNLIMITED else _DEFAULT_LENGTH
    return own if max_length is None else min(max_length, known)


def _digest(examples: Examples, tokenizer: Any, kind: Kind, limit: int) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    vocabulary = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab()))
    chat = tokenizer.chat_template if "messages" in examples.columns else ""
    known = f"{vocabulary} {tokenizer.pad_token} {kind.name} {limit} {chat}"
    return hashlib.sha256(f"tokens 1 {examples.digest()} {known}".encode()).hexdigest()


def _words(rows: list[list[str]], tokenizer: Any, options: dict[str, Any], role: str) -> Any:
    if not tokenizer.is_fast:
        raise DataError(
            f"{role}: words can be followed through a fast tokenizer only, and "
            f"{type(tokenizer).__name__} is none; save the tokenizer.json of the fast one"
        )
    if not isinstance(getattr(tokenizer, "add_prefix_space", None), bool):
        return tokenizer(rows, is_split_into_words=True, **options)
    tokenizer.add_prefix_space = True  # byte-level tokenizers refuse words otherwise
    return tokenizer(rows, is_split_into_words=True, **options)


def _chat(
    rows: list[list[dict[str, str]]], tokenizer: Any, options: dict[str, Any], role: str
) -> tuple[Any, list[list[int]] | None]:
    if not tokenizer.chat_template:
        raise DataError(
            f"{role}: conversations need a chat template, and the expert's tokenizer has none; "
            "use a column of plain texts"
        )
    _check_template(tokenizer.chat_template, role)
    marks = (
        "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template
    )
    encoded = tokenizer.apply_chat_template(
        rows, tokenize=True, return_dict=True, return_assistant_tokens_mask=marks, **options
    )
    assistant = encoded.pop("assistant_masks") if marks else None
    return encoded, assistant


def _check_template(template: str | dict[str, str], role: str) -> None:
    """Refuse a chat template that makes texts of any length: nothing bounds it once it runs."""
    from jinja2 import Environment

    with foreign(f"{role}: the chat template of the expert's tokenizer cannot be read", DataError):
        texts = template.values() if isinstance(template, dict) else [template]
        lexed = [token for text in texts for token in Environment().lex(text)]
    tokens = [(kind, text) for _, kind, text in lexed if kind not in ("data", "comment")]
    products = sum(kind == "operator" and text == "*" for kind, text in tokens)
    powers = any(kind == "operator" and text == "**" for kind, text in tokens)
    large = any(_DIGITS.search(text) for _, text in tokens)
    if powers or large or products > 2:
        raise DataError(
            f"{role}: the chat template of the expert's tokenizer computes with large numbers "
            "(a power, three products, or five digits in a row), by which it may make texts of any "
            "length; expected one that only writes messages"
        )


def _padded(tokenizer: Any, encoded: Any) -> dict[str, Tensor]:
    """[N, S] per input, on the right, S the longest of all."""
    length = max(len(row) for row in encoded["input_ids"])
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    fills = {"input_ids": pad or 0, "attention_mask": 0}
    found = {}
    for name in tokenizer.model_input_names:
        if name in encoded:
            rows = [list(row) + [fills.get(name, 0)] * (length - len(row)) for row in encoded[name]]
            found[name] = torch.tensor(rows, dtype=torch.int64)
    return found
