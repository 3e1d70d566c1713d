"""A merge as a plain backbone and one PEFT adapter per task: for LoRA servers.

::

    base/                          the merged backbone, which ``from_pretrained`` loads
    adapters/<task>/               what PEFT's ``load_adapter`` loads: low-rank products, and whole
                                   modules (``modules_to_save``) where a task owns them
    README.md                      how to load and serve it

All adapters have one rank, a power of two, and no ``rank_pattern``. Those of a language model that
hold products alone are read by vLLM and LoRAX too: LoRAX reads a kind of layer only if every layer
of that kind has factors, so those without any get zeros.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tintray.checkpoints.weight_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tintray.errors import InputError
from tintray.models.structure import assign, is_linear, is_transposed, tied_names
from tintray.new_folder import check_new, new_folder
from tintray.pools.pool import Pool
from tintray.published.adapter_export import PREFIX, adapter_config, named_factors
from tintray.published.card import CARD
from tintray.published.export_cards import peft_card
from tintray.published.exported import Exported, ExportedTask
from tintray.published.files import config_file
from tintray.published.merge import Merge
from tintray.published.peft_plan import (
    PeftPlan,
    Places,
    exact_plan,
    padded,
    ranked_plan,
)
from tintray.tasks.evaluation import score
from tintray.tasks.registry import find_kind
from tintray.tinting.self_labels import predict

MAX_RANK = 512
_SERVED = 8
"""The least rank that vLLM and LoRAX have kernels for."""

Examples = Callable[[str, nn.Module], Pool]
"""Some of a task's pool, for its model; raises InputError if there is none any more."""


def check_rank(rank: int | None) -> None:
    """Refuse a rank that no server takes."""
    if rank is not None and not (1 <= rank <= MAX_RANK and rank & (rank - 1) == 0):
        raise InputError(
            f"rank {rank}: expected a power of two from 1 to {MAX_RANK}, such as 16; servers of "
            "adapters have no others"
        )


def export_peft(
    merge: Merge,
    directory: Path,
    tasks: Sequence[str] | None = None,
    rank: int | None = None,
    examples: Examples | None = None,
) -> Exported:
    """Write a merge as a backbone and one adapter for each of its ``tasks`` (left out: all).

    Without a ``rank`` every logit is the merge's. With one, what tasks own whole is cut to products
    of that rank, and the agreement with the merge on ``examples`` tells what is lost.

    Raises InputError if it is of modules that PEFT cannot adapt, if tasks are of different classes,
    or as ``new_folder``; NotFoundError for an unknown task; StorageError if it cannot be written.
    """
    check_rank(rank)
    check_new(directory, or_empty=True)
    names = list(dict.fromkeys(tasks or merge.tasks))
    modules = _modules(merge, names)
    causal = all(find_kind(merge.task(name).kind).goes_on for name in names)
    states = padded({name: module.state_dict() for name, module in modules.items()})
    widest = max(names, key=lambda name: merge.task(name).classes)
    module = modules[widest]
    places, own = Places(module), {name: merge.tint(name) for name in names}
    if rank is None:
        plan = exact_plan(places, own, states)
    else:
        plan = ranked_plan(places, own, states, rank, factors_alone=causal)
    _check_size(merge, plan)
    writer = _Writer(merge, places, plan, _rank(plan, rank, causal), causal)
    notices, written = _notices(merge, plan, writer), []
    with new_folder(directory, or_empty=True) as partial:
        for name in names:
            numbers = writer.adapter(name, partial / "adapters" / name)
            agreed = None
            if plan.lost and examples is not None:
                try:
                    agreed = _agreement(merge, name, plan, modules[name], examples)
                except InputError as error:
                    notices.append(f"what is lost of task '{name}' was not measured: {error}")
            written.append(ExportedTask(name, f"adapters/{name}", numbers, agreed))
        writer.base(partial / "base", states[widest])
        found = Exported(
            path=str(directory),
            form="peft",
            tasks=written,
            rank=writer.rank,
            exact=not plan.lost,
            mixed=plan.unmixable is None,
            notices=notices,
        )
        card = peft_card(
            merge.manifest, found, architecture=type(module).__name__, served=writer.served
        )
        (partial / CARD).write_text(card, encoding="utf-8")
    return found


def _modules(merge: Merge, names: Sequence[str]) -> dict[str, Any]:
    """Each task's model; all of one class of transformers'."""
    from transformers import PreTrainedModel

    from tintray.models.clip import CLIPZeroShotClassifier

    modules: dict[str, Any] = {name: merge.exportable(name) for name in names}
    for name, module in modules.items():
        if not isinstance(module, PreTrainedModel) or isinstance(module, CLIPZeroShotClassifier):
            raise InputError(
                f"task '{name}' of {merge.url} is a {type(module).__name__}, which transformers "
                "cannot load by itself as PEFT needs it; export its model alone (--task)"
            )
        if type(module) is not type(modules[names[0]]):
            raise InputError(
                f"tasks '{names[0]}' and '{name}' of {merge.url} are of different classes "
                f"({type(modules[names[0]]).__name__}, {type(module).__name__}); PEFT serves one "
                "class over a backbone, export those of one class apart (--task)"
            )
    return modules


def _check_size(merge: Merge, plan: PeftPlan) -> None:
    backbone = merge.manifest.backbone_parameters
    for task, adapter in plan.adapters.items():
        numbers = sum(tensor.numel() for tensor in adapter.whole.values())
        if numbers >= backbone:
            raise InputError(
                f"the adapter of task '{task}' would hold {numbers:,} numbers, the backbone of "
                f"{merge.url} has {backbone:,}; export the model of the task itself (--task)"
            )


def _rank(plan: PeftPlan, asked: int | None, causal: bool) -> int:
    """The one rank of all adapters: the least power of two that holds every product."""
    if asked is not None:
        return asked
    ranks = [p.up.shape[1] for adapter in plan.adapters.values() for p in adapter.products.values()]
    most = max([_SERVED if causal else 1, *ranks])
    return 1 << (most - 1).bit_length()


def _agreement(
    merge: Merge, task: str, plan: PeftPlan, module: nn.Module, examples: Examples
) -> float:
    """The share of a task's examples on which the export answers as the merge does."""
    pool, kind = examples(task, module), find_kind(merge.task(task).kind)
    state, changed = module.state_dict(), merge.for_task(task)
    _fill(changed, {**state, **plan.tensors(task, merge.backbone, state)})
    ours, theirs = predict(changed, pool, kind), predict(module, pool, kind)
    return score(task, kind, ours, theirs, None, pool.mask).agreement


def _fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a model its tensors, each by the name by which it is known: what is tied stays so."""
    tied = tied_names(module)
    assign(module, {name: tensor for name, tensor in tensors.items() if name not in tied})


class _Writer:
    """Writes the backbone and the adapters of a plan."""

    def __init__(
        self, merge: Merge, places: Places, plan: PeftPlan, rank: int, causal: bool
    ) -> None:
        self._merge, self._plan, self._places = merge, plan, places
        self._module: Any = places.module
        self.rank, self.causal = rank, causal
        self._paths = {name: places.paths(name) for name in sorted(plan.weights())}
        self._zeros = self._without_product()
        self._biases = any(adapter.biases for adapter in plan.adapters.values())

    @property
    def targets(self) -> list[str]:
        """Paths of all modules with factors."""
        return sorted({*(path for paths in self._paths.values() for path in paths), *self._zeros})

    @property
    def served(self) -> bool:
        """Whether servers of language models read its adapters."""
        of_linear = all(
            isinstance(self._module.get_submodule(path), nn.Linear) for path in self.targets
        )
        return self.causal and of_linear and not self._plan.saved

    def _without_product(self) -> list[str]:
        """Layers whose factors are zeros: PEFT wants one at least, LoRAX all of a kind."""
        paths = [path for found in self._paths.values() for path in found]
        modules = dict(self._module.named_modules())
        if not paths:
            below = tuple(f"{path}." for path in self._plan.saved)
            free = {
                path: child.weight.numel()
                for path, child in modules.items()
                if is_linear(child) or (isinstance(child, nn.Conv2d) and child.groups == 1)
                if self._places.parts(path) and not f"{path}.".startswith(below)
            }
            if not free:
                raise InputError(
                    f"{type(self._module).__name__} has no layer beside what tasks own that PEFT "
                    "can adapt; export the models of the tasks themselves (--task)"
                )
            return [min(free, key=lambda path: free[path])]
        linear = [path for path, child in modules.items() if is_linear(child)]
        kinds = {_last(path) for path in paths if path in linear} if self.causal else set()
        return [path for path in linear if _last(path) in kinds and path not in paths]

    def _zero_factors(self, path: str) -> dict[str, Tensor]:
        owner: Any = self._module.get_submodule(path)
        if isinstance(owner, nn.Conv2d):
            m, n, *window = owner.weight.shape
            up, down = torch.zeros(m, self.rank, 1, 1), torch.zeros(self.rank, n, *window)
            return {f"{PREFIX}{path}.lora_A.weight": down, f"{PREFIX}{path}.lora_B.weight": up}
        m, n = owner.weight.shape
        up, down = torch.zeros(m, self.rank), torch.zeros(self.rank, n)
        return named_factors(path, owner, up, down)

    def adapter(self, task: str, folder: Path) -> int:
        """Write a task's adapter; how many numbers it holds."""
        folder.mkdir(parents=True)
        own = self._plan.adapters[task]
        tensors: dict[str, Tensor] = {PREFIX + name: t.clone() for name, t in own.whole.items()}
        for name, product in own.products.items():
            for path in self._paths[name]:
                up, down = _to_rank(product.up, product.down, self.rank)
                tensors |= named_factors(path, self._module.get_submodule(path), up, down)
        for path in self._zeros:
            tensors |= self._zero_factors(path)
        if self._biases:
            tensors |= self._added_biases(own.biases)
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        config = self._config()
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        if not self.causal:  # with the names of its classes
            text = json.dumps(self._merge.config(task), indent=2)
            (folder / "config.json").write_text(text, encoding="utf-8")
        self._copy_configs(task, folder)
        return sum(tensor.numel() for tensor in tensors.values())

    def _added_biases(self, biases: dict[str, Tensor]) -> dict[str, Tensor]:
        """PEFT's ``lora_bias``: every layer with factors has one."""
        found = {}
        for path in self.targets:
            owner = self._module.get_submodule(path)
            rows = owner.weight.shape[1 if is_transposed(owner) else 0]
            zero = torch.zeros(rows)
            found[f"{PREFIX}{path}.lora_B.bias"] = biases.get(f"{path}.bias", zero).clone()
        return found

    def _config(self) -> dict[str, Any]:
        found = adapter_config(
            self._module,
            base="base",
            rank=self.rank,
            targets=self.targets,
            modules=self._plan.saved,
        )
        if self.causal and not self._plan.saved:
            kinds = sorted({_last(path) for path in self.targets})
            every = [p for p, c in self._module.named_modules() if p and _last(p) in kinds]
            if set(every) == set(self.targets):
                found["target_modules"] = kinds
        # PEFT's own classes for these would put the whole head into modules_to_save by themselves
        found["task_type"] = found["task_type"] if self._generates else None
        return found | {"lora_bias": self._biases}

    @property
    def _generates(self) -> bool:
        kinds = (find_kind(self._merge.task(name).kind) for name in self._plan.adapters)
        return all(kind.generates for kind in kinds)

    def base(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write the backbone, with the widest head; what of it adapters replace is any task's."""
        module = self._module
        if not self._generates:
            width = max(self._merge.task(name).classes for name in self._plan.adapters)
            module.config.id2label = {n: f"LABEL_{n}" for n in range(width)}
            module.config.label2id = {f"LABEL_{n}": n for n in range(width)}
            module.config.problem_type = None
        backbone = self._merge.backbone
        known = {name: backbone.get(name, tensor) for name, tensor in state.items()}
        _fill(module, {**known, **self._plan.shared})
        module.save_pretrained(folder)
        self._copy_configs(next(iter(self._plan.adapters)), folder)

    def _copy_configs(self, task: str, folder: Path) -> None:
        """Tokenizer and processor of a task; of an adapter, if they are not the backbone's."""
        files, first = self._merge.manifest.files, next(iter(self._plan.adapters))
        names = [name.rpartition("/")[2] for name in self._merge.config_files(task)]
        alike = all(
            files[config_file(task, name)] == files.get(config_file(first, name))
            for name in names
            if name != "config.json"
        )
        if folder.name == "base" or not alike:
            self._merge.copy_configs(task, folder)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _to_rank(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    missing = rank - up.shape[1]
    if missing <= 0:
        return up.float(), down.float()
    return (
        nn.functional.pad(up.float(), (0, missing)),
        nn.functional.pad(down.float(), (0, 0, 0, missing)),
    )


def _notices(merge: Merge, plan: PeftPlan, writer: _Writer) -> list[str]:
    notices = []
    if plan.unmixable:
        notices.append(
            f"{plan.unmixable}: the adapters are exact, and used one task at a time "
            "(set_adapter); --rank R writes adapters for mixed batches, at a loss that is told"
        )
    if plan.positions:
        notices.append(
            "a mixed batch needs position_ids [N, tokens] beside its input_ids, since the table "
            "of positions has a product for each example"
        )
    if plan.lost:
        what = ", ".join(plan.lost[:3]) + (", …" if len(plan.lost) > 3 else "")
        notices.append(f"not held as they are: {len(plan.lost)} tensors ({what})")
    if writer.causal and not writer.served:
        notices.append(
            "vLLM and LoRAX read products on nn.Linear alone, and these adapters hold more"
            + ("; --rank R writes what they read, at a loss that is told" if plan.saved else "")
        )
    classes = {merge.task(name).classes for name in plan.adapters}
    if len(classes) > 1:
        notices.append(
            f"all heads have {max(classes)} rows; those of a class that a task has not give "
            "a probability of 0, and its config.json has the names of its classes"
        )
    return notices
