"""What a running server says of its versions, as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from tintray.jobs.cli.tables import print_facts, table_of, title
from tintray.limits import size_text
from tintray.tasks.metrics import METRICS, find_metric


def print_status(found: Mapping[str, Any], console: Console) -> None:
    """The versions that answer, then each task's metric in them."""
    tried = found["candidate"]
    how = "this version alone" if found["pinned"] else "new versions are taken up"
    console.print(title(found["stable"]["version"], how))
    facts = {"answers": _told(found["stable"])}
    if tried:
        share = f"{100 * found['canary']:g} % of requests"
        facts[f"tried: {tried['version']}"] = f"{share}; {_told(tried)}"
    facts |= {f"not taken up: {name}": said for name, said in found["refused"].items()}
    print_facts(facts, console)
    columns = ["task", "metric", ">answers", ">agreement"]
    columns += [">tried", ">agreement"] if tried else []
    rows = []
    for task in found["tasks"]:
        cells = [task["task"], task["metric"]]
        for version in ("stable", "candidate") if tried else ("stable",):
            cells += [_figure(task, version), _share(task[f"{version}_agreement"])]
        rows.append(cells)
    console.print()
    console.print(table_of(columns, rows))


def _told(live: Mapping[str, Any]) -> str:
    tints = live["tints"]
    asked = tints.get("hits", 0) + tints.get("misses", 0)
    kept = (
        f"; {tints['tasks']:,} tints in memory ({size_text(tints['bytes'])}), "
        f"{100 * tints['hits'] / asked:.1f} % found there"
        if asked
        else ""
    )
    mean = live["examples"] / max(1, live["batches"])
    told = f"{live['requests']:,} requests, {live['failed']:,} failed, {live['queued']:,} wait"
    return f"{told}; {mean:.1f} examples a batch{kept}"


def _figure(task: Mapping[str, Any], version: str) -> str:
    value, metric = task[version], task["metric"]
    if value is None:
        return ""
    return find_metric(metric).figure(value) if metric in METRICS else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
