"""The router of a published merge, from what is kept of each task's pool."""

from __future__ import annotations

from tintray.errors import InputError, NotFoundError
from tintray.published.files import MergeFiles, config_file, routing_file
from tintray.routing.router import FALSE_REJECTION, Router
from tintray.routing.statistics import TaskStatistics

_PREPARES = "preprocessor_config.json"


def check_routable(merge: MergeFiles) -> None:
    """Refuse a merge that cannot tell which task an example is of; no statistics are read.

    Raises NotFoundError if nothing is kept of some task; InputError if tasks prepare their inputs
    in different ways.
    """
    tasks = [task.name for task in merge.manifest.tasks]
    without = [name for name in tasks if routing_file(name) not in merge.manifest.files]
    if without:
        raise NotFoundError(
            f"{merge.url} cannot tell which task an example is of: nothing is kept of the pool of "
            f"{', '.join(without[:5])}; `tintray add-router {merge.manifest.ref}` computes it, for "
            "tasks of images or texts with 8 pool examples at least"
        )
    _check_prepared_alike(merge, tasks)


def open_router(merge: MergeFiles, false_rejection: float = FALSE_REJECTION) -> Router:
    """The router of a merge's tasks.

    Raises as ``check_routable``; InputError if tasks take inputs of different forms; IntegrityError
    for a damaged file.
    """
    check_routable(merge)
    read = {}
    for name in (task.name for task in merge.manifest.tasks):
        file = routing_file(name)
        read[name] = TaskStatistics.read(merge.tensors(file), f"{merge.url}/{file}")
    forms = sorted({form for form, _ in read.values()})
    if len(forms) > 1:
        raise InputError(
            f"{merge.url}: its tasks are described as {' and as '.join(forms)}, which cannot be "
            f"compared; run `tintray add-router {merge.manifest.ref}`"
        )
    return Router({name: known for name, (_, known) in read.items()}, false_rejection)


def _check_prepared_alike(merge: MergeFiles, tasks: list[str]) -> None:
    """Refuse images that one task would see in another size or scale than the next."""
    files = {name: merge.manifest.files.get(config_file(name, _PREPARES)) for name in tasks}
    known = {name: file.sha256 for name, file in files.items() if file is not None}
    if len(set(known.values())) < 2:
        return
    first, *others = known
    expected = merge.json(config_file(first, _PREPARES))
    for name in others:
        if merge.json(config_file(name, _PREPARES)) != expected:
            raise InputError(
                f"{merge.url}: the experts of '{first}' and '{name}' prepare images in different "
                "ways (preprocessor_config.json), so that one input cannot be of either; name the "
                "task of each example"
            )
