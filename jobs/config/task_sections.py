"""A job file's tasks: each with its expert, its pool and its test set."""

from __future__ import annotations

from collections import Counter

from pydantic import Field, ValidationInfo, field_validator

from tintray.checkpoints.model_folder import TEMPLATES
from tintray.data.source import DataSource
from tintray.errors import nearest
from tintray.jobs.config.fields import DataLocation, ModelLocation, Name
from tintray.jobs.config.section import Section
from tintray.jobs.config.settings import limits
from tintray.tasks.kinds import KindName

COLUMNS = ("image", "text", "text_pair", "tokens", "messages", "label")
"""What a column of a data set may be."""


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
