"""The data that ``tintray new`` finds for a task: beside its expert, or by a pattern."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tintray.data.source import INPUTS, LABEL, DataSource
from tintray.data.table import Table
from tintray.data.tables import open_table
from tintray.errors import DataError, InputError
from tintray.jobs.config.locations import data_location
from tintray.jobs.config.settings import limits
from tintray.jobs.engine.sources import cache_folder, local_data
from tintray.jobs.runs.new_models import Ask, FoundModel, is_model
from tintray.tasks.kinds import KindName
from tintray.tasks.registry import find_kind

PLACE = "{task}"
_FORMS = (".npz", ".parquet", *(f"{f}{z}" for f in (".jsonl", ".json", ".csv", ".tsv")
                                for z in ("", ".gz")))  # fmt: skip
_POOLS, _TESTS = ("pool", "train", "unlabelled", "data"), ("test", "validation", "val", "eval")
_ROWS = 20  # that are looked at to tell what a column holds
_UNLABELLED: tuple[KindName, ...] = ("language_modelling",)
_DENSE: dict[str, KindName] = {"depth": "depth", "normals": "normals"}


@dataclass(frozen=True)
class FoundData:
    """A set of examples as the job file names it."""

    path: str
    split: str = "train"
    columns: Mapping[str, str] = field(default_factory=dict)
    examples: int = 0


@dataclass(frozen=True)
class TaskData:
    """A pool, a test set if there is one, and the kind of task if the data tell it better."""

    pool: FoundData
    test: FoundData | None
    kind: KindName


@dataclass(frozen=True)
class Wanted:
    """What the user has said of the data."""

    pool: str | None = None  # where pools are, with {task} in the place of a task's name
    test: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)  # which column is what
    folders: Sequence[Path] = ()  # more places to look in


def find_data(model: FoundModel, kind: KindName, wanted: Wanted, ask: Ask) -> TaskData:
    """The data of a task: what the patterns name, else what lies beside its expert.

    Raises ``InputError`` if it cannot be told; ``DataError`` if it cannot be read.
    """
    pool, test = (text and text.replace(PLACE, model.name) for text in (wanted.pool, wanted.test))
    found = pool or _beside(model, _POOLS, wanted.folders)
    if found is None:
        found = ask(f"Where are examples of the task '{model.name}'?", [], "--data")
    beside = None if pool else _beside(model, _TESTS, wanted.folders, alone=True)
    apart = test or (None if beside and Path(beside).is_relative_to(found) else beside)
    first = _opened(found, _split(found, _POOLS) or "train", model)
    columns, label = _columns(first, kind, wanted.columns, ask)
    kind = _DENSE.get(label or "", kind) if find_kind(kind).per_pixel else kind
    known = first.source.column(LABEL, first.columns, "data")
    named = columns if label == known or label is None else {**columns, LABEL: label}
    held_out = None
    if label is not None or kind in _UNLABELLED:
        held_out = _test(found, apart, first, model, named)
    return TaskData(FoundData(found, first.source.split, columns, first.rows), held_out, kind)


def _test(
    pool: str, apart: str | None, first: Table, model: FoundModel, columns: Mapping[str, str]
) -> FoundData | None:
    """The test set: a file of its own, or a split of the pool's."""
    path = apart or pool
    split = _split(path, _TESTS) or ("train" if apart else None)
    if split is None or (path == pool and split == first.source.split):
        return None
    return FoundData(path, split, columns, _opened(path, split, model).rows)


def _opened(path: str, split: str, model: FoundModel) -> Table:
    try:
        location = data_location(path, Path.cwd())
    except ValueError as error:
        raise InputError(f"the data of the task '{model.name}': {error}") from error
    source = DataSource(str(location), split, limits=limits())
    return open_table(local_data(source, cache_folder()), f"the data of '{model.name}'")


def _split(path: str, names: Sequence[str]) -> str | None:
    """The first of the splits that a file or a folder has; None if it has none of them."""
    place = Path(path).expanduser()
    if path.endswith(".npz") and place.is_file():
        return next((name for name in names if _has(place, name)), None)
    if place.is_dir():
        return next((name for name in names if (place / name).is_dir()), None)
    return "train" if "train" in names else None


def _has(file: Path, split: str) -> bool:
    try:
        open_table(DataSource(str(file), split, limits=limits()), "data")
    except DataError:  # a damaged file is told of when it is opened
        return False
    return True


def _beside(
    model: FoundModel, splits: Sequence[str], folders: Sequence[Path], *, alone: bool = False
) -> str | None:
    """What holds a task's data by its name, first where the expert lies.

    With ``alone`` only files that are one split, such as ``mnist-test.csv``.
    """
    for folder, stems in _places(model, splits, folders, alone):
        for stem in stems:
            for suffix in _FORMS:
                if (path := folder / f"{stem}{suffix}").is_file():
                    return str(path)
            if (path := folder / stem).is_dir() and not is_model(path) and _has_images(path):
                return str(path)
    return None


def _places(
    model: FoundModel, splits: Sequence[str], folders: Sequence[Path], alone: bool
) -> Iterator[tuple[Path, list[str]]]:
    name = model.name
    named = [f"{name}{mark}{split}" for split in splits for mark in ("_", "-", ".")]
    named = named if alone else [name, *named]
    here = Path(model.written)
    if here.is_dir():
        yield from ((place, list(splits)) for place in (here, here / "data"))
        around = (here.parent, here.parent.parent)
        folders = [*(place for up in around for place in (up, up / "data")), *folders]
    inside = (sorted(f.iterdir()) for f in folders if f.name == "data" and f.is_dir())
    below = [place for listed in inside for place in listed if place.is_dir()]
    for folder in dict.fromkeys((*folders, *below)):
        yield folder, named
        yield folder / name, list(splits)


def _has_images(folder: Path) -> bool:
    from tintray.data.images import IMAGE_SUFFIXES

    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*"))


def _columns(
    table: Table, kind: KindName, given: Mapping[str, str], ask: Ask
) -> tuple[dict[str, str], str | None]:
    """Columns that have to be named, and the one of labels; asks where several may be meant."""
    source = replace(table.source, columns=dict(given))
    named = {what: column for what, column in given.items() if what != LABEL}
    label = source.column(LABEL, table.columns, "data")
    if not any(source.column(what, table.columns, "data") for what in INPUTS):
        texts = _texts(table)
        question = f"Which column of {source.path} holds the texts?"
        option = "--column text=COLUMN"
        chosen = texts[0] if len(texts) == 1 else ask(question, texts or table.columns, option)
        named["text"] = chosen
    if label is None and kind not in _UNLABELLED:
        inputs = {source.column(what, table.columns, "data") for what in INPUTS}
        others = [c for c in table.columns if c not in {*inputs, *named.values()}]
        label = others[0] if len(others) == 1 else None
    return named, label


def _texts(table: Table) -> list[str]:
    """Columns of texts with spaces in them."""
    return [column for column in table.columns if _holds_texts(table.source, column)]


def _holds_texts(source: DataSource, column: str) -> bool:
    few = replace(source, split=f"{source.split}[:{_ROWS}]", columns={"text": column})
    table = open_table(few, "data")
    cells = table.take(column, range(min(_ROWS, table.rows)))
    return all(isinstance(cell, str) for cell in cells) and any(" " in cell for cell in cells)
