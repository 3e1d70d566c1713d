"""The commands on serving: serve, and what is asked of a server that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tintray.jobs.cli.helping import Group
from tintray.jobs.cli.options import (
    Answer,
    Later,
    Version,
    command,
    debug_option,
    factory_option,
    help_text,
    merge_argument,
    place_options,
    say,
    signed_option,
)

if TYPE_CHECKING:
    from tintray.jobs.serving import options as serving
    from tintray.jobs.serving import start
else:
    serving, start = Later("serving.options"), Later("serving.start")


class Percent(click.ParamType[float]):
    """A share such as ``5%``."""

    name = "percent"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The share, from 0 to 1."""
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%").strip()) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 < share < 1:
            self.fail(f"expected a share such as 5%, found {value!r}", param, ctx)
        return share


class Serving(Group):
    """``serve MERGE`` starts a server; ``serve status`` asks one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """What is no command of its own is the merge to be served."""
        return super().resolve_command(ctx, args if args[0] in self.commands else ["start", *args])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Options may come before the merge."""
        known = {"-h", "--help", "--debug"}
        if args and args[0].startswith("-") and args[0] not in known:
            args = ["start", *args]
        return super().parse_args(ctx, args)


def _number(name: str, default: Any, about: str, least: int = 1, most: int | None = None) -> Any:
    shown = click.IntRange(least, most) if isinstance(default, int) else click.FloatRange(least)
    return click.option(name, default=default, show_default=True, type=shown, help=about)


@command(
    "",
    merge_argument,
    click.option(
        "--address",
        metavar="ADDRESS",
        help="The Ray cluster that has the replicas: auto, or HOST:PORT of its head [default: one "
        "on this machine].",
    ),
    click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen."),
    _number("--port", 8000, "The port there.", 0, 65535),
    _number("--replicas", 1, "Copies of the model; 0 answers in this process, without Ray.", 0),
    _number("--threads", 1, "Threads of each pass."),
    _number("--passes", 0, "Passes that a replica computes at once; 0: as cores allow.", 0),
    _number("--max-batch-size", 32, "Examples of one pass."),
    _number("--batch-wait-ms", 2.0, "While some are computed, an example waits this long.", 0),
    _number("--max-queued", 256, "Examples that wait; who comes then is told to come again."),
    _number("--max-body", 32 * 2**20, "Bytes of a request."),
    _number("--max-examples", 256, "Examples of a request."),
    _number("--max-pixels", 16 * 2**20, "Pixels of an image."),
    _number("--max-characters", 100_000, "Characters of a text."),
    _number("--timeout", 30.0, "Seconds that an answer may take.", 1),
    click.option(
        "--tint-memory",
        metavar="AMOUNT",
        help="Tints that each replica keeps: an amount such as 64MiB, or a number of tasks "
        "[default: all].",
    ),
    click.option("--pin", type=Version(), metavar="VERSION", help="Serve this version alone."),
    click.option(
        "--canary",
        type=Percent(),
        metavar="SHARE",
        help="Give a new version this share of requests, such as 5%, until it is promoted.",
    ),
    _number("--observe", 0, "Answers of each task to keep figures of, for tintray monitor.", 0),
    _number("--poll", 5.0, "Seconds between looks for a new version.", 0),
    place_options,
    factory_option,
    signed_option,
    name="start",
    example="""serve start ten-scripts
serve ten-scripts --replicas 2 --canary 5%
serve ten-scripts/v3 --tint-memory 64MiB""",
)
def start_(merge: str, store: str, catalog: str, canary: float | None, **given: Any) -> Answer:
    """Serve all tasks of MERGE over HTTP until Ctrl-C.

    A name is followed: a new version is taken up as soon as it is published. A name with its
    version is not. Whoever is not on this machine needs the token in TINTRAY_SERVE_TOKEN.
    """
    chosen = serving.ServeOptions(canary=canary or 0.0, **given)
    start.serve(merge, chosen, catalog=catalog, say=lambda text: say(text, err=True))
    return Answer({"served": merge}, text="stopped")


_url_option = click.option(
    "--url", default="http://127.0.0.1:8000", show_default=True, help="The server."
)


@command("serving_tables.print_status", _url_option, example="serve status")
def status(url: str) -> Answer:
    """Show which versions answer, and each task's metric in them."""
    return Answer(start.ask(url, "/v1/versions"))


@command("", _url_option, example="serve promote")
def promote(url: str) -> Answer:
    """Let the version that is being tried answer everything."""
    found = start.ask(url, "/v1/versions:promote", change=True)
    return Answer(found, text=f"{found['promoted']} answers everything now")


@command("", _url_option, example="serve abort")
def abort(url: str) -> Answer:
    """Let the version that is being tried go."""
    found = start.ask(url, "/v1/versions:abort", change=True)
    return Answer(found, text=f"{found['aborted']} is not tried any more")


serve = debug_option(
    Serving(
        "serve",
        commands=[start_, status, promote, abort],
        help=help_text(
            "Serve all tasks of a merge over HTTP.\n\nserve MERGE starts a server; the commands "
            "below ask one that runs.",
            "serve ten-scripts\nserve status",
        ),
    )
)
