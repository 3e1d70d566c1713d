"""Pools made from data: read, and prepared for an expert by its own processor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tintray.checkpoints.model_folder import ModelFolder
from tintray.checkpoints.processors import load_processor
from tintray.data.corruptions import Corruption
from tintray.data.labels import Answers
from tintray.data.reading import Examples, encoded_digest, read_examples
from tintray.data.source import DataSource
from tintray.pools.cache import cached_pool
from tintray.pools.images import image_pool
from tintray.pools.pool import Pool
from tintray.pools.tokens import text_pool
from tintray.tasks.classes import CLASSIFICATION
from tintray.tasks.kind import Kind

ANSWER_LENGTH = 64
"""Tokens that an answer of a sequence-to-sequence model has at most, if the job does not say."""

_ANYWHERE = DataSource("")


def open_pool(
    source: DataSource,
    folder: ModelFolder,
    kind: Kind,
    role: str,
    data: str,
    cache: Path | None = None,
) -> Pool:
    """Read examples and prepare them for the expert in ``folder``.

    ``role`` and ``data`` are what messages call the expert and the examples; prepared images are
    kept below ``cache``, by content. Raises DataError, CheckpointError if the examples cannot be
    read, or the expert's folder has no processor for them.
    """

    def processor(text: bool) -> Any:
        needed = text or folder.preprocessor_files or folder.factory is None
        return load_processor(folder, role, text=text) if needed else None

    return prepared_pool(source, processor, kind, data, cache)


def prepared_pool(
    source: DataSource,
    processor: Callable[[bool], Any],
    kind: Kind,
    role: str,
    cache: Path | None,
    corruption: Corruption | None = None,
) -> Pool:
    """The same, with what ``processor`` gives for texts (True) or images, which may be None.

    With a ``corruption``, the examples are what it makes of them.
    """
    if corruption is not None:
        examples = corruption(read_examples(source, role), role)
        return build_pool(examples, processor(examples.is_text), kind, source, role)
    encoded = encoded_digest(source, role) if cache else None
    known = None if encoded is None else processor(False)
    if cache is not None and known is not None:
        return cached_pool(
            *(cache, f"{encoded} {known.to_json_string()} {source.max_bad}"),
            lambda: build_pool(read_examples(source, role), known, kind, source, role),
        )
    examples = read_examples(source, role)
    return build_pool(examples, processor(examples.is_text), kind, source, role)


def build_pool(
    examples: Examples,
    processor: Any,
    kind: Kind = CLASSIFICATION,
    source: DataSource = _ANYWHERE,
    role: str = "data",
) -> Pool:
    """Prepare examples exactly as the expert's processor does.

    Without one, as a module from a factory may be, images are scaled to [0, 1], nothing more.
    Raises DataError if they cannot be prepared, or take more memory than the source's limits allow.
    """
    if not examples.is_text:
        return image_pool(examples, processor, source, role)
    pool = text_pool(examples, processor, kind, source, role)
    if not kind.writes:
        return pool
    length = source.max_target_length or ANSWER_LENGTH
    digest = hashlib.sha256(f"{pool.digest} {length}".encode()).hexdigest()
    return replace(pool, digest=digest, answer_length=length)


def labels_of(source: DataSource, kind: Kind, pool: Pool, answers: Answers, role: str) -> Any:
    """The labels of a pool's examples; those of a model that writes are the tokens themselves."""
    if pool.targets is not None:
        return pool.targets
    return kind.read_labels(source, pool.rows, answers, role)
