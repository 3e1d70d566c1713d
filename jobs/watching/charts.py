"""Charts as inline SVG, by plain functions: from numbers to markup that needs no script.

Marks differ in shape as well as in colour. Places are in percent of the width, and no text is
scaled: a chart is as legible on a phone as on a screen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from tintray.jobs.watching.markup import Markup, element, joined

MARKS = {
    "expert": "M-1.5 -8H1.5V8H-1.5Z",
    "merge": "M-5.5 0A5.5 5.5 0 1 1 5.5 0A5.5 5.5 0 1 1 -5.5 0Z",
    "average": "M-4.5 -4.5H4.5V4.5H-4.5Z",
    "task arithmetic": "M0 -6L5.5 5H-5.5Z",
}
"""The shape of each mark, around (0, 0): a bar, a disc, a square, a triangle."""

SHADES = 12
"""Steps of a heat map, from none to the largest."""


def mark(name: str, place: str | float = 8) -> Markup:
    """A mark, at a place in percent or pixels."""
    shape = element("path", d=MARKS[name], class_=f"mark {name.replace(' ', '-')}")
    return element("svg", shape, x=place, y="50%", overflow="visible")


def legend(names: Iterable[str]) -> Markup:
    """What each mark means."""
    entries = (
        element("span", element("svg", mark(name), width=16, height=18, aria_hidden="true"), name)
        for name in names
    )
    return element("p", *entries, class_="legend")


def strip(values: Mapping[str, float], low: float, high: float) -> Markup:
    """Marks along one line from ``low`` to ``high``; a line joins the first and the last."""
    places = {name: _percent(value, low, high) for name, value in values.items()}
    ordered = sorted(places.values())
    line = element(
        *("line",),
        x1=f"{ordered[0]:.2f}%", x2=f"{ordered[-1]:.2f}%", y1="50%", y2="50%", class_="span",
    )  # fmt: skip
    marks = (mark(name, f"{place:.2f}%") for name, place in reversed(places.items()))
    return element("svg", line, *marks, class_="strip", aria_hidden="true")


def axis(places: Sequence[float], unit: str = " %") -> Markup:
    """The figures beside a strip, evenly from its left end to its right."""
    return element("div", *(element("span", f"{at:g}{unit}") for at in places), class_="axis")


def ticks(values: Iterable[float]) -> list[float]:
    """Round figures, evenly apart and six at most, from below the values to above them."""
    known = [value for value in values if math.isfinite(value)] or [0.0]
    for step in (1, 2, 5, *(factor * 10**power for power in range(1, 308) for factor in (1, 2, 5))):
        first, last = math.floor(min(known) / step), math.ceil(max(known) / step)
        if last - first <= 5:
            break
    return [float(step * n) for n in range(first, max(last, first + 1) + 1)]


def bar(share: float, *others: Markup) -> Markup:
    """A bar over a share of the width."""
    length = f"{100 * min(max(share, 0.0), 1.0):.2f}%"
    filled = element("rect", width=length, height="100%", class_="fill")
    return element("svg", filled, *others, class_="bar", aria_hidden="true")


def columns(filled: Sequence[float], lined: Sequence[float]) -> Markup:
    """A histogram as columns, and another one as a line across each of them."""
    top = max([*filled, *lined, 1e-9])
    width = 100 / len(filled)
    parts = []
    for n, (one, other) in enumerate(zip(filled, lined, strict=True)):
        left, right = f"{width * n:.2f}%", f"{width * (n + 1):.2f}%"
        height, level = 100 * one / top, f"{100 - 100 * other / top:.2f}%"
        size = {"y": f"{100 - height:.2f}%", "width": f"{0.94 * width:.2f}%"}
        parts.append(element("rect", x=left, height=f"{height:.2f}%", class_="fill", **size))
        parts.append(element("line", x1=left, x2=right, y1=level, y2=level, class_="level"))
    return element("svg", *parts, class_="plot", aria_hidden="true")


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    low: tuple[float, float],
    high: tuple[float, float],
    band: tuple[Sequence[tuple[float, float]], Sequence[tuple[float, float]]] | None = None,
    class_: str = "plot",
) -> Markup:
    """Lines through points (x, y), each of the class of its name, over a band between two lines.

    ``low`` and ``high`` are the corners. The drawing is stretched, its lines are not.
    """

    def place(point: tuple[float, float]) -> str:
        x = _percent(point[0], low[0], high[0])
        return f"{10 * x:.1f} {1000 - 10 * _percent(point[1], low[1], high[1]):.1f}"

    def path(points: Sequence[tuple[float, float]]) -> str:
        known = [place(point) for point in points if math.isfinite(point[1])]
        return f"M{'L'.join(known)}" if known else ""

    parts = []
    if band is not None and band[0]:
        around = [*band[0], *reversed(band[1])]
        parts.append(element("path", d=f"{path(around)}Z", class_="band"))
    parts += [
        element("path", d=path(points), class_=f"curve {name}", vector_effect="non-scaling-stroke")
        for name, points in lines.items()
    ]
    return element(
        *("svg", *parts),
        class_=class_,
        viewBox="0 0 1000 1000",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def heat_map(
    rows: Sequence[str],
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    digits: int = 2,
    label: str = "",
) -> Markup:
    """A table of numbers as shades: the fuller, the further from 0.

    Where there is room for them the numbers are written into the cells; else those below 0 are
    struck out.
    """
    written = len(names) <= 24
    cell, height = (46, 20) if written else (max(6, 900 // len(names)), 14)
    left = 14 + 7 * max(map(len, rows), default=0)
    headed = cell >= 14  # else the columns are too narrow for names
    top = 12 + 5 * max(map(len, names), default=0) if headed else 4
    known = [abs(v) for row in values for v in row if math.isfinite(v)]
    most = max(known, default=0.0) or 1.0
    shades: dict[int, list[str]] = {}
    below: list[str] = []
    texts: list[Markup] = []
    for r, row in enumerate(values):
        for c, value in enumerate(row):
            if not math.isfinite(value):
                continue
            x, y = left + cell * c, top + height * r
            shade = round(SHADES * abs(value) / most)
            shades.setdefault(shade, []).append(f"M{x} {y}h{cell}v{height}h-{cell}z")
            if not written and shade and value < 0:
                below.append(f"M{x} {y + height}l{cell} -{height}")
            if written:
                at = {"x": x + cell / 2, "y": y + height - 6}
                inside = "number light" if shade > 0.7 * SHADES else "number"
                texts.append(element("text", f"{value:.{digits}f}", class_=inside, **at))
    painted = (
        element("path", d="".join(paths), class_="cell", fill_opacity=f"{shade / SHADES:.3f}")
        for shade, paths in sorted(shades.items())
    )
    struck = element("path", d="".join(below), class_="below") if below else Markup()
    heads = (_slanted(name, left + cell * (c + 0.5), top - 6) for c, name in enumerate(names))
    sides = (
        element("text", name, x=left - 6, y=top + height * (r + 1) - height / 3, class_="side")
        for r, name in enumerate(rows)
    )
    width, full = left + cell * len(names) + top * 0.75, top + height * len(rows) + 4
    box = f"0 0 {width:g} {full:g}"
    shown = [*heads] if headed else []
    parts = joined(*painted, struck, *texts, *shown, *sides)
    return element("svg", parts, class_="map", role="img", aria_label=label,
                   width=width, height=full, viewBox=box)  # fmt: skip


def _slanted(name: str, x: float, y: float) -> Markup:
    return element("text", name, class_="head", transform=f"translate({x:g} {y:g}) rotate(-40)")


def smooth(values: Sequence[float | None], window: int) -> list[float]:
    """The mean of the last ``window`` values that are known, at each; NaN before the first."""
    found: list[float] = []
    recent: list[float] = []
    for value in values:
        if value is not None and math.isfinite(value):
            recent = [*recent[1 - window :], value] if window > 1 else [value]
        found.append(sum(recent) / len(recent) if recent else math.nan)
    return found


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many of the points, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    chosen = sorted({round(n * (len(points) - 1) / (most - 1)) for n in range(most)})
    return [points[n] for n in chosen]


def _percent(value: float, low: float, high: float) -> float:
    return 100 * (min(max(value, low), high) - low) / (high - low) if high > low else 50.0
