"""What the commands on stores and catalogs say, as people read it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tintray.jobs.cli.tables import print_facts, table_of
from tintray.jobs.display.times import moment
from tintray.jobs.upkeep.results import (
    ArtifactLine,
    Copied,
    DatabaseReport,
    Diagnosis,
    ForgottenRounds,
    GarbageReport,
    Relocated,
    Removed,
    SchemaChange,
    Shared,
    VerifyReport,
)
from tintray.jobs.upkeep.setup import Configured
from tintray.jobs.upkeep.signing import NewKey, Signed
from tintray.limits import size_text


def print_artifacts(lines: Sequence[ArtifactLine], console: Console) -> None:
    """The artifacts of a store, one a line."""
    rows = (
        [
            line.sha256[:16],
            line.kind,
            "-" if line.created is None else moment(line.created),
            size_text(line.size),
            (", ".join(line.needed_by) or "-") + ("" if line.in_store else " (not in the store)"),
        ]
        for line in lines
    )
    console.print(table_of(("artifact", "kind", "created", ">size", "~needed by"), rows))
    free = [line for line in lines if not line.needed_by]
    facts = {"artifacts": _sizes(lines), "unneeded": _sizes(free) if free else ""}
    print_facts(facts, console)


def _sizes(lines: Sequence[ArtifactLine]) -> str:
    return f"{len(lines)}, {size_text(sum(line.size for line in lines))}"


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
    did = "would remove" if removed.dry_run else "removed"
    console.print(f"{did} {removed.merge} from {removed.url}")
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
    did = "nothing was written (--dry-run)" if copied.dry_run else "each read back and compared"
    files = f"{copied.files}, {size_text(copied.bytes)}, {did}"
    facts = {"merge": copied.merge, "from": copied.source, "to": copied.url, "files": files}
    print_facts(facts | {"catalog": copied.catalog or ""}, console)


def print_schema(change: SchemaChange, console: Console) -> None:
    """From which version of the tables to which."""
    said = f"upgraded from schema version {change.before} to {change.after}"
    if change.before is None:
        said = f"created with schema version {change.after}"
    if change.before == change.after:
        said = f"has schema version {change.after} already"
    elif change.dry_run:
        said = f"would be {said}"
    console.print(f"{change.catalog}: {said}")


def print_forgotten(found: ForgottenRounds, console: Console) -> None:
    """How many rounds a catalog knows no more."""
    how = "would be forgotten (--dry-run)" if found.dry_run else "forgotten"
    console.print(f"{found.catalog}: {found.rounds:,} rounds of jobs that are over {how}")


def print_relocated(moved: Relocated, console: Console) -> None:
    """From where to where a store went."""
    how = "would be" if moved.dry_run else "are"
    console.print(f"{moved.merges:,} merges of {moved.before} {how} known in {moved.store} now")


def print_database(report: DatabaseReport, console: Console) -> None:
    """The rows of a catalog, and what is wrong with it."""
    if report.rows:
        rows = ([name, f"{rows:,}"] for name, rows in sorted(report.rows.items()))
        console.print(table_of(("table", ">rows"), rows))
    for problem in report.problems:
        console.print(Text.assemble(("problem", "bold"), f": {problem}"))
    for job in report.idle_jobs:
        console.print(f"note: job {job} is not over, and nobody works on it")
    state = "problems" if report.problems else "sound"
    print_facts({"catalog": report.catalog, "schema": report.schema, "state": state}, console)


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Everything that was looked at, and how to mend what is wrong."""
    rows = []
    for check in diagnosis.checks:
        rows.append(["ok" if check.ok else "WRONG", check.name, check.found])
        if check.fix is not None:
            rows.append(["", "", f"fix: {check.fix}"])
    console.print(table_of(("", "check", "~found"), rows))
    wrong = sum(not check.ok for check in diagnosis.checks)
    console.print(f"\n{wrong} of {len(diagnosis.checks)} checks failed" if wrong else "\nall well")


def print_configured(found: Configured, console: Console) -> None:
    """Where the configuration file is, and what is in it."""
    console.print(found.path)
    if found.settings:
        print_facts(found.settings, console)
    told = "nothing was written (--dry-run)" if found.dry_run else "`tintray doctor` checks them"
    console.print(f"\n{told}")


def print_shared(shared: Shared, console: Console) -> None:
    """A merge that was pushed or pulled, or what would be."""
    if shared.dry_run:
        for name in shared.files:
            console.print(name)
    did = "is there already, as it is here" if shared.already else "written and verified"
    facts = {
        "merge": shared.merge,
        "from": shared.source,
        "to": shared.destination,
        "size": f"{len(shared.files)} files, {size_text(shared.bytes)}",
        "state": "nothing was written (--dry-run)" if shared.dry_run else did,
    }
    print_facts(facts, console)


def print_signed(signed: Signed, console: Console) -> None:
    """A merge that was signed."""
    how = "would be signed (--dry-run)" if signed.dry_run else "signed"
    how = "was signed by this key already" if signed.already else how
    console.print(Text.assemble((signed.merge, "bold"), f" {how}"))
    print_facts(
        {"key": signed.key, "signatures": str(signed.signatures), "merge": signed.url}, console
    )


def print_new_key(made: NewKey, console: Console) -> None:
    """A key that was made, and who needs what of it."""
    console.print(f"{made.path} is the private key: keep it to yourself")
    console.print("for the file that others name as `trust`:")
    console.print(made.key, soft_wrap=True)
