"""Texts as tokens: what a model is given, and which of its answers count.

Padding is on the right whatever the tokenizer says: causal models are run over whole texts here,
never asked to continue a padded one.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tintray.data.reading import Examples
from tintray.data.source import DataSource
from tintray.errors import CheckpointError, DataError
from tintray.files import foreign
from tintray.limits import Limits, size_text
from tintray.pools import encoding
from tintray.pools.encoding import encode
from tintray.pools.pool import Pool
from tintray.tasks.kind import Kind

_UNLIMITED = 1_000_000  # tokenizers without a limit say 10**30
_DEFAULT_LENGTH = 512
_INT64 = 8  # bytes
_WORD = 1000  # characters of a word whose parts are looked for one by one
_ADDED = 10_000  # characters that say what is put around each text
_BOUNDED = frozenset(
    (
        *("None", "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"),
        *("BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Whitespace"),
        *("Strip", "WhitespaceSplit"),
    )
)
"""Steps of the tokenizers library that follow no expression and write no text of a file."""


def text_pool(
    examples: Examples, tokenizer: Any, kind: Kind, source: DataSource, role: str
) -> Pool:
    """A pool of texts as tokens, as the kind of task asks."""
    with foreign(f"{role}: the expert's tokenizer cannot read the texts", DataError):
        options = _options(tokenizer, source.max_length)
        digest = _digest(examples, tokenizer, kind, options["max_length"])
        made = _encoded(examples, tokenizer, options, source, role)
        encoded = made["rows"]
        _check_content(encoded["input_ids"], tokenizer, role)
        longest = max(len(row) for row in encoded["input_ids"])
        taken = len(examples) * longest * _INT64 * (len(encoded) + 2)  # and a mask and next tokens
        source.check_bytes(taken, f"{role}: {len(examples):,} texts of up to {longest:,} tokens")
        inputs = _padded(tokenizer, encoded, longest)
        mask, targets = kind.token_targets(inputs, made["words"], made["assistant"], role)
        return Pool(inputs, None, None, digest, mask, examples.rows, targets)


def tokenized(
    columns: Mapping[str, Any], tokenizer: Any, kind: Kind, max_length: int | None = None
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Model inputs [N, S] of a few texts, as a pool's batch has them, and which tokens count.

    Raises whatever the tokenizer does over them. It runs here, and is bounded by nothing but what
    it is given.
    """
    made = encode(columns, tokenizer, _options(tokenizer, max_length))
    longest = max(len(row) for row in made["rows"]["input_ids"])
    inputs = _padded(tokenizer, made["rows"], longest)
    return inputs, kind.token_targets(inputs, made["words"], None, "the text")[0]


def check_known(ids: Tensor, module: nn.Module, role: str) -> None:
    """Raise CheckpointError for tokens [N, S] beyond a model's embeddings."""
    get = getattr(module, "get_input_embeddings", None)
    rows = getattr(get() if get else None, "num_embeddings", None)
    if rows is not None and int(ids.max()) >= rows:
        raise CheckpointError(
            f"{role}: its tokenizer gives the token number {int(ids.max()):,}, and the model has "
            f"{rows:,} embeddings; expected the tokenizer that the expert was trained with"
        )


def _check_content(rows: list[list[int]], tokenizer: Any, role: str) -> None:
    """Refuse texts that most of which the tokenizer knows nothing of: it is another model's."""
    nothing = {*tokenizer.all_special_ids}
    empty = sum(nothing.issuperset(row) for row in rows)
    if empty > len(rows) / 2:
        raise DataError(
            f"{role}: the tokenizer of the expert ({type(tokenizer).__name__}) finds no known "
            f"token in {empty:,} of {len(rows):,} texts; expected the tokenizer that the expert "
            "was trained with"
        )


def _options(tokenizer: Any, max_length: int | None) -> dict[str, Any]:
    return {"truncation": True, "max_length": _limit(tokenizer, max_length)}


def _limit(tokenizer: Any, max_length: int | None) -> int:
    most = int(min(tokenizer.model_max_length, _UNLIMITED))
    if max_length is not None:
        return min(max_length, most)
    return most if most < _UNLIMITED else _DEFAULT_LENGTH


def _digest(examples: Examples, tokenizer: Any, kind: Kind, limit: int) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    vocabulary = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab()))
    chat = tokenizer.chat_template if "messages" in examples.columns else ""
    known = f"{vocabulary} {tokenizer.pad_token} {kind.name} {limit} {chat}"
    return hashlib.sha256(f"tokens 1 {examples.digest()} {known}".encode()).hexdigest()


def _encoded(
    examples: Examples, tokenizer: Any, options: dict[str, Any], source: DataSource, role: str
) -> dict[str, Any]:
    """``encode``, here if the tokenizer's size bounds what it does, else in a bounded process."""
    columns = examples.columns
    if "messages" in columns and not tokenizer.chat_template:
        raise DataError(
            f"{role}: conversations need a chat template, and the expert's tokenizer has none; "
            "use a column of plain texts"
        )
    if "tokens" in columns and not tokenizer.is_fast:
        raise DataError(
            f"{role}: words can be followed through a fast tokenizer only, and "
            f"{type(tokenizer).__name__} is none; save the tokenizer.json of the fast one"
        )
    if "messages" not in columns and _is_bounded(tokenizer):
        return encode(columns, tokenizer, options)
    limits = source.limits
    who = "chat template" if "messages" in columns else "tokenizer"
    code, answer, said = _apart(pickle.dumps((dict(columns), tokenizer, options)), limits)
    if code == -signal.SIGALRM:
        raise DataError(
            f"{role}: the {who} of the expert took more than the {limits.max_seconds:,} s "
            f"that max_seconds allows for {len(examples):,} texts; take fewer examples, mend the "
            "expert's tokenizer files or raise it"
        )
    if code:
        raise DataError(
            f"{role}: the {who} of the expert took more memory than max_pool_bytes allows, "
            f"{size_text(limits.max_pool_bytes)}, or ended its process (exit code {code}{said}); "
            "take fewer examples, mend the expert's tokenizer files or raise it"
        )
    made: dict[str, Any] = json.loads(answer)
    if "error" in made:
        raise DataError(f"{role}: the {who} of the expert cannot read the texts ({made['error']})")
    return made


def _apart(order: bytes, limits: Limits) -> tuple[int, bytes, str]:
    """The exit code of a process that encodes, its answer, and its last words behind a colon."""
    bounds = [str(limits.max_seconds), str(limits.max_pool_bytes)]
    command = [sys.executable, "-P", encoding.__file__, *bounds, *filter(None, sys.path)]
    done = subprocess.run(command, input=order, capture_output=True, check=False)
    said = done.stderr[-500:].decode("utf-8", "replace").strip().splitlines()
    return done.returncode, done.stdout, f": {said[-1].strip()}" if said else ""


def _is_bounded(tokenizer: Any) -> bool:
    """Whether nothing that a tokenizer does takes more than a constant for each byte of a text.

    Of what its file may ask for there is each at most once: rules that lengthen texts would
    multiply.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # no rules of a file, but code of transformers
        return True
    known = json.loads(backend.to_str())
    asked = list(_kinds([known["normalizer"], known["pre_tokenizer"]]))
    return (
        _BOUNDED.issuperset(asked)
        and len(asked) == len(set(asked))
        and known["model"].get("max_input_chars_per_word", 0) <= _WORD
        and len(json.dumps(known["post_processor"])) <= _ADDED
    )


def _kinds(part: Any) -> Iterator[str]:
    for inner in part if isinstance(part, list) else []:
        yield from _kinds(inner)
    if isinstance(part, dict):
        lists = [value for value in part.values() if isinstance(value, list)]
        yield from _kinds(lists) if lists else [str(part.get("type"))]


def _padded(tokenizer: Any, encoded: Any, length: int) -> dict[str, Tensor]:
    """[N, S] per input, on the right."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    inputs = {}
    for name in tokenizer.model_input_names:
        if name in encoded:
            fill = [pad or 0] if name == "input_ids" else [0]
            rows = [row + fill * (length - len(row)) for row in encoded[name]]
            inputs[name] = torch.tensor(rows, dtype=torch.int64)
    return inputs
