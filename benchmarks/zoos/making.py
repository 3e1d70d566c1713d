"""Any zoo by its name: what ``python -m benchmarks.zoos`` calls."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from tintray.errors import InputError, nearest

Zoo = Literal["digits", "omniglot", "scenes", "scripts", "text"]


def make_zoo(
    name: Zoo,
    directory: str | Path,
    *,
    data: str | Path | None = None,
    on_progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Path:
    """Make a pretrained model, its experts and their data in ``directory``; returns that folder.

    A finished zoo is not made again; a job file in it, where there is one, runs as it is.

    Parameters
    ----------
    data
        File or folder with the data that the zoo is made from; ``digits`` needs none.
    options
        Of the zoo's own ``build``, such as ``tasks`` and ``lora`` of ``omniglot``.

    Raises
    ------
    InputError
        There is no such zoo, its data is missing, or something else lies in ``directory``.
    """
    known = get_args(Zoo)
    if name not in known:
        raise InputError(
            f"zoo '{name}': expected one of {', '.join(known)}{nearest(name, list(known))}"
        )
    build = import_module(f"benchmarks.zoos.{name}").build
    given = () if data is None else (Path(data),)
    made: Path = build(Path(directory), *given, on_progress=on_progress, **options)
    return made
