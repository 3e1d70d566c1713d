"""The commands that the documentation shows, and a folder in which they find what they name."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
from PIL import Image

from examples.digits import TASKS as DIGITS
from tests.answers import COMMANDS, call
from tests.sorts import CLASSES, make_zoo, write_yaml
from tests.test_imports import ROOT
from tintray.jobs.cli import cli

SHOWN = re.compile(r"^(?: {4,}|- run: |)tintray (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$|((?:^ {4}[^\n]*\n|^\n)+)", re.MULTILINE | re.DOTALL)
NAMES = dict(zip(CLASSES, ("mnist", "svhn", "eleventh"), strict=True))
OWN = dict(zip(CLASSES, ("flowers", "birds", "signs"), strict=True))


def shown(text: str) -> Iterator[list[str]]:
    """The words of each command in the blocks of a page, in its order."""
    for language, fenced, indented in BLOCK.findall(text):
        block = indented if language not in ("", "sh", "yaml") else fenced or indented
        for line in SHOWN.findall(block.replace("\\\n", " ")):
            if line.split()[0] not in cli.commands:  # prose in a list
                continue
            words = shlex.split(line, comments=True)
            while "&&" in words:
                end = words.index("&&")
                yield words[:end]
                words = words[end + 2 :]  # behind the && and `tintray`
            yield words[: words.index(">")] if ">" in words else words


@patch.dict(os.environ)  # what an option allows is a variable of the process
def parsed(words: list[str]) -> str:
    """The name of the command, if click takes all of the words; else a usage error."""
    command: click.Command = cli
    context, rest = click.Context(cli, info_name="tintray"), words
    while isinstance(command, click.Group):
        context = command.make_context(str(command.name), [*rest], parent=context)
        name, found, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert found is not None, name
        command = found
    command.make_context(str(command.name), [*rest], parent=context)
    return next(name for name, known in COMMANDS.items() if known is command)


def make_world(folder: Path) -> None:
    """What the pages name: zoos, data, job files, and published merges, below ``folder``.

    All of it is of models that were never trained, and fits of two rounds in this process.
    """
    pictures = make_zoo("pictures", _made(folder / "scratch/pictures"))
    _zoo(pictures, folder / "zoo", NAMES, folder / "data")
    shutil.copytree(folder / "zoo/mnist", folder / "zoo/mnist-2")
    shutil.copy(folder / "data/mnist.npz", folder / "new.npz")
    with np.load(folder / "new.npz") as found:
        for number, image in enumerate(found["x_test"]):
            file = folder / f"new/{number % 3}/{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    shutil.copy(folder / "data/svhn.npz", folder / "signs.npz")
    shutil.copy(folder / "data/svhn.npz", folder / "camvid64.npz")
    _zoo(pictures, folder / "models", OWN, folder / "models/data")
    shutil.copytree(folder / "models/data", folder / "data", dirs_exist_ok=True)
    digits = dict.fromkeys(DIGITS, "one")
    for name in digits:
        _zoo(pictures, folder / "zoo/digits", {"one": name}, folder / "zoo/digits/data")
    shutil.copytree(ROOT / "examples", folder / "examples")
    for zoo, own in (("adapters", "adapters"), ("sentences", "texts"), ("scenes", "scenes")):
        _zoo(make_zoo(zoo, _made(folder / "scratch" / zoo)), folder / own, OWN)
    for name, source in (("llama", "base"), ("llama-math", "flowers"), ("llama-code", "birds")):
        shutil.copytree(folder / "texts" / source, folder / name)
    models = [{"model": str(folder / f"llama-{name}")} for name in ("math", "code")]
    recipe = {"merge_method": "ties", "base_model": str(folder / "llama"), "models": models}
    recipe["parameters"] = {"density": 0.5, "weight": 1}
    for name in ("recipe.yml", "ties.yaml"):
        write_yaml(folder / name, recipe)
    tasks = {name: _task(folder, name) for name in NAMES.values()}
    write_yaml(folder / "eleventh.yaml", tasks["eleventh"])
    job = {"name": "ten-scripts", "base": "zoo/base", "tasks": [tasks["mnist"], tasks["svhn"]]}
    growth: dict[str, Any] = dict.fromkeys(("rounds", "coefficient_rounds", "refit_rounds"), 2)
    job |= {"fit": {"rounds": 2, "batch_size": 3, "precision": "float32", "floor": False}}
    job |= {"cluster": {"workers": 0}, "growth": growth | {"target": 0.01, "tolerance": 100}}
    write_yaml(folder / "job.yaml", job)


def publish() -> None:
    """Make, in the current folder, the merges and the key that the pages speak of."""
    for name in (".ssh", ".config/tintray"):
        Path("home", name).mkdir(parents=True)
    assert call("new-key", "home/.ssh/id_ed25519").code == 0
    for name in ("ten-scripts", "digits"):
        assert call("run", "job.yaml", "--set", f"name={name}").code == 0
        assert call("add-task", name, "eleventh.yaml").code == 0
        for _ in range(2):
            assert call("rollback", name, "--to", "v1").code == 0
        assert call("alias", f"{name}@production", "v1").code == 0


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _task(folder: Path, name: str) -> dict[str, Any]:
    pool = {"path": f"data/{name}.npz", "split": "train"}
    return {"name": name, "expert": f"zoo/{name}", "pool": pool, "test": {**pool, "split": "test"}}


def _zoo(source: Path, target: Path, names: dict[str, str], data: Path | None = None) -> None:
    """A zoo of ``tests.sorts`` with the names that a page has; each task's images in one file."""
    shutil.copytree(source / "base", target / "base", dirs_exist_ok=True)
    for old, new in names.items():
        shutil.copytree(source / old, target / new)
        if data is None:
            for file in source.glob(f"{old}_*"):
                shutil.copy(file, target / file.name.replace(old, new, 1))
            continue
        data.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {}
        for split in ("train", "test"):
            with np.load(source / f"{old}_{split}.npz") as found:
                images, labels = found["x_train"], found["y_train"]
            # Routers and checks need more examples than that zoo has.
            arrays[f"x_{split}"] = np.concatenate([images, 255 - images, images // 2])
            arrays[f"y_{split}"] = np.concatenate([labels] * 3)
        np.savez(data / f"{new}.npz", **arrays)
