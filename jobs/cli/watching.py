"""The commands that look at merges: report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tintray.jobs.cli.options import (
    Answer,
    Later,
    command,
    factory_option,
    flag,
    merge_argument,
    path_option,
    place_options,
)

if TYPE_CHECKING:
    from tintray.jobs.watching import writing
else:
    writing = Later("watching.writing")


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
    flag("--measure", help="Measure the average of the experts and task arithmetic first."),
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
    ending = "" if output is None else output.suffix.lstrip(".").lower()
    chosen = form or (ending if ending in ("md", "json") else "html")
    found = writing.write_report(merge, output, form=chosen, **options)
    if isinstance(found, Path):
        return found
    return Answer({"report": found}, text=found.rstrip("\n"))
