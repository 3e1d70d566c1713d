"""What pools, test sets and self-labels take in memory, from headers and configurations alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tintray.data.counting import extent
from tintray.data.source import DataSource
from tintray.jobs.config.job_file import JobSpec
from tintray.tasks.kind import Kind
from tintray.tasks.registry import find_kind

_TOKENS_PER_BYTE = 0.25  # of English text
_BYTES_PER_TOKEN = 16  # an id and a mask, int64 each
_PADDING = 2  # texts are padded to the longest of their pool
_COMPRESSED = 3  # bytes of text in one byte of a .gz or .parquet
_SIDE = 224  # of images, where no configuration tells
_FLOAT = 4


def pool_bytes(spec: JobSpec, config: Mapping[str, Any]) -> int:
    """Bytes of all tasks' pools and test sets, and of what the experts answer on them.

    From above, but not far, for models whose ``config`` tells the size of images and the number of
    answers; 0 for data that is not on this machine yet.
    """
    return sum(
        _bytes_of(data.order(), find_kind(task.kind), config)
        for task in spec.tasks
        for data in (task.pool, task.test)
        if data is not None
    )


def _bytes_of(order: DataSource, kind: Kind, config: Mapping[str, Any]) -> int:
    found = extent(order)
    if found.examples is None:  # a table: of texts, mostly
        packed = _COMPRESSED if order.path.endswith((".gz", ".parquet")) else 1
        tokens = found.file_bytes * packed * _TOKENS_PER_BYTE
        return int(tokens * _BYTES_PER_TOKEN * _PADDING)
    side = _side(config)
    if side:
        pixels = side * side
    elif found.shape:
        pixels = math.prod(found.shape[:2])
    else:
        pixels = _SIDE * _SIDE
    channels = int(config.get("num_channels") or 3)
    answers = kind.answers_per_example(int(config.get("num_labels") or 1), pixels)
    return found.examples * (channels * pixels + _FLOAT * answers)


def _side(config: Mapping[str, Any]) -> int:
    size = config.get("image_size")
    return max(size) if isinstance(size, list | tuple) and size else int(size or 0)
