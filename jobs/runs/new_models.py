"""What ``tintray new`` sees of the models that it is given: family, kind of task, labels, base."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tintray.checkpoints.weight_files import (
    ADAPTER_CONFIG,
    holds_adapter,
    read_config,
    weight_files,
)
from tintray.errors import InputError, printable
from tintray.jobs.config.locations import Location, model_location
from tintray.jobs.engine.sources import cache_folder, local_folder
from tintray.tasks.kinds import KindName

Ask = Callable[[str, Sequence[str], str], str]
"""Asks for what cannot be known: a question, what may be chosen, and the option that says it.

Where nobody can be asked it raises ``InputError``."""

_KINDS: dict[str, KindName] = {
    "ForImageClassification": "classification",
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "token_classification",
    "ForCausalLM": "language_modelling",
    "LMHeadModel": "language_modelling",
    "ForConditionalGeneration": "seq2seq",
    "ForSemanticSegmentation": "segmentation",
    "ForDepthEstimation": "depth",
    "CLIPVisionModel": "classification",
    "CLIPModel": "classification",
}
_OF_ADAPTERS: dict[str | None, KindName] = {
    "SEQ_CLS": "classification",
    "TOKEN_CLS": "token_classification",
    "CAUSAL_LM": "language_modelling",
    "SEQ_2_SEQ_LM": "seq2seq",
    None: "classification",
}
_OF_ONE: dict[str, KindName] = {  # label
    "ForSequenceClassification": "regression",
    "ForSemanticSegmentation": "depth",
}
_WITH_PROBLEMS = ("ForImageClassification", "ForSequenceClassification")
_PROBLEMS: dict[str, KindName] = {
    "multi_label_classification": "multi_label",
    "regression": "regression",
}

_OUTPUTS = ("lm_head.weight", "embed_out.weight", "output_layer.weight")
_BLOCK = re.compile(r"(.*?\.)\d+\.")


@dataclass(frozen=True)
class FoundModel:
    """A model as its configuration tells of it; no tensor has been read."""

    written: str  # as the job file names it
    name: str
    folder: Path
    family: str | None  # transformers' model_type; None of an adapter, which has its base's
    kind: KindName | None
    labels: tuple[str, ...] = ()
    adapter: str | None = None  # such as "LORA of rank 8"
    base: str | None = None  # what it says that it was fine-tuned from
    tower: bool = False  # a CLIP vision tower, whose head is made of texts


def is_model(folder: Path) -> bool:
    """Whether a folder looks like one that ``save_pretrained`` wrote."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG))


def expanded(written: Sequence[str]) -> list[str]:
    """The models among these folders and hub ids; a folder of models stands for those in it.

    One that is called base and lies beside others is none of them: it is looked for there.
    """
    found: list[str] = []
    for text in written:
        folder = Path(text).expanduser()
        if not folder.is_dir() or is_model(folder):
            found.append(text)
            continue
        inside = sorted(entry for entry in folder.iterdir() if entry.is_dir() and is_model(entry))
        if not inside:
            raise InputError(
                f"{text}: expected a model folder, or a folder of model folders, found no "
                f"config.json and no {ADAPTER_CONFIG}; leave it out, or give the folder above alone"
            )
        found += map(str, inside)
    found = list(dict.fromkeys(found))
    beside = Counter(Path(text).parent for text in found if Path(text).is_dir())
    return [text for text in found if Path(text).name != "base" or beside[Path(text).parent] < 2]


def look_at(written: str) -> FoundModel:
    """What a model's configuration tells; one on the hub or in a bucket is downloaded.

    Raises ``InputError`` if it is no model.
    """
    try:
        location = model_location(written, Path.cwd())
    except ValueError as error:
        raise InputError(str(error)) from error
    folder = _on_this_machine(location)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", written.rstrip("/").rpartition("/")[2]).strip("-._")
    found = FoundModel(written, name or "task", folder, None, None)
    if holds_adapter(folder, written):
        config = read_config(folder, written, ADAPTER_CONFIG)
        kind, rank = _text(config.get("peft_type")) or "adapter", config.get("r")
        task = config.get("task_type")
        return replace(
            found,
            kind=_OF_ADAPTERS.get(task if isinstance(task, str) else None),
            adapter=f"{kind} of rank {rank}" if type(rank) is int else kind,
            base=_text(config.get("base_model_name_or_path")),
        )
    config = read_config(folder, written)
    labels = config.get("id2label")
    return replace(
        found,
        family=_text(config.get("model_type")),
        kind=_kind(config),
        labels=tuple(map(str, labels.values())) if isinstance(labels, dict) else (),
        base=_text(config.get("_name_or_path")),
        tower=str((config.get("architectures") or [""])[0]).startswith("CLIP"),
    )


def _on_this_machine(location: Location) -> Path:
    if location.path is not None:
        return location.path
    if location.startswith("s3://"):
        return Path(local_folder(location, cache_folder()))
    from tintray.checkpoints.hub import download

    return download(location, location.written)


def _text(value: Any) -> str | None:
    """A text of a configuration, which anybody may have written: one line."""
    return printable(value) if isinstance(value, str) and value else None


def _kind(config: dict[str, Any]) -> KindName | None:
    """The kind of task that a class of models is for, as transformers names classes."""
    architecture = str((config.get("architectures") or [""])[0])
    kind = next((kind for end, kind in _KINDS.items() if architecture.endswith(end)), None)
    labels = config.get("id2label")
    values = len(labels) if isinstance(labels, dict) else config.get("num_labels")
    if values == 1:
        kind = next((k for end, k in _OF_ONE.items() if architecture.endswith(end)), kind)
    if architecture.endswith(_WITH_PROBLEMS):
        return _PROBLEMS.get(str(config.get("problem_type")), kind)
    return kind


def block_beside_tied_head(model: FoundModel) -> str | None:
    """The last block of a model that writes with its embeddings: it has no head to tint.

    None of a model with a head of its own.
    """
    names = weight_files(model.folder, model.written)[1]
    if any(name.endswith(_OUTPUTS) for name in names):
        return None
    blocks = Counter(match[1] for name in names if (match := _BLOCK.match(name)))
    if not blocks:
        return None
    stack = max(blocks, key=lambda path: ("decoder" in path, blocks[path]))
    inside = (
        name.removeprefix(stack).partition(".")[0] for name in names if name.startswith(stack)
    )
    return f"{stack}{max(int(number) for number in inside if number.isdecimal())}"


def find_base(experts: Sequence[FoundModel], given: str | None, ask: Ask) -> FoundModel:
    """The model that the experts come from: given, named by them, or lying beside them.

    Raises ``InputError`` if they are of different families, or it cannot be told.
    """
    whole = [expert for expert in experts if expert.family is not None]
    for expert in whole[1:]:
        if expert.family != whole[0].family:
            raise InputError(
                f"{expert.written} is a model of the family {expert.family!r}, "
                f"{whole[0].written} one of {whole[0].family!r}; one job merges models that were "
                "fine-tuned from one base"
            )
    family = whole[0].family if whole else None
    base = look_at(given) if given is not None else _base_of(experts, family, ask)
    if base.adapter:
        raise InputError(f"{base.written} is an adapter; expected the model that it belongs to")
    if family is not None and base.family not in (family, "clip" if whole[0].tower else family):
        raise InputError(
            f"--base: {base.written} is a model of the family {base.family!r}; the experts are of "
            f"{family!r}"
        )
    return base


def _base_of(experts: Sequence[FoundModel], family: str | None, ask: Ask) -> FoundModel:
    named = list(dict.fromkeys(expert.base for expert in experts if expert.base))
    adapters = any(expert.adapter for expert in experts)
    if adapters and len(named) > 1:
        raise InputError(
            f"the adapters belong to different models ({', '.join(map(printable, named))}); one "
            "job merges adapters of one base; give --base if these are one"
        )
    beside = _beside(experts, family)
    known = [name for name in named if adapters or Path(name).is_dir()]
    choices = [*known, *(path for path in beside if path not in known)]
    certain = known if len(known) == 1 else [p for p in beside if Path(p).name == "base"]
    if len(certain) == 1 or len(choices) == 1:
        return look_at((certain or choices)[0])
    return look_at(ask("What were the experts fine-tuned from?", choices, "--base"))


def _beside(experts: Iterable[FoundModel], family: str | None) -> list[str]:
    """Whole models of the family beside the experts, as one would write where they are."""
    own = {expert.folder.resolve() for expert in experts}
    parents = dict.fromkeys(Path(e.written).parent for e in experts if Path(e.written).is_dir())
    found = []
    for folder in (entry for parent in parents for entry in sorted(parent.iterdir())):
        if folder.resolve() in own or not (folder / "config.json").is_file():
            continue
        model = look_at(str(folder))
        if model.adapter is None and family in (None, model.family):
            found.append(str(folder))
    return found
