"""What is asked of a merge: tasks to add, to refresh or to remove, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tintray.errors import InputError, NotFoundError, SpecError, nearest
from tintray.jobs.config.documents import Document, read_document
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.section import Section
from tintray.jobs.config.task_sections import TaskSpec

Operation = Literal["add", "refresh", "remove"]


class TasksFile(Section):
    """A file with tasks to add; they are written as in a job file."""

    tasks: tuple[TaskSpec, ...] = Field(min_length=1, strict=False)
    """The tasks, each with its expert."""


@dataclass(frozen=True)
class Change:
    """What becomes of a merge's tasks."""

    operation: Operation
    names: tuple[str, ...]  # of the tasks that the change is about
    tasks: tuple[TaskSpec, ...] = ()  # to add, or the refreshed ones as they shall be

    def applied(self, spec: JobSpec, merge: str) -> JobSpec:
        """The job with the change made; ``merge`` is what messages call the parent.

        Raises SpecError if a task to add is there already, or twice; NotFoundError if a task to
        refresh or to remove is not there, with the nearest name; InputError if no task would be
        left.
        """
        if self.operation == "add":
            present = {task.name.lower(): task.name for task in spec.tasks}
            for name in self.names:
                if name.lower() in present:
                    raise SpecError(
                        f"task '{present[name.lower()]}' is in {merge} already; give the new task "
                        "another name, or `tintray refresh-task` the one that is there"
                    )
            return spec.with_tasks((*spec.tasks, *self.tasks))
        for name in self.names:
            _task(spec, name, merge)
        instead = {task.name: task for task in self.tasks}
        left = [t for t in spec.tasks if self.operation == "refresh" or t.name not in self.names]
        if not left:
            raise InputError(
                f"{merge} would have no task left; expected one at least, remove the merge itself "
                "with `tintray delete`"
            )
        return spec.with_tasks([instead.get(task.name, task) for task in left])

    def __str__(self) -> str:
        return f"{self.operation} {', '.join(self.names)}"


def part_of(spec: JobSpec, names: Sequence[str]) -> JobSpec:
    """The job of some of its tasks."""
    return spec.with_tasks([task for task in spec.tasks if task.name in set(names)])


def _task(spec: JobSpec, name: str, merge: str) -> TaskSpec:
    names = [task.name for task in spec.tasks]
    if name not in names:
        raise NotFoundError(
            f"{merge} has no task '{name}'{nearest(name, names)}; it has {', '.join(names)}"
        )
    return spec.tasks[names.index(name)]


def read_tasks(path: Path) -> tuple[TaskSpec, ...]:
    """The tasks in a file: one task's section, a list of them, or a job file's ``tasks``.

    Relative paths start from the file's folder.

    Raises SpecError if the file cannot be read, or a field is missing, misspelt or out of range.
    """
    document, folder = read_document(path), path.absolute().parent
    value = document.value
    if isinstance(value, Mapping):
        if "tasks" not in value:
            return (TaskSpec.read(document, folder),)
        value = value["tasks"]  # a whole job file gives its tasks
    return TasksFile.read(replace(document, value={"tasks": value}), folder).tasks


def refreshed(
    spec: JobSpec, name: str, merge: str, *, expert: str | None, pool: str | None, folder: Path
) -> Change:
    """A task anew: with another expert or another pool, or with what lies there by now.

    ``merge`` is what messages call it. ``expert`` and ``pool`` are locations, relative paths start
    from ``folder``; left out, they stay where they are.

    Raises SpecError if a location leads nowhere; NotFoundError if the merge has no such task.
    """
    task = _task(spec, name, merge)
    record: dict[str, Any] = task.model_dump(mode="json")
    changed: dict[str, Any] = {}
    if expert is not None:
        changed["expert"] = expert
    if pool is not None:
        changed["pool"] = {**record["pool"], "path": pool}
    located = TaskSpec.read(Document(f"task '{name}'", record | changed), folder)
    # What was not given keeps the location that it was resolved to.
    anew = task.changed(**{field: getattr(located, field) for field in changed})
    return Change("refresh", (name,), (anew,))


def overridden(spec: JobSpec, overrides: Sequence[str]) -> JobSpec:
    """The job with ``--set`` overrides of its section ``growth`` laid over it.

    Raises SpecError if an override names another section, or its value is out of range.
    """
    document = Document("the merge's job", spec.model_dump(mode="json"))
    for text in overrides:
        if not text.strip().startswith("growth."):
            raise SpecError(
                f"--set {text}: expected a field of 'growth', such as growth.target=0.9; what a "
                "merge was fitted with stays"
            )
        document = document.override(text)
    return spec.changed(growth=JobSpec.read(document).growth)
