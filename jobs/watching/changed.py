"""The examples whose answer a tint layer changed, as people look at them: images, texts, labels."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from tintray.data.reading import Examples, read_examples
from tintray.errors import TintrayError
from tintray.jobs.engine.sources import cache_folder, local_data
from tintray.jobs.records import Record, plain
from tintray.jobs.runs.evaluate import source_of
from tintray.pools.pool import Pool
from tintray.published.manifest import TaskEntry
from tintray.published.merge import Merge
from tintray.serving.answers import Reader, class_names
from tintray.tasks.kind import Kind
from tintray.tasks.outputs import Outputs, TopTokens, share

_SIDE = 160  # pixels of an image, at most
_CHARACTERS = 400  # of a text
_ANSWERS = 6  # of one example: words, tokens, classes

SIDES = ("backbone", "tinted", "expert")


@dataclass(frozen=True)
class ChangedExample(Record):
    """An example that the merge answers otherwise with the tint than without it."""

    row: int  # of its split
    changed: float  # share of its answers: words, tokens or pixels where it has several
    closer: float  # share by which it agrees more with the expert than without the tint
    said: Mapping[str, str]  # by "backbone", "tinted", "expert"; none of maps
    image: str | None = None  # a data URI
    text: str | None = None


@dataclass(frozen=True)
class Changes(Record):
    """What the tint changed, over all examples that were looked at."""

    agreement_without: float  # of the merged backbone alone with the expert
    agreement: float  # of the tinted model
    changed: float  # share of the answers
    examples: int  # with an answer that changed
    gained: int  # of these, how many agree more with the expert than before
    lost: int  # and less
    shown: Sequence[ChangedExample]


def changes(
    merge: Merge,
    task: TaskEntry,
    kind: Kind,
    pool: Pool,
    answers: Mapping[str, Outputs],
    most: int,
) -> Changes:
    """Compare what the merge says without the tint and with it; show ``most`` examples.

    ``answers`` over the pool, by "backbone", "tinted" and "expert".
    """
    moved = 1 - _agreement(kind, answers["backbone"], answers["tinted"], pool)
    before, after = (
        _agreement(kind, answers[name], answers["expert"], pool) for name in ("backbone", "tinted")
    )
    closer = after - before
    rows = moved.gt(0).nonzero().flatten().tolist()
    chosen = _chosen(rows, moved, closer, most)
    read = _reader(merge, task, kind)
    shown = []
    for row, raw in zip(chosen, _raw(task, pool, chosen), strict=True):
        said = _said(read, answers, row, pool)
        shown.append(
            ChangedExample(int(pool.rows[row]), float(moved[row]), float(closer[row]), said, **raw)
        )
    return Changes(
        agreement_without=float(before.mean()),
        agreement=float(after.mean()),
        changed=float(moved.mean()),
        examples=len(rows),
        gained=int((closer[rows] > 0).sum()),
        lost=int((closer[rows] < 0).sum()),
        shown=shown,
    )


def _agreement(kind: Kind, one: Outputs, other: Outputs, pool: Pool) -> Tensor:
    """[N]: the share of each example's answers that are the same."""
    if isinstance(one, TopTokens) and isinstance(other, TopTokens):  # as if they were logits
        same = one.likeliest == other.likeliest
        return share(same, None if pool.mask is None else pool.mask[:, : same.shape[1]])
    assert isinstance(one, Tensor), "texts have tokens, all else has tensors"
    return kind.agreement(one, other, None if pool.mask is None else pool.mask[:, : one.shape[1]])


def _chosen(rows: Sequence[int], moved: Tensor, closer: Tensor, most: int) -> list[int]:
    """Two thirds of them gained, as far as there are such; the clearest first."""
    gained = sorted((r for r in rows if closer[r] > 0), key=lambda r: (-closer[r], -moved[r]))
    others = sorted((r for r in rows if closer[r] <= 0), key=lambda r: (closer[r], -moved[r]))
    room = max(most - len(others), 2 * most // 3)
    return [*gained[:room], *others[: most - len(gained[:room])]]


def _reader(merge: Merge, task: TaskEntry, kind: Kind) -> Any:
    """What turns outputs into words: labels by their names, tokens by the tokenizer."""
    names = class_names(merge.config(task.name), task.classes)
    reader = Reader(task.name, merge.manifest.ref, kind, names)
    decode = merge.processor(task.name, text=True).decode if kind.generates else None
    return reader, decode


def _said(
    read: tuple[Reader, Any], answers: Mapping[str, Outputs], row: int, pool: Pool
) -> dict[str, str]:
    """One example's answers: where there are several, those that changed."""
    reader, decode = read
    if reader.kind.per_pixel:
        return {}
    lists: dict[str, Any] = {}
    sure: dict[str, Any] = {}
    for name in SIDES:
        of, mask = answers[name], None if pool.mask is None else pool.mask[row : row + 1]
        if isinstance(of, TopTokens):
            lists[name] = of.likeliest[row].tolist()
            continue
        if mask is not None:
            mask = mask[:, : of.shape[1]]
        answer = reader.rows(of[row : row + 1], [mask])[0]
        if answer.label is None:  # values are what they are
            return {name: _numbers(answers[name], row) for name in SIDES}
        lists[name], sure[name] = answer.label, answer.confidence
    if not isinstance(lists["tinted"], list):
        return {name: f"{lists[name]} ({sure[name]:.0%})" for name in SIDES}
    if reader.kind.several:
        return {name: ", ".join(map(str, lists[name])) or "none" for name in SIDES}
    counted: Sequence[int] = range(min(map(len, lists.values())))
    if decode is not None and pool.mask is not None:
        counted = [n for n in counted if bool(pool.mask[row, n])]
    places = [n for n in counted if lists["backbone"][n] != lists["tinted"][n]][:_ANSWERS]
    spoken = decode or str
    return {name: ", ".join(repr(spoken(lists[name][n])) for n in places) for name in SIDES}


def _numbers(outputs: Outputs, row: int) -> str:
    assert isinstance(outputs, Tensor)
    return ", ".join(f"{value:.3g}" for value in outputs[row].flatten()[:_ANSWERS].tolist())


def _raw(task: TaskEntry, pool: Pool, rows: Sequence[int]) -> list[dict[str, str | None]]:
    """The examples as the file has them; nothing where it cannot be read a second time."""
    if not rows:
        return []
    try:
        source = local_data(source_of(task.pool), cache_folder())
        found = read_examples(source, f"task '{task.name}'", pool.rows[list(rows)])
    except TintrayError:
        return [{} for _ in rows]
    return [_one(found, n) for n in range(len(rows))]


def _one(found: Examples, n: int) -> dict[str, str | None]:
    if not found.is_text:
        return {"image": _data_uri(found.columns["image"][n])}
    parts = [plain(values[n]) for values in found.columns.values()]
    words = (part if isinstance(part, str) else " ".join(map(str, part)) for part in parts)
    text = " / ".join(words)
    return {"text": text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}…"}


def _data_uri(pixels: Any) -> str:
    """An image as a page holds it: PNG, made small."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((_SIDE, _SIDE))
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
