"""The npz files that zoos are made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintray.errors import InputError
from tintray.files import foreign, open_regular


def read_arrays(path: Path, needed: Sequence[str]) -> dict[str, NDArray[Any]]:
    """All arrays of an npz file.

    Raises
    ------
    InputError
        It cannot be read, or lacks an array that is ``needed``.
    """
    expected = f"expected an npz with the arrays {', '.join(needed)}"
    with (
        foreign(f"--data: '{path}' cannot be read; {expected}", InputError),
        open_regular(path) as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        found = {name: arrays[name] for name in arrays.files}
    for name in needed:
        if name not in found:
            raise InputError(f"--data: '{path}' has no array '{name}'; {expected}")
    return found
