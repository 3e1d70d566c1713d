"""Which merging methods there are, with what each is tuned by: what ``tintray methods`` answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tintray.errors import SpecError, nearest
from tintray.jobs.config.merge_sections import ADAMERGING, SURGERY
from tintray.jobs.records import Record
from tintray.merging import Method, methods

LEARNED: Mapping[str, tuple[str, str]] = {
    "adamerging": (
        "Learn a coefficient per tensor and task by the entropy of the merge's predictions.",
        "Yang et al., AdaMerging, arXiv 2310.02575",
    ),
    "adamerging_task": (
        "Learn a coefficient per task by the entropy of the merge's predictions.",
        "Yang et al., AdaMerging, arXiv 2310.02575",
    ),
    "surgery": (
        "Learn a module per task before its head that brings features back to the expert's.",
        "Yang et al., Representation Surgery, arXiv 2402.02705",
    ),
}
"""Methods that learn on the tasks' pools, within a job: summary and source."""


@dataclass(frozen=True)
class ParameterLine(Record):
    """A number that a method is tuned by; ``range`` is an interval such as ``(0, 1]``."""

    name: str
    default: float
    range: str
    about: str


@dataclass(frozen=True)
class MethodLine(Record):
    """One merging method, as ``tintray methods`` shows it."""

    name: str
    summary: str
    source: str
    data: str  # "none", or what it learns or measures on a task's pool
    scale: float | None  # where nobody says otherwise; None is 1/K, or learned
    parameters: Sequence[ParameterLine] = ()
    own_backbones: bool = False  # each task runs on a backbone of its own
    most: int | None = None  # experts that it merges at most
    adds_up: bool = False  # beyond ten experts the scale is ten times itself over K


def list_methods(names: Sequence[str] = ()) -> list[MethodLine]:
    """The methods of these names, or all, in the order of the documentation; plugins last.

    Raises
    ------
    SpecError
        With the nearest name, if there is no such method.
    """
    assert LEARNED.keys() == {*ADAMERGING, SURGERY}
    known = {name: _line(method) for name, method in methods().items()}
    known |= {name: MethodLine(name, *about, "pool", None) for name, about in LEARNED.items()}
    for name in names:
        if name not in known:
            raise SpecError(
                f"there is no merging method '{name}'{nearest(name, known)}; "
                f"there are {', '.join(known)}"
            )
    return [known[name] for name in names or known]


def _line(method: Method) -> MethodLine:
    return MethodLine(
        method.name,
        method.summary,
        method.source,
        f"pool ({', '.join(method.needs)})" if method.needs else "none",
        method.scale,
        [ParameterLine(p.name, p.default, p.range, p.about) for p in method.parameters],
        method.own is not None,
        method.most,
        method.adds_up,
    )
