"""A job over modules that live in this process: they and their data are saved, as a user would."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor, nn

from tintray.errors import InputError
from tintray.models import factories
from tintray.models.structure import tied_names
from tintray.storage.artifacts.urls import check_name


def write_job(
    folder: Path,
    base: nn.Module,
    experts: Mapping[str, nn.Module],
    data: Mapping[str, Any],
    processor: Any,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Save modules and data below ``folder``; the job over them, as ``parse_spec`` takes it.

    See ``tintray.merge``. It runs in this process, in a store in ``folder``, if ``settings`` do not
    say otherwise.

    Raises InputError if modules or data are missing, or are none that can be saved.
    """
    for name in experts.keys() ^ data.keys():
        lacks = "data" if name in experts else "expert"
        raise InputError(f"task '{name}' has no {lacks}; expected an expert and data for each task")
    plain = not hasattr(base, "save_pretrained")
    for role, module in {"base": base, **{f"experts.{n}": m for n, m in experts.items()}}.items():
        if not isinstance(module, nn.Module) or hasattr(module, "save_pretrained") == plain:
            kind = "a torch.nn.Module" if plain else "a model of transformers, as the base is"
            raise InputError(f"{role}: expected {kind}, found a {type(module).__name__}")
    job: dict[str, Any] = {"name": "live", "store": str(folder / "store"), **settings}
    job["cluster"] = {"workers": 0} | dict(settings.get("cluster", {}))
    if plain and "factory" not in settings:
        job["factory"] = factories.offer(
            lambda config: copy.deepcopy(experts.get(config.get("task", ""), base))
        )
    _save(folder / "base", base, {}, None)
    job["base"] = str(folder / "base")
    job["tasks"] = []
    for name, expert in experts.items():
        check_name(name)
        of_task = processor.get(name) if isinstance(processor, Mapping) else processor
        _save(folder / "experts" / name, expert, {"task": name}, of_task)
        is_section = isinstance(data[name], Mapping) and "pool" in data[name]
        given = data[name] if is_section else {"pool": data[name]}
        task = {"name": name, "expert": str(folder / "experts" / name), **given}
        for part in ("pool", "test"):
            if part in given:
                pair = given[part] if part == "test" else (given[part], None)
                where = f"data.{name}.{part}"
                task[part] = {"path": str(_write(folder / "data" / f"{name}-{part}", pair, where))}
        job["tasks"].append(task)
    return job


def _save(folder: Path, module: Any, config: Mapping[str, Any], processor: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(module, "save_pretrained"):
        module.save_pretrained(folder)
    else:
        aliases = tied_names(module)
        state = {n: t.contiguous() for n, t in module.state_dict().items() if n not in aliases}
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if processor is not None:
        processor.save_pretrained(folder)


def _write(path: Path, given: Any, where: str) -> Path:
    """A file of examples, and of their labels if there are any."""
    if not (isinstance(given, tuple) and len(given) == 2):
        raise InputError(f"{where}: expected a pair (inputs, labels), found a {_type(given)}")
    inputs, labels = (value.numpy(force=True) if isinstance(value, Tensor) else value
                      for value in given)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = _columns(inputs, where)
    count = len(next(iter(columns.values())))
    if labels is not None and len(labels) != count:
        expected = f"expected a label for each of {count} examples"
        raise InputError(f"{where}: {expected}, found {len(labels)}")
    images = columns.get("image")
    if isinstance(images, np.ndarray):
        answers = {} if labels is None else {"y_train": np.asarray(labels)}
        np.savez(path.with_suffix(".npz"), allow_pickle=False, x_train=images, **answers)
        return path.with_suffix(".npz")
    if images is not None:  # of different sizes: files, without loss
        path.mkdir(exist_ok=True)
        for number, image in enumerate(images):
            image.save(path / f"{number}.png")
        columns = {"image": [f"{path.name}/{number}.png" for number in range(count)]}
    if labels is not None:
        columns["label"] = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.with_suffix(".jsonl").write_text(text, encoding="utf-8")
    return path.with_suffix(".jsonl")


def _columns(inputs: Any, where: str) -> dict[str, Any]:
    """The inputs by what they are, as ``tintray.data`` names columns."""
    from PIL import Image

    if isinstance(inputs, Mapping) and inputs and not {"input_ids", "pixel_values"} & inputs.keys():
        return {name: _columns(values, where).popitem()[1] for name, values in inputs.items()}
    if isinstance(inputs, np.ndarray) and inputs.ndim > 2:
        return {"image": inputs}
    if isinstance(inputs, Sequence) and inputs and not isinstance(inputs, str):
        if all(isinstance(value, str) for value in inputs):
            return {"text": list(inputs)}
        if all(isinstance(value, Image.Image | np.ndarray) for value in inputs):
            arrays = [np.asarray(value) for value in inputs]
            alike = len({array.shape for array in arrays}) == 1
            return {"image": np.stack(arrays) if alike else [Image.fromarray(a) for a in arrays]}
    raise InputError(
        f"{where}: expected images (an array or a tensor [N, height, width, 3], or a list) or a "
        f"list of texts, found a {_type(inputs)}; the processor or tokenizer goes into processor="
    )


def _type(value: Any) -> str:
    shape = f" {list(value.shape)}" if hasattr(value, "shape") else ""
    return f"{type(value).__name__}{shape}"
