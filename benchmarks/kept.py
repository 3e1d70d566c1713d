"""Results of a benchmark that are kept, one JSON line each, so that a stopped one goes on."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_DECIDING = (
    *(f"tintray/{part}" for part in ("numerics", "checkpoints", "data", "models", "tasks")),
    *(f"tintray/{part}" for part in ("pools", "vectors", "merging", "tinting")),
    *(f"jobs/{part}" for part in ("config", "engine", "runs")),
)
"""Folders whose modules decide what a job's result is."""
_LIBRARIES = ("torch", "transformers", "numpy")


class Kept:
    """The lines of ``runs.jsonl`` in a folder; several processes may add to it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "runs.jsonl"

    def once(self, key: str, note: str, compute: Callable[[], Any]) -> Any:
        """What is kept under ``key``; computed, and kept from then on, if nothing is.

        ``note`` says to whoever reads the file what it was; a result is made of JSON types.
        """
        for line in self._path.read_text().splitlines() if self._path.exists() else ():
            entry = json.loads(line)
            if entry["key"] == key:
                return entry["found"]
        found = compute()
        with self._path.open("a") as file:  # one short write: lines of several processes stay whole
            file.write(json.dumps({"key": key, "note": note, "found": found}) + "\n")
        return found


@cache
def code_hash(*modules: str, root: Path = ROOT) -> str:
    """The version of what decides a result: modules without comments and docstrings, libraries.

    ``modules`` are counted besides those of the product.
    """
    digest = hashlib.sha256()
    files = [file for part in _DECIDING for file in (root / part).rglob("*.py")]
    for path in sorted([*files, *(root / module for module in modules)]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            _drop_strings(node)
        digest.update(f"{path.relative_to(root).as_posix()} {ast.dump(tree)}\n".encode())
    for library in _LIBRARIES:
        digest.update(f"{library} {version(library)}\n".encode())
    return digest.hexdigest()


def _drop_strings(node: ast.AST) -> None:
    """Drop docstrings, of attributes too."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        node.body = [
            part
            for part in node.body
            if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
        ]
