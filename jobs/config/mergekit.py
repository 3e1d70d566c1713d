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
_MODEL = "the path of a model, or a hub id"


def read_mergekit(path: Path) -> Composition:
    """What a mergekit file asks for; relative paths start from the file's folder.

    Raises
    ------
    SpecError
        If the file cannot be read, or asks for something that is not done here.
    """
    document = read_document(path)
    if not isinstance(document.value, Mapping):
        raise SpecError(f"{path} must hold a mapping, as mergekit's configuration does")
    return _Reader(path, document.value).composition()


@dataclass
class _Reader:
    path: Path
    document: Mapping[str, Any]
    notices: list[str] = field(default_factory=list)

    def refuse(self, where: str, what: str) -> SpecError:
        return SpecError(f"{self.path}: {where}: {what}")

    def composition(self) -> Composition:
        top = self.mapping(self.document, "", _TOP)
        blend = self.blend(top.get("merge_method"))
        base = self.model(top["base_model"], "base_model") if "base_model" in top else None
        if ("models" in top) == ("slices" in top):
            raise self.refuse("models", "expected either models or slices, and not both")
        if "models" in top:
            slices: tuple[Slice, ...] = (self.models(top["models"], blend, base),)
        else:
            listed = self.listed(top["slices"], "slices")
            slices = tuple(
                self.slice(entry, f"slices.{number}", blend, base)
                for number, entry in enumerate(listed)
            )
        return Composition(
            blend,
            slices,
            base,
            self.settings(top.get("parameters"), "parameters", blend),
            self.dtype(top, "dtype"),
            self.dtype(top, "out_dtype"),
            tuple(self.notices),
        )

    # -- parts -------------------------------------------------------------------------------

    def blend(self, written: Any) -> Blend:
        if not isinstance(written, str) or written not in BLENDS:
            raise self.refuse(
                "merge_method",
                f"expected one of {', '.join(BLENDS)}, found {written!r:.60}"
                f"{nearest(str(written), BLENDS)}",
            )
        return BLENDS[written]

    def models(self, written: Any, blend: Blend, base: str | None) -> Slice:
        """All layers of all models as one slice; the base is an input, listed or not."""
        sources = [
            self.source(entry, f"models.{number}", blend, base, ("model", "parameters"))
            for number, entry in enumerate(self.listed(written, "models"))
        ]
        if base is not None and base not in [source.model for source in sources]:
            sources.append(Source(base))
        return self.checked(Slice(tuple(sources), base), "models", blend)

    def slice(self, written: Any, where: str, blend: Blend, base: str | None) -> Slice:
        keys = ("sources", "base_model", "parameters")
        entry = self.mapping(written, where, keys)
        if "base_model" in entry:
            base = self.model(entry["base_model"], f"{where}.base_model")
        known = ("model", "layer_range", "parameters")
        sources = []
        for number, source in enumerate(self.listed(entry.get("sources"), f"{where}.sources")):
            here = f"{where}.sources.{number}"
            sources.append(self.source(source, here, blend, base, known))
            if sources[-1].layers is None:
                raise self.refuse(f"{here}.layer_range", "expected [FIRST, LAST], found none")
        counts = {last - first for s in sources if s.layers for first, last in (s.layers,)}
        if len(counts) > 1:
            raise self.refuse(
                f"{where}.sources", f"expected as many layers of each, found {sorted(counts)}"
            )
        settings = self.settings(entry.get("parameters"), f"{where}.parameters", blend)
        return self.checked(Slice(tuple(sources), base, settings), where, blend)

    def source(
        self, written: Any, where: str, blend: Blend, base: str | None, keys: tuple[str, ...]
    ) -> Source:
        entry = self.mapping(written, where, keys)
        if "model" not in entry:
            raise self.refuse(f"{where}.model", f"expected {_MODEL}, found none")
        model = self.model(entry["model"], f"{where}.model")
        here = f"{where}.parameters"
        settings = self.settings(entry.get("parameters"), here, blend)
        for name in settings:
            scope = next(known.scope for known in blend.settings if known.name == name)
            if scope == "all":
                raise self.refuse(
                    f"{here}.{name}",
                    f"{blend.name} has one value of it for all models; write it under the "
                    "parameters of the whole, or of a slice",
                )
            if scope == "expert" and model == base:
                self.notices.append(
                    f"{self.path}: {here}.{name} has no effect, as in mergekit: {blend.name} "
                    "takes it of the models that differ from the base"
                )
        return Source(model, self.layers(entry, where), settings)

    def checked(self, part: Slice, where: str, blend: Blend) -> Slice:
        """The slice, if the method can merge so many inputs, with or without a base."""
        names = [source.model for source in part.sources]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise self.refuse(where, f"'{twice[0]}' is listed twice; expected each model once")
        if blend.base == "needed" and part.base is None:
            raise self.refuse("base_model", f"{blend.name} needs one, found none")
        if blend.base != "input" and part.base is not None and part.base not in names:
            raise self.refuse(
                f"{where}.sources", f"expected the base '{part.base}' among them for {blend.name}"
            )
        low = blend.least + (blend.base == "optional" and part.base is not None)
        high = blend.most
        if high is not None and blend.base == "optional" and part.base is None:
            high -= 1
        if len(names) < low or (high is not None and len(names) > high):
            wanted = f"{low}" if low == high else f"at least {low}" if high is None else f"{high}"
            raise self.refuse(
                where, f"{blend.name} merges {wanted} models, the base included, found {len(names)}"
            )
        return part

    # -- values ------------------------------------------------------------------------------

    def mapping(self, written: Any, where: str, keys: tuple[str, ...]) -> Mapping[str, Any]:
        """A mapping with no other keys than these; what is null counts as left out."""
        if not isinstance(written, Mapping):
            raise self.refuse(where, f"expected {', '.join(keys)}, found {written!r:.60}")
        for key in written:
            inside = f"{where}.{key}" if where else f"{key}"
            if key in _NOT_DONE and key not in keys:
                if written[key] is not None:
                    raise self.refuse(inside, f"is not read here: {_NOT_DONE[key]}")
            elif key not in keys:
                raise self.refuse(
                    inside,
                    f"is not read here{nearest(str(key), keys)}; expected only {', '.join(keys)}",
                )
        return {key: value for key, value in written.items() if value is not None}

    def listed(self, written: Any, where: str) -> list[Any]:
        if not isinstance(written, list) or not written:
            raise self.refuse(where, f"expected a list, found {written!r:.60}")
        return written

    def model(self, written: Any, where: str) -> str:
        if not isinstance(written, str):
            raise self.refuse(where, f"expected {_MODEL}, found {written!r:.60}")
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

    def layers(self, entry: Mapping[str, Any], where: str) -> tuple[int, int] | None:
        if "layer_range" not in entry:
            return None
        found = entry["layer_range"]
        if not (
            isinstance(found, list)
            and len(found) == 2
            and all(isinstance(end, int) and not isinstance(end, bool) for end in found)
            and 0 <= found[0] < found[1]
        ):
            raise self.refuse(
                f"{where}.layer_range",
                f"expected [FIRST, LAST] with 0 <= FIRST < LAST, found {found!r:.60}",
            )
        return found[0], found[1]

    def dtype(self, top: Mapping[str, Any], key: str) -> str | None:
        written = top.get(key)
        if written is None:
            return None
        name = written.removeprefix("torch.") if isinstance(written, str) else ""
        if name not in _DTYPES:
            raise self.refuse(key, f"expected one of {', '.join(_DTYPES)}, found {written!r:.60}")
        return _DTYPES[name]

    def settings(self, written: Any, where: str, blend: Blend) -> Settings:
        if written is None:
            return {}
        known = {setting.name: setting for setting in blend.settings}
        if not isinstance(written, Mapping):
            raise self.refuse(where, f"expected a mapping of parameters, found {written!r:.60}")
        for name in written:
            if name not in known:
                raise self.refuse(
                    f"{where}.{name}",
                    f"{blend.name} has no such parameter{nearest(str(name), known)}; it has "
                    f"{', '.join(known) or 'none'}",
                )
        return {
            name: self.rules(value, f"{where}.{name}", known[name])
            for name, value in written.items()
        }

    def rules(self, written: Any, where: str, setting: Setting) -> Rules:
        """Values, or values for the tensors that filters name, of which the first holds."""
        entries = written if isinstance(written, list) and written else [written]
        if not all(isinstance(entry, Mapping) for entry in entries):
            return (Rule(self.values(written, where, setting)),)
        found = []
        for entry in entries:
            checked = self.mapping(entry, where, ("value", "filter"))
            named = checked.get("filter")
            if "value" not in checked or not isinstance(named, str | None):
                raise self.refuse(
                    where, f"expected 'value', and a text as 'filter', found {entry!r:.60}"
                )
            found.append(Rule(self.values(checked["value"], where, setting), named))
        return tuple(found)

    def values(self, written: Any, where: str, setting: Setting) -> tuple[Scalar, ...]:
        several = written if isinstance(written, list) and written else [written]
        return tuple(self.scalar(value, where, setting) for value in several)

    def scalar(self, written: Any, where: str, setting: Setting) -> Scalar:
        """A number or flag, written as such or as a text, as mergekit's own reader takes it."""
        expected = {float: "a number", int: "a whole number", bool: "true or false"}[setting.kind]
        if setting.high < math.inf:
            expected += f" from {setting.low:g} to {setting.high:g}"
        elif setting.low > -math.inf:
            expected += f" of {setting.low:g} or more"
        try:
            if not isinstance(written, bool | int | float | str):
                raise ValueError(written)
            found: Scalar = TypeAdapter(setting.kind).validate_python(written)
            if not (math.isfinite(found) and setting.low <= found <= setting.high):
                raise ValueError(written)
        except (ValidationError, ValueError, OverflowError) as error:
            raise self.refuse(
                where, f"expected {expected}, or a list of them, found {written!r:.60}"
            ) from error
        return found
