"""The errors: their tree, and every sentence that the code raises."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from commands import escaped, table

from tintray.errors import TintrayError

ROOT = Path(__file__).resolve().parents[2]
WORD = re.compile(r"[a-z]{2,}")
FOLDERS = ("tintray", "jobs", "storage")


def _classes(kind: type[TintrayError] = TintrayError, depth: int = 0) -> Iterator[tuple[type, int]]:
    yield kind, depth
    for below in kind.__subclasses__():
        if below.__module__ == TintrayError.__module__:
            yield from _classes(below, depth + 1)


def tree() -> str:
    """Each class below the one that it is a case of, with what causes it and its exit code."""
    rows = []
    for kind, depth in _classes():
        indent = "&nbsp;" * 4 * depth
        code = getattr(kind, "exit_code", 1)
        about = (kind.__doc__ or "").strip().splitlines()[0]
        rows.append((f"{indent}[`{kind.__name__}`](#{kind.__name__.lower()})", str(code), about))
    return table(("error", "exit code", "what causes it"), rows) + "\n"


def sentences() -> str:
    """What each class says where it is raised; ``…`` stands for what is named there."""
    said: dict[str, dict[str, None]] = {kind.__name__: {} for kind, _ in _classes()}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name, sentence in _raised(ast.parse(path.read_text(encoding="utf-8"))):
                if name in said and len(WORD.findall(sentence)) > 2:
                    said[name][sentence] = None
    parts = ["## What they say", "A … stands for a name, a number or another sentence."]
    for name, lines in said.items():
        listed = "\n".join(f"- {escaped(line)}" for line in sorted(lines, key=str.lower))
        parts.append(f"### {name}\n\n{listed or 'Its own sentence is that of what it stands for.'}")
    return "\n\n".join(parts)


def _raised(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Class and sentence of each ``raise`` with a text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            called = node.exc.func
            sentence = "".join(_text(node.exc.args[0]))
            yield getattr(called, "id", ""), re.sub("…[…@]*", "…", sentence)


def _text(node: ast.expr) -> Iterator[str]:
    """The text of an expression, with ``…`` for each part that is known only when it runs."""
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.JoinedStr):
        for part in node.values:
            yield from _text(part)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from _text(node.left)
        yield from _text(node.right)
    else:
        yield "…"
