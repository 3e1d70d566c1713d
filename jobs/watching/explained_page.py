"""What a tint layer learned, as one page without script and network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tintray.jobs.watching import charts
from tintray.jobs.watching.changed import ChangedExample, Changes
from tintray.jobs.watching.explaining import Explanation
from tintray.jobs.watching.markup import Markup, element, joined
from tintray.jobs.watching.page import document, facts
from tintray.jobs.watching.sections import (
    details,
    note,
    notes,
    section,
    short,
    table,
    wide,
)
from tintray.jobs.watching.swapping import MAY_LOSE, Swap
from tintray.tasks.metrics import percent

WORDS = {"backbone": "without", "tinted": "tinted", "expert": "expert"}


def explained_page(found: Explanation) -> str:
    """The whole page, as text of an HTML file."""
    title = f"{found.of}: {found.task}"
    about = f"What its tint layer learned ({found.site}), on {found.examples} examples of its pool"
    parts = [
        element("header", element("h1", title), note(about)),
        _headline(found),
        section("What it changed", _changed(found.changes)),
        section("How far it went", _drift(found)),
        section("Features, layer by layer", _features(found)),
        section("Whose tint it could share", _swaps(found.swaps)),
        notes(found.notes),
    ]
    return document(title, *parts)


def _headline(found: Explanation) -> Markup:
    changes = found.changes
    went = [drift.from_shared for drift in found.tensors if drift.from_shared is not None]
    shares = [swap.task for swap in found.swaps if swap.could_share]
    shared = f"could share it: {', '.join(shares)}" if shares else "none that was tried could"
    nearest = found.swaps[0] if found.swaps else None
    return facts([
        (percent(changes.agreement), "answered as the expert does",
         f"{percent(changes.agreement_without)} without the tint"),
        (percent(changes.changed), "of the answers changed",
         f"{changes.gained} examples nearer to the expert, {changes.lost} further from it"),
        (two(max(went, default=None)), "furthest from what is shared",
         "of a tensor's size" if went else "nothing of it is shared"),
        ("-" if nearest is None else nearest.task, "has the nearest tint",
         shared),
    ])  # fmt: skip


def two(value: float | None) -> str:
    """A figure, or that there is none."""
    return "-" if value is None else f"{value:.2f}"


def _changed(changes: Changes) -> Markup:
    said = (
        "The same examples, answered by the merged backbone under the expert's own layers, which "
        "is where a fit begins, and by the merge with its tint. The clearest are shown."
    )
    items = (element("li", *_example(one)) for one in changes.shown)
    shown = (
        element("ul", *items, class_="examples") if changes.shown else note("No answer changed.")
    )
    return joined(note(said), shown)


def _example(one: ChangedExample) -> Iterable[Markup]:
    if one.image is not None:
        yield element("img", src=one.image, alt=f"example {one.row}")
    if one.text is not None:
        yield element("blockquote", one.text)
    rows = [*((WORDS[name], said) for name, said in one.said.items()), ("row", str(one.row))]
    if not one.said or one.changed < 1:
        rows.append(("changed", percent(one.changed)))
    if one.closer and abs(one.closer) < 1:
        way = "nearer by" if one.closer > 0 else "further by"
        rows.append((way, f"{100 * abs(one.closer):.0f} points"))
    yield element(
        "dl",
        *(element(tag, text) for row in rows for tag, text in zip(("dt", "dd"), row, strict=True)),
    )


def _drift(found: Explanation) -> Markup:
    said = (
        "How far each tensor is from the expert's, and from what all tasks share: the length of "
        "the difference, as a share of the other tensor's length."
    )
    rows = (
        [drift.tensor, "x".join(map(str, drift.shape)), drift.shared or "-",
         two(drift.from_expert), two(drift.from_shared)]
        for drift in found.tensors
    )  # fmt: skip
    head = ["tensor", "shape", "held against", "from the expert", "from what is shared"]
    parts = [note(said), table(head, rows, texts=3)]
    names = [head.attention for head in found.heads]
    sides = {
        "the expert": [head.from_expert for head in found.heads],
        "what is shared": [head.from_shared for head in found.heads],
    }
    for side, lines in sides.items():
        if any(lines):
            label = f"Distance of each attention head from {side}"
            parts += [element("h3", label), _map(names, "head", lines, label)]
    return joined(*parts, *_directions(found))


def _directions(found: Explanation) -> Iterable[Markup]:
    known = [drift for drift in found.tensors if drift.directions]
    if not known:
        return
    label = (
        "Along the singular directions of what the expert did, the largest first: how far the tint "
        "goes. 1 is as far as the expert, 0 not at all, below 0 the other way."
    )
    yield element("h3", "Singular directions")
    yield note(label)
    lines = [[way.tinted for way in drift.directions] for drift in known]
    yield _map([drift.tensor for drift in known], "direction", lines, label)
    rows = (
        [drift.tensor, str(n), percent(way.energy), two(way.tinted), two(way.backbone)]
        for drift in known
        for n, way in enumerate(drift.directions, 1)
    )
    head = ["tensor", "direction", "of the expert's step", "tint", "backbone alone"]
    yield details("As numbers", table(head, rows))


def _map(names: Sequence[str], what: str, lines: Sequence[Sequence[float]], label: str) -> Markup:
    """Lines of figures as shades; they may be of different lengths."""
    most = max(map(len, lines))
    columns = [f"{what} {n + 1}" for n in range(most)]
    filled = [[*line, *[math.nan] * (most - len(line))] for line in lines]
    return wide(charts.heat_map(short(names), columns, filled, label=label))


def _features(found: Explanation) -> Markup:
    said = (
        "How alike two models see the examples (linear CKA: 1 alike but for a rotation, 0 "
        "unrelated). The backbone is the merged one without the tint."
    )
    head = ["backbone and expert", "tinted and expert", "backbone and tinted"]
    rows = [
        (one.layer, [one.backbone_expert, one.tinted_expert, one.backbone_tinted])
        for one in found.features
    ]
    if not rows:
        return note("No layer answers with features of each example.")
    values = [[math.nan if v is None else v for v in figures] for _, figures in rows]
    drawn = charts.heat_map(short([name for name, _ in rows]), head, values, label=said)
    return joined(note(said), wide(drawn))


def _swaps(found: Sequence[Swap]) -> Markup:
    said = (
        "Distance between what two tints add (0 alike, 1 unrelated), and each task's agreement "
        "with its own expert under the other's tint. Two tasks could share a tint if neither loses "
        f"more than {100 * MAY_LOSE:g} point."
    )
    if not found:
        return note("No other task of the merge has a tint of this shape.")
    head = ["task", "distance", "this one under its tint", "it under this one's", "could share"]
    rows = (
        [one.task, two(one.distance), moved(one.here, one.here_before),
         moved(one.there, one.there_before), verdict(one)]
        for one in found
    )  # fmt: skip
    return joined(note(said), table(head, rows))


def moved(after: float | None, before: float | None) -> str:
    """Agreement under another tint, and under its own."""
    return "-" if after is None else f"{percent(after)} (own: {percent(before)})"


def verdict(one: Swap) -> str:
    """Whether two tasks could share a tint, in a word."""
    return "not tried" if one.could_share is None else "yes" if one.could_share else "no"
