"""The command that helps to write a job file: fields."""

from __future__ import annotations

import click

from tintray.jobs.cli.options import Answer, command


@command(
    "field_tables.print_fields",
    click.argument("path", metavar="[SECTION[.FIELD]]", required=False, default=""),
    click.option(
        "--schema",
        type=click.Choice(("job", "tasks", "configuration")),
        help="Print the JSON schema of these files instead, for an editor.",
    ),
    quick=True,
    example="""fields fit
fields tint.budget
fields --schema job > job.schema.json""",
)
def fields(path: str, schema: str | None) -> Answer:
    """Look up the fields of a job file, and the settings.

    All of them, those of a section, or one with all that is known of it: meaning, type, values,
    default, example. The settings are the section `configuration`.
    """
    from tintray.jobs.config import reference

    if schema is None:
        return Answer(reference.find(path))
    if path:
        raise click.UsageError("--schema prints the whole schema; leave out SECTION")
    import json

    text = reference.schema_file(schema).read_text(encoding="utf-8")
    return Answer(json.loads(text), text=text.rstrip("\n"))
