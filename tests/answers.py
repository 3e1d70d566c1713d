"""Commands run in this process, and what they say."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import click

from tintray.jobs.cli import cli, main

COMMANDS: dict[str, click.Command] = dict(cli.commands)
"""Every command by its words, those of groups too."""
for _name, _command in cli.commands.items():
    if isinstance(_command, click.Group):
        COMMANDS |= {f"{_name} {inner}": found for inner, found in _command.commands.items()}


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as JSON, of a command that went well."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """The one sentence of a command that was refused."""
        assert (self.code, self.out) == (2, ""), self.err
        last = self.err.strip().splitlines()[-1]
        assert last.startswith("error: "), self.err
        assert "Traceback" not in self.err
        return last


def call(*words: object) -> Answer:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(word) for word in words])
    return Answer(code, out.getvalue(), err.getvalue())
