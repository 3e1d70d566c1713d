"""What a surface is: a kind of input that somebody else may have written, and who reads it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from unittest import mock

from tintray.errors import TintrayError
from tintray.jobs import cli

Files = dict[str, bytes]
"""One input: the files that it consists of, by their names below the folder it is put in."""

LINK, PIPE, FOLDER = b"\0a link to ", b"\0a pipe", b"\0a folder"
"""How the content of what is no regular file begins; a link's target follows."""

_TARGETS = ("/dev/zero", "/etc/passwd", "../../../../../outside/secret", ".", "loop", "nowhere")


class UnansweredError(Exception):
    """A command that ended otherwise than with a result or with one sentence."""


@dataclass(frozen=True)
class Bench:
    """Where an input is tried: its own folder, which is the current one, and what it refers to."""

    folder: Path
    fixtures: Path  # see ``fixtures``; only to be read
    refusals: list[Exception] = field(default_factory=list)  # besides the one that is raised

    def content(self, name: str) -> bytes:
        """The content of a file of the input; of what is none, nothing."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() and not path.is_symlink() else b""

    def each(self, *calls: Callable[[], object]) -> None:
        """Make every call, whatever the others refuse; the refusals are looked at afterwards."""
        for call in calls:
            try:
                call()
            except TintrayError as error:
                self.refusals.append(error)

    def command(self, *words: object) -> int:
        """Run a whole command in this process; its exit code.

        Raises
        ------
        UnansweredError
            It ended with an internal error, or with a code that stands for nothing.
        """
        with mock.patch.object(cli, "_explain", wraps=cli._explain) as explain:
            code = cli.main([str(word) for word in words])
        if explain.called and not isinstance(error := explain.call_args.args[0], TintrayError):
            raise UnansweredError(f"tintray {words[0]}") from error
        if code not in range(6):
            raise UnansweredError(f"tintray {words[0]} ended with {code}")
        return code


Drive = Callable[[Bench], object]
"""Does with an input what commands do; raises a TintrayError for what is wrong with it."""

Drives = dict[str, tuple[float, Drive]]
"""Who reads an input, by name, each with its share of the inputs."""


def command(words: str) -> Drive:
    """Runs a command whose ``words`` may name ``{folder}`` and ``{fixtures}``."""
    return lambda bench: bench.command(
        *words.format(folder=bench.folder, fixtures=bench.fixtures).split()
    )


@dataclass(frozen=True)
class Surface:
    """A kind of foreign input.

    Attributes
    ----------
    weight
        How many inputs it gets, beside the other surfaces.
    seeds
        Valid inputs, given the fixtures; the first drive takes each of them.
    mutate
        A damaged copy of a seed, given all seeds.
    drives
        Who reads it.
    confined
        Whether it may not even name a file elsewhere that is then read.
    folder
        Whether it is a folder that is read as one, in which links and pipes may lie.
    """

    name: str
    weight: float
    seeds: Callable[[Path], Sequence[Files]]
    mutate: Callable[[Random, Files, Sequence[Files]], Files]
    drives: Drives
    confined: bool = True
    folder: bool = False

    def make(self, seed: int, number: int, seeds: Sequence[Files]) -> tuple[Files, str]:
        """The input of a number, and the drive that reads it; the same ones at any time."""
        rng = Random(f"{seed} {self.name} {number}")
        files = self.mutate(rng, dict(rng.choice(seeds)), seeds)
        if self.folder and rng.random() < 0.04:
            link = LINK + rng.choice(_TARGETS).encode()
            files[rng.choice(list(files))] = rng.choice((link, link, PIPE, FOLDER))
        names = list(self.drives)
        return files, rng.choices(names, [self.drives[name][0] for name in names])[0]


def lay(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write an input's files into its folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith(LINK):
            path.symlink_to(content.removeprefix(LINK).decode())
        elif content == PIPE:
            os.mkfifo(path)
        elif content == FOLDER:
            path.mkdir()
        else:
            path.write_bytes(content)
