"""A job file's ``objective``, ``fit`` and ``growth``: what is learned, how long and how fast."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from tintray.jobs.config.fields import Rate, Threshold
from tintray.jobs.config.section import Section
from tintray.numerics.choices import Choice, Optimiser
from tintray.numerics.schedules import Schedule, Shape, schedule
from tintray.tasks.kinds import Distance, Filter, Labels


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
