"""Results as people read them, on a terminal or in a log, and as one JSON document for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tintray.jobs.display.progress import duration
from tintray.jobs.results import (
    CompareTable,
    EvalTable,
    MergeListing,
    MergeSummary,
    TaskResult,
    ValidationReport,
    plain,
)
from tintray.limits import size_text
from tintray.tasks.metrics import find_metric, shown

_LEGEND = """
of expert    what is left of the expert's own figure; where less is better, expert / merged
agreement    how often the merge answers as the expert does
pool kept    share of the unlabelled examples that counted at the end of the fit
tint params  parameters that this task alone has; all others are shared"""
_BRACKETS = (
    "in brackets: the expert cannot be told from one that guesses, and is left out of the mean"
)
_MANY_METHODS = 6  # more columns than that fit no terminal


def write_json(result: Any, stream: TextIO) -> None:
    """Write one JSON document, of records or of a mapping, in ASCII: no locale can spoil it."""
    text = json.dumps(plain(result), indent=2, allow_nan=False)
    stream.write(text.replace("\x7f", "\\u007f") + "\n")  # JSON need not escape it; a terminal acts
    stream.flush()


def print_summary(summary: MergeSummary, console: Console) -> None:
    """A merge: a line for each task, then what it kept, its size, its time and its place."""
    grown = f", grown from {summary.parent}" if summary.parent else ""
    console.print(
        Text.assemble(
            (f"{summary.name}/{summary.version}", "bold"),
            f"   {len(summary.tasks)} tasks, {_how(summary)}{grown}",
        )
    )
    console.print(_task_table(summary.tasks))
    console.print(Text(_LEGEND, style="dim"))
    print_facts(_summary_facts(summary), console)
    _print_notices([*summary.notices, *_bracketed(summary.tasks)], console)


def _how(summary: MergeSummary) -> str:
    from tintray.jobs.config.sections import TINT

    fit = f"{summary.rounds} rounds" if summary.rounds else "nothing learned"
    if summary.method == TINT:
        return f"tint layer at {summary.site}, {fit}"
    return f"merged by {summary.method}, {fit}"


def _summary_facts(summary: MergeSummary) -> dict[str, str]:
    tasks, merged = len(summary.tasks), summary.merged_parameters
    separate = summary.separate_parameters
    times = f" ({separate / merged:.1f} times as many)" if merged else ""
    stages = ", ".join(f"{stage} {duration(took)}" for stage, took in summary.seconds.items())
    memory = summary.peak_memory_mib
    return {
        **_average_facts(
            summary.tasks, summary.average, summary.expert_average, summary.normalised_accuracy
        ),
        "size": f"{count(merged)} parameters; {tasks} separate models hold "
        f"{count(separate)}{times}",
        "per task": f"{_percent(summary.tint_share, 2)} of the backbone's "
        f"{count(summary.backbone_parameters)} parameters more",
        "time": f"{duration(sum(summary.seconds.values()))} ({stages})" if stages else "",
        "memory": f"{memory:,.0f} MiB at most" if memory else "",
        "left out": "; ".join(f"{name} ({why})" for name, why in summary.skipped.items()),
        "created": summary.created,
        "merge": summary.url,
    }


def _average_facts(
    tasks: Sequence[TaskResult],
    average: float | None,
    experts: float | None,
    normalised: float | None,
) -> dict[str, str]:
    metrics = [task.metric for task in tasks]
    beside = "" if experts is None else f"; the separate experts' {shown(metrics, experts)}"
    kept = "" if normalised is None else f"{_percent(normalised)} of the experts' accuracy"
    return {
        "average": ""
        if average is None
        else f"{_joined(metrics)} {shown(metrics, average)}{beside}",
        "kept": kept and f"{kept} (normalised accuracy)",
    }


def print_evaluation(table: EvalTable, console: Console) -> None:
    """A merge measured again."""
    console.print(Text(table.merge, style="bold"))
    console.print(_task_table(table.tasks))
    facts = _average_facts(
        table.tasks, table.average, table.expert_average, table.normalised_accuracy
    )
    print_facts(facts, console)
    _print_notices(_bracketed(table.tasks), console)


def _task_table(tasks: Sequence[TaskResult]) -> Table:
    one_metric = len({task.metric for task in tasks}) <= 1
    metric = [] if one_metric else ["~metric"]
    figures = (">expert", ">merged", ">of expert", ">agreement", ">pool kept", ">tint params")
    table = open_table("task", *metric, *figures)
    for task in tasks:
        cells = [] if one_metric else [task.metric]
        cells += [
            shown([task.metric], task.expert),
            shown([task.metric], task.merged),
            _kept_share(task),
            _percent(task.agreement),
            _percent(task.selected_fraction),
            f"{task.tint_parameters:,}",
        ]
        table.add_row(task.name, *cells)
    return table


def _kept_share(task: TaskResult) -> str:
    if task.normalised is None:
        return "-"
    return f"({_percent(task.normalised)})" if task.at_chance else _percent(task.normalised)


def _bracketed(tasks: Sequence[TaskResult]) -> list[str]:
    return [_BRACKETS] if any(task.at_chance for task in tasks) else []


def print_comparison(comparison: CompareTable, console: Console) -> None:
    """A merge beside its rivals: a column for each, or a row where there are many."""
    methods = list(dict.fromkeys(row.method for row in comparison.rows))
    metrics = [row.metric for row in comparison.rows]
    console.print(Text.assemble((comparison.merge, "bold"), f"   {_joined(metrics)}"))
    if len(methods) <= _MANY_METHODS:
        console.print(_methods_beside(comparison, methods, metrics))
        if comparison.best_scale is not None:
            text = f"task arithmetic at its best: {comparison.best_scale:g}"
            print_facts({"scale": text}, console)
    else:
        console.print(_methods_below(comparison, methods, metrics))


def _methods_beside(
    comparison: CompareTable, methods: Sequence[str], metrics: Sequence[str]
) -> Table:
    tasks = list(dict.fromkeys(row.task for row in comparison.rows))
    cells = {(row.task, row.method): shown([row.metric], row.value) for row in comparison.rows}
    table = open_table("task", *(f">{method}" for method in methods))
    for task in tasks:
        table.add_row(task, *(cells.get((task, method), "-") for method in methods))
    table.add_row()
    averages = comparison.averages
    table.add_row("average", *(shown(metrics, averages.get(m)) for m in methods))
    kept = comparison.normalised
    table.add_row("of experts", *(_percent(kept[m]) if m in kept else "-" for m in methods))
    return table


def _methods_below(
    comparison: CompareTable, methods: Sequence[str], metrics: Sequence[str]
) -> Table:
    """The best method first; with the task on which each keeps least of the expert."""
    experts = {row.task: row.value for row in comparison.rows if row.method == "experts"}
    table = open_table("method", ">average", ">of experts", ">scale", ">worst task")
    kept = comparison.normalised
    for method in sorted(methods, key=lambda name: -kept.get(name, 0.0)):
        shares = [
            (share, row.task)
            for row in comparison.rows
            if row.method == method and row.task in experts
            if (share := find_metric(row.metric).normalised(row.value, experts[row.task]))
            is not None
        ]
        worst = min(shares) if shares else None
        scale = comparison.scales.get(method)
        table.add_row(
            method,
            shown(metrics, comparison.averages.get(method)),
            _percent(kept[method]) if method in kept else "-",
            "-" if scale is None else f"{scale:g}",
            "-" if worst is None or method == "experts" else f"{_percent(worst[0])} {worst[1]}",
        )
    return table


def print_listing(merges: Sequence[MergeListing], console: Console) -> None:
    """The merges of a catalog, one a line."""
    table = open_table(
        *("merge", "created", "method", "site", ">tasks", ">average", ">of experts", "parent")
    )
    for merge in merges:
        table.add_row(
            f"{merge.name}/{merge.version}",
            merge.created[:19].replace("T", " "),
            merge.method or "-",
            merge.site or "-",
            "-" if merge.tasks is None else str(merge.tasks),
            shown(merge.metrics, merge.average),
            "-" if merge.normalised_accuracy is None else _percent(merge.normalised_accuracy),
            merge.parent or "-",
        )
    console.print(table)


def print_validation(report: ValidationReport, console: Console) -> None:
    """A job file that holds, and what a job of it would have."""
    table = open_table("task", ">tint parameters", ">of backbone")
    for task in report.tasks:
        own = report.tint_parameters.get(task, 0)
        share = own / report.backbone_parameters if report.backbone_parameters else 0.0
        table.add_row(task, f"{own:,}", _percent(share, 2))
    console.print(Text.assemble((report.name, "bold"), "   everything it refers to holds"))
    console.print(table)
    facts = {
        "backbone": f"{count(report.backbone_parameters)} parameters in {report.units} layer units",
        "tint site": report.site,
        "pools": pools_line(report.pools, report.max_pool_bytes),
        "tokenizers": tokenizers_line(report.max_seconds),
    }
    print_facts(facts, console)
    _print_notices(report.notices, console)


def pools_line(pools: Mapping[str, int], most: int) -> str:
    """What pools and test sets take in memory, beside what each of them may take."""
    if not pools:
        return ""
    largest = max(pools, key=lambda name: pools[name])
    return (
        f"{size_text(sum(pools.values()))} of memory; {largest} takes the most, "
        f"{size_text(pools[largest])} of the {size_text(most)} that max_pool_bytes allows"
    )


def tokenizers_line(most: int) -> str:
    """How long the tokenizer of somebody else may take."""
    return f"{most:,} s for each pool or test set is what max_seconds allows"


def _print_notices(notices: Sequence[str], console: Console) -> None:
    for notice in notices:
        console.print(f"note: {notice}")


def print_next(commands: Mapping[str, str], console: Console) -> None:
    """Commands to try next, each with what it is for."""
    width = max(len(command) for command in commands)
    console.print("\nnext:")
    for command, purpose in commands.items():
        console.print(Text.assemble(f"  {command:<{width}}", (f"   {purpose}", "dim")))


def count(parameters: int) -> str:
    """A number of parameters in three or four digits: ``1.24 M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return str(parameters)


def open_table(*columns: str) -> Table:
    """An empty table, as all of them look: ``>name`` aligns to the right, ``~name`` may wrap."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        right = column.startswith(">")
        table.add_column(
            column.lstrip(">~"),
            justify="right" if right else "left",
            no_wrap=not column.startswith("~"),
        )
    return table


def print_facts(facts: Mapping[str, str], console: Console) -> None:
    """Names and texts in two columns, below an empty line; those without a text are left out."""
    known = {name: text for name, text in facts.items() if text}
    width = max(len(name) for name in known)
    console.print()
    for name, text in known.items():
        console.print(Text.assemble((f"{name:<{width}}", "dim"), f"  {text}"))


def _joined(metrics: Iterable[str]) -> str:
    return " and ".join(sorted(set(metrics)))


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"
