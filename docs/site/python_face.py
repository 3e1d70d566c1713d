"""The page of the Python face, from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

import tintray
from tintray.errors import TintrayError

WIDTH = 80
ROLE = re.compile(r":\w+:`~?([^`]+)`")
HEADING = re.compile(r"^([A-Z]\w+)\n-{3,}\n", re.MULTILINE)
ENTRY = re.compile(r"^(\w[\w.*, :|\[\]]*)\n((?:    .*\n?|\n)+)", re.MULTILINE)
MODULES = {
    "Jobs and measurements": ("tintray.jobs.api",),
    "Merging methods of your own": ("tintray.merging",),
    "Stores, catalogs and this installation": tuple(
        f"tintray.jobs.upkeep.{name}"
        for name in ("stores", "databases", "aliases", "sharing", "setup", "doctor")
    ),
}
MERGING = ("method", "Method", "Layer", "Parameter")


def page() -> str:
    """What ``import tintray`` gives, then what operators and plugins call."""
    intro = inspect.cleandoc(tintray.__doc__ or "").partition("\n")[2]
    parts = ["# Python", _markdown(intro)]
    names = [name for name in tintray.__all__ if not _is_error(getattr(tintray, name))]
    functions = [name for name in names if not inspect.isclass(getattr(tintray, name))]
    ordered = [*functions, *(name for name in names if name not in functions)]
    parts += ["".join(_described(f"tintray.{name}", getattr(tintray, name), 2)) for name in ordered]
    parts.append("Errors are on a [page of their own](errors.md).")
    for title, modules in MODULES.items():
        parts.append(f"## {title}")
        for module in map(import_module, modules):
            for name, found in vars(module).items():
                if _is_public(name, found, module):
                    parts.append("".join(_described(f"{module.__name__}.{name}", found, 3)))
    return "\n\n".join(parts)


def _is_error(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, TintrayError)


def _is_public(name: str, found: Any, module: Any) -> bool:
    if module.__name__ == "tintray.merging":
        return name in MERGING
    is_function = inspect.isfunction(found) and found.__module__ == module.__name__
    return is_function and not name.startswith("_") and name not in tintray.__all__


def _described(name: str, found: Any, level: int) -> Iterator[str]:
    """A function, or a class with its public members."""
    yield f"{'#' * level} {name}\n\n"
    if not inspect.isclass(found) or is_dataclass(found):
        yield f"```python\n{_signature(name.rpartition('.')[2], found)}\n```\n\n"
    yield _markdown(inspect.getdoc(found) or "")
    if inspect.isclass(found) and found.__module__.startswith("tintray.handles"):
        for member, value in _members(found):
            yield "".join(_member(member, value, level + 1))


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    seen = set()
    for owner in kind.__mro__[:-1]:
        for name, value in vars(owner).items():
            if not name.startswith("_") and name not in seen and not isinstance(value, str):
                seen.add(name)
                yield name, value


def _member(name: str, value: Any, level: int) -> Iterator[str]:
    get = getattr(value, "fget", None) or getattr(value, "func", None)
    function = get or getattr(value, "__func__", value)
    if not inspect.isfunction(function):
        return
    yield f"\n\n{'#' * level} {name}\n\n"
    if get:
        yield f"```python\n{name}: {function.__annotations__.get('return', 'Any')}\n```\n\n"
    else:
        yield f"```python\n{_signature(name, function)}\n```\n\n"
    yield _markdown(inspect.getdoc(function) or "")


def _signature(name: str, found: Any) -> str:
    """A signature as it is written, a parameter a line where it is long."""
    signature = inspect.signature(found)
    plain = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    lines: list[str] = []
    for before, one in zip([None, *plain], plain, strict=False):
        if one.kind is one.KEYWORD_ONLY and (before is None or before.kind < one.VAR_POSITIONAL):
            lines.append("*")
        lines.append(_parameter(one))
    back = signature.return_annotation
    end = "" if back is signature.empty else f" -> {_type(back)}"
    whole = f"{name}({', '.join(lines)}){end}"
    if len(whole) <= WIDTH:
        return whole
    inner = "".join(f"    {line},\n" for line in lines)
    return f"{name}(\n{inner}){end}"


def _parameter(one: inspect.Parameter) -> str:
    stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
    typed = "" if one.annotation is one.empty else f": {_type(one.annotation)}"
    default = "" if one.default is one.empty else f"{' = ' if typed else '='}{one.default!r}"
    return f"{stars}{one.name}{typed}{default}"


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _markdown(text: str) -> str:
    """A docstring with sections of numpydoc as Markdown."""
    text = ROLE.sub(r"`\1`", text).replace("``", "`")
    text = re.sub(r"^\n?::\n+", "", text, flags=re.MULTILINE).replace("::\n", ":\n")
    first, *sections = HEADING.split(text)
    parts = [first.strip("\n")]
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        entries = ENTRY.findall(f"{body.rstrip()}\n")
        listed = "\n".join(f"- `{name}`: {' '.join(about.split())}" for name, about in entries)
        parts.append(f"**{title}**\n\n{listed or body.strip()}")
    return "\n\n".join(parts)
