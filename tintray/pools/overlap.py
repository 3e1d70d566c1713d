"""Examples that a pool and a test set have in common, found by content.

What the model is given is compared, not where it came from: a copy of an example in another file,
another form or another row is the same example.
"""

from __future__ import annotations

import hashlib

from tintray.pools.pool import Pool


def shared(pool: Pool, test: Pool) -> int:
    """How many of the test set's examples are in the pool."""
    known = set(_marks(pool))
    return sum(mark in known for mark in _marks(test))


def warning(task: str, common: int, tests: int) -> str:
    """What is told of a test set that shares examples with the pool."""
    return (
        f"tasks.{task}.test: {common:,} of {tests:,} examples are in the pool too, so "
        "that its score tells less of new examples; expected a split that the pool does not have"
    )


def _marks(pool: Pool) -> list[bytes]:
    """A hash of each example's inputs, without padding and without what a decoder is to write."""
    mask = pool.inputs.get("attention_mask")
    names = sorted(name for name in pool.inputs if not name.startswith("decoder_"))
    arrays = [pool.inputs[name].numpy() for name in names]
    width = None if mask is None or mask.ndim != 2 else mask.shape[1]
    ends = None if mask is None or width is None else mask.sum(1).tolist()
    marks = []
    for row in range(len(pool)):
        mark = hashlib.blake2b(digest_size=16)
        for array in arrays:
            padded = ends is not None and array.shape[1:] == (width,)
            mark.update((array[row, : ends[row]] if ends and padded else array[row]).tobytes())
        marks.append(mark.digest())
    return marks
