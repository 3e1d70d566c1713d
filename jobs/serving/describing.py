"""What the server says of itself: its tasks, and examples of requests for OpenAPI."""

from __future__ import annotations

from typing import Any

from tintray.errors import TintrayError
from tintray.published.manifest import TaskEntry
from tintray.published.merge import Merge
from tintray.published.routing import check_routable
from tintray.serving.answers import class_names
from tintray.serving.engine import AUTO
from tintray.tasks.metrics import shown
from tintray.tasks.registry import find_kind

ABOUT = (
    "One merged model, all of its tasks. Send inputs of a task to /v1/tasks/{task}:predict, or of "
    "several tasks to /v1/predict; each answer names its task and the version that gave it."
)
_IMAGE = "<base64 of a PNG or JPEG file>"
_INPUT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "task": {"type": "string", "description": "A name of GET /v1/tasks; auto finds it."},
        "image": {"type": "string", "description": "A file, in base64."},
        "text": {"type": "string"},
        "text_pair": {"type": "string", "description": "The second of a pair of texts."},
        "words": {"type": "array", "items": {"type": "string"}},
        "array": {"type": "array", "description": "An image as numbers [height][width][3]."},
    },
}


def _body(examples: dict[str, Any], *, form: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["inputs"],
        "properties": {"inputs": {"type": "array", "items": _INPUT}},
    }
    fields = {"task": {"type": "string"}} if form == "mixed" else {}
    files: dict[str, Any] = {"image": {"type": "string", "format": "binary"}}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": schema, "examples": examples},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {**fields, **files, "text": {"type": "string"}},
                    }
                },
            },
        }
    }


ONE_TASK = _body(
    {
        "an image": {"value": {"inputs": [{"image": _IMAGE}]}},
        "two texts": {"value": {"inputs": [{"text": "fine weather"}, {"text": "rain"}]}},
        "words": {"value": {"inputs": [{"words": ["Ada", "lived", "here"]}]}},
    },
    form="one",
)
MIXED = _body(
    {
        "two tasks": {
            "value": {
                "inputs": [{"task": "mnist", "image": _IMAGE}, {"task": "signs", "image": _IMAGE}]
            }
        }
    },
    form="mixed",
)


def tasks(merge: Merge) -> dict[str, Any]:
    """Every task of a merge: kind, what it takes, labels, metric and version.

    ``auto`` says whether an example can do without a task.
    """
    listed = []
    for entry in merge.manifest.tasks:
        score = entry.task_score
        listed.append(
            {
                "name": entry.name,
                "kind": entry.kind,
                "classes": entry.classes,
                "labels": class_names(merge.config(entry.name), entry.classes),
                "takes": _form(merge, entry),
                "metric": {
                    "name": score.metric,
                    "value": score.merged,
                    "expert": score.expert,
                    "agreement": score.agreement,
                    "text": _text(score),
                },
                "version": merge.manifest.ref,
            }
        )
    return {"version": merge.manifest.ref, "tasks": listed, "auto": _routes(merge)}


def _routes(merge: Merge) -> bool:
    """Whether it can tell which task an example is of; what that takes is read when one comes."""
    try:
        check_routable(merge)
    except TintrayError:
        return False
    return AUTO not in merge.tasks


def _form(merge: Merge, entry: TaskEntry) -> str:
    """What its examples are: an image, a text, or words."""
    files = {name.rpartition("/")[2] for name in merge.config_files(entry.name)}
    if find_kind(entry.kind).of_words:
        return "words"
    texts = files & {"tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json"}
    return "text" if texts and "preprocessor_config.json" not in files else "image"


def _text(score: Any) -> str:
    return f"{score.metric} {shown([score.metric], score.merged)}"
