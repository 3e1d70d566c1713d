"""Model cards: what an exported merge is, where it comes from, how well it does, where it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Literal

from tintray.errors import printable
from tintray.limits import size_text
from tintray.published.hub_metadata import front_matter
from tintray.published.manifest import Manifest, TaskEntry
from tintray.tasks.metrics import find_metric

CARD = "README.md"

_WORDS = re.compile(r"[A-Za-z0-9 :+._-]*")

Form = Literal["model", "zero_shot", "adapter"]
"""A whole model; a CLIP tower with its head of texts in a file of its own; a PEFT adapter."""


def model_card(
    manifest: Manifest,
    task: str | None = None,
    *,
    form: Form = "model",
    usage: str = "",
    licence: str | None = None,
) -> str:
    """A card in Markdown for one task of a merge, or for the whole of it.

    Every figure is taken from the merge's manifest; nothing is computed. ``usage`` takes the place
    of how it is loaded.
    """
    tasks = [entry for entry in manifest.tasks if task in (None, entry.name)]
    parts = [
        front_matter(manifest, tasks, licence),
        f"# {manifest.ref}" if task is None else f"# {manifest.ref}: {task}",
        _what(manifest, task),
        "## How to load it",
        usage or _usage(task, tasks, manifest, form),
        "## Metrics",
        _metrics(tasks),
        "## Lineage",
        _lineage(manifest, tasks),
        "## Limits",
        _limits(manifest, tasks),
    ]
    return "\n\n".join(parts) + "\n"


def in_code(text: str) -> str:
    """Text from outside as code within a line: Markdown and HTML in it are text."""
    return "`" + printable(text).replace("`", "'") + "`"


def in_text(text: str) -> str:
    """A word from outside as it is, or as code where Markdown or HTML might read more in it."""
    return text if _WORDS.fullmatch(text) else in_code(text).replace("|", "/")


def _what(manifest: Manifest, task: str | None) -> str:
    alone = f"The model of task `{task}` of the merge {manifest.ref}, by itself. " if task else ""
    return (
        f"{alone}A merge of {len(manifest.tasks)} fine-tuned models (method "
        f"{in_code(manifest.job.merge.method)}, tint site {in_code(manifest.site)}), made by "
        f"tintray {in_text(manifest.tintray)}: one backbone of "
        f"{manifest.backbone_parameters:,} parameters that all tasks share, and one small layer "
        f"and a head per task{_owned(manifest.tasks)}."
    )


def _owned(tasks: Sequence[TaskEntry]) -> str:
    """How much the mean task owns, in numbers and, where manifests tell, in bytes."""
    numbers, size = (
        sum(getattr(task, name) for task in tasks) / len(tasks)
        for name in ("tint_parameters", "tint_bytes")
    )
    bits = sorted({task.tint_bits for task in tasks})
    stored = f", stored in {size_text(round(size))}" if size else ""
    rounded = "" if bits == [32] else f" ({' or '.join(map(str, bits))} bits a number)"
    return f" ({numbers:,.0f} parameters in the mean{stored}{rounded})"


def _usage(task: str | None, tasks: Sequence[TaskEntry], manifest: Manifest, form: Form) -> str:
    factory = manifest.job.factory
    if task is None:
        code = (
            "import tintray\n\nmerge = tintray.load(FOLDER)\n"
            f'model = merge.for_task("{tasks[0].name}")  # an ordinary module'
        )
    elif factory:
        code = (
            "from tintray.models.factories import load\n\n"
            f"model = load({json.dumps(printable(factory))}, CONFIG, "
            '[FOLDER / "model.safetensors"], "model")'
        )
    elif form == "adapter":
        code = (
            "import transformers\nfrom peft import PeftModel\n\n"
            "config = transformers.AutoConfig.from_pretrained(FOLDER)\n"
            "cls = getattr(transformers, config.architectures[0])\n"
            f"base = cls.from_pretrained({manifest.base.source!r}, config=config)\n"
            "model = PeftModel.from_pretrained(base, FOLDER)"
        )
    elif form == "zero_shot":
        code = (
            "from safetensors.torch import load_file\n"
            "from torch.nn.functional import normalize\n"
            "from transformers import CLIPVisionModelWithProjection\n\n"
            "model = CLIPVisionModelWithProjection.from_pretrained(FOLDER)\n"
            'head = load_file(FOLDER + "/zero_shot_head.safetensors")["weight"]\n'
            "logits = normalize(model(pixel_values=images).image_embeds) @ head.T"
        )
    else:
        code = (
            "from transformers import AutoConfig\nimport transformers\n\n"
            "config = AutoConfig.from_pretrained(FOLDER)\n"
            "model = getattr(transformers, config.architectures[0]).from_pretrained(FOLDER)"
        )
    return f"```python\n{code}\n```"


def _metrics(tasks: Sequence[TaskEntry]) -> str:
    lines = [
        "| task | kind | metric | merged | expert | of the expert | agreement | examples |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in tasks:
        score = task.score
        named = score.details
        if score.metric not in named:
            named = {score.metric: [score.merged, score.expert], **named}
        for metric, (merged, expert) in named.items():
            found = find_metric(metric)
            share = found.normalised(merged, expert)
            lines.append(
                f"| {task.name} | {task.kind} | {metric}"
                f"{' (less is better)' if found.lower else ''} | {merged:.4g} | {expert:.4g}"
                f" | {'-' if share is None else f'{share:.1%}'} | {score.agreement:.1%}"
                f" | {score.examples:,} |"
            )
    return "\n".join(lines)


def _lineage(manifest: Manifest, tasks: Sequence[TaskEntry]) -> str:
    lines = [
        f"- base: {in_code(manifest.base.source)} (sha256 {manifest.base.sha256[:12]}…)",
        *(
            f"- expert of {task.name}: {in_code(task.expert.source)} "
            f"(sha256 {task.expert.sha256[:12]}…)"
            for task in tasks
        ),
        f"- job: {in_text(manifest.job_id)}, {in_text(manifest.created)}, "
        f"{manifest.rounds} rounds, passes in {in_text(manifest.precision)}",
    ]
    if manifest.parent:
        lines.append(f"- grown from: {manifest.parent}")
    return "\n".join(lines)


def _limits(manifest: Manifest, tasks: Sequence[TaskEntry]) -> str:
    unlabelled = ", ".join(task.name for task in tasks if task.score.metric == "agreement")
    lines = [
        "- It learned from its experts' predictions on unlabelled pools: what they get wrong, it "
        "was taught.",
        "- Its metrics hold for the data named in its manifest; other data were not tried.",
        "- Licences of base, experts and data apply to it as they do to them.",
    ]
    if unlabelled:
        lines.append(
            "- Without a labelled test set, and so judged by agreement with the expert alone: "
            f"{unlabelled}."
        )
    lines += [f"- {notice[:1].upper()}{notice[1:]}." for notice in manifest.notices]
    if len(manifest.tasks) > 1:
        lines.append("- Training one task's model further changes the backbone of all others.")
    return "\n".join(lines)
