"""Results as people read them, on a terminal or in a log, and as one JSON document for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.text import Text

from tintray.jobs.display.times import duration, moment
from tintray.limits import size_text
from tintray.tasks.metrics import find_metric, percent, shown

if TYPE_CHECKING:
    from rich.table import Table

    from tintray.jobs.results import (
        CompareTable,
        EvalTable,
        MergeSummary,
        RoutingTable,
        TaskResult,
        ValidationReport,
    )
    from tintray.jobs.runs.evaluate_data import MeasuredData
    from tintray.published.exported import Exported
    from tintray.published.signatures import Signer

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
    from tintray.jobs.records import plain

    text = json.dumps(plain(result), indent=2, allow_nan=False)
    stream.write(text.replace("\x7f", "\\u007f") + "\n")  # JSON need not escape it; a terminal acts
    stream.flush()


def print_summary(summary: MergeSummary, console: Console) -> None:
    """A merge: a line for each task, then what it kept, its size, its time and its place."""
    from tintray.jobs.config.merge_sections import TINT

    how = (
        f"tint layer at {summary.site}" if summary.method == TINT else f"merged by {summary.method}"
    )
    fit = f"{summary.rounds} rounds" if summary.rounds else "nothing learned"
    grown = f", grown from {summary.parent}" if summary.parent else ""
    about = f"{len(summary.tasks)} tasks, {how}, {fit}{grown}"
    console.print(title(f"{summary.name}/{summary.version}", about))
    console.print(_task_table(summary.tasks))
    console.print(Text(_LEGEND, style="dim"))
    backbone, merged = summary.backbone_parameters, summary.merged_parameters
    separate, memory = summary.separate_parameters, summary.peak_memory_mib
    times = f" ({separate / merged:.1f} times as many)" if merged else ""
    facts = {
        "size": f"{count(merged)} parameters; {len(summary.tasks)} separate models hold "
        f"{count(separate)}{times}",
        "per task": f"{percent(summary.tint_share, 2)} of the backbone's {count(backbone)} "
        f"parameters more, in {size_text(summary.tint_bytes)}{_most_of(summary)}",
        "stored": _stored(summary),
        "time": durations(summary.seconds) if summary.seconds else "",
        "memory": f"{memory:,.0f} MiB at most" if memory else "",
        "left out": "; ".join(f"{name} ({why})" for name, why in summary.skipped.items()),
        "created": moment(summary.created),
        "signed by": ", ".join(map(_signer, summary.signatures)),
        "merge": summary.url,
    }
    print_facts(_average_facts(summary) | _held_back_fact(summary) | facts, console)
    print_notices([*summary.notices, *_bracketed(summary.tasks)], console)


def _signer(signer: Signer) -> str:
    """Who has signed a merge, and what of that cannot be relied on."""
    if signer.holds is None:
        return f"{signer.name or signer.key} (not looked at: pip install 'tintray[sign]')"
    if not signer.holds:
        return f"{signer.name or signer.key} (but not this merge: the signature does not hold)"
    return signer.name or f"{signer.key} (not in trust)"


def _most_of(summary: MergeSummary) -> str:
    """Which task owns most, where they differ."""
    own = summary.tint_parameters_per_task
    largest = max(own, key=lambda name: own[name])
    if own[largest] == min(own.values()) or not summary.backbone_parameters:
        return ""
    return f"; {largest} most, {percent(own[largest] / summary.backbone_parameters, 2)}"


def _stored(summary: MergeSummary) -> str:
    """In how many bits tasks own their numbers, where it is not 32."""
    bits = sorted({task.tint_bits for task in summary.tasks})
    share = percent(summary.tint_bytes_share, 2)
    said = f"in {' or '.join(map(str, bits))} bits, {share} of the backbone's bytes per task"
    return "" if bits == [32] else said


def _average_facts(table: MergeSummary | EvalTable) -> dict[str, str]:
    metrics = [task.metric for task in table.tasks]
    average, experts, kept = table.average, table.expert_average, table.normalised_accuracy
    beside = "" if experts is None else f"; the separate experts' {shown(metrics, experts)}"
    mean = "" if average is None else f"{_joined(metrics)} {shown(metrics, average)}{beside}"
    share = f"{percent(kept)} of the experts' accuracy (normalised accuracy)"
    return {"average": mean, "kept": "" if kept is None else share}


def _held_back_fact(summary: MergeSummary) -> dict[str, str]:
    known = [task.held_back for task in summary.tasks if task.held_back is not None]
    said = ""
    if known:
        mean = percent(sum(known) / len(known))
        said = f"{mean} agreement with the experts on examples not learned from"
    floor = ""
    if summary.floor is not None and {"agreement", "learned"} <= summary.floor.keys():
        start, learned = (percent(summary.floor[name]) for name in ("agreement", "learned"))
        method = summary.floor["method"].replace("_", " ")
        floor = f"{start} by {method} at scale {summary.floor['scale']:.3g}, {learned} learned"
    return {"held back": said, "floor": floor}


def print_evaluation(table: EvalTable, console: Console) -> None:
    """A merge measured again."""
    console.print(title(table.merge))
    console.print(_task_table(table.tasks))
    print_facts(_average_facts(table), console)
    if table.routing is not None:
        _print_routing(table.routing, console)
    print_notices(_bracketed(table.tasks), console)


def print_measured(table: MeasuredData, console: Console) -> None:
    """A line for each task and set of examples; experts beside the merge."""
    console.print(title(table.merge))
    rows = [
        [of.task, of.corruption or "as they are", str(of.severity or ""), of.metric,
         shown([of.metric], of.expert), shown([of.metric], of.merged),
         "" if of.agreement is None else percent(of.agreement), f"{of.examples:,}"]
        for of in table.rows
    ]  # fmt: skip
    columns = (">expert", ">merged", ">agreement", ">examples")
    console.print(table_of(("task", "examples", ">severity", "metric", *columns), rows))


def _print_routing(routing: RoutingTable, console: Console) -> None:
    """Each task given and found, where its examples go, and what becomes of foreign ones."""

    def shares(to: Mapping[str, float], own: str = "") -> str:
        others = [f"{name} {percent(p)}" for name, p in to.items() if name != own]
        return ", ".join(others[:3]) + (", …" if len(others) > 3 else "")

    console.print(title("without a name", "where examples go when nobody says which task"))
    head = ("task", ">task given", ">task found", ">to its task", ">unknown", "others go to")
    rows = []
    for task in routing.tasks:
        figures = [shown([task.metric], value) for value in (task.given, task.found)]
        figures += [percent(task.to.get(task.name, 0.0)), percent(task.unknown)]
        rows.append([task.name, *figures, shares(task.to, task.name)])
    console.print(table_of(head, rows))
    if routing.foreign:
        rows = []
        for one in routing.foreign:
            figures = [f"{one.examples:,}", f"{one.auroc:.3f}", percent(one.unknown)]
            rows.append([one.data, *figures, shares(one.to)])
        of_strangers = ("foreign", ">examples", ">AUROC", ">unknown", "looks most like")
        console.print(table_of(of_strangers, rows))
    pairs = [f"{one} and {other} ({percent(share)})" for one, other, share in routing.shared]
    facts = {"to its task": f"{percent(routing.routed)} of the examples, a mean over tasks"}
    print_facts(facts | {"same inputs": ", ".join(pairs)}, console)


def _task_table(tasks: Sequence[TaskResult]) -> Table:
    many = len({task.metric for task in tasks}) > 1
    figures = (">expert", ">merged", ">of expert", ">agreement", ">pool kept", ">tint params")
    rows = (
        [
            *([task.name, task.metric] if many else [task.name]),
            shown([task.metric], task.expert),
            shown([task.metric], task.merged),
            f"({percent(task.normalised)})" if task.at_chance else percent(task.normalised),
            percent(task.agreement),
            percent(task.selected_fraction),
            f"{task.tint_parameters:,}",
        ]
        for task in tasks
    )
    return table_of(["task", "~metric", *figures] if many else ["task", *figures], rows)


def _bracketed(tasks: Sequence[TaskResult]) -> list[str]:
    return [_BRACKETS] if any(task.at_chance for task in tasks) else []


def print_comparison(comparison: CompareTable, console: Console) -> None:
    """A merge beside its rivals: a column for each, or a row where there are many."""
    methods = list(dict.fromkeys(row.method for row in comparison.rows))
    metrics = [row.metric for row in comparison.rows]
    console.print(title(comparison.merge, _joined(metrics)))
    if len(methods) > _MANY_METHODS:
        console.print(_methods_below(comparison, methods, metrics))
        return
    console.print(_methods_beside(comparison, methods, metrics))
    if comparison.best_scale is not None:
        text = f"task arithmetic at its best: {comparison.best_scale:g}"
        print_facts({"scale": text}, console)


def _methods_beside(
    comparison: CompareTable, methods: Sequence[str], metrics: Sequence[str]
) -> Table:
    cells = {(row.task, row.method): shown([row.metric], row.value) for row in comparison.rows}
    tasks = list(dict.fromkeys(row.task for row in comparison.rows))
    rows = [[task, *(cells.get((task, method), "-") for method in methods)] for task in tasks]
    means = ["average", *(shown(metrics, comparison.averages.get(m)) for m in methods)]
    kept = ["of experts", *(percent(comparison.normalised.get(m)) for m in methods)]
    return table_of(["task", *(f">{method}" for method in methods)], [*rows, [], means, kept])


def _methods_below(
    comparison: CompareTable, methods: Sequence[str], metrics: Sequence[str]
) -> Table:
    """The best method first; with the task on which each keeps least of the expert."""
    experts = {row.task: row.value for row in comparison.rows if row.method == "experts"}
    rows, kept = [], comparison.normalised
    for method in sorted(methods, key=lambda name: -kept.get(name, 0.0)):
        shares = [
            (share, row.task)
            for row in comparison.rows
            if row.method == method != "experts" and row.task in experts
            if (share := find_metric(row.metric).normalised(row.value, experts[row.task]))
            is not None
        ]
        worst, task = min(shares, default=(None, ""))
        scale = comparison.scales.get(method)
        average = shown(metrics, comparison.averages.get(method))
        tuned = "-" if scale is None else f"{scale:g}"
        least = f"{percent(worst)} {task}".strip()
        rows.append([method, average, percent(kept.get(method)), tuned, least])
    return table_of(["method", ">average", ">of experts", ">scale", ">worst task"], rows)


def print_export(found: Exported, console: Console) -> None:
    """What an export for servers wrote: a line for each task, and what to know of it."""
    rows = (
        [
            task.task,
            task.path,
            count(task.numbers),
            "exact" if found.exact else percent(task.agreement),
            "-" if task.difference is None else f"{task.difference:.1e}",
        ]
        for task in found.tasks
    )
    columns = ("task", "~folder", ">numbers", ">as the merge", ">difference")
    console.print(table_of(columns, rows))
    batches = "of several tasks, with adapter_names=" if found.mixed else "of one task each"
    facts = {
        "rank": "" if found.rank is None else str(found.rank),
        "batches": batches if found.form == "peft" else "",
        "folder": found.path,
    }
    print_facts(facts, console)
    print_notices(found.notices, console)


def print_validation(report: ValidationReport, console: Console) -> None:
    """A job file that holds, and what a job of it would have."""
    own, backbone = report.tint_parameters, report.backbone_parameters
    rows = (
        [task, f"{own.get(task, 0):,}", percent(own.get(task, 0) / backbone if backbone else 0, 2)]
        for task in report.tasks
    )
    console.print(title(report.name, "everything it refers to holds"))
    console.print(table_of(["task", ">tint parameters", ">of backbone"], rows))
    facts = {
        "backbone": f"{count(backbone)} parameters in {report.units} layer units",
        "tint site": report.site,
        **budget_facts(report.pools, report.max_pool_bytes, report.max_seconds),
    }
    print_facts(facts, console)
    print_notices(report.notices, console)


def budget_facts(pools: Mapping[str, int], most: int, seconds: int) -> dict[str, str]:
    """What pools take in memory and tokenizers of others in time, beside what they may take."""
    facts = {"tokenizers": f"{seconds:,} s for each pool or test set is what max_seconds allows"}
    if not pools:
        return facts
    largest = max(pools, key=lambda name: pools[name])
    return {
        "pools": f"{size_text(sum(pools.values()))} of memory; {largest} takes the most, "
        f"{size_text(pools[largest])} of the {size_text(most)} that max_pool_bytes allows"
    } | facts


def print_notices(notices: Sequence[str], console: Console) -> None:
    """A line for each."""
    for notice in notices:
        console.print(f"note: {notice}")


def print_next(commands: Mapping[str, str], console: Console) -> None:
    """Commands to try next, each with what it is for."""
    width = max(len(command) for command in commands)
    console.print("\nnext:")
    for command, purpose in commands.items():
        console.print(Text.assemble(f"  {command:<{width}}", (f"   {purpose}", "dim")))


def title(name: str, about: str = "", style: str = "") -> Text:
    """The first line of an answer: what it is about, and what there is to say of it."""
    return Text.assemble((name, "bold"), (f"   {about}" if about else "", style))


def count(parameters: int) -> str:
    """A number of parameters in three or four digits: ``1.24 M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return str(parameters)


def durations(seconds: Mapping[str, float]) -> str:
    """How long all phases took, and each: ``1 min 05 s (fitting 1 min 00 s, publishing 5 s)``."""
    each = ", ".join(f"{phase} {duration(took)}" for phase, took in seconds.items())
    return f"{duration(sum(seconds.values()))} ({each})"


def table_of(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    """A table, as all of them look: a column ``>name`` aligns to the right, ``~name`` may wrap."""
    from rich.table import Table  # many answers have none

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column.lstrip(">~"),
            justify="right" if column.startswith(">") else "left",
            no_wrap=not column.startswith("~"),
        )
    for row in rows:
        table.add_row(*row)
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
