"""Where every task keeps numbers of its own, as it is written; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

HEAD, PROMPT, NORMS, AUTO = "head", "prompt", "norms", "auto"
"""Places that every model has, or has to be searched for; any other is a path or a pattern."""


@dataclass(frozen=True)
class TintSite:
    """One place where every task keeps numbers of its own.

    Attributes
    ----------
    at
        ``head``, ``prompt``, a module's path, ``norms`` or a pattern; see ``resolve_site``.
    rank
        Of the low-rank product added to each linear weight there; None: a copy of what is there.
    lr
        Highest learning rate there; None: by the kind of place.
    """

    at: str
    rank: int | None = None
    lr: float | None = None

    def __str__(self) -> str:
        return self.at if self.rank is None else f"{self.at} (rank {self.rank})"
