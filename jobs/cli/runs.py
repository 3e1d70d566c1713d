"""``tintray run`` and ``tintray validate``: from a job file to a merge.

The job file is read before anything heavy is imported, so that a misspelt field is told at once.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tintray.jobs.cli.options import (
    answer,
    debug_option,
    job_argument,
    json_option,
    quiet_stdout,
    set_option,
    write,
)

if TYPE_CHECKING:
    from rich.console import Console

    from tintray.jobs.config.job_file import JobSpec
    from tintray.jobs.results import MergeSummary


@click.command()
@click.argument("job", metavar="JOB.yaml", required=False, type=click.Path(path_type=Path))
@click.option(
    "--from-mergekit",
    "mergekit",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Merge whole checkpoints as this mergekit file says, instead of a job.",
)
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The folder to write with --from-mergekit; it must not exist.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="What it may hold with --from-mergekit [default: 4GiB].",
)
@set_option
@json_option
@debug_option
def run(
    job: Path | None,
    mergekit: Path | None,
    output: Path | None,
    memory: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run the job in JOB.yaml and publish its merge.

    With --from-mergekit, merge whole checkpoints by a data-free method, as mergekit's YAML
    describes it, into a folder.

    
    Example:
      tintray run examples/digits.yaml --set fit.rounds=50
      tintray run --from-mergekit ties.yaml --output merged
    """
    if mergekit is not None or output is not None or memory is not None:
        if mergekit is None or output is None or job is not None or overrides:
            raise click.UsageError(
                "--from-mergekit FILE goes with --output DIR, without JOB.yaml and --set"
            )
        written = _run_mergekit(mergekit, output, memory or "4GiB")
        answer(str(written), {"path": str(written)}, as_json=as_json)
        return
    if job is None:
        raise click.UsageError("Missing argument 'JOB.yaml'.")
    from tintray.jobs.cli.tables import print_next, print_summary
    from tintray.jobs.config.job_file import load_spec
    from tintray.jobs.display.progress import watch

    spec = load_spec(job, overrides)
    with quiet_stdout(), watch() as on_event:
        from tintray.jobs import api

        summary = api.run(spec, on_event=on_event)

    def render(summary: MergeSummary, console: Console) -> None:
        print_summary(summary, console)
        print_next(_next_commands(summary, spec), console)

    write(summary, render, as_json=as_json)


def _run_mergekit(file: Path, output: Path, memory: str) -> Path:
    from tintray.jobs.display.progress import watch

    with quiet_stdout(), watch() as on_event:
        from tintray.jobs import api

        return api.compose(file, output, memory=memory, on_event=on_event)


def _next_commands(summary: MergeSummary, spec: JobSpec) -> dict[str, str]:
    """What to type next, complete with the store where it is not the default one."""
    from tintray.jobs.config.settings import default_catalog, default_store
    from tintray.storage.secrets import shown_url

    words = [f"{summary.name}/{summary.version}"]
    store = default_store()
    if spec.store != store:
        store = spec.store
        words += ["--store", store]
    if spec.catalog != default_catalog(store):
        words += ["--catalog", shown_url(spec.catalog)]
    merge = shlex.join(words)
    return {
        f"tintray show {merge}": "this table again",
        f"tintray compare {merge}": "beside the experts, averaging and task arithmetic",
        f"tintray export {merge} --task {summary.tasks[0].name} DIR": "a plain model of one task",
    }


@click.command()
@job_argument
@set_option
@json_option
@debug_option
def validate(job: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check JOB.yaml and all that it refers to; nothing is written.

    One example of each task is run, so that what passes here does not fail in run for its input.

    \b
    Example:
      tintray validate examples/digits.yaml
    """
    from tintray.jobs.cli.tables import print_validation
    from tintray.jobs.config.job_file import load_spec

    spec = load_spec(job, overrides)
    with quiet_stdout():
        from tintray.jobs import api

        report = api.validate(spec)
    write(report, print_validation, as_json=as_json)
