"""A composition: which layers of which models a new model is made of, and how each is merged.

This is what mergekit's configuration says, as typed data: output slices one after another, each
with sources, and settings that depend on the tensor's name (filters) and the depth (gradients).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tintray.errors import SpecError
from tintray.merging.mergekit.blend import REQUIRED, Blend, Setting

Scalar = float | int | bool


@dataclass(frozen=True)
class Rule:
    """Values for the tensors whose name contains ``filter``, or for all.

    Several values are a gradient: they lie evenly from the first layer of a slice to its last.
    """

    values: tuple[Scalar, ...]
    filter: str | None = None

    def holds(self, name: str) -> bool:
        """Whether the tensor ``name`` is meant."""
        return self.filter is None or self.filter == "*" or self.filter in name

    def at(self, depth: float) -> Scalar:
        """The value at a depth from 0 to 1; of flags the one before it, of numbers between two."""
        place = depth * (len(self.values) - 1)
        first, share = int(place), place % 1
        if share == 0 or isinstance(self.values[first], bool):
            return self.values[first]
        return (1 - share) * self.values[first] + share * self.values[first + 1]


Rules = tuple[Rule, ...]
"""The first that holds counts."""

Settings = Mapping[str, Rules]
"""A parameter's name to its rules."""


@dataclass(frozen=True)
class Source:
    """A model's part of a slice: its layers ``first`` to ``last`` - 1, or all of its layers."""

    model: str
    layers: tuple[int, int] | None = None
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Layers of the result, each merged from one layer of every source."""

    sources: tuple[Source, ...]
    base: str | None = None
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Composition:
    """A whole recipe.

    Attributes
    ----------
    base
        The model whose configuration and preprocessing the result takes over, where there is one.
    settings
        What holds where neither a source nor a slice says otherwise.
    dtype
        The type, as safetensors spells it, that all tensors are converted to before they are
        merged; left out, the widest of each tensor's inputs.
    out_dtype
        The type in which results are stored; left out, that in which they were merged.
    notices
        What the reader has passed over, and why.
    """

    blend: Blend
    slices: tuple[Slice, ...]
    base: str | None = None
    settings: Settings = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    notices: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """Every model once, the base first where there is one."""
        named = [source.model for part in self.slices for source in part.sources]
        return tuple(dict.fromkeys([self.base, *named] if self.base is not None else named))

    def value(
        self, setting: Setting, part: Slice, source: Source | None, name: str, depth: float
    ) -> Scalar | None:
        """A setting's value for a tensor: the source's, the slice's, the recipe's or the default.

        Raises
        ------
        SpecError
            If it has none and needs one.
        """
        for settings in (source.settings if source else {}, part.settings, self.settings):
            for rule in settings.get(setting.name, ()):
                if rule.holds(name):
                    return rule.at(depth)
        if setting.default is REQUIRED:
            whose = "" if source is None else f" of '{source.model}'"
            raise SpecError(
                f"parameters.{setting.name}: {self.blend.name} needs a value{whose} for tensor "
                f"'{name}', found none; give one there, or one for all under parameters"
            )
        default: Scalar | None = setting.default
        return default
