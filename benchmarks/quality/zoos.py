"""The zoos of the quality benchmark: base, experts and data of a job file, and nothing else of it.

What a job file sets is left out: the default recipe is measured with nothing set, and every row
says itself what differs from it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tintray.errors import InputError
from tintray.jobs.config.documents import Document, read_document
from tintray.jobs.config.job_file import JobSpec, parse_spec
from tintray.jobs.config.task_sections import DataSpec, TaskSpec

EXAMPLES = Path(__file__).parents[2] / "examples"
TRIAL_POOL, TRIAL_TEST = 1200, 300  # examples per task of a trial
_SETS = ("name", "base", "tasks")  # what is taken from a job file
_SLICE = re.compile(r"(?P<split>\w+)(\[:(?P<stop>\d+)\])?")


@dataclass(frozen=True)
class Zoo:
    """A base with its experts; ``made_by`` is the command that makes them in the folder DIR."""

    name: str
    title: str
    job: str  # its file, below the folder of zoos; that of an example, if it lies in examples/
    made_by: str
    tasks: int | None = None  # spread over all of the job's; None is all

    def file(self, zoos: Path) -> Path:
        """The job file; InputError with the command that makes the zoo, if it is not there."""
        example = EXAMPLES / self.job
        path = example if example.is_file() else zoos / self.job
        folder = zoos / (self.name if example.is_file() else path.parent.name)
        if self.made_by and not folder.is_dir():
            command = self.made_by.replace("DIR", str(folder))
            raise InputError(
                f"zoo '{self.name}': expected a folder {folder}, found none; make it with "
                f"`{command}`, or name the folder of the zoos with --zoos"
            )
        return path

    def spec(self, zoos: Path, overrides: Sequence[str]) -> JobSpec:
        """The bare job with ``overrides``, in this process."""
        path = self.file(zoos)
        document = read_document(path)
        value = {key: document.value[key] for key in _SETS if key in document.value}
        if self.name == "digits":  # the example has its zoo in the current folder
            value = _moved(value, "../zoo/digits", str((zoos / "digits").resolve()))
        bare = Document(document.source, value)
        for text in (*overrides, "cluster.workers=0"):
            bare = bare.override(text)
        spec = parse_spec(bare.value, folder=path.absolute().parent)
        every = spec.tasks
        count = min(self.tasks or len(every), len(every))
        return spec.with_tasks([every[len(every) * index // count] for index in range(count)])


def _moved(value: Any, old: str, new: str) -> Any:
    """A document with ``new`` in the place of ``old`` at the start of its texts."""
    if isinstance(value, dict):
        return {key: _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    return value.replace(old, new) if isinstance(value, str) else value


_MAKE = "python -m benchmarks.zoos"
ZOOS = {
    zoo.name: zoo
    for zoo in (
        Zoo("hard", "Hard zoo: ten data sets, experts far from their base", "ten-scripts.yaml", ""),
        Zoo(
            "mild",
            "Mild zoo: the same data sets, experts near their base",
            "mild/job.yaml",
            f"{_MAKE} scripts DIR --data ../shared/data/vision",
        ),
        Zoo(
            "halves",
            "Hard zoo, retrained: pools that the experts have not seen",
            "halves/job.yaml",
            f"{_MAKE} halves DIR --data ../shared",
        ),
        Zoo(
            "text",
            "Eight texts on MiniLM",
            "text/job.yaml",
            f"{_MAKE} text DIR --data ../shared/data/text",
        ),
        Zoo(
            "dense",
            "Segmentation, depth and normals of rendered rooms",
            "scenes/job.yaml",
            f"{_MAKE} scenes DIR --data ../shared/data/dense",
        ),
        Zoo(
            "lora",
            "A hundred LoRA adapters",
            "lora/job.yaml",
            f"{_MAKE} omniglot DIR --data ../shared/data/vision/omniglot.npz --lora 4",
            tasks=100,
        ),
        Zoo(
            "many",
            "Two hundred tasks of Omniglot",
            "omniglot/job.yaml",
            f"{_MAKE} omniglot DIR --data ../shared/data/vision/omniglot.npz",
        ),
        Zoo("digits", "The demo", "digits.yaml", "python examples/digits.py DIR"),
    )
}
"""By name, in the order of the tables."""


def held_back(spec: JobSpec) -> JobSpec:
    """The job as a trial: a part of each pool to learn from, and the last fifth to be judged by.

    Judged by agreement with the expert: no label and no test set is read.
    """
    return spec.changed(tasks=[_trial_task(task) for task in spec.tasks])


def _trial_task(task: TaskSpec) -> TaskSpec:
    found = _SLICE.fullmatch(task.pool.split)
    if found is None:
        raise InputError(f"tasks.{task.name}.pool: expected all of a split, or its start")
    split, stop = found["split"], found["stop"]
    edge = f"{int(stop) * 4 // 5}" if stop else "80%"

    def part(where: str, most: int) -> DataSpec:
        return task.pool.changed(split=f"{split}[{where}]", sample=most)

    return task.changed(
        pool=part(f":{edge}", TRIAL_POOL), test=part(f"{edge}:{stop or ''}", TRIAL_TEST)
    )


def data_hash(spec: JobSpec) -> str:
    """The sha256 of all models and data files that a job refers to."""
    digest = hashlib.sha256()
    places = [spec.base, *(t.expert for t in spec.tasks), *(t.pool.path for t in spec.tasks)]
    places += [task.test.path for task in spec.tasks if task.test is not None]
    for place in dict.fromkeys(str(place) for place in places):
        digest.update(_content(Path(place)).encode())
    return digest.hexdigest()


@cache
def _content(place: Path) -> str:
    """The sha256 of a file, or of all files below a folder with their names."""
    if place.is_file():
        with place.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(path for path in place.rglob("*") if path.is_file())
    named = [f"{path.relative_to(place).as_posix()} {_content(path)}" for path in files]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()
