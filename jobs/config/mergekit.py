"""mergekit's YAML as a composition; what has no counterpart here is refused by name.

Read from mergekit's documentation of its configuration, and compared with what versions 0.1.4 and
0.1.5 make of it. Nothing is guessed and no key is passed over: what mergekit ignores is refused or
told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tintray.errors import SpecError, nearest
from tintray.jobs.config.documents import read_document
from tintray.jobs.config.locations import model_location
from tintray.merging.mergekit.blend import Blend, Setting
from tintray.merging.mergekit.blends import BLENDS
from tintray.merging.mergekit.composition import (
    Composition,
    Rule,
    Rules,
    Scalar,
    Settings,
    Slice,
    Source,
)

_TOKENIZER = (
    "embeddings are not rearranged here; leave it out where all models have one tokenizer, whose "
    "files are taken over from the base"
)
_NOT_DONE = {
    "modules": "modules are not merged by recipes of their own here; give models, or slices",
    "tokenizer_source": _TOKENIZER,
    "tokenizer": _TOKENIZER,
    "chat_template": "the base's is taken over; write another into the result's tokenizer yourself",
    "residual_weight": "mergekit itself makes nothing of it; leave it out",
}
_TOP = ("merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype")
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


def read_mergekit(path: Path) -> Composition:
    """What a mergekit file asks for; relative paths start from the file's folder.

    Raises
    ------
    SpecError
        If the file cannot be read, or asks for something that is not done here.
    """
    return _Reader(path).composition(read_document(path).value)


@dataclass
class _Reader:
    path: Path
    notices: list[str] = field(default_factory=list)

    def refuse(self, where: str, what: str) -> SpecError:
        return SpecError(": ".join(filter(None, (str(self.path), where, what))))

    def expect(self, holds: bool, where: str, expected: str, found: Any, hint: str = "") -> None:
        if not holds:
            raise self.refuse(where, f"expected {expected}, found {found!r:.60}{hint}")

    def composition(self, document: Any) -> Composition:
        top = self.mapping(document, "", _TOP)
        name = top.get("merge_method")
        known, hint = isinstance(name, str) and name in BLENDS, nearest(str(name), BLENDS)
        self.expect(known, "merge_method", f"one of {', '.join(BLENDS)}", name, hint)
        blend = BLENDS[str(name)]
        base = self.model(top["base_model"], "base_model") if "base_model" in top else None
        if ("models" in top) == ("slices" in top):
            raise self.refuse("models", "expected either models or slices, and not both")
        if "models" in top:
            slices = [self.models(top["models"], blend, base)]
        else:
            listed = enumerate(self.listed(top["slices"], "slices"))
            slices = [self.slice(entry, f"slices.{n}", blend, base) for n, entry in listed]
        settings = self.settings(top.get("parameters"), "parameters", blend)
        types = self.dtype(top, "dtype"), self.dtype(top, "out_dtype")
        return Composition(blend, tuple(slices), base, settings, *types, tuple(self.notices))

    # -- parts -------------------------------------------------------------------------------

    def models(self, written: Any, blend: Blend, base: str | None) -> Slice:
        """All layers of all models as one slice; the base is an input, listed or not."""
        sources = self.sources(written, "models", blend, base, ("model", "parameters"))
        if base is not None and base not in [source.model for source in sources]:
            sources.append(Source(base))
        return self.checked(Slice(tuple(sources), base), "models", blend)

    def slice(self, written: Any, where: str, blend: Blend, base: str | None) -> Slice:
        entry = self.mapping(written, where, ("sources", "base_model", "parameters"))
        if "base_model" in entry:
            base = self.model(entry["base_model"], f"{where}.base_model")
        known, inside = ("model", "layer_range", "parameters"), f"{where}.sources"
        sources = self.sources(entry.get("sources"), inside, blend, base, known)
        counts = {last - first for s in sources if s.layers for first, last in (s.layers,)}
        if len(counts) > 1:
            raise self.refuse(inside, f"expected as many layers of each, found {sorted(counts)}")
        settings = self.settings(entry.get("parameters"), f"{where}.parameters", blend)
        return self.checked(Slice(tuple(sources), base, settings), where, blend)

    def sources(
        self, written: Any, where: str, blend: Blend, base: str | None, keys: tuple[str, ...]
    ) -> list[Source]:
        listed = enumerate(self.listed(written, where))
        return [self.source(entry, f"{where}.{n}", blend, base, keys) for n, entry in listed]

    def source(
        self, written: Any, where: str, blend: Blend, base: str | None, keys: tuple[str, ...]
    ) -> Source:
        entry = self.mapping(written, where, keys)
        model = self.model(entry.get("model"), f"{where}.model")
        here = f"{where}.parameters"
        settings = self.settings(entry.get("parameters"), here, blend)
        scopes = {known.name: known.scope for known in blend.settings}
        for name in settings:
            if scopes[name] == "all":
                raise self.refuse(
                    f"{here}.{name}",
                    f"{blend.name} has one value of it for all models; write it under the "
                    "parameters of the whole, or of a slice",
                )
            if scopes[name] == "expert" and model == base:
                self.notices.append(
                    f"{self.path}: {here}.{name} has no effect, as in mergekit: {blend.name} "
                    "takes it of the models that differ from the base"
                )
        layers = self.layers(entry, where) if "layer_range" in keys else None
        return Source(model, layers, settings)

    def checked(self, part: Slice, where: str, blend: Blend) -> Slice:
        """The slice, if the method can merge so many inputs, with or without a base."""
        names = [source.model for source in part.sources]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise self.refuse(where, f"'{twice[0]}' is listed twice; expected each model once")
        if blend.base == "needed" and part.base is None:
            raise self.refuse("base_model", f"{blend.name} needs one, found none")
        if blend.base != "input" and part.base is not None and part.base not in names:
            missing = f"expected the base '{part.base}' among them for {blend.name}"
            raise self.refuse(f"{where}.sources", missing)
        optional = blend.base == "optional"
        low = blend.least + (optional and part.base is not None)
        high = math.inf if blend.most is None else blend.most - (optional and part.base is None)
        if not low <= len(names) <= high:
            wanted = f"{low}" if low == high else f"at least {low}" if high == math.inf else high
            merges = f"{blend.name} merges {wanted} models, the base included, found {len(names)}"
            raise self.refuse(where, merges)
        return part

    # -- values ------------------------------------------------------------------------------

    def mapping(self, written: Any, where: str, keys: tuple[str, ...]) -> Mapping[str, Any]:
        """A mapping with no other keys than these; what is null counts as left out."""
        self.expect(isinstance(written, Mapping), where, ", ".join(keys), written)
        for key in written:
            inside = f"{where}.{key}" if where else f"{key}"
            if key in keys or (key in _NOT_DONE and written[key] is None):
                continue
            if key in _NOT_DONE:
                raise self.refuse(inside, f"is not read here: {_NOT_DONE[key]}")
            hint = nearest(str(key), keys)
            raise self.refuse(inside, f"is not read here{hint}; expected only {', '.join(keys)}")
        return {key: value for key, value in written.items() if value is not None}

    def listed(self, written: Any, where: str) -> list[Any]:
        self.expect(isinstance(written, list) and bool(written), where, "a list", written)
        found: list[Any] = written
        return found

    def model(self, written: Any, where: str) -> str:
        known = isinstance(written, str)
        self.expect(known, where, "the path of a model, or a hub id", written)
        if "+" in written:
            raise self.refuse(
                where,
                f"an adapter after '+' is not read here, found {written!r:.80}; write the model "
                "with its adapter merged in (peft's merge_and_unload) and name that",
            )
        try:
            return str(model_location(written, self.path.absolute().parent))
        except ValueError as error:
            raise self.refuse(where, str(error)) from error

    def layers(self, entry: Mapping[str, Any], where: str) -> tuple[int, int]:
        found: Any = entry.get("layer_range")
        whole = isinstance(found, list) and [type(end) for end in found] == [int, int]
        fits = whole and 0 <= found[0] < found[1]
        expected = "[FIRST, LAST] with 0 <= FIRST < LAST"
        self.expect(fits, f"{where}.layer_range", expected, found)
        return found[0], found[1]

    def dtype(self, top: Mapping[str, Any], key: str) -> str | None:
        written = top.get(key)
        if written is None:
            return None
        name = written.removeprefix("torch.") if isinstance(written, str) else ""
        self.expect(name in _DTYPES, key, f"one of {', '.join(_DTYPES)}", written)
        return _DTYPES[name]

    def settings(self, written: Any, where: str, blend: Blend) -> Settings:
        written = {} if written is None else written
        self.expect(isinstance(written, Mapping), where, "a mapping of parameters", written)
        known = {setting.name: setting for setting in blend.settings}
        for name in written:
            if name not in known:
                raise self.refuse(
                    f"{where}.{name}",
                    f"{blend.name} has no such parameter{nearest(str(name), known)}; it has "
                    f"{', '.join(known) or 'none'}",
                )
        return {n: self.rules(value, f"{where}.{n}", known[n]) for n, value in written.items()}

    def rules(self, written: Any, where: str, setting: Setting) -> Rules:
        """Values, or values for the tensors that filters name, of which the first holds."""
        entries = written if isinstance(written, list) and written else [written]
        if not all(isinstance(entry, Mapping) for entry in entries):
            return (Rule(self.values(entries, where, setting)),)
        found = []
        for entry in entries:
            checked = self.mapping(entry, where, ("value", "filter"))
            value, named = checked.get("value"), checked.get("filter")
            fits = value is not None and isinstance(named, str | None)
            self.expect(fits, where, "'value', and a text as 'filter'", entry)
            values = value if isinstance(value, list) and value else [value]
            found.append(Rule(self.values(values, where, setting), named))
        return tuple(found)

    def values(self, written: list[Any], where: str, setting: Setting) -> tuple[Scalar, ...]:
        """Numbers or flags, written as such or as texts, as mergekit's own reader takes them."""
        expected = {float: "a number", int: "a whole number", bool: "true or false"}[setting.kind]
        if setting.high < math.inf:
            expected += f" from {setting.low:g} to {setting.high:g}"
        elif setting.low > -math.inf:
            expected += f" of {setting.low:g} or more"
        found: list[Scalar] = []
        for value in written:
            read = _read(value, setting)
            if read is None:
                said = f"expected {expected}, or a list of them, found {value!r:.60}"
                raise self.refuse(where, said)
            found.append(read)
        return tuple(found)


def _read(written: Any, setting: Setting) -> Scalar | None:
    """A number or a flag within the setting's bounds, or None."""
    if not isinstance(written, bool | int | float | str):
        return None
    try:
        found: Scalar = TypeAdapter(setting.kind).validate_python(written)
        fits = math.isfinite(found) and setting.low <= found <= setting.high
    except (ValidationError, OverflowError):
        return None
    return found if fits else None
