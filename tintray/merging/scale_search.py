"""The scale of a merge at which it does best, looked for on a grid that grows where it ends."""

from __future__ import annotations

from collections.abc import Callable

FACTOR = 1.5
"""Between neighbours of the grid."""


def climb(measure: Callable[[float], float], start: float, most: int = 8) -> dict[float, float]:
    """Figures by scale, the more the better, of ``start`` and its neighbours.

    The grid goes on beyond the best scale until that has a worse one on both sides, or ``most``
    were measured.
    """
    found: dict[int, float] = {}
    step = 0
    while len(found) < most:
        found[step] = measure(start * FACTOR**step)
        if len(found) == 1:
            step = 1
            continue
        best = max(found, key=lambda known: found[known])
        beside = [other for other in (best + 1, best - 1) if other not in found]
        if not beside:
            break
        step = beside[0]
    return {start * FACTOR**known: figure for known, figure in sorted(found.items())}
