"""A published merge as its commands answer: a line for each task, and means over them."""

from __future__ import annotations

from collections.abc import Sequence

from tintray.jobs.results import EvalTable, MergeSummary, TaskResult
from tintray.published.files import tint_file
from tintray.published.manifest import Manifest, TaskEntry
from tintray.tasks.evaluation import Overall, TaskScore, mean, overall
from tintray.tasks.metrics import find_metric


def means(tasks: Sequence[TaskEntry], scores: Sequence[TaskScore] | None = None) -> Overall:
    """Means over tasks as a manifest has them: of their own scores, or of these."""
    guessing = [task.name for task in tasks if task.expert.at_chance]
    measured = [task.task_score for task in tasks] if scores is None else scores
    return overall(measured, guessing)


def task_result(task: TaskEntry, score: TaskScore) -> TaskResult:
    """A line of the table: what the manifest says of a task, and a measurement of it."""
    labelled = score.metric != "agreement"
    return TaskResult(
        name=task.name,
        kind=task.kind,
        metric=score.metric,
        merged=score.merged,
        expert=score.expert if labelled else None,
        agreement=score.agreement,
        normalised=score.normalised,
        tint_parameters=task.tint_parameters,
        tint_bytes=_bytes(task),
        tint_bits=task.tint_bits,
        test_examples=score.examples,
        selected_fraction=task.selected_fraction,
        calibration=score.calibration,
        lower_is_better=find_metric(score.metric).lower,
        at_chance=task.expert.at_chance,
        held_back=task.held_back,
    )


def _bytes(task: TaskEntry) -> int:
    """Bytes of what a task owns; of merges that do not tell, in float32."""
    return task.tint_bytes or 4 * task.tint_parameters


def summary(manifest: Manifest, url: str) -> MergeSummary:
    """What ``tintray show`` tells of a published merge."""
    tasks, files = manifest.tasks, manifest.files
    own = [tint_file(task.name) for task in tasks]  # a stranger's manifest may lack one
    tint = {task.name: task.tint_parameters for task in tasks}
    of_all = means(tasks)
    return MergeSummary(
        name=manifest.name,
        version=f"v{manifest.version}",
        url=url,
        job_id=manifest.job_id,
        created=manifest.created,
        site=manifest.site,
        tasks=[task_result(task, task.task_score) for task in tasks],
        average=of_all.average,
        expert_average=of_all.expert_average,
        normalised_accuracy=of_all.normalised_accuracy,
        backbone_parameters=manifest.backbone_parameters,
        tint_parameters_per_task=tint,
        tint_share=mean(list(tint.values())) / manifest.backbone_parameters,
        tint_bytes=round(mean([files[name].size if name in files else 0 for name in own])),
        tint_bytes_share=mean([_bytes(task) for task in tasks]) / 4 / manifest.backbone_parameters,
        head_parameters=sum(task.head_parameters for task in tasks),
        rounds=manifest.rounds,
        seconds=manifest.seconds,
        peak_memory_mib=manifest.peak_memory_mib,
        parent=manifest.parent,
        method=manifest.job.merge.method,
        skipped=manifest.skipped,
        notices=manifest.notices,
        floor=None if manifest.floor is None else manifest.floor.model_dump(),
    )


def evaluation(manifest: Manifest, scores: Sequence[TaskScore]) -> EvalTable:
    """What ``tintray eval`` tells: a merge's tasks, measured again in their order."""
    of_all = means(manifest.tasks, scores)
    return EvalTable(
        merge=manifest.ref,
        tasks=[task_result(*pair) for pair in zip(manifest.tasks, scores, strict=True)],
        average=of_all.average,
        expert_average=of_all.expert_average,
        normalised_accuracy=of_all.normalised_accuracy,
    )
