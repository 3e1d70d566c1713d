"""What to read: a place, a split or a slice of it, and which columns are what."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from tintray.errors import DataError, nearest
from tintray.limits import DEFAULTS, Limits, size_text

INPUTS = {
    "image": ("image", "img", "pixels"),
    "messages": ("messages", "conversation"),
    "tokens": ("tokens", "words"),
    "text": ("text", "sentence", "sentence1", "content", "question", "premise"),
    "text_pair": ("text_pair", "sentence2", "hypothesis"),
}
"""Columns that hold inputs, by what they are, each with the names by which it is known."""

LABEL = "label"
LABELS = (
    *("label", "labels", "target", "tags", "ner_tags", "pos_tags"),
    *("mask", "seg", "annotation", "depth", "normals", "summary", "answer", "score"),
)
"""Names by which a column of labels is known."""

_SLICE = re.compile(
    r"(?P<name>[^\[\]]+)(\[(?P<start>-?[0-9]{1,18}%?)?:(?P<stop>-?[0-9]{1,18}%?)?\])?"
)


@dataclass(frozen=True)
class DataSource:
    """One set of examples to read."""

    path: str  # a file or folder on this machine, or ``hf://org/name`` of a data set on the hub
    # A split, or a slice of it as ``datasets`` writes it: ``train``, ``train[:500]``,
    # ``test[50%:]``. A file that holds one table has one split, ``train``.
    split: str = "train"
    # which column is what, where its name does not tell: ``{"text": "review"}``
    columns: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None  # tokens that a text is cut to; None is what the model takes
    max_bad: int = 0  # how many examples may be unreadable; they are left out
    ignore: int | None = None  # a label that counts as none (the void class of a segmentation)
    # as many examples, spread evenly over the split or slice; None is all of them
    sample: int | None = None
    prefix: str = ""  # put before each text, such as ``"summarize: "``
    # tokens that an answer of a sequence-to-sequence model is cut to; None is 64
    max_target_length: int | None = None
    limits: Limits = DEFAULTS  # what reading may take; no part of what the examples are

    def to_json(self) -> dict[str, Any]:
        """What the examples are, as plain data; the arguments of an equal one, but limits."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "limits"}
        return named | {"columns": dict(self.columns)}

    @cached_property
    def roots(self) -> tuple[Path, ...]:
        """The folders that the examples' files lie in: the data's own, and those of the limits."""
        if self.path.startswith("hf://"):
            from datasets.config import HF_DATASETS_CACHE
            from huggingface_hub.constants import HF_HUB_CACHE

            roots = [HF_DATASETS_CACHE, HF_HUB_CACHE]
        else:
            place = Path(self.path)
            folder = place if place.is_dir() else place.parent
            roots = [folder]
            if folder.parent.name == "snapshots":  # of the hub's cache, whose files are links
                roots.append(folder.parent.parent / "blobs")
        return tuple(Path(str(root)).resolve() for root in [*roots, *self.limits.data_roots])

    @property
    def enough(self) -> int | None:
        """How many rows at the beginning of the split hold all that is meant; None if all may."""
        slice_ = _SLICE.fullmatch(self.split)
        edges = (slice_["start"] or "0", slice_["stop"] or "") if slice_ else ("", "")
        return int(edges[1]) if all(edge.isdecimal() for edge in edges) else None

    @property
    def split_name(self) -> str:
        """The split without the slice."""
        slice_ = _SLICE.fullmatch(self.split)
        return slice_["name"] if slice_ else self.split

    def rows(self, total: int, role: str) -> Sequence[int]:
        """Which of a split's ``total`` examples are meant; DataError if none, or too many."""
        slice_ = _SLICE.fullmatch(self.split)
        if slice_ is None:
            raise DataError(
                f"{role}: split {self.split!r} cannot be read; expected a name, or a slice such as "
                "'train[:500]' or 'train[50%:]'"
            )
        rows = range(total)[_edge(slice_["start"], total) : _edge(slice_["stop"], total)]
        if not rows:
            raise DataError(
                f"{role}: split {self.split!r} of {self.path} is empty (the split has {total:,} "
                "examples); expected at least one example"
            )
        self.check_examples(min(len(rows), self.sample or len(rows)), role)
        if self.sample is not None and self.sample < len(rows):
            return [rows[len(rows) * n // self.sample] for n in range(self.sample)]
        return rows

    def check_bytes(self, count: int, what: str) -> None:
        """Raise DataError for more memory than the budget, saying how to stay within it."""
        most = self.limits.max_pool_bytes
        if count > most:
            raise DataError(
                f"{what} takes {size_text(count)} of memory, and max_pool_bytes allows "
                f"{size_text(most)}; take fewer examples (a slice such as "
                f"'{self.split_name}[:500]', or 'sample') or raise it"
            )

    def check_examples(self, count: int, role: str) -> None:
        """Raise DataError for more examples than the budget, saying how to stay within it."""
        most = self.limits.max_examples
        if count > most:
            raise DataError(
                f"{role}: {self.path} holds more examples than max_examples allows, {most:,}; take "
                f"fewer (a slice such as '{self.split_name}[:500]') or raise it"
            )

    def column(self, kind: str, present: list[str], role: str) -> str | None:
        """The column that holds ``kind``: as the job says, or the first known name; None if none.

        Raises DataError if the job names a column that is not there.
        """
        named = self.columns.get(kind)
        if named is None:
            known = LABELS if kind == LABEL else INPUTS[kind]
            return next((name for name in known if name in present), None)
        if named not in present:
            raise DataError(
                f"{role}: {self.path} has no column '{named}', named by columns.{kind}; it has "
                f"{', '.join(present)}{nearest(named, present)}"
            )
        return named


def _edge(text: str | None, total: int) -> int | None:
    if text is None:
        return None
    return total * int(text[:-1]) // 100 if text.endswith("%") else int(text)
