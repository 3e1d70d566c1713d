"""Surgery on the tasks of a merge, spread over a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from tintray.jobs.engine.arrays import Arrays, Floats, as_arrays, as_tensors, readable
from tintray.jobs.engine.backend import ON_CPUS, Backend, Where, as_argument
from tintray.jobs.engine.configs import TaskConfig
from tintray.jobs.engine.task_files import TaskFiles
from tintray.merging import surgery
from tintray.models.loading import load_expert
from tintray.models.structure import copy_on
from tintray.numerics.layout import Layout
from tintray.numerics.randomness import stream
from tintray.pools import sequences
from tintray.tasks.evaluation import TaskScore, calibrated_score
from tintray.tinting.self_labels import known_by, observe, predict

Operated = tuple[Arrays, TaskScore, Arrays]
"""A task after surgery: its module's tensors, how the merge does with it, and its reference."""


class Surgeon:
    """A member that operates on one task after the other, on ``device``; it keeps nothing."""

    def __init__(self, layout: Layout, seed: int, device: str = "cpu") -> None:
        self._layout, self._seed, self._device = layout, seed, device

    def operate(self, task: TaskConfig, theta: Floats) -> Operated:
        """Learn a task's module under the backbone θ [P], and measure the task with it."""
        files, device = TaskFiles.open(task), self._device
        stored = load_expert(files.folder, task.role, device=device, as_stored=True)
        module = copy_on(stored, device).requires_grad_(False)
        pool = sequences.completed(module, files.pool(), device)
        test = files.test(module)
        measured = pool if test is None else test
        wanted = surgery.features(module, pool)
        expert = predict(module, measured, task.kind, device=device)
        for name, tensor in self._layout.views(readable(theta)).items():
            module.get_parameter(name).copy_(tensor)
        generator = stream(self._seed, task.name, "surgery")
        found = surgery.learn(surgery.features(module, pool), wanted, generator)
        surgery.attach(module, found)
        observed = None
        if task.kind.writes:
            answers = predict(module, measured, task.kind, device=device)
        else:
            answers, observed = observe(module, measured, task.kind, device=device)
        labels = None if test is None else files.labels("test", test, module)
        score = calibrated_score(task.name, task.kind, answers, expert, labels, measured.mask)
        reference = None
        if observed is not None:
            reference = known_by(module, measured, task.kind, observed, score, device=device)
        return as_arrays(found), score, as_arrays(reference.tensors() if reference else {})


def operate_on_all(
    backend: Backend,
    layout: Layout,
    seed: int,
    tasks: Sequence[TaskConfig],
    backbones: Mapping[str, Floats],
    where: Where = ON_CPUS,
) -> tuple[dict[str, dict[str, Tensor]], list[TaskScore], dict[str, dict[str, Tensor]]]:
    """Each task's module, its score, and its reference, in the order of the tasks.

    ``backbones`` is θ [P] by task, or under ``""`` for all.
    """
    shared = {name: as_argument(backend.put(theta)) for name, theta in backbones.items()}
    thetas = [shared[task.name if task.name in shared else ""] for task in tasks]
    placement, known = where.placement("surgeon"), (layout, seed, where.device)
    with backend.spread(len(tasks), placement, Surgeon, *known) as surgeons:
        each = zip(surgeons, tasks, thetas, strict=True)
        found = backend.get([one.call(Surgeon.operate, task, theta) for one, task, theta in each])
    made = {task.name: as_tensors(of) for task, (of, _, _) in zip(tasks, found, strict=True)}
    references = {task.name: as_tensors(of) for task, (_, _, of) in zip(tasks, found, strict=True)}
    return made, [score for _, score, _ in found], references
