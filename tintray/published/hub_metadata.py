"""What the Hugging Face hub reads at the head of a model card: YAML between two lines of dashes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tintray.errors import printable
from tintray.published.files import config_file
from tintray.published.manifest import Manifest, TaskEntry

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_PIPELINES = {
    "token_classification": "token-classification",
    "language_modelling": "text-generation",
    "segmentation": "image-segmentation",
    "depth": "depth-estimation",
}
_OF_KIND = {"classification": "classification", "multi_label": "classification"}


def front_matter(manifest: Manifest, tasks: Sequence[TaskEntry], licence: str | None = None) -> str:
    """The metadata of a card for these tasks of a merge."""
    import yaml

    text = yaml.safe_dump(metadata(manifest, tasks, licence), sort_keys=False, width=1000)
    return f"---\n{text}---"


def metadata(
    manifest: Manifest, tasks: Sequence[TaskEntry], licence: str | None = None
) -> dict[str, Any]:
    """The fields, as the hub's ``ModelCardData`` names them; what is not known is left out."""
    alone = len(tasks) == 1 and not manifest.job.factory
    found: dict[str, Any] = {
        "library_name": "transformers" if alone else "tintray",
        "tags": ["merge", "model-merging", "tintray"],
    }
    sources = [str(manifest.base.source), *(str(task.expert.source) for task in tasks)]
    if models := [source for source in dict.fromkeys(sources) if _HUB_ID.fullmatch(source)]:
        found |= {"base_model": models, "base_model_relation": "merge"}
    if licence is not None:
        found["license"] = licence
    pipelines = [pipeline_of(manifest, task) for task in tasks]
    if pipelines[0] is not None and len(set(pipelines)) == 1:
        found["pipeline_tag"] = pipelines[0]
    results = [_result(task, pipeline) for task, pipeline in zip(tasks, pipelines, strict=True)]
    return found | {"model-index": [{"name": manifest.name, "results": results}]}


def pipeline_of(manifest: Manifest, task: TaskEntry) -> str | None:
    """What the hub calls a task's pipeline; None where it has no name for it."""
    if task.kind in _PIPELINES:
        return _PIPELINES[task.kind]
    if task.kind not in _OF_KIND:
        return None
    images = config_file(task.name, "preprocessor_config.json") in manifest.files
    texts = config_file(task.name, "tokenizer_config.json") in manifest.files
    return f"{'image' if images else 'text'}-classification" if images != texts else None


def _result(task: TaskEntry, pipeline: str | None) -> dict[str, Any]:
    score = task.score
    named = {metric: figures[0] for metric, figures in score.details.items()}
    named = named or {score.metric: score.merged}
    metrics = [
        {"type": printable(metric), "value": value, "name": printable(metric)}
        for metric, value in named.items()
    ]
    if "agreement" not in named:
        told = {"type": "agreement", "value": score.agreement, "name": "agreement with the expert"}
        metrics.append(told)
    return {
        "task": {"type": pipeline or task.kind.replace("_", "-")},
        "dataset": {"name": task.name, "type": task.name.lower()},
        "metrics": metrics,
    }
