"""The report in Markdown, for an issue, a wiki or a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tintray.jobs.display.times import duration
from tintray.jobs.watching.report import Report
from tintray.jobs.watching.sections import figure_of
from tintray.limits import size_text
from tintray.published.card import in_code, in_text
from tintray.tasks.metrics import percent, shown


def markdown(report: Report) -> str:
    """The whole report; texts from outside are code, so that nothing in them is read as markup."""
    merge = report.merge
    parts = [
        f"# {merge.name}/{merge.version}",
        _headline(report),
        "## Tasks",
        _tasks(report),
        "## Coefficients",
        "How much of each task vector is in each layer.",
        _table(
            ["task", *map(in_text, report.layers)],
            (
                [task.name, *(f"{value:.3f}" for value in row)]
                for task, row in zip(merge.tasks, report.coefficients, strict=True)
            ),
        ),
        *_fights(report),
        *_learning(report),
        *_confidence(report),
        "## Lineage",
        _lineage(report),
        "## Where time went",
        _table(["phase", "time"], ([in_text(n), duration(s)] for n, s in merge.seconds.items())),
    ]
    notices = [*merge.notices, *(f"not known: {said}" for said in report.missing)]
    if notices:
        parts += ["## Notes", "\n".join(f"- {in_code(said)}" for said in notices)]
    return "\n\n".join(parts) + "\n"


def _headline(report: Report) -> str:
    merge = report.merge
    own = sum(merge.tint_parameters_per_task.values()) / len(merge.tasks)
    lines = [
        f"- {len(merge.tasks)} tasks, {in_text(merge.site)}, {merge.rounds} rounds",
        f"- kept: **{percent(merge.normalised_accuracy)}** of the experts",
        f"- worst task: {report.worst or '-'}",
        f"- per task: {own:,.0f} parameters, {size_text(merge.tint_bytes)}",
        f"- cost: {duration(sum(merge.seconds.values()))}",
    ]
    return "\n".join(lines)


def _tasks(report: Report) -> str:
    rivals: dict[str, dict[str, float]] = {}
    for row in report.comparison.rows if report.comparison else ():
        if row.method not in ("experts", "merge"):
            rivals.setdefault(row.method, {})[row.task] = row.value
    head = ["task", "metric", "expert", *map(in_text, rivals), "merge", "of expert", "agreement"]
    return _table(
        head,
        (
            [
                task.name,
                task.metric,
                shown([task.metric], task.expert),
                *(shown([task.metric], of.get(task.name)) for of in rivals.values()),
                shown([task.metric], task.merged),
                percent(task.normalised),
                percent(task.agreement),
            ]
            for task in report.merge.tasks
        ),
    )


def _fights(report: Report) -> list[str]:
    """What leaving one task out does to each other."""
    found = report.conflicts
    if found is None:
        return []
    said = "By what percentage the loss of the column's task would rise without the row's task."
    rows = (
        [name, *(f"{100 * effect:+.1f}" for effect in row)]
        for name, row in zip(found.tasks, found.effects, strict=True)
    )
    alone = [f"- {in_code(sentence)}" for sentence in found.alone]
    parts = ["## Which tasks fight", said, _table(["task", *found.tasks], rows)]
    return [*parts, *(["\n".join(alone)] if alone else [])]


def _learning(report: Report) -> list[str]:
    """Ten rounds of the fit, the first and the last among them."""
    learning = report.learning
    if learning is None:
        return []
    count = len(learning.rounds)
    chosen = sorted({round(n * (count - 1) / 9) for n in range(10)})
    rows = []
    for n in chosen:
        agreement = [of[n] for of in learning.agreement.values()]
        known = [share for share in agreement if share is not None]
        mean = percent(sum(known) / len(known)) if known else "-"
        rows.append([f"{learning.rounds[n]}", f"{learning.loss[n]:.4g}", mean])
    return ["## Learning", _table(["round", "loss", "agreement on its batches"], rows)]


def _confidence(report: Report) -> list[str]:
    rows = []
    for task in report.merge.tasks:
        names = ("mean_confidence", "ece", "brier")
        figures = [figure_of(task, "merged", name) for name in names]
        if figures[0] is not None:
            rows.append([task.name, *("-" if f is None else f"{f:.3f}" for f in figures)])
    head = ["task", "confidence", "ECE", "Brier"]
    return ["## Confidence", _table(head, rows)] if rows else []


def _lineage(report: Report) -> str:
    lines = [f"- base: {in_code(report.base)} (sha256 {report.base_sha256[:12]})"]
    lines += [
        f"- {version.ref}: {in_text(version.operation)} {', '.join(map(in_text, version.changed))}"
        + (f" from {version.parent}" if version.parent else "")
        for version in report.versions
    ]
    lines += [
        f"- expert of {one.task}: {in_code(one.expert)} (sha256 {one.expert_sha256[:12]})"
        for one in report.origins
    ]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
