"""YAML as text: anchors, aliases, tags, depth, odd numbers, odd encodings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random

import yaml

from tests.fuzz import raw
from tests.fuzz.surface import Bench, Drives, Files, Surface, command
from tests.fuzz.surfaces import job_files
from tintray.jobs.config.job_file import load_spec
from tintray.jobs.runs.change import read_tasks

_JOB = "job.yaml"
_SCALARS = (
    *("1", "0o7", "0x1f", "1_000", "1:30:00", "1e3", ".inf", "-.inf", ".nan", "~", "null", "yes"),
    *("no", "on", "2020-01-01", "2020-01-01T00:00:00Z", "2020-13-45", "0b2", "+1", "1e99999"),
    *("9" * 5000, "1:" * 3000 + "1", "'a'", '"\\x1b[31m"', '"\\ud800"', '"\\0"', "|\n    text\n"),
    *(">-\n    a\n", "''", "!!python/object/apply:os.system ['true']", "!!binary aGk="),
    *("!!binary '%%'", "!!int x", "!!null x", "!!float [1]", "!!set {a, b}", "!!omap [a: 1]"),
    *("!!pairs [a: 1]", "!!timestamp x", "!<tag:x> a", "!!map []", "!!seq {}", "!!str {a: 1}"),
    *("!!bool maybe", "!x", "*nobody", "&a", "=", "<<", "? a", "%a", "@a", "`a", "- - - a"),
    *("[a, b", "{a: b", "]", "}", "a: b: c", "\t", "#", "...", "---", "!!value ="),
)


def _seeds(fixtures: Path) -> list[Files]:
    job = job_files.document(fixtures)
    shared = yaml.safe_dump({"x": 1}).strip()
    plain = yaml.safe_dump(job, sort_keys=False)
    flow = yaml.safe_dump(job, default_flow_style=True, sort_keys=False, width=10_000)
    zoo = fixtures / "zoo"
    anchored = (
        f"# {shared}\nname: fuzz\nbase: &b {zoo}/base\ntasks:\n"
        f"  - &t\n    name: two\n    expert: {zoo}/two\n    pool: &d {{path: {zoo}/two.npz}}\n"
        f"  - <<: *t\n    name: again\n    pool: {{<<: *d, split: 'train[:3]'}}\n"
        "cluster: {workers: 0}\nstore: store\n"
    )
    return [{_JOB: text.encode()} for text in (plain, flow, anchored)]


def _mutate(rng: Random, files: Files, _: Sequence[Files]) -> Files:
    action = rng.randrange(10)
    text = files[_JOB].decode()
    if action == 0:
        text = _bomb(rng)
    elif action == 1:
        text = "\n".join(f"{key}: {_node(rng, 3)}" for key in ("name", "base", "tasks", "x"))
    elif action < 6:
        text = _regrown(rng, text)
    if action in (0, 1, 5) and rng.random() < 0.6:
        return {_JOB: text.encode("utf-8", "surrogatepass")}
    if action == 9 and rng.random() < 0.4:
        return {_JOB: raw.damaged(rng, text.encode())}
    return {_JOB: raw.damaged_text(rng, text, _SCALARS)}


def _regrown(rng: Random, text: str) -> str:
    """With another node after one of its colons."""
    ends = [at for at in range(len(text) - 1) if text[at : at + 2] == ": "]
    if not ends:
        return text
    at = rng.choice(ends) + 2
    stop = text.find("\n", at)
    return text[:at] + _node(rng, rng.choice((0, 1, 3))) + (text[stop:] if stop > 0 else "")


def _node(rng: Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.4:
        return rng.choice(_SCALARS)
    mark = rng.choice(("", "", "", "&a ", "&b ", "!!map ", "!!seq ", "!!str ", "!x "))
    items = [_node(rng, depth - 1).replace("\n", " ") for _ in range(rng.randrange(4))]
    if rng.random() < 0.5:
        return f"{mark}[{', '.join(items)}]"
    keys = ("a", "<<", "? [a]", "*a", "1", "~", "name", "{a: 1}", "!!binary aGk=", "2020-01-01")
    return f"{mark}{{{', '.join(f'{rng.choice(keys)}: {item}' for item in items)}}}"


def _bomb(rng: Random) -> str:
    """A text that is large once it is read, or deep, or slow."""
    action = rng.randrange(9)
    if action == 0:  # the billion laughs
        levels = rng.choice((3, 9, 30))
        lines = ["a0: &a0 [x, x]"]
        for n in range(levels):
            uses = ", ".join([f"*a{n}"] * rng.choice((2, 10)))
            lines.append(f"a{n + 1}: &a{n + 1} [{uses}]")
        return "\n".join(lines) + f"\nname: *a{levels}\ntasks: *a{levels}\n"
    if action == 1:
        levels = rng.choice((3, 20, 60))
        lines = ["a0: &a0 {x: 1}"]
        for n in range(levels):
            uses = ", ".join([f"*a{n}"] * rng.choice((2, 8)))
            lines.append(f"a{n + 1}: &a{n + 1} {{<<: [{uses}]}}")
        return "\n".join(lines)
    if action == 2:
        left, right = rng.choice((("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", ""), ("a: ", "")))
        depth = rng.choice((20, 90, 300, 5000, 100_000))
        return f"name: {left * depth}{right * depth}"
    if action == 3:
        return "a: &a [*a]\nname: *a\ntasks: [*a]\n"
    if action == 4:
        return "name: " + rng.choice(("9" * 100_000, "1:" * 50_000 + "1", "0x" + "f" * 100_000))
    if action == 5:
        return "".join(f"k{n}: {n}\n" for n in range(rng.choice((100, 20_000))))
    if action == 6:
        return "tasks:\n" + "  - {name: a, expert: b, pool: {path: c}}\n" * rng.choice((10, 3000))
    if action == 7:
        return "name: '" + rng.choice(("a ", "\\", "''", "é")) * rng.choice((100, 200_000)) + "'"
    return "---\n" * rng.choice((2, 5000)) + "name: a\n"


def _loaded(bench: Bench, overrides: Sequence[str] = ()) -> None:
    load_spec(bench.folder / _JOB, overrides)


def _tasks(bench: Bench) -> None:
    read_tasks(bench.folder / _JOB)


_SET = ("fit.rounds=3", "tasks.two.name=other")
_DRIVES: Drives = {"loaded": (55, _loaded), "overridden": (14, partial(_loaded, overrides=_SET))}
_DRIVES |= {"tasks": (30, _tasks), "validate": (1, command(f"validate {_JOB}"))}
SURFACE = Surface("yaml-text", 8, _seeds, _mutate, _DRIVES, confined=False)
