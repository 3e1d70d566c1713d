"""The commands that look at merges: report, conflicts, explain, monitor and ui."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tintray.jobs.cli import completing
from tintray.jobs.cli.options import (
    Answer,
    Later,
    command,
    dry_run_option,
    factory_option,
    flag,
    merge_argument,
    path_option,
    place_options,
    rehearsed,
    say,
)

if TYPE_CHECKING:
    from tintray.jobs.records import Record
    from tintray.jobs.watching import conflicts as fights
    from tintray.jobs.watching import explaining, monitoring, ui, writing
else:
    writing, fights = Later("watching.writing"), Later("watching.conflicts")
    explaining, ui = Later("watching.explaining"), Later("watching.ui")
    monitoring = Later("watching.monitoring")


@command(
    "",
    merge_argument,
    path_option(
        *("-o", "--output"),
        metavar="FILE",
        help="What to write [default: NAME-VERSION.html; standard output for md and json].",
    ),
    click.option(
        *("--format", "form"),
        type=click.Choice(("html", "md", "json")),
        help="The form of it [default: as FILE ends, else html].",
    ),
    flag("--measure", help="Measure averaging, task arithmetic and conflicts first."),
    dry_run_option,
    place_options,
    factory_option,
    watched=True,
    example="""report ten-scripts -o report.html
report ten-scripts --measure
report ten-scripts --format md""",
)
def report(merge: str, output: Path | None, form: str | None, **options: Any) -> Answer | Path:
    """Write all that is known of MERGE as one page.

    What was gained, task by task; where each task goes into the backbone; how it learned, how sure
    it is, where it comes from and what it took. The page needs no network, and no script.
    """
    form = form or _form_of(output, ("md", "json"), "html")
    found = writing.write_report(merge, output, form=form, **options)
    if options["dry_run"]:
        return rehearsed(f"the report of {merge} can be written to {found}", path=None)
    if isinstance(found, Path):
        return found
    return Answer({"report": found}, text=found.rstrip("\n"))


def _form_of(output: Path | None, endings: tuple[str, ...], usual: str) -> str:
    """The form that a file's ending names; else the usual one."""
    ending = "" if output is None else output.suffix.lstrip(".").lower()
    return ending if ending in endings else usual


@command(
    "watching_tables.print_conflicts",
    click.argument("target", metavar="MERGE|JOB", shell_complete=completing.merges),
    click.option(
        "--examples",
        type=click.IntRange(min=1),
        default=128,
        show_default=True,
        metavar="N",
        help="How many examples of each pool losses and gradients are measured on.",
    ),
    click.option(
        *("--try", "try_rounds"),
        type=click.IntRange(min=1),
        metavar="ROUNDS",
        help="Fit one merge of all, and those of the split, for so many rounds: what does it keep?",
    ),
    place_options,
    factory_option,
    watched=True,
    example="""conflicts ten-scripts
conflicts job.yaml --try 60""",
)
def conflicts(target: str, **options: Any) -> Record:
    """Show which tasks of MERGE, or of JOB before it runs, fight.

    By their task vectors in each layer, their gradients on the shared backbone, and what leaving
    one out does to the others. Tasks that belong together are named, and so is who should stand
    alone. MERGE is a name, NAME/v2, NAME@ALIAS, a folder or a URL; JOB a job file or a job's id.
    """
    if click.get_current_context().get_parameter_source("store") is ParameterSource.DEFAULT:
        options["store"] = None  # a job file says where its own is
    return fights.conflicts(target, **options)


@command(
    "watching_tables.print_explanation",
    merge_argument,
    click.option("--task", required=True, metavar="TASK", help="Whose tint layer.",
                 shell_complete=completing.tasks),
    path_option(
        *("-o", "--output"),
        metavar="FILE",
        help="What to write [default: standard output; NAME-VERSION-TASK.html for html].",
    ),
    click.option(
        *("--format", "form"),
        type=click.Choice(("text", "html", "json")),
        help="The form of it [default: as FILE ends, else text].",
    ),
    click.option(
        "--examples",
        type=click.IntRange(min=1),
        default=256,
        show_default=True,
        metavar="N",
        help="How many examples of its pool are answered.",
    ),
    click.option(
        "--nearest",
        type=click.IntRange(min=0),
        default=5,
        show_default=True,
        metavar="N",
        help="With how many other tasks its tint is exchanged.",
    ),
    dry_run_option,
    place_options,
    factory_option,
    watched=True,
    example="""explain ten-scripts --task mnist
explain ten-scripts --task mnist -o mnist.html""",
)  # fmt: skip
def explain(
    merge: str, task: str, output: Path | None, form: str | None, dry_run: bool, **options: Any
) -> Answer | Path:
    """Show what the tint layer of a task of MERGE learned.

    How far it went from its expert and from what all tasks share, by tensor, attention head and
    singular direction; how alike merge and expert see the examples, layer by layer; the examples
    whose answer it changed; and which other tasks could share it. The expert is read for this.
    """
    form = form or _form_of(output, ("html", "json"), "text")
    if output is not None:
        writing.check_output(output)
    if dry_run:
        where = writing.explanation_file(merge, task, output, form, catalog=options["catalog"])
        text = f"what {merge} learned of {task} can be written to {where or 'standard output'}"
        return rehearsed(text, path=None)
    found = explaining.explain(merge, task, **options)
    if form == "text":
        if output is None:
            return Answer(found)
        from tintray.jobs.cli.watching_tables import explanation_text

        writing.write_whole(output, explanation_text(found))
        return output
    written = writing.write_explanation(found, output, form)
    return written if isinstance(written, Path) else Answer(found, text=written.rstrip("\n"))


@command(
    "",
    click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen."),
    click.option("--port", default=8001, show_default=True, type=click.IntRange(0, 65535),
                 help="The port there."),
    place_options,
    name="ui",
    example="""ui
ui --port 9000""",
)  # fmt: skip
def ui_(host: str, port: int, **options: Any) -> Answer:
    """Show the catalog in a browser until Ctrl-C.

    Jobs as they run, merges, their versions and reports; nothing can be changed there. Whoever is
    not on this machine needs the token in TINTRAY_UI_TOKEN, which their browser asks for as the
    password.
    """
    ui.serve(host, port, say=lambda text: say(text, err=True), **options)
    return Answer({"catalog": options["catalog"]}, text="stopped")


@command(
    "watching_tables.print_drift",
    merge_argument,
    click.option("--task", metavar="NAME", shell_complete=completing.tasks, help="Of which task."),
    click.option(
        "--data",
        metavar="FILE[#SPLIT]",
        help="New examples of the task; labels in it are not read.",
    ),
    click.option(
        "--from-serve",
        metavar="URL",
        help="A server of MERGE that was started with --observe, in the place of --data.",
    ),
    flag("--history", "past", help="Show what earlier checks have found, and check nothing."),
    flag("--expert", help="Have the expert answer too: its disagreement gives another estimate."),
    click.option(
        "--examples",
        type=click.IntRange(min=16),
        default=2000,
        show_default=True,
        metavar="N",
        help="How many of the new examples are looked at, spread evenly.",
    ),
    click.option(
        "--alpha",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.05,
        show_default=True,
        help="How often at most a check may say that examples differ which do not.",
    ),
    flag("--dry-run", help="Check, and enter nothing in the catalog."),
    place_options,
    factory_option,
    watched=True,
    example="""monitor ten-scripts --task mnist --data new.npz
monitor ten-scripts --task mnist --history""",
)
def monitor(
    merge: str,
    task: str | None,
    data: str | None,
    from_serve: str | None,
    past: bool,
    on_event: Any,
    **options: Any,
) -> Answer:
    """Say whether new examples of a task of MERGE are like those it was measured on.

    Confidence, entropy, classes answered and features are compared, and the share of right answers
    is estimated; no label is read. The check is entered in the catalog. The exit code is 6 where
    the examples differ.
    """
    if past:
        found = monitoring.history(merge, task, catalog=options["catalog"])
        return Answer(found, table="watching_tables.print_checks")
    for name, given in (("--task", task), ("--data", data or from_serve)):
        if given is None:
            raise click.UsageError(
                f"{name} is missing: expected `tintray monitor {merge} --task NAME --data FILE`, "
                "--from-serve URL in the place of --data, or --history"
            )
    if data and from_serve:
        raise click.UsageError("--data and --from-serve: expected one of both")
    assert task is not None, "checked above"
    options |= {"from_serve": from_serve, "on_event": on_event}
    checked = monitoring.monitor(merge, task, data, **options)
    return Answer(checked, code=monitoring.DRIFTED if checked.drifted else 0)
