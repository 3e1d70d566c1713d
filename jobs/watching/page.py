"""The report as one page without script and network, for screens of any width and for paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tintray.jobs.display.times import duration, moment
from tintray.jobs.results import MergeSummary, TaskResult
from tintray.jobs.watching import charts, sections
from tintray.jobs.watching.markup import Markup, element, joined
from tintray.jobs.watching.report import Report
from tintray.limits import size_text
from tintray.tasks.metrics import find_metric, percent, shown

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_SHORT = 12  # tasks that a notebook shows


def page(report: Report, *before: Markup) -> str:
    """The whole page, as text of an HTML file; ``before`` stands at its top."""
    merge = report.merge
    parts = [
        element("header", element("h1", f"{merge.name}/{merge.version}"), _about(merge)),
        headline(report),
        sections.section("Tasks", _tasks(report)),
        *sections.all_of(report),
    ]
    return document(f"{merge.name}/{merge.version}: report", *before, *parts)


def document(title: str, *parts: Markup, head: Sequence[Markup] = ()) -> str:
    """A page of such parts, as text of an HTML file that asks nobody for anything."""
    top = joined(
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        *head,
        element("title", title),
        _style(),
    )
    body = element("body", element("main", *parts, class_="tintray"))
    return f"<!doctype html>\n{element('html', element('head', top), body, lang='en')}\n"


def facts(rows: Iterable[tuple[str, str, str]]) -> Markup:
    """What one wants to know first: a figure, what it is, and more of it."""
    return element("ul", *(element("li", *_fact(*row)) for row in rows), class_="headline")


def short_form(report: Report) -> str:
    """The headline and the tasks that keep least, for a notebook."""
    merge, most = report.merge, _SHORT
    title = element("h2", f"{merge.name}/{merge.version}")
    rest = len(merge.tasks) - most
    more = [element("p", f"and {rest} tasks that keep more", class_="note")] if rest > 0 else []
    rows = _rows(report, _ordered(merge.tasks)[:most])
    return element("div", _style(), title, _about(merge), headline(report), rows, *more,
                   class_="tintray")  # fmt: skip


def _style() -> Markup:
    return Markup(f"<style>{Path(__file__).with_name('report.css').read_text('utf-8')}</style>")


def _about(merge: MergeSummary) -> Markup:
    how = "tint layers at " + merge.site if merge.method == "tint" else f"merged by {merge.method}"
    learned = f"{merge.rounds} rounds" if merge.rounds else "nothing learned"
    grown = f", grown from {merge.parent}" if merge.parent else ""
    about = f"{how}; {learned}{grown}; {moment(merge.created, 'minutes')}"
    return element("p", about, class_="note")


def headline(report: Report) -> Markup:
    """What one wants to know first."""
    merge, worst = (
        report.merge,
        next((task for task in report.merge.tasks if task.name == report.worst), None),
    )
    metrics = [task.metric for task in merge.tasks]
    kept = percent(merge.normalised_accuracy)
    beside = f"{shown(metrics, merge.average)}; the experts {shown(metrics, merge.expert_average)}"
    least = "-" if worst is None else percent(worst.normalised)
    own = sum(merge.tint_parameters_per_task.values()) / len(merge.tasks)
    times = merge.separate_parameters / merge.merged_parameters
    seconds = sum(merge.seconds.values())
    memory = merge.peak_memory_mib
    return facts([
        (str(len(merge.tasks)), "tasks in one model",
         f"{times:.1f} times smaller than separate models"),
        (kept, "kept of the experts", beside if merge.average is not None else ""),
        (least, f"worst task: {report.worst}" if worst else "worst task", ""),
        (f"{own:,.0f}", "parameters per task",
         f"{size_text(merge.tint_bytes)}; {percent(merge.tint_share, 2)} of the backbone"),
        (duration(seconds) if seconds else "-", "what it took",
         f"{size_text(memory * 2**20)} of memory at most" if memory else ""),
    ])  # fmt: skip


def _fact(figure: str, what: str, more: str) -> Iterable[Markup]:
    yield element("strong", figure)
    yield element("span", what)
    if more:
        yield element("small", more)


def _ordered(tasks: Sequence[TaskResult]) -> list[TaskResult]:
    """Those that keep least first."""
    return sorted(tasks, key=lambda task: 1e9 if task.normalised is None else task.normalised)


def _tasks(report: Report) -> Markup:
    tasks = _ordered(report.merge.tasks)
    return joined(_rows(report, tasks), _table(report, tasks), *_methods(report))


def _rows(report: Report, tasks: Sequence[TaskResult]) -> Markup:
    """Each task with its marks along one axis."""
    alike = all(find_metric(task.metric).unit == "share" for task in tasks)
    figures = {task.name: _figures(report, task, alike) for task in tasks}
    places = charts.ticks(value for marks in figures.values() for value in marks.values())
    present = [name for name in charts.MARKS if any(name in marks for marks in figures.values())]
    metrics = sorted({task.metric.replace("_", " ") for task in tasks})
    said = f"{', '.join(metrics)}, in percent" if alike else "percent of the expert's own figure"
    rows = (
        element(
            *("li", element("span", task.name, class_="name")),
            charts.strip(figures[task.name], places[0], places[-1]),
            element("span", percent(task.normalised), class_="figure"),
        )
        for task in tasks
    )
    scale = element("li", element("span"), charts.axis(places), element("span", "of expert"))
    without = any(task.expert is None for task in tasks)
    where = "On test sets, and on pools where there is none" if without else "On test sets"
    note = element("p", f"{where}: {said}. Worst first.", class_="note")
    return joined(note, charts.legend(present), element("ul", scale, *rows, class_="rows"))


def _figures(report: Report, task: TaskResult, alike: bool) -> dict[str, float]:
    """Percent by mark."""
    found = {"expert": task.expert, "merge": task.merged}
    for row in report.comparison.rows if report.comparison else ():
        if row.task == task.name and row.method in charts.MARKS and row.method not in found:
            found[row.method] = row.value
    known = {name: value for name, value in found.items() if value is not None}
    if alike:
        return {name: 100 * value for name, value in known.items()}
    expert = task.merged if task.expert is None else task.expert
    of_expert = {n: find_metric(task.metric).normalised(v, expert) for n, v in known.items()}
    return {name: 100 * share for name, share in of_expert.items() if share is not None}


def _table(report: Report, tasks: Sequence[TaskResult]) -> Markup:
    """Every figure of each task."""
    rivals = [name for name in charts.MARKS if name not in ("expert", "merge")]
    values = {
        (row.method, row.task): row.value
        for row in (report.comparison.rows if report.comparison else ())
    }
    rivals = [name for name in rivals if any(method == name for method, _ in values)]
    head = ["task", "metric", "expert", *rivals, "merge", "of expert", "agreement", "pool kept",
            "parameters", "bytes", "examples"]  # fmt: skip
    rows = (
        [
            task.name,
            task.metric.replace("_", " "),
            shown([task.metric], task.expert),
            *(shown([task.metric], values.get((name, task.name))) for name in rivals),
            shown([task.metric], task.merged),
            percent(task.normalised) + (" (guesses)" if task.at_chance else ""),
            percent(task.agreement),
            percent(task.selected_fraction),
            f"{task.tint_parameters:,}",
            size_text(task.tint_bytes),
            f"{task.test_examples:,}",
        ]
        for task in tasks
    )
    return sections.details("All figures", sections.table(head, rows, texts=2))


def _methods(report: Report) -> Iterable[Markup]:
    """What other methods keep, where they were measured."""
    if report.comparison is None:
        return
    kept = report.comparison.normalised
    head = ["method", "of the experts", "scale"]
    scales = report.comparison.scales
    rows = (
        [name, percent(kept[name]), f"{scales[name]:.3g}" if name in scales else "-"]
        for name in sorted(kept, key=lambda name: -kept[name])
    )
    yield sections.details("Beside other methods", sections.table(head, rows))
