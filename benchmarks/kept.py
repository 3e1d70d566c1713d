"""Results of a benchmark that are kept, one JSON line each, so that a stopped one goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


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
