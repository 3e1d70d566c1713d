"""One input, tried: what was wrong with how it was answered."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.fuzz.guard import Guard, control_character
from tests.fuzz.surface import Bench, Surface, lay
from tintray.errors import MAX_SENTENCE, TintrayError

_OURS = ("tintray", "storage", "jobs")
_KEPT_OF_A_KIND = 3


@dataclass(frozen=True)
class Finding:
    """An input that was not answered well."""

    surface: str
    seed: int
    number: int
    how: str  # the drive that read it
    kind: str  # same text, same fault
    text: str  # all that is known of it

    def keep(self, files: Mapping[str, bytes], folder: Path) -> None:
        """Write the input and what is wrong with it below ``folder``; a few of each kind."""
        digest = hashlib.sha256(self.kind.encode()).hexdigest()[:8]
        below = folder / f"{self.surface}-{digest}"
        if below.is_dir() and sum(1 for _ in below.iterdir()) >= _KEPT_OF_A_KIND:
            return
        place = below / str(self.number)
        lay(place / "input", files or {"empty": b""})
        again = f"python -m tests.fuzz --replay {place}"
        (place / "finding.json").write_text(json.dumps({**asdict(self), "again": again}, indent=1))


def tried(
    surface: Surface, how: str, files: Mapping[str, bytes], bench: Bench, guard: Guard
) -> tuple[str, str] | None:
    """Let a drive read an input: kind and description of what was wrong, None if nothing was.

    It is put into ``bench.folder``, which is emptied before.
    """
    _empty(bench.folder)
    lay(bench.folder, files)
    os.chdir(bench.folder)
    bench.refusals.clear()
    _forget()
    escaped: BaseException | None = None
    with guard.watching(confined=surface.confined):
        try:
            surface.drives[how][1](bench)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - that nothing else escapes is what is tried
            escaped = error
    for error in (*bench.refusals, escaped):
        wrong = None if error is None else _wrong(error)
        if wrong is not None:
            return wrong
    if guard.noticed:
        first = guard.noticed[0]
        return f"{how}: {' '.join(first.split()[:2])}", "\n".join([*guard.noticed, guard.said()])
    return None


def accepted(surface: Surface, how: str, files: Mapping[str, bytes], bench: Bench) -> None:
    """Let a drive read an input, unwatched; whatever it raises is raised."""
    _empty(bench.folder)
    lay(bench.folder, files)
    os.chdir(bench.folder)
    surface.drives[how][1](bench)


def _wrong(error: BaseException) -> tuple[str, str] | None:
    """What is wrong with an answer that is an error; None for one sentence."""
    if isinstance(error, TintrayError):
        said = str(error)
        if said.strip() and len(said) <= MAX_SENTENCE and control_character(said) is None:
            return None if "\n" not in said else ("two lines", said)
        return "no sentence: " + _place(error), f"{said[:2000]!a}"
    root = (
        error.__cause__ if type(error).__name__ == "UnansweredError" and error.__cause__ else error
    )
    # Of a deep recursion the ends are enough.
    text = "".join(traceback.format_exception(root, limit=-40))
    return f"{type(root).__name__} at {_place(root)}", text[-8000:]


def _place(error: BaseException) -> str:
    """Where in our code an error was raised."""
    here = Path(__file__).parents[2]
    found = "outside"
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(here) and path.relative_to(here).parts[0] in _OURS:
            found = f"{path.relative_to(here)}:{frame.lineno} {frame.name}"
    return found


def _forget() -> None:
    """Let the process know no more secrets than at its start: of many, each text is cleaned."""
    from tintray.storage import secrets

    secrets._learnt.clear()
    secrets._look_into.cache_clear()


def _empty(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)  # noqa: PTH108
