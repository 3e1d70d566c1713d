"""The sections of the report below its headline and its tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tintray.jobs.display.times import duration, moment
from tintray.jobs.results import TaskResult
from tintray.jobs.runs.history import Version
from tintray.jobs.watching import charts
from tintray.jobs.watching.conflicts import Conflicts
from tintray.jobs.watching.markup import Markup, element, joined
from tintray.jobs.watching.report import Learning, Report
from tintray.tasks.calibration import BINS
from tintray.tasks.metrics import percent

_SMALL = 24  # tasks with a curve of their own
_SQUARE = 60  # tasks of which cosines are drawn
_WINDOW = 20  # rounds over which the curves of batches are smoothed
_POINTS = 150  # of a curve, as many as a screen shows


def all_of(report: Report) -> list[Markup]:
    """Every section, in the order of the page."""
    made = [
        section("Where each task goes into the backbone", _coefficients(report)),
        *([] if report.conflicts is None else [_fights(report.conflicts)]),
        section("How it learned", learned(report.learning)),
        section("Confidence", _confidence(report.merge.tasks)),
        section("Lineage", _lineage(report), "lineage"),
        section("Where time went", _times(report)),
    ]
    notices = [*report.merge.notices, *(f"not known: {said}" for said in report.missing)]
    if notices:
        made.append(notes(notices))
    return made


def section(title: str, content: Markup, id: str | None = None) -> Markup:
    """A section of the page with its title."""
    return element("section", element("h2", title), content, id=id)


def notes(sentences: Iterable[str]) -> Markup:
    """The section of what has to be known besides."""
    items = (element("li", f"{said[:1].upper()}{said[1:]}") for said in sentences)
    return section("Notes", element("ul", *items, class_="notes"))


def details(title: str, content: Markup) -> Markup:
    """What is shown on request; on paper always."""
    return element("details", element("summary", title), content)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> Markup:
    """A table that scrolls where it is too wide; its first ``texts`` columns are text."""

    def line(tag: str, cells: Sequence[str]) -> Markup:
        return element(
            "tr",
            *(element(tag, c, class_=None if n < texts else "r") for n, c in enumerate(cells)),
        )

    body = element("tbody", *(line("td", row) for row in rows))
    return wide(element("table", element("thead", line("th", head)), body))


def wide(content: Markup) -> Markup:
    """What may be wider than a page, and then scrolls by itself."""
    return element("div", content, class_="wide", tabindex="0")


def note(said: str) -> Markup:
    """A sentence that explains what is shown."""
    return element("p", said, class_="note")


def _coefficients(report: Report) -> Markup:
    names = [task.name for task in report.merge.tasks]
    said = (
        "The merging coefficients: how much of each task vector is in each layer, a mean over its "
        "parameters. The fuller the shade, the more; without room for numbers, what is below 0 is "
        "struck out."
    )
    if report.corrected:
        said += " The backbone also has a correction that all tasks learned together."
    shown = charts.heat_map(names, short(report.layers), report.coefficients, label=said)
    head = ["task", *report.layers]
    rows = (
        [name, *(f"{value:.3f}" for value in row)]
        for name, row in zip(names, report.coefficients, strict=True)
    )
    return joined(note(said), wide(shown), details("As numbers", table(head, rows)))


def short(names: Sequence[str]) -> list[str]:
    """Names without the dotted beginning that all of them have."""
    parts = [name.split(".") for name in names]
    common = 0
    while all(len(p) > common + 1 for p in parts) and len({p[common] for p in parts}) == 1:
        common += 1
    if any(part[common].isdigit() for part in parts):  # a number alone names nothing
        common = max(0, common - 1)
    return [".".join(p[common:])[-40:] for p in parts]


def _fights(found: Conflicts) -> Markup:
    """What leaving one task out does to each other, and what the task vectors have in common."""
    names, count = found.tasks, len(found.tasks)

    def beside(matrix: Sequence[Sequence[float]], factor: float) -> list[list[float]]:
        return [
            [math.nan if k == t else factor * value for t, value in enumerate(row)]
            for k, row in enumerate(matrix)
        ]

    how = "measured" if found.measured else "in first order"
    effects = (
        f"At {found.state}: by what percentage the loss of the task in the column would rise "
        f"without the task in the row, {how}. Below 0 (struck out, where there is no room "
        "for numbers) the row costs the column something."
    )
    parts = [note(effects)]
    parts.append(wide(charts.heat_map(names, names, beside(found.effects, 100), 1, effects)))
    if count <= _SQUARE:
        angles = "The cosine of their task vectors."
        parts.append(note(angles))
        parts.append(wide(charts.heat_map(names, names, beside(found.cosine, 1), 2, angles)))
    groups = [_few(group) for group in found.groups if len(group) > 1]
    if groups:
        parts.append(element("p", f"Closer to each other than is usual: {'; '.join(groups)}."))
    parts += [element("p", f"{said}.") for said in found.alone]
    head = ["layer", "mean cosine", "signs apart", "lowest cosine", "of"]
    rows = (
        [
            *(of.layer, f"{of.cosine:.3f}", percent(of.sign_conflict), f"{of.lowest:.3f}"),
            " and ".join(of.furthest),
        ]
        for of in found.layers
    )
    content = joined(*parts, details("By layer", table(head, rows)))
    return section("Which tasks fight", content, "conflicts")


def _few(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# Learning


def learned(learning: Learning | None) -> Markup:
    """Agreement and loss, round by round."""
    if learning is None:
        return note("No rounds are known of it.")
    first, last = learning.rounds[0], learning.rounds[-1]
    by_task = {name: charts.smooth(values, _WINDOW) for name, values in learning.agreement.items()}
    rounds = [float(number) for number in learning.rounds]
    columns = [
        sorted(v for v in column if math.isfinite(v))
        for column in zip(*by_task.values(), strict=True)
    ]
    known = [(x, values) for x, values in zip(rounds, columns, strict=True) if values]
    thin = charts.thinned
    mean = thin([(x, 100 * sum(v) / len(v)) for x, v in known], _POINTS)
    band = (thin([(x, 100 * v[0]) for x, v in known], _POINTS),
            thin([(x, 100 * v[-1]) for x, v in known], _POINTS))  # fmt: skip
    held = _held_back(learning)
    places = charts.ticks([y for _, y in [*band[0], *band[1], *held]])
    low, high = places[0], min(places[-1], 100.0)
    lines = {"merge": mean} | ({"held": held} if held else {})
    drawn = charts.curves(lines, (first, low), (last, high), band)
    parts = [
        element("h3", "Agreement with the experts, in percent"),
        _frame(drawn, low, high, first, last),
        note(_what_agreement_is(bool(held))),
        element("h3", "Loss, a mean over tasks"),
        _loss(learning),
        *_small_ones(by_task, rounds),
    ]
    return joined(*parts)


def _what_agreement_is(held: bool) -> str:
    said = (
        f"The line is the mean over tasks, on the batches of the last {_WINDOW} rounds; the band "
        "reaches from the lowest task to the highest."
    )
    return said + (" Dashed: on examples that are held back." if held else "")


def _held_back(learning: Learning) -> list[tuple[float, float]]:
    """Round and mean over tasks, in percent, where all were measured."""
    by_task = [of for of in learning.held_back.values() if of]
    if not by_task:
        return []
    common = set.intersection(*(set(of) for of in by_task))
    return [(float(n), 100 * sum(of[n] for of in by_task) / len(by_task)) for n in sorted(common)]


def _loss(learning: Learning) -> Markup:
    points = charts.thinned(
        list(zip(map(float, learning.rounds), charts.smooth(learning.loss, 5), strict=True)),
        _POINTS,
    )
    values = [y for _, y in points if math.isfinite(y)] or [0.0, 1.0]
    low, high = min(values), max(values)
    high = high if high > low else low + 1.0
    drawn = charts.curves({"merge": points}, (points[0][0], low), (points[-1][0], high))
    return _frame(drawn, low, high, learning.rounds[0], learning.rounds[-1])


def _frame(drawn: Markup, low: float, high: float, first: int, last: int) -> Markup:
    """A chart with the figures of its axes."""
    side = element("div", element("span", f"{high:.3g}"), element("span", f"{low:.3g}"),
                   class_="side")  # fmt: skip
    below = element("div", element("span", f"round {first}"), element("span", f"round {last}"),
                    class_="axis")  # fmt: skip
    return element("div", side, drawn, element("span"), below, class_="frame")


def _small_ones(by_task: dict[str, list[float]], rounds: Sequence[float]) -> Iterable[Markup]:
    """A small curve for each task, of those that end lowest where there are many."""
    ends = {name: of[-1] for name, of in by_task.items() if of and math.isfinite(of[-1])}
    chosen = sorted(ends, key=lambda name: ends[name])[:_SMALL]
    if not chosen:
        return
    many = f" (the {_SMALL} that end lowest)" if len(ends) > _SMALL else ""
    yield element("h3", f"Each task, from 0 to 100 percent{many}")
    small = []
    for name in chosen:
        points = list(zip(rounds, (100 * value for value in by_task[name]), strict=True))
        line = {"merge": charts.thinned(points, 60)}
        drawn = charts.curves(line, (rounds[0], 0.0), (rounds[-1], 100.0), class_="small")
        end = element("span", percent(ends[name]), class_="figure")
        said = element("figcaption", element("span", name, class_="name"), end)
        small.append(element("figure", drawn, said))
    yield element("div", *small, class_="smalls")


# Confidence


def _confidence(tasks: Sequence[TaskResult]) -> Markup:
    known = [task for task in tasks if task.calibration]
    if not known:
        return note("None is known: its tasks have no classes, or an earlier version made it.")
    sides = [_histogram(known, side) for side in ("merged", "expert")]
    labelled = any(figure_of(task, "merged", "ece") is not None for task in known)
    head = ["task", "accuracy", "confidence", "expert's", "ECE", "expert's", "Brier", "expert's"]
    rows = (
        [
            task.name,
            percent(task.merged) if task.expert is not None else "-",
            *(percent(figure_of(task, side, "mean_confidence")) for side in ("merged", "expert")),
            *(
                _three(figure_of(task, side, figure))
                for figure in ("ece", "brier")
                for side in ("merged", "expert")
            ),
        ]
        for task in known
    )
    said = (
        "How sure the merge is of its answers, over all tasks: columns for the merge, lines for "
        "the experts. The highest column fills the height."
    )
    ends = element("div", element("span", "confidence 0"), element("span", "1"), class_="axis")
    parts = [note(said), charts.columns(*sides), ends]
    if labelled:
        parts.append(_gaps(known))
    told = (
        "ECE is the mean distance between confidence and accuracy (0 is best), Brier the squared "
        "distance to the right class (0 to 2)."
    )
    return joined(*parts, details("All figures", joined(note(told), table(head, rows))))


def _histogram(tasks: Sequence[TaskResult], side: str) -> list[float]:
    """The mean over tasks, by bins of confidence."""
    each = [histogram for task in tasks if (histogram := _bins(task, side))]
    return [sum(column) / len(each) for column in zip(*each, strict=True)] or [0.0] * BINS


def _gaps(tasks: Sequence[TaskResult]) -> Markup:
    """Those tasks whose confidence is furthest from their accuracy."""
    pairs = [
        (100 * (sure - task.merged), task)
        for task in tasks
        if task.metric == "accuracy"
        and (sure := figure_of(task, "merged", "mean_confidence")) is not None
    ]
    if not pairs:
        return Markup()
    chosen = sorted(pairs, key=lambda pair: -abs(pair[0]))[:10]
    items = (f"{task.name} ({gap:+.1f})" for gap, task in chosen)
    return note(
        "Confidence less accuracy, in points, furthest first (above 0 it is too sure): "
        f"{', '.join(items)}."
    )


def _bins(task: TaskResult, side: str) -> list[float]:
    """The histogram of a task; none where a manifest, which anybody may have written, has none."""
    found = _side(task, side).get("histogram")
    held = found if isinstance(found, list) and len(found) == BINS else []
    return held if all(isinstance(share, float) and 0 <= share <= 1 for share in held) else []


def figure_of(task: TaskResult, side: str, name: str) -> float | None:
    """A figure of a task's calibration, of ``merged`` or ``expert``."""
    found = _side(task, side).get(name)
    return found if isinstance(found, float) else None


def _side(task: TaskResult, side: str) -> Mapping[str, Any]:
    return (task.calibration or {}).get(side) or {}


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# Lineage and time


def _lineage(report: Report) -> Markup:
    parts = [element("ol", *map(_version, report.versions), class_="versions")]
    facts = f"Job {report.merge.job_id}, passes in {report.precision}, at {report.merge.url}"
    base = f"Base: {report.base} (sha256 {report.base_sha256[:12]})"
    parts += [element("p", base, class_="path"), element("p", facts, class_="path")]
    head = [
        "task",
        "expert",
        "sha256",
        "like the base",
        "pool",
        "examples",
        "what speaks against it",
    ]
    rows = (
        [
            one.task,
            one.expert,
            one.expert_sha256[:12],
            "-" if one.base_similarity is None else f"{one.base_similarity:.3f}",
            one.pool,
            f"{one.examples:,}",
            one.doubt or "-",
        ]
        for one in report.origins
    )
    parts.append(details("Experts and pools", table(head, rows, texts=len(head))))
    return joined(*parts)


def _version(version: Version) -> Markup:
    what = " ".join([version.operation, *version.changed[:4]])
    what += f" and {len(version.changed) - 4} more" if len(version.changed) > 4 else ""
    what += f" ({version.mode})" if version.mode else ""
    grown = f" from {version.parent}" if version.parent else ""
    told = [f"{version.tasks} tasks", moment(version.created, "minutes")]
    if version.normalised_accuracy is not None:
        told.insert(1, f"{percent(version.normalised_accuracy)} of the experts")
    told += ["removed"] if version.removed else []
    small = element("small", f"{what}{grown}; {', '.join(told)}")
    return element("li", element("strong", version.ref), " ", small)


def _times(report: Report) -> Markup:
    seconds, memory = report.merge.seconds, report.merge.peak_memory_mib
    if not seconds:
        return note("Nothing is known of it.")
    whole = sum(seconds.values()) or 1.0
    rows = (
        element(
            *("li", element("span", phase, class_="name"), charts.bar(took / whole)),
            element("span", duration(took), class_="figure"),
        )
        for phase, took in seconds.items()
    )
    parts = [element("ul", *rows, class_="rows")]
    if memory:
        parts.append(note(f"{memory:,.0f} MiB of memory at most, all processes together."))
    return joined(*parts)
