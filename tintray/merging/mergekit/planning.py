"""From a composition and the tensors that its models have to a plan, tensor by tensor.

Layers are told by the first number in a tensor's name. As in mergekit, what comes before the
layers is merged as the first slice says, what comes after them as the last one says, both with
the values that gradients have at their beginning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tintray.checkpoints.safetensors_files import TensorInfo, is_rebuilt
from tintray.errors import CheckpointError, SpecError
from tintray.merging.files.pieces import check_no_other
from tintray.merging.mergekit.composition import Composition, Scalar, Slice, Source

Table = Mapping[str, TensorInfo]
"""A model's tensors by name."""

_LAYER = re.compile(r"\.(\d+)\.")
_FIRST = re.compile(
    r"(^|\.)(embed_tokens|wte|wpe|embed_in|embeddings?|word_embeddings|tok_embeddings)\."
)
_LAST = re.compile(r"(^|\.)(norm|norm_f|ln_f|final_layer_?norm|lm_head|embed_out|score)\.")
_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""What configurations call the number of layers."""

_WIDER = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class Planned:
    """One tensor of the result."""

    info: TensorInfo
    inputs: tuple[tuple[str, str], ...]  # a model each, and its tensor's name there
    base: int | None  # which of the inputs is the base
    dtype: str | None  # that it is merged in; None for whole numbers, on which all must agree
    shared: Mapping[str, Scalar | None]  # values of the method's settings: of all inputs
    each: tuple[Mapping[str, Scalar | None], ...]  # and of each

    @property
    def work_dtype(self) -> str:
        """The type it is read in."""
        return self.dtype or self.info.dtype


def layer_counts(table: Table) -> dict[str, int]:
    """How many layers there are below each prefix that is followed by a layer's number."""
    counts: dict[str, int] = {}
    for name in table:
        match = _LAYER.search(name)
        if match is not None:
            prefix = name[: match.start()]
            counts[prefix] = max(counts.get(prefix, 0), int(match[1]) + 1)
    return counts


def composed_config(
    composition: Composition, configs: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int]
) -> dict[str, Any]:
    """The leading model's configuration, with the result's type of numbers and count of layers.

    ``configs`` are those of all models; ``counts`` the result's ``layer_counts``.
    """
    config = dict(configs[composition.models[0]])
    stored = composition.out_dtype or composition.dtype
    if stored is not None:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = _TYPES[stored]
    if composition.slices[0].sources[0].layers is None:
        return config
    (count,) = counts.values()
    config |= {key: count for key in LAYER_COUNTS if key in config}
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = [
            configs[source.model]["layer_types"][layer]
            for source in (part.sources[0] for part in composition.slices)
            for layer in range(*(source.layers or (0, 0)))
        ]
    return config


def plan(composition: Composition, tables: Mapping[str, Table]) -> list[Planned]:
    """Every tensor of the result, in order: before the layers, the layers, after them.

    Raises
    ------
    CheckpointError
        If a model lacks a tensor that another one gives to the same tensor of the result, or has
        it in another shape.
    SpecError
        If a slice names layers that are not there, or a method lacks a value that it needs.
    """
    return list(_Planner(composition, tables).tensors())


@dataclass(frozen=True)
class _Planner:
    composition: Composition
    tables: Mapping[str, Table]

    def tensors(self) -> Iterator[Planned]:
        slices = self.composition.slices
        leading = self.tables[slices[0].sources[0].model]
        loose = [name for name in leading if _LAYER.search(name) is None]
        for part in slices:
            for source in part.sources:
                own = (name for name in self.tables[source.model] if _LAYER.search(name) is None)
                check_no_other(own, loose, source.model, f"'{slices[0].sources[0].model}'")
        after = [name for name in loose if self._is_after(name)]
        for name in loose:
            if name not in after:
                yield from self._tensor(slices[0], [name] * len(slices[0].sources), name, 0.0)
        yield from self._layers()
        if after:
            last = self._last(slices)
            for name in after:
                yield from self._tensor(last, [name] * len(last.sources), name, 0.0)

    def _last(self, slices: tuple[Slice, ...]) -> Slice:
        """The last slice, for what follows the layers: of no more sources than the first one has.

        mergekit counts the inputs of these tensors by its first slice.
        """
        sources = slices[-1].sources[: len(slices[0].sources)]
        last = replace(slices[-1], sources=sources)
        if self.composition.blend.base == "needed":
            names = [source.model for source in sources]
            if last.base not in names or len(names) < self.composition.blend.least:
                raise SpecError(
                    f"slices: for what follows the layers, the last slice's first {len(names)} "
                    f"sources count, as many as the first slice has; list '{last.base}' and a "
                    "model to merge with it among them"
                )
        return last

    def _is_after(self, name: str) -> bool:
        """Whether a tensor follows the layers; only where slices differ does it matter."""
        if len(self.composition.slices) == 1:
            return False
        if _FIRST.search(name) is None and _LAST.search(name) is None:
            raise SpecError(
                f"slices: whether tensor '{name}' comes before the layers or after them cannot be "
                "told; expected a language model such as Llama, Mistral, Qwen2 or GPT-2, or one "
                "slice"
            )
        return _LAST.search(name) is not None

    def _layers(self) -> Iterator[Planned]:
        done = 0
        for number, part in enumerate(self.composition.slices):
            counts = [layer_counts(self.tables[source.model]) for source in part.sources]
            for source, own in zip(part.sources, counts, strict=True):
                self._check_range(number, source, own)
            steps = [0]
            for prefix, count in counts[0].items():
                first, last = part.sources[0].layers or (0, count)
                steps.append(last - first)
                for step in range(last - first):
                    depth = step / (last - first - 1) if last - first > 1 else 1.0
                    yield from self._layer(part, prefix, step, done + step, depth)
            done += max(steps)

    def _check_range(self, number: int, source: Source, counts: Mapping[str, int]) -> None:
        if source.layers is None:
            return
        if len(counts) != 1:
            raise SpecError(
                f"slices.{number}: '{source.model}' has {len(counts)} stacks of layers "
                f"({', '.join(counts) or 'none'}); expected one, give models instead of slices"
            )
        (there,) = counts.values()
        if source.layers[1] > there:
            raise SpecError(
                f"slices.{number}: layer_range {list(source.layers)} of '{source.model}' goes "
                f"beyond its {there} layers"
            )

    def _layer(
        self, part: Slice, prefix: str, step: int, number: int, depth: float
    ) -> Iterator[Planned]:
        """Layer ``number`` of the result from the ``step``-th layer of each source."""
        firsts = [source.layers[0] if source.layers else 0 for source in part.sources]
        rests = self._rests(part.sources[0].model, f"{prefix}.{firsts[0] + step}.")
        for source, first in zip(part.sources, firsts, strict=True):
            own = self._rests(source.model, f"{prefix}.{first + step}.")
            check_no_other(own, rests, source.model, f"'{part.sources[0].model}'")
        for rest in rests:
            inputs = [f"{prefix}.{first + step}.{rest}" for first in firsts]
            yield from self._tensor(part, inputs, f"{prefix}.{number}.{rest}", depth)

    def _rests(self, model: str, before: str) -> list[str]:
        return [
            name[match.end() :]
            for name in self.tables[model]
            if (match := _LAYER.search(name)) is not None and name[: match.end()] == before
        ]

    def _tensor(self, part: Slice, inputs: list[str], name: str, depth: float) -> Iterator[Planned]:
        models = [source.model for source in part.sources]
        if is_rebuilt(name):
            models, inputs = models[:1], inputs[:1]
        infos = [self._info(model, tensor) for model, tensor in zip(models, inputs, strict=True)]
        for model, info in zip(models, infos, strict=True):
            if info.shape != infos[0].shape:
                raise CheckpointError(
                    f"{model}: tensor '{info.name}' has shape {list(info.shape)}; '{models[0]}' "
                    f"has {list(infos[0].shape)}; expected models of one shape"
                )
        named = tuple(zip(models, inputs, strict=True))
        if is_rebuilt(name) or not all(info.floating for info in infos):
            if any(info.dtype != infos[0].dtype for info in infos):
                raise CheckpointError(
                    f"tensor '{name}' is stored as {', '.join(sorted({i.dtype for i in infos}))}; "
                    "expected floating point numbers, or one type of whole numbers in all models"
                )
            yield Planned(replace(infos[0], name=name), named, None, None, {}, ())
            return
        composition = self.composition
        work = composition.dtype or _widest([info.dtype for info in infos])
        info = replace(infos[0], name=name, dtype=composition.out_dtype or work)
        known = part.base in models and composition.blend.base != "input"
        base = models.index(part.base) if known and part.base else None
        yield Planned(info, named, base, work, *self._values(part, inputs, name, depth))

    def _info(self, model: str, name: str) -> TensorInfo:
        info = self.tables[model].get(name)
        if info is None:
            raise CheckpointError(
                f"{model} lacks tensor '{name}', which the models that it is merged with have; "
                "expected models of one architecture"
            )
        return info

    def _values(
        self, part: Slice, inputs: list[str], name: str, depth: float
    ) -> tuple[dict[str, Scalar | None], tuple[dict[str, Scalar | None], ...]]:
        value, blend = self.composition.value, self.composition.blend
        shared = {
            setting.name: value(setting, part, None, name, depth)
            for setting in blend.settings
            if setting.scope == "all"
        }
        each = tuple(
            {
                setting.name: value(setting, part, source, tensor, depth)
                for setting in blend.settings
                if setting.scope == "input"
                or (setting.scope == "expert" and source.model != part.base)
            }
            for source, tensor in zip(part.sources, inputs, strict=True)
        )
        for source, own in zip(part.sources, each, strict=True):
            wrong = blend.check and own and blend.check(own)
            if wrong:
                raise SpecError(
                    f"parameters: {blend.name} expects {wrong} of '{source.model}' "
                    f"for tensor '{name}'"
                )
        return shared, each


def _widest(dtypes: list[str]) -> str:
    """The type that holds all of these: the wider one, and float32 for the two of 16 bits."""
    widest = max(dtypes, key=_WIDER.index)
    return "F32" if {"F16", "BF16"} <= set(dtypes) and widest == "BF16" else widest
