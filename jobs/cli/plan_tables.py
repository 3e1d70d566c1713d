"""The plan of a job as people read it."""

from __future__ import annotations

from rich.console import Console

from tintray.jobs.cli.tables import (
    budget_facts,
    count,
    durations,
    print_facts,
    print_notices,
    title,
)
from tintray.jobs.display.times import duration
from tintray.jobs.runs.pilot import PilotReport
from tintray.jobs.runs.plan import PlanReport
from tintray.limits import size_text


def print_plan(report: PlanReport, console: Console) -> None:
    """What a job takes, and whether it fits."""
    fits = ("it fits", "") if report.fits else ("it does not fit", "red")
    console.print(title(report.name, fits[0], fits[1]))
    facts = {
        "problem": report.problem or "",
        "tasks": f"{report.tasks}, {report.rounds} rounds",
        "backbone": f"{count(report.parameters)} parameters",
        "reads": f"{size_text(report.read_bytes)} of models and data on this machine",
        "cached": f"self-labels of {report.cached_labels} and task vectors of "
        f"{report.cached_vectors} of {report.tasks} tasks",
        "writes": f"{size_text(report.write_bytes)} at most",
        **budget_facts(report.pools, report.max_pool_bytes, report.max_seconds),
        "workers": f"{report.workers}, {size_text(report.worker_bytes)} each at most",
        "shards": f"{report.shards}, {size_text(report.shard_bytes)} each",
        "GPU": f"{size_text(report.card_bytes)} of each worker's" if report.card_bytes else "",
        "activations": "computed again for the backward pass" if report.checkpointed else "",
        "object store": size_text(report.object_store_bytes),
        "memory": f"{size_text(report.memory_bytes)} in all; "
        f"{size_text(report.available_bytes)} are free",
        "compute": f"{report.flops:.2g} floating-point operations in the rounds",
        "time": durations(report.seconds),
    }
    print_facts(facts, console)
    print_notices(report.notices, console)
    if report.pilot is not None:
        _print_pilot(report.pilot, console)


def _print_pilot(pilot: PilotReport, console: Console) -> None:
    normalised = pilot.normalised_accuracy
    kept = "" if normalised is None else f"; {normalised:.1%} of the experts' accuracy"
    console.print(
        f"\npilot of {', '.join(pilot.tasks)}: {pilot.rounds} rounds on {pilot.examples} examples "
        f"of each pool at most, in {duration(pilot.seconds)}"
    )
    facts = {
        "reached": f"agreement {pilot.agreement:.1%}{kept}",
        "expected": f"agreement of these tasks {pilot.expected_agreement:.1%} after all rounds",
        "time": f"{duration(pilot.expected_seconds)} for the whole job",
    }
    print_facts(facts, console)
    console.print("\nmore tasks share a backbone less well than few: take the accuracy as a bound")
