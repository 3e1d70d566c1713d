"""What the commands on stores and catalogs say, as people read it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tintray.jobs.cli.tables import open_table, print_facts
from tintray.jobs.upkeep.results import (
    ArtifactLine,
    Copied,
    DatabaseReport,
    Diagnosis,
    GarbageReport,
    Removed,
    SchemaChange,
    VerifyReport,
)
from tintray.jobs.upkeep.setup import Configured
from tintray.limits import size_text


def print_artifacts(lines: Sequence[ArtifactLine], console: Console) -> None:
    """The artifacts of a store, one a line."""
    table = open_table("artifact", "kind", "created", ">size", "~needed by")
    for line in lines:
        users = ", ".join(line.needed_by) or "-"
        table.add_row(
            line.sha256[:16],
            line.kind,
            "-" if line.created is None else line.created[:19].replace("T", " "),
            size_text(line.size),
            users if line.in_store else f"{users} (not in the store)",
        )
    console.print(table)
    free = [line for line in lines if not line.needed_by]
    facts = {"artifacts": f"{len(lines)}, {size_text(sum(line.size for line in lines))}"}
    if free:
        facts["unneeded"] = f"{len(free)}, {size_text(sum(line.size for line in free))}"
    print_facts(facts, console)


def print_verification(report: VerifyReport, console: Console) -> None:
    """What is damaged, one a line; or that all is well."""
    for damage in report.damaged:
        users = f" (needed by {', '.join(damage.needed_by)})" if damage.needed_by else ""
        console.print(Text.assemble((damage.key, "bold"), f": {damage.problem}{users}"))
    state = f"{len(report.damaged)} damaged" if report.damaged else "all as they were written"
    console.print(
        f"{report.artifacts} artifacts, {size_text(report.bytes)}, in {report.store}: {state}"
    )


def print_pin(line: ArtifactLine, console: Console) -> None:
    """One artifact, after it was pinned or let go."""
    users = ", ".join(line.needed_by) or "nothing; gc may take it"
    console.print(f"{line.sha256} ({line.kind}, {size_text(line.size)}) is needed by {users}")


def print_garbage(report: GarbageReport, console: Console) -> None:
    """What is garbage, one a line, and what stays."""
    for line in report.garbage:
        console.print(f"{line.key}  {size_text(line.size)}  {line.reason}")
    what = f"{len(report.garbage)} artifacts, {size_text(report.garbage_bytes)}"
    hint = ", --delete does it" if report.garbage else ""
    young = f", of them {report.young} unneeded but too young" if report.young else ""
    facts = {
        "garbage": f"{what}; nothing was deleted{hint}" if report.dry_run else "",
        "deleted": "" if report.dry_run else what,
        "kept": f"{report.kept} artifacts, {size_text(report.kept_bytes)}{young}",
        "store": report.store,
    }
    print_facts(facts, console)


def print_removed(removed: Removed, console: Console) -> None:
    """A merge that is gone."""
    console.print(f"removed {removed.merge} from {removed.url}")
    if removed.children:
        console.print(
            f"{', '.join(removed.children)} grew from it: whole without it, but it can no longer "
            "be rolled back to"
        )
    if removed.unneeded_bytes:
        console.print(
            f"{size_text(removed.unneeded_bytes)} of it are needed by nothing else; "
            "tintray gc frees them once they are old enough"
        )


def print_copied(copied: Copied, console: Console) -> None:
    """A merge that is in another store too."""
    facts = {
        "merge": copied.merge,
        "from": copied.source,
        "to": copied.url,
        "files": f"{copied.files}, {size_text(copied.bytes)}, each read back and compared",
        "catalog": copied.catalog or "",
    }
    print_facts(facts, console)


def print_schema(change: SchemaChange, console: Console) -> None:
    """From which version of the tables to which."""
    if change.before is None:
        console.print(f"{change.catalog}: created with schema version {change.after}")
    elif change.before == change.after:
        console.print(f"{change.catalog}: has schema version {change.after} already")
    else:
        console.print(
            f"{change.catalog}: upgraded from schema version {change.before} to {change.after}"
        )


def print_database(report: DatabaseReport, console: Console) -> None:
    """The rows of a catalog, and what is wrong with it."""
    table = open_table("table", ">rows")
    for name, rows in sorted(report.rows.items()):
        table.add_row(name, f"{rows:,}")
    if report.rows:
        console.print(table)
    for problem in report.problems:
        console.print(Text.assemble(("problem", "bold"), f": {problem}"))
    for job in report.idle_jobs:
        console.print(f"note: job {job} is not over, and nobody works on it")
    state = "problems" if report.problems else "sound"
    print_facts({"catalog": report.catalog, "schema": report.schema, "state": state}, console)


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Everything that was looked at, and how to mend what is wrong."""
    table = open_table("", "check", "~found")
    for check in diagnosis.checks:
        table.add_row("ok" if check.ok else "WRONG", check.name, check.found)
        if check.fix is not None:
            table.add_row("", "", f"fix: {check.fix}")
    console.print(table)
    wrong = sum(not check.ok for check in diagnosis.checks)
    console.print(f"\n{wrong} of {len(diagnosis.checks)} checks failed" if wrong else "\nall well")


def print_configured(found: Configured, console: Console) -> None:
    """Where the configuration file is, and what is in it."""
    console.print(found.path)
    if found.settings:
        print_facts(found.settings, console)
    console.print("\n`tintray doctor` checks them")
