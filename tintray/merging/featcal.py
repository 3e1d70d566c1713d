"""FeatCal: from the first layer to the last, each fitted to what the experts' layers answer.

A linear layer of the merge is given Xs where its expert's is given Xe. Its weight is the ridge
regression from Xs onto what the experts' weights make of a mixture of both, over the examples of
all tasks, drawn towards an anchor (``layer_fits``). Layers are solved *stage* by stage, in the
order in which a forward pass reaches them, so that Xs is what the layers before, already solved,
answer.

Source: github.com/egangu/featcal at 18c68b6. There a stage is a block of a CLIP tower; tokens are
not weighted here. Models are run where they are, and equations solved where their parts are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tintray.errors import SpecError
from tintray.merging.layer_fits import LayerFit, Terms, fit_of
from tintray.models.calling import answer
from tintray.models.hooks import EnoughError, seeing_inputs
from tintray.models.structure import device_of, tied_names
from tintray.pools.feeding import batches_on
from tintray.pools.pool import BATCH, Pool


@dataclass(frozen=True)
class Settings:
    """How layers are fitted: the parameters of the method."""

    examples: int  # the first of each pool
    start: float  # the scale of task arithmetic, which layers have before they are fitted
    ridge: float  # η, how strongly a layer is drawn to its anchor, where |C| is 1
    anchor: float  # ρ: the anchor is θ₀ + ρ (start − θ₀)
    mix: float  # α, the share of the expert's own inputs in what its layer is asked about


@dataclass(frozen=True)
class Stage:
    """Layers that are solved together: paths of modules, and how often a pass calls each."""

    calls: Mapping[str, int]


def stages(module: nn.Module, names: Iterable[str], pool: Pool) -> list[Stage]:
    """The layers among the named tensors that can be fitted, as one example of a pool meets them.

    A stage is what lies in one block: a path up to its last number. A weight that is tied to
    another tensor stays.

    Raises
    ------
    SpecError
        If there is none.
    """
    named = set(names) - set(tied_names(module).values())
    layers = {
        path: child
        for path, child in module.named_modules()
        if f"{path}.weight" in named and fit_of(child) is not None
    }
    calls: dict[str, int] = {}

    def count(path: str, _: Tensor) -> None:
        calls[path] = calls.get(path, 0) + 1

    with torch.inference_mode(), seeing_inputs(layers, count):
        answer(module, next(batches_on(pool[:1], device_of(module), ahead=0)))
    if not calls:
        raise SpecError(
            f"merge: 'featcal' fits linear layers, and {type(module).__name__} calls none that "
            "all tasks share; choose another method"
        )
    found: dict[str, dict[str, int]] = {}
    for path, number in calls.items():
        found.setdefault(_block(path), {})[path] = number
    return [Stage(of) for of in found.values()]


def _block(path: str) -> str:
    parts = path.split(".")
    numbers = [n for n, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1]) if numbers else path


@torch.inference_mode()
def observed(
    expert: nn.Module, merged: nn.Module, pool: Pool, stage: Stage, mix: float
) -> dict[str, Tensor]:
    """One task's part of the equations of a stage, by ``path/term``: float32, to be added up.

    ``merged`` is the task's model on the backbone so far. Both are run up to the stage; on a
    GPU too a few examples at a time, as all inputs of a stage's layers are held.
    """
    fits = _fits(expert, stage)
    sums: dict[str, dict[str, Tensor]] = {path: {} for path in fits}
    rows = dict.fromkeys(fits, 0)
    for batch in batches_on(pool, device_of(expert), BATCH):
        theirs, ours = (_inputs(model, batch, stage) for model in (expert, merged))
        for path, fit in fits.items():
            for given, asked in zip(ours.get(path, ()), theirs.get(path, ()), strict=False):
                if given.shape != asked.shape:  # a router sent them something else
                    continue
                counts = _counts(path, given, batch)
                one, other = (_chosen(fit.rows(value), counts) for value in (given, asked))
                rows[path] += len(one)
                for term, value in fit.sums(one, other, mix).items():
                    total = sums[path].setdefault(term, torch.zeros_like(value))
                    total += value
    parts: dict[str, Tensor] = {}
    for path, fit in fits.items():
        if rows[path]:
            means = {term: value.double() / rows[path] for term, value in sums[path].items()}
            found = fit.part(means)
            parts |= {f"{path}/{term}": value.float() for term, value in found.items()}
    return parts


def solved(
    module: nn.Module,
    stage: Stage,
    parts: Terms,
    base: Terms,
    start: Terms,
    settings: Settings,
) -> dict[str, Tensor]:
    """The tensors of a stage's layers, by name, from the summed parts of all tasks.

    ``base`` and ``start`` have θ₀ and the start of those tensors that may change.
    """
    found: dict[str, Tensor] = {}
    for path, fit in _fits(module, stage).items():
        own = {
            name.rpartition("/")[2]: value.double()
            for name, value in parts.items()
            if name.startswith(f"{path}/")
        }
        anchors = {
            name: torch.lerp(base[full].double(), start[full].double(), settings.anchor)
            for name in ("weight", "bias")
            if (full := f"{path}.{name}") in start
        }
        if own:
            for name, value in fit.solved(own, anchors, settings.ridge).items():
                found[f"{path}.{name}"] = value.float().reshape(anchors[name].shape).contiguous()
    return found


def _fits(module: nn.Module, stage: Stage) -> dict[str, LayerFit]:
    found = {path: fit_of(module.get_submodule(path)) for path in stage.calls}
    return {path: fit for path, fit in found.items() if fit is not None}


def _inputs(model: nn.Module, batch: Mapping[str, Tensor], stage: Stage) -> dict[str, list[Tensor]]:
    """What each call of a stage's layers is given; the pass ends with the last of them."""
    captured: dict[str, list[Tensor]] = {}
    total = sum(stage.calls.values())

    def see(path: str, given: Tensor) -> None:
        captured.setdefault(path, []).append(given)
        if sum(map(len, captured.values())) == total:
            raise EnoughError

    layers = {path: model.get_submodule(path) for path in stage.calls}
    with seeing_inputs(layers, see), suppress(EnoughError):
        answer(model, batch)
    return captured


def _counts(path: str, given: Tensor, batch: Mapping[str, Tensor]) -> Tensor | None:
    """Which rows of an input are no padding: [batch, rows]; None where all count.

    A decoder reads its own tokens, but where it attends to the encoder's.
    """
    masks = [batch.get("attention_mask"), batch.get("decoder_attention_mask")]
    for mask in reversed(masks) if "decoder" in path.split(".") else masks:
        if mask is not None and mask.shape == given.shape[:2]:
            return mask.bool()
        if mask is not None and given.ndim == 2 and len(given) == mask.numel():  # OPT's flat rows
            return mask.bool().reshape(-1, 1)
    return None


def _chosen(rows: Tensor, counts: Tensor | None) -> Tensor:
    """Those rows of [batch, rows, n] that count, of each position all its heads: float32 [N, n]."""
    if counts is None:
        return rows.flatten(0, 1).float()
    return rows[counts.repeat_interleave(rows.shape[1] // counts.shape[1], dim=1)].float()
