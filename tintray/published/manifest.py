"""What a merge's manifest says, checked once when it is read: every field that anything goes by.

A manifest may come from anybody. Whatever reads one below a :class:`Manifest` finds each field
there and of its type, and no name in it leads out of the merge's folder.
"""

from __future__ import annotations

import re
import reprlib
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from tintray.errors import InputError, NotFoundError
from tintray.tasks.kinds import KindName

FORMAT = "tintray-merge"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MAX_MANIFEST = 64 * 2**20
"""Bytes of a manifest that are read; one of a thousand tasks has some 4 MB."""

_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_BREAKS = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\\:*?"<>|]')


def _inside(name: str) -> str:
    """Refuse the name of a file that is no path below the merge's folder on every system."""
    parts = name.split("/")
    try:
        long = len(name.encode()) > 1024 or any(len(part.encode()) > 255 for part in parts)
    except UnicodeEncodeError:
        raise ValueError("the file's name is no text") from None
    if {"", ".", ".."} & set(parts) or "\\" in name or ":" in parts[0]:
        raise ValueError("the file would lie outside of the merge, expected a plain relative path")
    if long or name.lower() == MANIFEST or not all(map(_portable, parts)):
        raise ValueError("no system, or not every one, takes such a file name")
    return name


def _portable(part: str) -> bool:
    whole = part.strip(" ") == part and not part.endswith(".")
    return whole and not _BREAKS.search(part) and not _DEVICES.fullmatch(part)


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Ref = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}/v[1-9][0-9]{0,8}$")
]
FileName = Annotated[str, AfterValidator(_inside)]
Text = Annotated[str, StringConstraints(max_length=4096)]
Count = Annotated[int, Field(ge=0, lt=2**62)]


class Part(BaseModel):
    """A section of a manifest; fields that this version does not know stay as they are."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Exact(BaseModel):
    """A section whose fields become those of an object of ours: others than these are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class FileEntry(Exact):
    """A file of the merge."""

    sha256: Sha256
    size: Count


class Source(Part):
    """A model: where it was read, and the hash of what was read."""

    source: Text
    sha256: Sha256


class DataEntry(Part):
    """A set of examples, as the job named it."""

    path: Text
    split: Text
    columns: dict[str, Text] | None = None
    max_length: Count | None = None
    max_bad: Count = 0
    ignore: int | None = None
    sample: Count | None = None
    prefix: Text = ""
    max_target_length: Count | None = None


class PoolEntry(DataEntry):
    """A task's pool, and the expert's answers over it."""

    sha256: Sha256
    labels: Sha256


class TestEntry(DataEntry):
    """A task's test set, and the expert's answers over it."""

    sha256: Sha256 | None
    outputs: Sha256 | None


class ScoreEntry(Exact):
    """A task, measured; the fields are those of ``evaluation.TaskScore``."""

    task: Name
    metric: Text
    merged: float
    expert: float
    agreement: float
    examples: Count
    calibration: dict[str, dict[str, Any]] | None = None
    details: dict[Text, Annotated[list[float], Field(min_length=2, max_length=2)]] = {}


class FigureEntry(Exact):
    """A task's figure in the version in which it was fitted."""

    version: Ref
    metric: Text
    value: float


class TaskEntry(Part):
    """A task: its expert, its data, what it has of its own and how well it does."""

    name: Name
    kind: KindName
    classes: Count | None = None
    expert: Source
    task_vector: Sha256
    pool: PoolEntry
    test: TestEntry | None
    tint_parameters: Count
    kept: float
    score: ScoreEntry
    fitted: FigureEntry | None = None


class Unit(Exact):
    """A stretch of the backbone that has a coefficient of its own."""

    name: Text
    start: Count
    stop: Count


class Change(Part):
    """How it grew from its parent."""

    operation: Text
    tasks: list[Name]
    mode: Text | None = None
    to: Ref | None = None


class Merging(Part):
    """How the job merges, as far as it is told without reading the job."""

    method: Text


class Job(Part):
    """The job that made it; it is read as a job file where it is needed."""

    merge: Merging
    factory: Text | None = None


class Means(Part):
    """The means over its tasks."""

    average: float | None = None
    expert_average: float | None = None
    normalised_accuracy: float | None = None
    agreement: float | None = None


class Manifest(Part):
    """All that a merge's ``manifest.json`` says."""

    name: Name
    version: Annotated[int, Field(ge=1, lt=10**9)]
    tintray: Text
    created: Text
    job_id: Text
    parent: Ref | None
    base: Source
    backbone_parameters: Annotated[int, Field(ge=1, lt=2**62)]
    site: Text
    skipped: dict[str, Text] = {}
    private_modules: list[Text]
    units: list[Unit]
    corrected: bool = False
    correction_from: dict[str, Sha256] = {}
    notices: list[Text] = []
    tasks: Annotated[list[TaskEntry], Field(min_length=1)]
    metrics: Means
    rounds: Count
    precision: Text
    seconds: dict[str, float]
    peak_memory_mib: float
    change: Change | None = None
    job: Job
    files: dict[FileName, FileEntry]

    @field_validator("files")
    @classmethod
    def _files_lie_apart(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        seen: set[str] = set()
        for name in files:
            if name.lower() in seen:
                raise ValueError("has two files of which some systems would make one")
            seen.add(name.lower())
        folders = {"/".join(n.split("/")[:k]) for n in seen for k in range(1, n.count("/") + 1)}
        if folders & seen:
            raise ValueError("has a file and a folder of one name")
        return files

    @model_validator(mode="after")
    def _tasks_are_told_apart(self) -> Manifest:
        names = [task.name.lower() for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError("tasks: two have one name")
        return self


def check_manifest(document: Any, where: str) -> dict[str, Any]:
    """The manifest as it was read, every field in it that anything goes by of its type.

    Raises
    ------
    NotFoundError
        It is none, or one of a later format.
    InputError
        A field is missing or is not what it has to be; with its name.
    """
    known = isinstance(document, dict) and document.get("format") == FORMAT
    written = document.get("format_version") if known else None
    if isinstance(written, bool) or not isinstance(written, int):
        raise NotFoundError(f"{where} is not a merge: its manifest has no format {FORMAT!r}")
    if written > FORMAT_VERSION:
        raise NotFoundError(
            f"{where} was written in format {written}; this version of tintray reads up to "
            f"{FORMAT_VERSION}; upgrade tintray"
        )
    try:
        Manifest.model_validate(document)
    except (ValidationError, RecursionError) as error:
        raise InputError(
            f"{where}: its manifest cannot be used: {_problem(error)}; it was not written by "
            "tintray or has been changed, do not use this merge"
        ) from error
    found: dict[str, Any] = document
    return found


def _problem(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    first = error.errors(include_url=False)[0]
    steps = (step for step in first["loc"] if step != "[key]")
    field = ".".join(step[:80] if isinstance(step, str) else str(step) for step in steps)
    if first["type"] == "missing":
        return f"{field} is missing"
    said = str(first.get("ctx", {}).get("error", "")) or first["msg"][0].lower() + first["msg"][1:]
    return f"{field}: {said}, found {reprlib.repr(first['input'])}"
