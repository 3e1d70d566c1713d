"""The sections of a job file: each field is documented and validated where it is defined."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
)

from tintray.checkpoints.model_folder import TEMPLATES
from tintray.data.source import DataSource
from tintray.errors import SpecError, nearest
from tintray.jobs.config.documents import Document
from tintray.jobs.config.errors import explain
from tintray.jobs.config.fields import (
    Bounds,
    Budget,
    DataLocation,
    Memory,
    ModelLocation,
    Name,
    Rate,
    Scale,
    ShardCount,
    Threshold,
    TrackingLocation,
    WorkerCount,
)
from tintray.jobs.config.settings import limits
from tintray.limits import parse_budget
from tintray.numerics.choices import Bits, Choice, Format, Granularity, Optimiser
from tintray.numerics.schedules import Schedule, Shape, schedule
from tintray.numerics.sites import AUTO, HEAD, TintSite
from tintray.tasks.kinds import Distance, Filter, KindName, Labels

TINT = "tint"
ADAMERGING = {"adamerging": "tensor", "adamerging_task": "task"}
"""The layer-wise and the task-wise form of AdaMerging, with the granularity of each."""

SURGERY = "surgery"
"""A module per task behind the merge that ``init`` names; coefficients stay where they start."""

_FROM_INIT = (TINT, *ADAMERGING, SURGERY)

COLUMNS = ("image", "text", "text_pair", "tokens", "messages", "label")
"""What a column of a data set may be."""

MOST_OF_ANY, MOST_SCALE = 10**9, 10**6
MOST = {
    **dict.fromkeys(("seed", "memory"), 2**63),
    **dict.fromkeys(("batch_size", "micro_batch"), 10**6),
    **dict.fromkeys(("workers", "shards"), 10**5),
    "scale": MOST_SCALE,
    "threads_per_worker": 10**4,
}
"""The largest number that a field of any section may have, by its name."""


class Section(BaseModel):
    """What all sections share: frozen, no unknown fields, no silent conversion of types."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @field_validator("*")
    @classmethod
    def _number_can_be_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """Nobody means more, and what computes with it later counts in 32 bits or in float32."""
        most = MOST.get(info.field_name or "", MOST_OF_ANY)
        if isinstance(value, int | float) and abs(value) > most:
            raise ValueError(f"expected a number of at most {most:,}, found a larger one")
        return value

    def changed(self, **changes: Any) -> Self:
        """The same with other values: ``spec.changed(tint={"learned": False}, tasks=...)``.

        A mapping changes fields of a section; anything else takes the place of the field. What is
        then no valid section is a ``SpecError``.
        """
        return self.read(Document("the job", _laid_over(self, changes)))

    @classmethod
    def read(cls, document: Document, folder: Path | None = None) -> Self:
        """The section that a document holds; ``SpecError`` if a field of it cannot be used.

        Relative paths start from ``folder``; without one, locations are taken as they are.
        """
        try:
            return cls.model_validate(document.value, context=folder)
        except ValidationError as error:
            raise SpecError(explain(error, cls, document)) from error


def _laid_over(section: BaseModel, changes: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(section)
    for name, new in changes.items():
        old = values.get(name)
        if isinstance(old, BaseModel) and isinstance(new, Mapping):
            new = _laid_over(old, new)
        values[name] = new
    return values


class DataSpec(Section):
    """Examples of a task."""

    path: DataLocation = Field(examples=["data/mnist.npz"])
    """A file (npz, parquet, csv, json, jsonl), a folder of images, or hf://org/name."""
    split: str = Field(default="train", min_length=1, examples=["train[:500]"])
    """The split to read, or a slice of it, such as train[:500] or train[80%:]."""
    columns: dict[str, str] = Field(
        default={},
        examples=[{"text": "sentence"}],
        json_schema_extra={"propertyNames": {"enum": list(COLUMNS)}},
    )
    """Which column is what (image, text, text_pair, tokens, messages, label), if not called so."""
    max_length: int | None = Field(default=None, ge=1, examples=[128])
    """Tokens that a text is cut to; left out, what the model takes."""
    max_bad: int = Field(default=0, ge=0, examples=[10])
    """How many examples may be unreadable; they are left out."""
    ignore: int | None = Field(default=None, examples=[255])
    """A label that stands for none, such as the void class of a segmentation."""
    sample: int | None = Field(default=None, ge=1, examples=[2000])
    """Take so many examples, spread evenly over the split or slice; left out, all."""
    prefix: str = Field(default="", examples=["summarize: "])
    """Put before each text, such as `summarize: `."""
    max_target_length: int | None = Field(default=None, ge=1, examples=[32])
    """Tokens that an answer of kind `seq2seq` is cut to; left out, 64."""

    @field_validator("columns")
    @classmethod
    def _columns_are_known(cls, columns: dict[str, str]) -> dict[str, str]:
        for name in columns:
            if name not in COLUMNS:
                raise ValueError(
                    f"expected one of {', '.join(COLUMNS)}, found {name!r}{nearest(name, COLUMNS)}"
                )
        return columns

    def source(self) -> DataSource:
        """The same as plain data, with the budgets of this machine's configuration."""
        return DataSource(
            *(str(self.path), self.split, dict(self.columns)),
            *(self.max_length, self.max_bad, self.ignore),
            sample=self.sample,
            prefix=self.prefix,
            max_target_length=self.max_target_length,
            limits=limits(),
        )


class ZeroShotSpec(Section):
    """The head of a CLIP vision tower, made of texts."""

    classes: tuple[str, ...] | None = Field(
        default=None, min_length=1, strict=False, examples=[["cat", "dog"]]
    )
    """Names of the classes, in the order of the labels; left out, those of the data set."""
    templates: tuple[str, ...] = Field(
        default=TEMPLATES,
        min_length=1,
        strict=False,
        examples=[["a photo of a {}.", "a drawing of a {}."]],
    )
    """Prompts, each with `{}` in the place of the name; their embeddings are averaged."""

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        name, count = Counter(classes or ("",)).most_common(1)[0]
        if count > 1:
            raise ValueError(f"expected a different name for each class, found {name!r} twice")
        return classes

    @field_validator("templates")
    @classmethod
    def _templates_have_a_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"expected '{{}}' in the place of the name, found {template!r}")
        return templates


class TaskSpec(Section):
    """One task and its expert."""

    name: Name = Field(examples=["mnist"])
    """The task's name, by which commands and files refer to it."""
    kind: KindName = "classification"
    """What the task predicts."""
    expert: ModelLocation = Field(examples=["zoo/mnist"])
    """The fine-tuned model of this task: a folder, a hub id or a URL."""
    pool: DataSpec = Field(examples=[{"path": "data/mnist.npz", "split": "train"}])
    """The unlabelled pool that the fit may see; labels in it are not read."""
    test: DataSpec | None = Field(
        default=None, examples=[{"path": "data/mnist.npz", "split": "test"}]
    )
    """A labelled test set, if there is one; without it the merge is judged by agreement."""
    zero_shot: ZeroShotSpec = ZeroShotSpec()
    """What the head of a CLIP vision tower is made of."""
    labelled: int = Field(default=0, ge=0, examples=[100])
    """How many examples of the pool may be read with their label: to calibrate, or to learn."""

    @field_validator("test")
    @classmethod
    def _test_is_not_the_pool(cls, test: DataSpec | None, info: ValidationInfo) -> DataSpec | None:
        if test is not None and test == info.data.get("pool"):
            raise ValueError(
                "expected data that the fit does not see, found the same file and split as in "
                f"'pool' ({test.split!r} of {test.path.written!r})"
            )
        return test


class MergeSpec(Section):
    """How the task vectors are merged."""

    method: str = Field(default=TINT, examples=["ties"])
    """`tint` (all is learned), `adamerging`, `surgery`, or a merging method to run alone."""
    init: str = Field(default="task_arithmetic", examples=["average"])
    """The merging method whose directions the coefficients multiply; `base` starts them at zero."""
    parameters: dict[str, int | float] = Field(default={}, examples=[{"density": 0.2}])
    """Parameters of the merging method: `method`, or `init` where coefficients are learned."""
    scale: Scale = Field(default=None, examples=[0.3])
    """The coefficient that all start with, or `own`: the merging method's own for so many tasks.

    Left out, 1/K where coefficients are learned and the method's own where it runs alone."""
    task_vectors: Format = "f32"
    """How task vectors are kept during the fit: `f32`, or `bf16`, `int8`, `int4` to save memory."""
    memory: Memory = Field(
        default=2 * 2**30, examples=["8GiB"], json_schema_extra={"default": "2GiB"}
    )
    """What a process that runs a merging method may hold, such as 2GiB."""
    granularity: Granularity = "tensor"
    """How much of a task vector shares one coefficient."""
    bounds: Bounds = Field(default=None, examples=[[0, 1]])
    """The lowest and the highest value that a coefficient may take, as [low, high]."""

    @property
    def learned(self) -> bool:
        """Whether coefficients are learned, rather than a merging method run alone."""
        return self.method in (TINT, *ADAMERGING)

    @property
    def directions(self) -> str:
        """The merging method that is run alone, or whose directions the coefficients multiply."""
        if self.method not in _FROM_INIT:
            return self.method
        return "task_arithmetic" if self.init == "base" else self.init

    @field_validator("method", "init")
    @classmethod
    def _method_exists(cls, name: str, info: ValidationInfo) -> str:
        extra = _FROM_INIT if info.field_name == "method" else ("base",)
        if name in (*extra, "task_arithmetic", "average"):
            return name
        from tintray.merging import methods

        known = (*extra, *methods())
        if name not in known:
            hint = f"{nearest(name, known)}; there are {', '.join(known)}"
            raise ValueError(f"expected a merging method, found {name!r}{hint}")
        return name

    @field_validator("parameters")
    @classmethod
    def _parameters_fit(
        cls, given: dict[str, int | float], info: ValidationInfo
    ) -> dict[str, int | float]:
        if given and {"method", "init"} <= info.data.keys():
            from tintray.merging import recipe

            method, init = info.data["method"], info.data["init"]
            try:
                recipe(init if method in _FROM_INIT else method, given)
            except SpecError as error:
                raise ValueError(str(error).removeprefix("merge.parameters.")) from error
        return given

    @field_validator("bounds")
    @classmethod
    def _start_within_bounds(cls, bounds: Bounds, info: ValidationInfo) -> Bounds:
        # A method's own scale gives way to bounds; what the job asks for does not.
        start = 0.0 if info.data.get("init") == "base" else info.data.get("scale")
        if bounds and isinstance(start, int | float) and not bounds[0] <= start <= bounds[1]:
            raise ValueError(
                f"expected bounds around the start of the coefficients ({start:g}), found "
                f"[{bounds[0]:g}, {bounds[1]:g}]"
            )
        return bounds


class SiteSpec(Section):
    """One place where every task keeps numbers of its own."""

    site: str = Field(min_length=1, examples=["vit.layers.5"])
    """`head`, `prompt`, a module's path such as vit.layers.5, `norms`, a pattern (`*.mlp`)."""
    rank: int | None = Field(default=None, ge=1, examples=[4])
    """A low-rank product added to each linear weight there, instead of a copy; of a prompt, 8."""
    lr: float | None = Field(default=None, gt=0, examples=[0.005])
    """Its highest learning rate; left out, `fit.tint_lr`, or by the kind of place."""

    @property
    def place(self) -> TintSite:
        """The same as the fit takes it."""
        return TintSite(self.site, self.rank, self.lr)


def _site_entries(value: Any) -> Any:
    """`head` and `[prompt, head]` as entries with a site alone."""
    listed = [value] if isinstance(value, str | Mapping) else value
    if not isinstance(listed, list | tuple):
        return listed
    return tuple({"site": entry} if isinstance(entry, str) else entry for entry in listed)


_Site = Annotated[str, Field(min_length=1)] | SiteSpec
Sites = Annotated[
    tuple[SiteSpec, ...],
    Field(min_length=1, strict=False),
    BeforeValidator(
        _site_entries,
        json_schema_input_type=_Site | Annotated[tuple[_Site, ...], Field(min_length=1)],
    ),
]


class TintSpec(Section):
    """The layer that every task keeps for itself."""

    sites: Sites | None = Field(default=None, examples=[["prompt", "head"]])
    """Where: one or more of `head`, `prompt`, a module's path, `norms`, a pattern; or `auto`.

    Left out, what the budget buys; without one, a prompt and the head where coefficients are
    learned, else the head."""
    budget: Budget | None = Field(default=None, examples=["0.5%"])
    """The most that a task may own, its head included, in the mean: 0.5%, 300KiB, 2000 numbers."""
    bits: Bits | None = None
    """What a number that a task owns is stored in: 32, or rounded to 16, 8 or 4; left out, 32."""
    learned: bool = True
    """Whether the tint layers learn; otherwise each stays as its expert has it."""

    @property
    def auto(self) -> bool:
        """Whether the site is to be found by trials."""
        return any(entry.site == AUTO for entry in self.sites or ())

    @property
    def places(self) -> tuple[TintSite, ...]:
        """The sites as the fit takes them; the head, where they are still to be decided."""
        if self.sites is None or self.auto:
            return (TintSite(HEAD),)
        return tuple(entry.place for entry in self.sites)

    def most_numbers(self, parameters: int) -> float | None:
        """The budget in numbers, beside a backbone of so many parameters; None without one."""
        if self.budget is None:
            return None
        budget = parse_budget(self.budget)
        most = budget.of(parameters)
        return most if budget.unit == "numbers" else most * 8 / (self.bits or 32)

    @property
    def told(self) -> str:
        """The sites in a few words."""
        return AUTO if self.auto else ", ".join(map(str, self.places))

    @field_validator("sites")
    @classmethod
    def _sites_fit_together(cls, sites: tuple[SiteSpec, ...] | None) -> Any:
        if sites is None:
            return None
        names = [entry.site for entry in sites]
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise ValueError(f"expected a different place for each site, found {name!r} twice")
        if AUTO in names and (len(names) > 1 or sites[0].rank is not None):
            raise ValueError("expected 'auto' alone and without a rank: it tries full copies")
        return sites


class ObjectiveSpec(Section):
    """What the fit makes small."""

    labels: Labels = "soft"
    """The expert's probabilities, or the class that it predicts; `entropy` uses neither."""
    filter: Filter = "none"
    """Which examples count: all; where both agree or the expert is surer; the surest; by weight."""
    top_p: float = Field(default=0.8, gt=0, le=1, examples=[0.5])
    """The share of a pool, the surest, that `top_p` keeps."""
    threshold: Threshold = Field(default="auto", examples=[0.9])
    """The least confidence that `threshold` keeps; `auto` finds one per task."""
    target_precision: float = Field(default=0.5, gt=0, lt=1, examples=[0.9])
    """How often self-labels must be right for `auto` to keep them."""
    true_labels: bool = False
    """Whether labelled examples are learned by their label; otherwise they only calibrate."""
    feature_weight: float = Field(default=0.0, ge=0, examples=[0.1])
    """Weight of the distance to the expert's features, besides its predictions; 0 asks for none."""
    feature_site: str = Field(default="head", min_length=1, examples=["vit.layers.5"])
    """Whose features: what the head is given (`head`), or the output of the module of this path."""
    temperature: float = Field(default=4.0, gt=0, examples=[2.0])
    """What the logits of expert and merge are divided by where classes are soft labels."""
    distance: Distance = "l1"
    """How regression and depth are compared: by the size of the difference, or its square."""


class FitSpec(Section):
    """How long and how fast the fit learns."""

    rounds: int = Field(default=300, ge=1, examples=[1000])
    """How many rounds: in each, every task gives one batch and the coefficients move once."""
    batch_size: int = Field(default=16, ge=1, examples=[32])
    """Examples of each task in a round; in the mean, where more are drawn of those that lag."""
    seed: int = Field(default=0, ge=0, lt=2**63, examples=[1])
    """What every random stream is derived from."""
    coefficient_lr: float | None = Field(default=None, gt=0, examples=[0.01])
    """Learning rate of the merging coefficients; left out, 0.02 and, beyond ten tasks, 0.2/K."""
    tint_lr: float | None = Field(default=None, gt=0, examples=[0.005])
    """Learning rate of the tint layers; left out, it goes by their site and its width."""
    correction_lr: Rate = Field(default="auto", examples=[0])
    """Learning rate of what all tasks add to the merged backbone together; 0 adds nothing.

    `auto` goes by how far fine-tuning moved the experts' weights."""
    correction_optimiser: Optimiser = "muon"
    """What moves it: `muon` makes the steps of matrices orthogonal; `adam` is elementwise."""
    schedule: Shape = "linear"
    """How the learning rates go to the last round; `until_flat` falls once agreement is flat."""
    warmup: int = Field(default=0, ge=0, examples=[20])
    """Rounds over which the learning rates rise from zero."""
    sampling: Literal["lagging", "even"] = "lagging"
    """Whether tasks that agree less with their experts give more of a round's examples."""
    tasks_per_round: int | None = Field(default=None, ge=1, examples=[8])
    """How many tasks take part in a round, drawn anew for each; left out, all do."""
    held_back: int | None = Field(default=None, ge=0, examples=[100])
    """Examples of each pool to judge the fit by; left out, a tenth, 256 at most; 0 judges none."""
    floor: bool = True
    """Publish the best merge that needs no learning, where the fit agrees less with the experts."""
    patience: int | None = Field(default=None, ge=1, examples=[50])
    """End, or with `until_flat` slow down, once so many rounds agree no more than those before."""
    min_delta: float = Field(default=0.0, ge=0, examples=[0.001])
    """By how much agreement must have grown for the fit to go on; for `patience`."""
    updates: Literal["together", "in_turn"] = "together"
    """All tasks of a round move the coefficients at once, or each in turn, as was published."""
    micro_batch: int | None = Field(default=None, ge=1, examples=[64])
    """Examples in one forward pass; left out, as many as fit."""
    precision: Choice = "auto"
    """What the passes compute in; `auto` is bfloat16 where the processor has it, else float32."""
    groups: int | None = Field(default=None, ge=1, examples=[2])
    """Task groups, which are computed and recovered as one; left out, it goes by the tasks."""
    checkpoint_every: int | None = Field(default=None, ge=1, examples=[100])
    """Rounds between checkpoints; left out, there is one each minute, or less often if large."""

    @property
    def window(self) -> int | None:
        """Rounds over which agreement has to grow; None where it need not."""
        if self.patience is None and self.schedule == "until_flat":
            return max(1, self.rounds // 10)
        return self.patience

    @property
    def has_floor(self) -> bool:
        """Whether the fit is compared with merges that need no learning: it takes judging."""
        return self.floor and self.held_back != 0

    def rate(self, peak: float, rounds: int) -> Schedule:
        """A learning rate over so many rounds, with as large a part of them to warm up in."""
        return schedule(peak, self.schedule, rounds, round(self.warmup * rounds / self.rounds))

    @field_validator("warmup")
    @classmethod
    def _warmup_ends(cls, warmup: int, info: ValidationInfo) -> int:
        rounds = info.data.get("rounds")
        if rounds is not None and warmup >= rounds:
            raise ValueError(f"expected fewer than the {rounds} rounds of the fit, found {warmup}")
        return warmup


class ClusterSpec(Section):
    """Where the job runs. Nothing here changes what it learns, but for the rounding of a GPU."""

    address: str | None = Field(default=None, min_length=1, examples=["ray://head:10001"])
    """The Ray cluster to join; left out, one is started on this machine."""
    workers: WorkerCount = Field(default="auto", examples=[4])
    """Worker processes; 0 runs in this process without Ray, `auto` goes by the cluster."""
    threads_per_worker: int = Field(default=1, ge=1, examples=[4])
    """Threads with which a worker computes."""
    shards: ShardCount = Field(default="auto", examples=[2])
    """Processes that hold the task vectors; `auto` goes by their size and the cluster."""
    gpus_per_worker: float = Field(default=0, ge=0, le=1, examples=[1])
    """With 1, every worker has a GPU, and task vectors lie on GPUs too; 0 computes on CPUs. With a
    part of 1, such as 0.25, the job's one worker shares a GPU with other jobs, and takes no more
    than that part of its memory."""
    gradient_checkpointing: bool | None = Field(default=None, examples=[True])
    """Whether layers compute their activations again for the backward pass, instead of keeping
    them: the same bits for less memory and about a third more time. Left out, they do where the job
    would not fit otherwise."""
    restarts: int = Field(default=10, ge=0, examples=[0])
    """How often the job goes on by itself after a loss of workers, memory, store or catalog."""

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where rounds compute, as torch calls it."""
        return "cuda" if self.gpus_per_worker else "cpu"

    @field_validator("address")
    @classmethod
    def _without_credentials(cls, address: str | None) -> str | None:
        if address is not None and ("@" in address or "?" in address):
            raise ValueError(
                "expected an address without user, password and query; a cluster with tokens "
                "reads RAY_AUTH_TOKEN_PATH"
            )
        return address

    @field_validator("gpus_per_worker")
    @classmethod
    def _one_worker_on_a_part(cls, gpus: float, info: ValidationInfo) -> float:
        workers = info.data.get("workers")
        if 0 < gpus < 1 and workers not in {0, 1, "auto"}:
            raise ValueError(
                f"expected 1 where a job has several workers, found {gpus:g} beside workers: "
                f"{workers}; a job on a part of a GPU has one worker: write workers: 1"
            )
        return gpus

    @field_serializer("gpus_per_worker")
    def _whole_as_ever(self, gpus: float) -> int | float:
        """Jobs of which whole numbers were recorded keep their hash."""
        return int(gpus) if gpus == int(gpus) else gpus

    @field_validator("workers")
    @classmethod
    def _cluster_has_workers(cls, workers: WorkerCount, info: ValidationInfo) -> WorkerCount:
        if workers == 0 and info.data.get("address") is not None:
            raise ValueError("expected 1 or more or 'auto' where an address is given, found 0")
        return workers


class GrowthSpec(Section):
    """What holds when tasks are added to the published merge, refreshed or removed."""

    target: float = Field(default=0.85, gt=0, le=1, examples=[0.95])
    """The agreement with its expert, on held-back pool examples, at which `auto` is content."""
    tolerance: float = Field(default=1.0, ge=0, examples=[0.5])
    """What an old task may lose: points of a share, percent of an error; beyond, all is refused."""
    rounds: int = Field(default=400, ge=1, examples=[800])
    """Rounds in which a new tint layer is learned under a backbone that stays."""
    batch_size: int = Field(default=64, ge=1, examples=[128])
    """Examples in such a round: on cached activations they cost little."""
    coefficient_rounds: int = Field(default=100, ge=1, examples=[200])
    """Rounds in which new coefficients, or all of them, are learned."""
    refit_rounds: int = Field(default=100, ge=1, examples=[200])
    """Rounds in which an old tint layer is learned again when the backbone has changed."""


TrackerName = Literal["mlflow", "wandb", "tensorboard"]
_KEPT_AT = {
    "mlflow": "a URL such as http://mlflow:5000 or sqlite:///mlflow.db",
    "wandb": "the URL of a server such as https://wandb.example.org",
    "tensorboard": "a folder",
}


class TrackingSpec(Section):
    """Who is told of the job while it runs, besides the catalog; `tracking: mlflow` is enough."""

    tracker: TrackerName = Field(examples=["mlflow"])
    """Which tracker; its package has to be installed where the job runs."""
    to: TrackingLocation | None = Field(default=None, examples=["http://mlflow:5000"])
    """MLflow's tracking URI, a server of W&B, or the folder of TensorBoard's files.

    Left out, what the tracker's own variables say; of TensorBoard, `tensorboard` in the store."""
    project: str | None = Field(default=None, min_length=1, examples=["merging"])
    """MLflow's experiment or W&B's project; left out, its own variable, else the job's name."""
    alias: str = Field(default="newest", pattern=r"^[\w-]{1,100}$", examples=["candidate"])
    """The alias that MLflow's model version and W&B's artifact get when a merge is published."""

    @field_validator("alias")
    @classmethod
    def _alias_is_free(cls, alias: str) -> str:
        if re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
            raise ValueError(f"expected none that trackers set themselves, found {alias!r}")
        return alias

    @field_validator("to")
    @classmethod
    def _tracker_keeps_it_there(
        cls, to: TrackingLocation | None, info: ValidationInfo
    ) -> TrackingLocation | None:
        tracker = info.data.get("tracker")
        if to is None or tracker is None:
            return to
        url = to.startswith(("http://", "https://")) or (tracker == "mlflow" and not to.path)
        if url == (tracker == "tensorboard") or ("://" in to and not url):
            raise ValueError(f"expected {_KEPT_AT[tracker]}, found {to.written!r}")
        return to


Tracking = Annotated[
    TrackingSpec | None,
    BeforeValidator(
        lambda value: {"tracker": value} if isinstance(value, str) else value,
        json_schema_input_type=TrackingSpec | TrackerName | None,
    ),
]
