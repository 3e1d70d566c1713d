"""Damage done to trees as JSON and YAML have them: values, keys, depth, what text cannot hold."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import yaml

_DEEP = "@deep{}@"  # becomes so many brackets in the text: no writer of JSON goes as deep
_DEEP_MARKS = {_DEEP.format(depth): depth for depth in (60, 500, 3000, 100_000)}

UGLY = (
    *("\x1b[31mred\x1b[0m", "a\nb", "\r", "\x00", "\x07\x9b1m", "\u202egnp.exe", "\u2028"),
    *("\ud800", "\ufeff", "é" * 200, "x" * 20_000, "{0.__class__}", "%s%n", "[bold]x[/bold] [/]"),
)
"""Texts that must not reach a terminal as they are, or that no encoding takes."""

PLACES = (
    *("../../secret", "..", ".", "/", "a/../../b", "/dev/zero", "/dev/stdin", "/proc/self/mem"),
    *("/proc/none/x", "file:///dev/zero", "~root", "~nobody-at-all/x", "C:\\x", "a\\..\\b"),
    *("con/" * 300, "n" * 300, "hf://org/name", "org/name", "ftp://host/x"),
)
"""Paths that lie elsewhere, or nowhere; none that could be written to by mistake."""

NUMBERS = (
    *(0, 1, -1, 2, 7, 255, 256, 65_536, 10**6, 10**9, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63),
    *(-(2**63), 2**64, 10**18, 10**40, -(10**40), 0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, 1e-9),
    *(float("nan"), float("inf"), float("-inf"), 3.5, 1e15, 100_000),
)

ODD: tuple[Any, ...] = (
    *(None, True, False, "", " ", "0", "1e5", "nan", "null", "auto", "none", [], {}, [[]], [None]),
    *({"": None}, [1, "a", None], {"a": {"b": []}}, *NUMBERS, *UGLY, *PLACES, *_DEEP_MARKS),
)


def odd(rng: Random, extra: Sequence[Any] = ()) -> Any:
    """A value that was not expected, rather one of ``extra`` if there are any."""
    chosen = rng.choice(extra) if extra and rng.random() < 0.4 else rng.choice(ODD)
    return copy.deepcopy(chosen)


def damaged(rng: Random, tree: Any, extra: Sequence[Any] = (), times: int | None = None) -> Any:
    """A copy of ``tree`` with one or a few things done to it."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3, 6)) if times is None else times):
        tree = _once(rng, tree, extra)
    return tree


def _once(rng: Random, tree: Any, extra: Sequence[Any]) -> Any:
    spots = list(_spots(tree))
    if not spots or rng.random() < 0.02:
        return odd(rng, extra)
    holder, key = rng.choice(spots)
    value = holder[key]
    action = rng.randrange(12)
    if action < 4:
        holder[key] = odd(rng, extra)
    elif action < 6:
        holder[key] = _other(rng, value)
    elif action == 6:
        del holder[key]
    elif action == 7 and isinstance(holder, dict):
        holder[_name(rng, key)] = holder.pop(key)
    elif action == 8 and isinstance(holder, dict):
        holder[_name(rng, key)] = odd(rng, extra)
    elif action == 9:
        other, place = rng.choice(spots)
        holder[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(value)
    elif action == 10 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(value))
    else:
        holder[key] = rng.choice(([value], {str(key): value}, [value] * 40, str(value)))
    return tree


def _spots(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a tree that holds a value: its mapping or list, and the key or index."""
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _spots(tree[key])


def _other(rng: Random, value: Any) -> Any:
    """Something near ``value``: of its type, or what it would be in another."""
    if isinstance(value, bool) or value is None:
        return rng.choice((not value, str(value), int(bool(value))))
    if isinstance(value, int | float):
        chosen = rng.randrange(7)
        if chosen == 6:
            return str(value)
        return (value + 1, value - 1, -value, value * 1000, value * 0.5, value + 0.5)[chosen]
    if isinstance(value, str):
        cut = rng.randint(0, len(value))
        ugly, marked = value + rng.choice(UGLY), value[:cut] + rng.choice("?*[]{}%/.:\\ ")
        others = (value.upper(), value * 50, [value], value.encode("utf-8", "replace").hex())
        return rng.choice((ugly, value[:cut], marked, ugly, value[:cut], marked, *others))
    if isinstance(value, list):
        return rng.choice((value[:1], value[::-1], value * 3, value[1:], dict(enumerate(value))))
    if isinstance(value, dict):
        return rng.choice((list(value), list(value.values()), {**value, **value, "x": 1}))
    return None


def _name(rng: Random, key: Any) -> Any:
    text = str(key)
    cut = rng.randint(0, len(text))
    choices = (text[:cut] + text[cut + 1 :], text.upper(), "__class__", *UGLY[:9], "", "x." + text)
    return rng.choice(choices)


def as_json(rng: Random, tree: Any) -> bytes:
    """A damaged tree as JSON, which may repeat a key, or hold what JSON has no word for."""
    form: dict[str, Any] = {"ensure_ascii": rng.random() < 0.7, "indent": rng.choice((None, 2))}
    try:
        text = json.dumps(_plain(tree), **form)
    except ValueError:  # a number of more digits than Python writes
        text = "[1e5]"
    for mark, depth in _DEEP_MARKS.items():
        if f'"{mark}"' in text:
            left, right = rng.choice((("[", "]"), ('{"a":', "}")))
            inner = "1" if left != "[" else ""
            closed = right * depth if rng.random() < 0.8 else ""
            text = text.replace(f'"{mark}"', left * depth + inner + closed)
    if rng.random() < 0.05 and "{" in text:
        places = [at for at, letter in enumerate(text[:5000]) if letter == "{"]
        at = rng.choice(places or [0]) + 1
        text = f'{text[:at]}"{rng.choice(("a", "format", "dtype", "name"))}": [],{text[at:]}'
    return text.encode("utf-8", "surrogatepass")


def as_json_or_yaml(rng: Random, tree: Any) -> bytes:
    """A damaged tree in either, where YAML can write it."""
    data = as_json(rng, tree)
    if rng.random() < 0.4:
        with suppress(yaml.YAMLError, ValueError):
            text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=rng.random() < 0.5)
            return text.encode("utf-8", "surrogatepass")
    return data


def with_a_field(rng: Random, tree: Any, keys: Sequence[str], extra: Sequence[Any]) -> bytes:
    """A mapping as JSON: mostly another value under one of ``keys``, else damaged anywhere."""
    times = rng.choice((1, 1, 2))
    if keys and rng.random() < 0.6:
        tree[rng.choice(keys)] = odd(rng, extra)
        times = rng.choice((0, 0, 1))
    return as_json(rng, damaged(rng, tree, extra, times))


def _plain(tree: Any) -> Any:
    """What the json module writes: no key but text, no bytes."""
    if isinstance(tree, dict):
        return {str(key): _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    return tree if isinstance(tree, str | int | float | bool | None) else str(tree)
