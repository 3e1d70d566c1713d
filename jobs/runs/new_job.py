"""A job file for somebody's own experts: what ``tintray new`` writes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from tintray.errors import InputError, StorageError, printable
from tintray.jobs.config.job_file import JobSpec, parse_spec
from tintray.jobs.config.reference import editor_line
from tintray.jobs.config.yaml_text import parse_yaml
from tintray.jobs.runs.new_data import FoundData, TaskData, Wanted, find_data
from tintray.jobs.runs.new_models import (
    Ask,
    FoundModel,
    block_beside_tied_head,
    expanded,
    find_base,
    look_at,
)
from tintray.storage.artifacts.local import replacing
from tintray.tasks.kinds import KindName
from tintray.tasks.registry import find_kind

_SHOWN = 4  # labels that a comment names
_KINDS: tuple[KindName, ...] = get_args(KindName)


@dataclass(frozen=True)
class Draft:
    """A job file that has been put together: its text, and the job that it is."""

    text: str
    spec: JobSpec


def draft(
    experts: Sequence[str],
    output: Path,
    ask: Ask,
    *,
    base: str | None = None,
    name: str | None = None,
    data: Wanted | None = None,
) -> Draft:
    """Look at experts, their base and their data, and put a job file together.

    Paths in it start from the folder of ``output``. Raises ``InputError`` for what does not fit
    together, or cannot be told and ``ask`` cannot ask.
    """
    models = _named([look_at(expert) for expert in expanded(experts)])
    found_base = find_base(models, base, ask)
    models = [model for model in models if model.folder != found_base.folder]
    if not models:
        raise InputError(f"{found_base.written} is the base; expected an expert beside it")
    folder = output.absolute().parent
    wanted = replace(data or Wanted(), folders=[folder, folder / "data"])
    found = [find_data(one, one.kind or _asked_kind(one, ask), wanted, ask) for one in models]
    text = "\n".join(_lines(name or _name_of(models), found_base, models, found, folder))
    return Draft(text, parse_spec(parse_yaml(text)[1], folder=folder))


def write(path: Path, text: str) -> None:
    """Write a job file whole, or not at all."""
    try:
        with replacing(path.absolute()) as file:
            file.write(text.encode("utf-8"))
    except StorageError as error:
        raise InputError(str(error)) from error


def _named(models: Sequence[FoundModel]) -> list[FoundModel]:
    """The same, refused where two would be one task."""
    names: dict[str, str] = {}
    for model in models:
        if (other := names.setdefault(model.name.lower(), model.written)) != model.written:
            raise InputError(
                f"{other} and {model.written} would both be the task '{model.name}'; rename one of "
                "the folders, or write the job file by hand (tintray new --template vision)"
            )
    return list(models)


def _asked_kind(model: FoundModel, ask: Ask) -> KindName:
    answer = ask(f"What does {model.written} predict?", _KINDS, "a job file by hand")
    for kind in _KINDS:
        if answer == kind:
            return kind
    raise InputError(f"expected one of {', '.join(_KINDS)}, found {answer!r}")


def _name_of(models: Sequence[FoundModel]) -> str:
    parents = {Path(model.written).absolute().parent for model in models}
    name = parents.pop().name if len(parents) == 1 else ""
    return (
        name if name.replace("-", "").replace("_", "").isalnum() and name != "latest" else "merged"
    )


def _lines(
    name: str,
    base: FoundModel,
    models: Sequence[FoundModel],
    data: Sequence[TaskData],
    folder: Path,
) -> list[str]:
    adapters = sum(model.adapter is not None for model in models)
    what = f"{adapters} adapters" if adapters == len(models) else f"{len(models)} experts"
    lines = [
        editor_line(),
        f"# {what} of one base become one model. `tintray run` runs this file; `tintray fields`",
        "# explains every field. Relative paths start from this file's folder.",
        f"name: {scalar(name)}",
        f"base: {scalar(_from(base.written, folder))}  # {base.family or 'model'}",
        "tasks:  # labels in a pool are not read",
    ]
    for model, found in zip(models, data, strict=True):
        lines += [
            f"  - name: {scalar(model.name)}  # {_told(model)}",
            f"    kind: {found.kind}",
            f"    expert: {scalar(_from(model.written, folder))}",
            f"    pool: {_examples(found.pool, folder)}",
        ]
        if found.test is None:
            lines.append("    # test: {path: …, split: test}  # without, judged by agreement")
        else:
            lines.append(f"    test: {_examples(found.test, folder)}")
    return [*lines, *_tint(base, models), _OPTIONAL]


def _tint(base: FoundModel, models: Sequence[FoundModel]) -> list[str]:
    """Where tasks own something, for models that have no head to own."""
    kind = find_kind(models[0].kind) if models[0].kind else None
    if kind is None or not kind.generates:
        return []
    block = block_beside_tied_head(base if models[0].adapter else models[0])
    if block is None:
        return []
    return [
        "tint:  # the head is tied to the embeddings, which all tasks share",
        f"  sites: [{{site: {scalar(block, flow=True)}, rank: 8}}]",
    ]


_OPTIONAL = """
# What follows may be left out; each line shows what to change.
# recipe: best            # how long to learn: fast, default or best
# tint:
#   budget: 0.5%          # the most that a task may own, as a share of the backbone
# cluster:
#   workers: 2            # processes on this machine, or on the cluster; 0 needs no Ray
# store: ./tintray-data   # a folder or an s3:// URL
"""


def _told(model: FoundModel) -> str:
    """What a comment says of an expert."""
    labels = model.labels
    plain = all(label.startswith("LABEL_") for label in labels)
    shown = ", ".join(printable(label) for label in labels[:_SHOWN])
    more = ", …" if len(labels) > _SHOWN else ""
    named = "" if plain else f": {shown}{more}"
    count = f"{len(labels)} label{'s' if len(labels) != 1 else ''}{named}" if labels else ""
    return "; ".join(filter(None, (model.adapter, count))) or (model.family or "model")


def _examples(data: FoundData, folder: Path) -> str:
    fields: dict[str, Any] = {"path": _from(data.path, folder), "split": data.split}
    inside = [f"{name}: {scalar(value, flow=True)}" for name, value in fields.items()]
    if data.columns:
        columns = ", ".join(f"{k}: {scalar(c, flow=True)}" for k, c in data.columns.items())
        inside.append(f"columns: {{{columns}}}")
    return f"{{{', '.join(inside)}}}  # {data.examples:,} examples"


def _from(written: str, folder: Path) -> str:
    """A location as the job file has it: a path that exists starts from the file's folder."""
    path = Path(written).expanduser()
    if "://" in written or not path.exists():
        return written
    relative = os.path.relpath(path.absolute(), folder)
    return str(path.absolute()) if relative.startswith("../../..") else relative


def scalar(text: str, *, flow: bool = False) -> str:
    """A text as YAML has it: plain, where that means the same."""
    try:
        plain = parse_yaml(f"{{a: {text}}}" if flow else f"a: {text}  # x")[1] == {"a": text}
    except yaml.YAMLError:
        plain = False
    return text if plain else yaml.safe_dump(text, default_style='"', width=10**6).strip()


_TASK = """\
  - name: {name}
    kind: {kind}
    expert: {expert}
    pool: {{path: {path}, split: train}}  # unlabelled; labels in it are not read
    test: {{path: {test}, split: {split}}}  # optional; without, judged by agreement
"""
_FORMS: Mapping[str, tuple[str, str, tuple[tuple[str, KindName, str, str, str], ...]]] = {
    "vision": (
        "Image classifiers that were fine-tuned from one base",
        "models/vit-base",
        (
            ("flowers", "classification", "data/flowers.npz", "data/flowers.npz", "test"),
            ("birds", "classification", "data/birds", "data/birds", "test"),
        ),
    ),
    "text": (
        "Text models that were fine-tuned from one base",
        "models/bert-base",
        (
            ("reviews", "classification", "data/reviews.csv", "data/reviews-test.csv", "train"),
            ("names", "token_classification", "data/names.jsonl", "data/names-test.jsonl", "train"),
        ),
    ),
    "lora": (
        "LoRA adapters on one base",
        "models/llama",
        (
            ("maths", "language_modelling", "data/maths.jsonl", "data/maths-test.jsonl", "train"),
            ("law", "language_modelling", "data/law.jsonl", "data/law-test.jsonl", "train"),
        ),
    ),
    "dense": (
        "Models that predict every pixel",
        "models/segformer",
        (
            ("streets", "segmentation", "data/streets.npz", "data/streets.npz", "test"),
            ("rooms", "depth", "data/rooms.npz", "data/rooms.npz", "test"),
        ),
    ),
}
TEMPLATES = tuple(_FORMS)


def template(form: str) -> str:
    """A job file to be filled in, of a form of ``TEMPLATES``."""
    about, base, tasks = _FORMS[form]
    lines = [
        editor_line(),
        f"# {about}. Put your own names and paths in, then `tintray validate` it;",
        "# `tintray fields` explains every field. Relative paths start from this file's folder.",
        f"name: my-{form}",
        f"base: {base}  # a folder, a hub id (org/name) or an s3:// URL",
        "tasks:",
    ]
    text = "".join(
        _TASK.format(
            name=name, kind=kind, expert=f"models/{name}", path=path, test=test, split=split
        )
        for name, kind, path, test, split in tasks
    )
    site = _LORA_SITE if form == "lora" else ""
    return "\n".join(lines) + f"\n{text}{site}{_OPTIONAL}"


_LORA_SITE = """\
tint:  # a head that is tied to the embeddings is no place to tint
  sites: [{site: model.layers.31, rank: 8}]
"""
