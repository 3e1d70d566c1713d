"""A kind of task: everything that differs between classes, values, maps and texts, in one class.

A new kind is one more class in this folder, and its name in ``KindName``. Instances have no state;
``registry.find_kind`` gives the one of a name. ``mask`` [N, S] tells which tokens of N texts count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from numpy.typing import NDArray
from torch import Tensor, nn

from tintray.data.labels import IGNORED, Answers, LabelColumn, open_labels
from tintray.data.source import DataSource
from tintray.errors import DataError
from tintray.files import foreign
from tintray.models.calling import answer_width
from tintray.tasks.confidence import ConfidenceFilter
from tintray.tasks.kinds import Distance, KindName, Labels
from tintray.tasks.outputs import Mask, Outputs

Words = Sequence[Sequence[int | None]]
"""The number of the word of each token, of N texts; None for what is of no word."""


class LossConfig(NamedTuple):
    """How merge and expert are compared, by those kinds that have a choice."""

    labels: Labels = "soft"
    temperature: float = 1.0
    distance: Distance = "l1"


@dataclass(frozen=True)
class Comparison:
    """A batch, per example [N]: loss, weight, shares of agreeing and of selected answers."""

    losses: Tensor
    weights: Tensor
    agreement: Tensor
    selected: Tensor


class Kind(ABC):
    """What a task predicts."""

    name: ClassVar[KindName]  # as job files and manifests have it
    # how many dimensions answers may have, and which of them holds classes or values
    dims: ClassVar[tuple[int, ...]] = (2,)
    axis: ClassVar[int] = -1
    per_pixel: ClassVar[bool] = False  # answers are maps
    # few true labels of a pool can be used beside the expert's answers
    takes_labels: ClassVar[bool] = True
    # the names of classes in a data set are those of the expert's head
    has_class_names: ClassVar[bool] = False
    # a class whose logit is very low is as good as none, so that tasks' answers can be padded
    pads: ClassVar[bool] = False
    of_words: ClassVar[bool] = False  # there is an answer for each word of a text
    several: ClassVar[bool] = False  # an example is of any number of classes
    goes_on: ClassVar[bool] = False  # the answer is how a text goes on
    # the model turns a text into a text: its decoder is given what was written so far
    writes: ClassVar[bool] = False

    @property
    def generates(self) -> bool:
        """Whether the answer is text."""
        return self.goes_on or self.writes

    def __init_subclass__(cls) -> None:
        if "name" in cls.__dict__:
            KINDS[cls.name] = cls()

    # -- models and their answers --------------------------------------------------------------

    def check_model(self, expert: nn.Module, role: str) -> None:  # noqa: B027 (most take any)
        """Raise CheckpointError for a model that cannot do such a task."""

    def answer_width(self, module: nn.Module) -> int:
        """How many answers a model gives: classes, values, or tokens of its vocabulary."""
        return answer_width(module)

    def reduced(self, answers: Tensor) -> Outputs:
        """What is kept of a model's answers."""
        return answers

    def fits(self, shape: Sequence[int], width: int) -> bool:
        """Whether answers may have this shape."""
        return len(shape) in self.dims and shape[self.axis] == width

    def check_outputs(self, outputs: Outputs, width: int, role: str) -> None:
        """Raise DataError for answers whose shape is not that of the kind."""
        if isinstance(outputs, Tensor) and not self.fits(outputs.shape, width):
            raise DataError(
                f"{role} gives outputs {list(outputs.shape)}; expected those of kind '{self.name}' "
                f"with {width} answers, is it the right kind of task for this model?"
            )

    def read(self, outputs: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """What answers [N, …] say, and how surely: numbers of classes or tokens, and 0 to 1.

        Both have a value for each example, or for each of its tokens or pixels. None of values,
        which are what they are.
        """
        return None, None

    # -- merge and expert ----------------------------------------------------------------------

    @abstractmethod
    def compare(
        self, merged: Tensor, expert: Any, mask: Mask, chosen: ConfidenceFilter, loss: LossConfig
    ) -> Comparison:
        """The loss of every example of a batch, and how many answers agree and are selected.

        What the filter drops (an example, a yes or no, a token, a pixel) weighs nothing. Kinds
        without a confidence select everything.
        """

    @abstractmethod
    def agreement(self, merged: Tensor, expert: Any, mask: Mask) -> Tensor:
        """[N]: the share of each example's answers on which merge and expert agree."""

    def mean_agreement(self, merged: Any, expert: Any, mask: Mask) -> float:
        """The mean of ``agreement`` over examples."""
        cut = None if mask is None else mask[:, : merged.shape[1]]
        return float(self.agreement(merged, expert, cut).mean())

    # -- labels --------------------------------------------------------------------------------

    def read_labels(
        self, source: DataSource, rows: Sequence[int] | NDArray[Any], answers: Answers, role: str
    ) -> Any:
        """The labels at ``rows``, as ``measure`` takes them; DataError if they do not fit."""
        column = open_labels(source, rows, answers, role)
        with foreign(f"{column.where} holds labels that cannot be read", DataError):
            return self.parse_labels(column)

    @abstractmethod
    def parse_labels(self, column: LabelColumn) -> Any:
        """Labels from the values of a column."""

    def any_counts(self, labels: Any) -> bool:
        """Whether there is a label that counts: a known class or token, depth or direction."""
        parts = labels if isinstance(labels, list | tuple) else [labels]
        return any(bool((part != IGNORED).any()) for part in parts)

    @abstractmethod
    def measure(self, outputs: Any, labels: Any, mask: Mask) -> dict[str, float]:
        """Metrics of ``tintray.tasks.metrics``, by name; tables show the first of them."""

    def with_labels(self, expert: Tensor, labels: Any, mask: Mask) -> Tensor:
        """The expert's answers to n examples, but with what their labels say, with certainty.

        What a label leaves open (a word's later tokens, ignored pixels, depths that are not known)
        stays the expert's.
        """
        raise NotImplementedError(f"{self.name} takes no labels")

    def token_targets(
        self,
        inputs: Mapping[str, Tensor],
        words: Words | None,
        assistant: Sequence[Sequence[int]] | None,
        role: str,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Which tokens of a pool's texts have an answer that counts, and which token is right.

        From token numbers and attention masks, int64 [N, S], to bool [N, S] and int64 [N, S] with
        -100 where there is no right one; None for each that the kind does not have. ``assistant``
        has 1 at each token that an assistant wrote, where a chat template tells. Raises DataError
        if the texts are not those of the kind.
        """
        return None, None

    # -- doubts --------------------------------------------------------------------------------

    def unsure(self, outputs: Any, mask: Mask) -> str | None:
        """What is said of an expert whose answers are all nearly uniform; None if they are not."""
        return None

    @abstractmethod
    def constant(self, outputs: Any, mask: Mask) -> bool:
        """Whether every example is answered alike."""

    def chance(self, classes: int) -> float:
        """How often a merge that guesses agrees with its expert."""
        return 0.0

    def predictions(
        self, outputs: Any, labels: Any, mask: Mask
    ) -> tuple[Tensor, Tensor, int] | None:
        """Predicted and true class [M] of what counts, number of classes; None for values."""
        return None

    def best_constant(self, labels: Any) -> Tensor:
        """For values: the answer that is best for all examples alike, as outputs."""
        raise NotImplementedError(f"{self.name} predicts no values")


KINDS: dict[KindName, Kind] = {}
"""Every kind by its name, once its module is imported; ``tintray.tasks.registry`` imports all."""
