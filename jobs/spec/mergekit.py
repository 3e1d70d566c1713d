"""mergekit's YAML, as far as it asks for what is done here: one method over whole checkpoints.

Read from mergekit's documentation of its configuration (merge_method, models, base_model,
parameters; mergekit 0.1). What has no counterpart here is refused by name, never guessed: slices,
weights that differ between models or layers, methods that tintray has not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tintray.jobs.spec.locations import model_location

from tintray.errors import SpecError, nearest


@dataclass(frozen=True)
class WholeMerge:
    """A merge of whole checkpoints; see ``tintray.jobs.methods.checkpoints.merge_models``."""

    base: str
    experts: tuple[str, ...]
    method: str
    parameters: tuple[str, ...]
    scale: float | None


def read_mergekit(path: Path) -> WholeMerge:
    """The merge that a mergekit file asks for; relative paths start from the file's folder.

    Raises
    ------
    SpecError
        If the file cannot be read, or asks for something that is not done here.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise SpecError(f"{path} cannot be read as YAML ({reason})") from error
    if not isinstance(document, Mapping):
        raise SpecError(f"{path} must hold a mapping, as mergekit's configuration does")
    return _Reader(path, document).merge()


@dataclass(frozen=True)
class _Reader:
    path: Path
    document: Mapping[str, Any]

    def refuse(self, what: str) -> SpecError:
        return SpecError(f"{self.path}: {what}")

    def merge(self) -> WholeMerge:
        self._check_keys()
        method = str(self.document.get("merge_method"))
        if method not in _METHODS:
            raise self.refuse(
                f"merge_method: expected one of {', '.join(_METHODS)}, found {method!r}"
                f"{nearest(method, _METHODS)}"
            )
        base, models = self.document.get("base_model"), self._models()
        names = [name for name, _ in models]
        if method == "slerp":
            names = [str(base), *(name for name in names if name != base)]
            if base is None or len(names) != 2:
                raise self.refuse("slerp wants a base_model and one other model")
        elif base is not None:
            models = [(name, own) for name, own in models if name != base]
            names = [name for name, _ in models]
        if base is None and method != "linear" and method != "karcher":
            raise self.refuse(f"base_model: {method} works on task vectors and needs a base")
        if not names:
            raise self.refuse("models: expected at least one besides the base")
        found = _METHODS[method](self, [own for _, own in models])
        located = [self._located(name) for name in names]
        start = located[0] if base is None else self._located(str(base))
        return WholeMerge(start, tuple(located), *found)

    def _check_keys(self) -> None:
        known = ("merge_method", "models", "base_model", "parameters", "dtype", "out_dtype")
        for key in self.document:
            if key not in known:
                raise self.refuse(
                    f"'{key}' is not read here{nearest(str(key), known)}; expected only "
                    f"{', '.join(known)}"
                )
        for key in ("dtype", "out_dtype"):
            if self.document.get(key) not in (None, "float32"):
                raise self.refuse(
                    f"{key}: results are written as the base is stored, found "
                    f"{self.document[key]!r}; leave it out"
                )

    def _models(self) -> list[tuple[str, Mapping[str, Any]]]:
        entries = self.document.get("models")
        if not isinstance(entries, list) or not entries:
            raise self.refuse("models: expected a list of models (slices are not read here)")
        found = []
        for number, entry in enumerate(entries):
            if not isinstance(entry, Mapping) or not isinstance(entry.get("model"), str):
                raise self.refuse(f"models.{number}: expected 'model: PATH', found {entry!r:.60}")
            found.append((entry["model"], entry.get("parameters") or {}))
        return found

    def _located(self, written: str) -> str:
        try:
            return str(model_location(written, self.path.absolute().parent))
        except ValueError as error:
            raise self.refuse(f"model: {error}") from error

    def same(self, name: str, own: list[Mapping[str, Any]], default: float) -> float:
        """One number for all models: each one's own, or the common one, or the default."""
        common = (self.document.get("parameters") or {}).get(name, default)
        values = [parameters.get(name, common) for parameters in own] or [common]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise self.refuse(
                    f"{name}: expected one number for the whole model, found {value!r:.60}"
                )
            if value != values[0]:
                raise self.refuse(
                    f"{name}: expected the same for every model, found {values}; learn one "
                    "coefficient per task and layer instead, with a job"
                )
        return float(values[0])

    def flag(self, name: str, default: bool) -> bool:
        value = (self.document.get("parameters") or {}).get(name, default)
        if not isinstance(value, bool):
            raise self.refuse(f"parameters.{name}: expected true or false, found {value!r:.60}")
        return value

    def strength(self, own: list[Mapping[str, Any]], *, normalize: bool = False) -> float:
        """λ · weight, or λ / K where weights are normalised."""
        weight, scale = self.same("weight", own, 1.0), self.same("lambda", [], 1.0)
        return scale / len(own) if self.flag("normalize", normalize) else scale * weight


Translated = tuple[str, tuple[str, ...], float | None]


def _linear(reader: _Reader, own: list[Mapping[str, Any]]) -> Translated:
    reader.same("weight", own, 1.0)
    if not reader.flag("normalize", True):
        raise reader.refuse("parameters.normalize: a sum of whole models is not done here")
    return "average", (), None


def _task_arithmetic(reader: _Reader, own: list[Mapping[str, Any]]) -> Translated:
    return "task_arithmetic", (), reader.strength(own)


def _ties(reader: _Reader, own: list[Mapping[str, Any]]) -> Translated:
    reader.same("weight", own, 1.0)
    _needs_mean(reader, default=True)
    density = reader.same("density", own, 1.0)
    return "ties", (f"density={density:.12g}",), reader.same("lambda", [], 1.0)


def _dare_linear(reader: _Reader, own: list[Mapping[str, Any]]) -> Translated:
    return "dare", (_drop(reader, own),), reader.strength(own)


def _dare_ties(reader: _Reader, own: list[Mapping[str, Any]]) -> Translated:
    reader.same("weight", own, 1.0)
    _needs_mean(reader, default=False)
    return "dare_ties", (_drop(reader, own),), reader.same("lambda", [], 1.0)


def _breadcrumbs(reader: _Reader, own: list[Mapping[str, Any]]) -> Translated:
    kept, largest = reader.same("density", own, 1.0), reader.same("gamma", own, 0.01)
    smallest = 1 - kept - largest
    if smallest < 0:
        raise reader.refuse(
            f"density {kept:g} and gamma {largest:g} are more than the whole together"
        )
    parameters = (f"smallest={smallest:.12g}", f"largest={largest:.12g}")
    return "breadcrumbs", parameters, reader.strength(own)


def _slerp(reader: _Reader, own: list[Mapping[str, Any]]) -> Translated:
    return "slerp", (f"t={reader.same('t', [], 0.5):.12g}",), None


def _karcher(reader: _Reader, own: list[Mapping[str, Any]]) -> Translated:
    return "karcher", (f"steps={int(reader.same('max_iter', [], 10))}",), None


def _model_stock(reader: _Reader, own: list[Mapping[str, Any]]) -> Translated:
    return "model_stock", (), None


def _drop(reader: _Reader, own: list[Mapping[str, Any]]) -> str:
    if not reader.flag("rescale", True):
        raise reader.refuse("parameters.rescale: what is kept is always rescaled here")
    return f"drop={1 - reader.same('density', own, 1.0):.12g}"


def _needs_mean(reader: _Reader, *, default: bool) -> None:
    if not reader.flag("normalize", default):
        raise reader.refuse(
            "parameters.normalize: the entries that agree are averaged here, not added; set it to "
            "true"
        )


_METHODS: Mapping[str, Callable[[_Reader, list[Mapping[str, Any]]], Translated]] = {
    "linear": _linear,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
    "dare_linear": _dare_linear,
    "dare_ties": _dare_ties,
    "breadcrumbs": _breadcrumbs,
    "slerp": _slerp,
    "karcher": _karcher,
    "model_stock": _model_stock,
}
