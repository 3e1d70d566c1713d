"""What the scenes zoo is made of, as plain values; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.zoos.recipe import Schedule
from benchmarks.zoos.rendering import Style

if TYPE_CHECKING:
    from tintray.tasks.kinds import KindName


@dataclass(frozen=True)
class SceneSet:
    """Rendered scenes: how many, of which look, from which seed; sides are in pixels."""

    count: int
    seed: int
    style: Style = field(default_factory=Style)


@dataclass(frozen=True)
class Pyramid:
    """The size of the Segformer; one entry per stage, and strides in pixels of what comes in."""

    hidden_sizes: tuple[int, ...] = (32, 64, 96)
    depths: tuple[int, ...] = (2, 2, 2)
    strides: tuple[int, ...] = (4, 2, 2)
    heads: tuple[int, ...] = (1, 2, 3)
    decoder_size: int = 64


@dataclass(frozen=True)
class DenseRecipe:
    """One scenes zoo: what is rendered, the architecture, how base and experts are trained.

    ``tasks`` names experts; those in ``KINDS`` answer rendered scenes, others real images.
    """

    tasks: tuple[str, ...] = ("segments", "depth", "normals")
    side: int = 64
    pretraining_scenes: SceneSet = SceneSet(1500, 1, Style((1, 3), textured=False, noise=2.0))
    training_scenes: SceneSet = SceneSet(1500, 2)
    test_scenes: SceneSet = SceneSet(300, 3)
    architecture: Pyramid = field(default_factory=Pyramid)
    pretraining: Schedule = field(default_factory=lambda: Schedule(12, 2e-3, batch_size=16))
    fine_tuning: Schedule = field(default_factory=lambda: Schedule(8, 1e-3, batch_size=16))
    real_fine_tuning: Schedule = field(default_factory=lambda: Schedule(30, 1e-3, batch_size=16))
    seed: int = 0
    version: int = 1  # to be raised when the code that follows the recipe changes its results


KINDS: dict[str, KindName] = {"segments": "segmentation", "depth": "depth", "normals": "normals"}
"""The tasks on rendered scenes, and their kinds; every other task is segmentation."""
REAL = ("camvid64", "fasseg64")
"""Real images of streets and of faces, each with a file of its name."""

SMALL = DenseRecipe(
    pretraining_scenes=SceneSet(300, 1, Style((1, 3), textured=False, noise=2.0)),
    training_scenes=SceneSet(240, 2),
    test_scenes=SceneSet(100, 3),
    pretraining=Schedule(10, 2e-3, batch_size=16),
    real_fine_tuning=Schedule(8, 1e-3, batch_size=16),
)
"""The scenes zoo in two minutes of a core, with experts that know less."""


def kind_of(task: str) -> KindName:
    """The kind of a task of the zoo."""
    return KINDS.get(task, "segmentation")
