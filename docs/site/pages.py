"""The pages of the site that are made from the code, and what is added to those that are written.

Commands come from click, the Python face from its docstrings, methods from their registry, errors
from their classes and from where they are raised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import commands
import errors
import python_face

from tintray.jobs.runs.method_list import LEARNED, MethodLine, list_methods

DOCS = Path(__file__).resolve().parents[1]
ALGORITHMS = "algorithms/"
SOURCES = (
    (re.compile(r"arXiv (\d{4}\.\d{5})"), r"[arXiv \1](https://arxiv.org/abs/\1)"),
    (re.compile(r"(?<!/)github\.com/([\w-]+/[\w-]+)( at )?"), r"[\1](https://github.com/\1)\2"),
)


@cache
def generated() -> dict[str, str]:
    """Pages that are written nowhere, by their paths."""
    return {**commands.pages(), "python.md": python_face.page()}


def in_folder(folder: str) -> Iterator[str]:
    """The pages of a folder, in the order of the navigation."""
    if folder == ALGORITHMS:
        paths = (f"{folder}{line.name}.md" for line in list_methods())
        yield from (path for path in paths if (DOCS / path).exists())  # a plugin has none
    else:
        yield from (path for path in generated() if path.startswith(folder))


def completed(path: str, text: str) -> str:
    """A page with what the code knows about its subject."""
    if path == "errors.md":
        return f"{text}\n{errors.tree()}\n{errors.sentences()}"
    if path.startswith(ALGORITHMS):
        (line,) = list_methods([Path(path).stem])
        title, _, rest = text.partition("\n")
        return f"{title}\n\n{line.summary}\n{rest}\n## Facts\n\n{_facts(line)}\n\n{_run(line)}"
    return text


def _facts(line: MethodLine) -> str:
    """Source, data, scale and parameters of a method."""
    source = line.source
    for pattern, link in SOURCES:
        source = pattern.sub(link, source)
    reads = "none" if line.data == "none" else "unlabelled examples of each task"
    rows = [("source", source), ("data", reads), ("scale", _scale(line))]
    if line.most:
        rows.append(("experts", f"{line.most} at most"))
    if line.own_backbones:
        rows.append(("result", "a whole backbone for each task"))
    for one in line.parameters:
        about = commands.escaped(one.about)
        rows.append((f"`{one.name}`", f"{about}; in {one.range}, default {one.default:g}"))
    return commands.table(("", ""), rows)


def _scale(line: MethodLine) -> str:
    if line.name in LEARNED:
        return "learned" if line.name != "surgery" else "that of `merge.init`"
    if line.scale is None:
        return "1/K"
    return f"{line.scale:g}" + (", beyond ten tasks 10/K of it" if line.adds_up else "")


def _run(line: MethodLine) -> str:
    """How a method is run: alone, beside a published merge, on whole checkpoints."""
    parameters = ", ".join(f"{one.name}: {one.default:g}" for one in line.parameters)
    given = f", parameters: {{{parameters}}}" if parameters else ""
    shown = [f"tintray run job.yaml --set merge.method={line.name}"]
    if line.name != "surgery":
        shown.append(f"tintray compare MERGE --methods {line.name}")
    if line.data == "none":
        shown.append(f"tintray merge --base BASE --method {line.name} --output DIR EXPERT EXPERT")
    lines = "\n".join(shown)
    return f"In a job file:\n\n```yaml\nmerge: {{method: {line.name}{given}}}\n```\n\n" + (
        f"On the command line:\n\n```sh\n{lines}\n```\n"
    )
