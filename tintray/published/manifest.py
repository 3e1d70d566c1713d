"""What a merge's ``manifest.json`` says, as objects: read once, checked, written as it was read.

A manifest may come from anybody. Whoever holds a :class:`Manifest` finds each field there and of
its type, and no name in it leads out of the merge's folder. A field that this version does not know
is kept, and so is the order of the fields: a copy has the same bytes.
"""

from __future__ import annotations

import re
import reprlib
from dataclasses import asdict
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_serializer,
    model_validator,
)

from tintray.errors import InputError, NotFoundError
from tintray.numerics.choices import Bits
from tintray.numerics.layout import Layout
from tintray.tasks.evaluation import TaskScore
from tintray.tasks.kinds import KindName

FORMAT: Final = "tintray-merge"
FORMAT_VERSION = 2
"""The newest format that is read; that of merges with rounded tints. All others are of format 1."""

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


def _as_written(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """A number, checked; a whole one stays without a point."""
    check(value)
    return value


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Ref = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}/v[1-9][0-9]{0,8}$")
]
FileName = Annotated[str, AfterValidator(_inside)]
Text = Annotated[str, StringConstraints(max_length=4096)]
LongText = Annotated[str, StringConstraints(max_length=2**20)]  # names every task, or is a prompt
Count = Annotated[int, Field(ge=0, lt=2**62)]
Number = Annotated[float, WrapValidator(_as_written)]


class Part(BaseModel):
    """A section of a manifest; fields that this version does not know stay as they are."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)
    _order: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _remember_order(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        found = handler(value)
        if isinstance(value, dict):
            found._order = tuple(value)
        return found

    @model_serializer(mode="wrap")
    def _in_order(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return {name: fields[name] for name in self._order if name in fields} | fields

    def to_json(self) -> dict[str, Any]:
        """The section as JSON types: fields in the order in which they were read or given."""
        return self.model_dump(by_alias=True, exclude_unset=True)

    def changed(self, **fields: Any) -> Self:
        """The same section with some fields, by their names on disk, set anew and checked."""
        return self.model_validate(self.to_json() | fields)


class Exact(BaseModel):
    """A section whose fields become those of an object of ours: others than these are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class FileEntry(Exact):
    """A file of the merge."""

    sha256: Sha256
    size: Count


class ModelEntry(Part):
    """A model: where it was read, and the hash of what was read."""

    source: Text
    sha256: Sha256


class ExpertEntry(ModelEntry):
    """A task's expert, and what spoke against it when the merge was made."""

    base_similarity: Any = None  # cosine between the base's weights and the expert's
    doubt: Any = None  # a sentence
    at_chance: bool = False  # it seems to guess: not in the normalised accuracy


class DataEntry(Part):
    """A set of examples, as the job named it."""

    path: Text
    split: Text
    columns: dict[str, Text] = {}
    max_length: Count | None = None
    max_bad: Count = 0
    ignore: int | None = None
    sample: Count | None = None
    prefix: LongText = ""
    max_target_length: Count | None = None


class PoolEntry(DataEntry):
    """A task's pool, and the expert's answers over it."""

    sha256: Sha256
    examples: Count = 0
    labels: Sha256


class TestEntry(DataEntry):
    """A task's test set, and the expert's answers over it."""

    sha256: Sha256 | None
    examples: Count = 0
    outputs: Sha256 | None


class ScoreEntry(Exact):
    """A task, measured; the fields are those of ``evaluation.TaskScore``."""

    task: Name
    metric: Text
    merged: Number
    expert: Number
    agreement: Number
    examples: Count
    calibration: dict[str, dict[str, Any]] | None = None
    details: dict[Text, Annotated[list[Number], Field(min_length=2, max_length=2)]] = {}

    @classmethod
    def of(cls, score: TaskScore) -> ScoreEntry:
        """The entry of a measurement."""
        details = {metric: list(figures) for metric, figures in score.details.items()}
        return cls(**asdict(score) | {"details": details})


class FigureEntry(Exact):
    """What a task had in a version of the merge, by its first metric."""

    version: Ref
    metric: Text
    value: Number


class FloorEntry(Exact):
    """The best merge that needs no learning, beside what a fit has learned."""

    method: Text
    scale: Number
    agreement: Number  # mean over tasks, on what was held back
    learned: Number  # that of what was learned
    taken: bool  # whether it was published instead


class TaskEntry(Part):
    """A task: its expert, its data, what it has of its own and how well it does."""

    name: Name
    kind: KindName
    classes: Count
    expert: ExpertEntry
    task_vector: Sha256
    pool: PoolEntry
    test: TestEntry | None
    tint_parameters: Count
    head_parameters: Count = 0
    tint_bits: Bits = 32  # what a number of these is stored in
    tint_bytes: Count = 0  # of all of them together; 0: before versions told it
    selected_fraction: Number = Field(alias="kept")  # of the pool, when the fit ended
    score: ScoreEntry
    held_back: Number | None = None  # agreement on pool examples that the fit did not learn from
    fitted: FigureEntry | None = None  # in the version in which it was merged or refreshed last

    @property
    def task_score(self) -> TaskScore:
        """The measurement that the manifest has of it."""
        return TaskScore(**dict(self.score))

    def same_source(self, other: TaskEntry) -> bool:
        """Whether both come of one expert and one pool."""
        return (self.expert.sha256, self.pool.sha256) == (other.expert.sha256, other.pool.sha256)


class Unit(Exact):
    """A stretch of the backbone that has a coefficient of its own."""

    name: Text
    start: Count
    stop: Count

    @classmethod
    def all_of(cls, layout: Layout) -> list[Unit]:
        """The units of a layout, in its order."""
        return [cls(name=unit.name, start=unit.start, stop=unit.stop) for unit in layout.units]


class Change(Part):
    """How it grew from its parent."""

    operation: Text
    tasks: list[Name]
    mode: Text | None = None
    to: Ref | None = None
    attempts: Any = None  # the modes that were tried, and what they came to
    agreement: Any = None  # of every new task with its expert, on examples that were held back


class Merging(Part):
    """How the job merges, as far as it is told without reading the job."""

    method: Text


class Job(Part):
    """The job that made it; its ``to_json`` is read as a job file where it is needed."""

    merge: Merging
    factory: Text | None = None


class Means(Part):
    """The means over its tasks."""

    average: Number | None = None
    expert_average: Number | None = None
    normalised_accuracy: Number | None = None
    agreement: Number


class UnpublishedManifest(Part):
    """What a manifest says before publication gives it name, version and files."""

    format: Literal["tintray-merge"]
    format_version: int
    tintray: Text
    created: Text
    job_id: Text
    parent: Ref | None
    base: ModelEntry
    backbone_parameters: Annotated[int, Field(ge=1, lt=2**62)]
    site: Text
    placement: Any = None  # how the site was found, where it was searched for
    floor: FloorEntry | None = None  # None where a fit was not compared with it
    skipped: dict[str, LongText] = {}  # task that was left out -> why
    private_modules: list[Text]
    units: list[Unit]
    corrected: bool = False  # whether the backbone has a correction that tasks learned together
    correction_from: dict[str, Sha256] | None = None  # from which; None: version 0.1.0 wrote it
    notices: list[LongText] = []  # what whoever uses the merge should know
    tasks: Annotated[list[TaskEntry], Field(min_length=1)]
    metrics: Means
    rounds: Count
    precision: Text
    seconds: dict[str, Number]
    peak_memory_mib: Number
    change: Change | None = None
    job: Job

    @model_validator(mode="after")
    def _tasks_are_told_apart(self) -> Self:
        names = [task.name.lower() for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError("tasks: two have one name")
        return self


class Manifest(UnpublishedManifest):
    """All that a merge's ``manifest.json`` says."""

    name: Name
    version: Annotated[int, Field(ge=1, lt=10**9)]
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

    @property
    def ref(self) -> str:
        """The merge's name and version, such as ``name/v3``."""
        return f"{self.name}/v{self.version}"

    @classmethod
    def read(cls, document: Any, where: str) -> Manifest:
        """The manifest in a JSON document; ``where`` is what messages call the merge.

        Raises NotFoundError: it is none, or one of a later format; InputError: A field is missing
        or is not what it has to be; with its name.
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
            return cls.model_validate(document)
        except (ValidationError, RecursionError) as error:
            raise InputError(
                f"{where}: its manifest cannot be used: {_problem(error)}; it was not written by "
                "tintray or has been changed, do not use this merge"
            ) from error

    def unpublished(self, **changed: Any) -> UnpublishedManifest:
        """The same for a merge that is made of this one, with some fields changed."""
        own = ("name", "version", "files")
        fields = {key: value for key, value in self.to_json().items() if key not in own}
        return UnpublishedManifest.model_validate(fields | changed)


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
