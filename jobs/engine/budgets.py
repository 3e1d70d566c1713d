"""``tint.budget``: the sites, ranks and bits that a job's tasks can own for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tintray.errors import InputError, SpecError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.locations import Location
from tintray.jobs.config.task_sections import TaskSpec
from tintray.jobs.engine.base_model import SplitModel, split_for
from tintray.jobs.engine.sources import cache_folder
from tintray.jobs.engine.task_files import open_expert
from tintray.jobs.engine.worker_pool import task_config
from tintray.limits import Budget, parse_budget
from tintray.models.structure import head_modules, private_state
from tintray.numerics.choices import Bits
from tintray.numerics.sites import HEAD, PROMPT, TintSite
from tintray.tinting.budget import (
    Shape,
    Sites,
    choose,
    costs,
    enough_in,
    ladder,
    owned_shapes,
    with_ranks,
)
from tintray.tinting.partition import partition
from tintray.tinting.stored_tints import LADDER

_OF_ADAPTERS = "base_model.model."


def within_budget(spec: JobSpec, base: SplitModel) -> tuple[JobSpec, SplitModel]:
    """The job with sites, ranks and bits that its budget buys, and its base split for them.

    Sites that the job names stay; ranks of prompts that it leaves out are chosen. A job without a
    budget, or one that still has to find its site, stays as it is.

    Raises SpecError if the budget is too small; with what it would have to be, or what would fit.
    """
    tint = spec.tint
    if tint.budget is None or tint.auto:
        return spec, base
    module, budget = base.partition.module, parse_budget(tint.budget)
    if tint.sites is not None:
        rungs = with_ranks(module, tint.places)
    else:
        rungs = ladder(module) if tint.learned else [(TintSite(HEAD),)]
    prices = _prices(spec, base, rungs, budget)
    enough = None if tint.sites is None else enough_in(rungs)
    chosen = choose(budget.of(base.parameters), prices, _allowed(spec), enough)
    if chosen is None:
        raise SpecError(_too_small(spec, budget, base.parameters, rungs[0], prices[0]))
    return _at(spec, base, rungs[chosen[0]], chosen[1])


def with_prompt(
    spec: JobSpec, base: SplitModel, budget: str = "0.5%"
) -> tuple[JobSpec, SplitModel]:
    """The job with a prompt and the head as its sites; for one that names no sites and no budget.

    The prompt gets the highest rank that fits ``budget``. Nothing is refused: where not even the
    lowest fits, it is one of rank ``ENOUGH`` in 8 bits. A model without a place for a prompt has
    its head alone.
    """
    module, most = base.partition.module, parse_budget(budget)
    try:
        head = (TintSite(HEAD),) if head_modules(module) else ()
        rungs = with_ranks(module, (TintSite(PROMPT), *head))
    except SpecError:
        return spec, base
    enough = enough_in(rungs)
    prices = _prices(spec, base, rungs, most)
    found = choose(most.of(base.parameters), prices, _allowed(spec), enough)
    index, bits = found or (enough, spec.tint.bits or 8)
    return _at(spec, base, rungs[index], bits)


def _at(
    spec: JobSpec, base: SplitModel, sites: Sequence[TintSite], bits: Bits
) -> tuple[JobSpec, SplitModel]:
    """The job with these sites and bits written out."""
    entries: list[dict[str, Any]] = [{"site": s.at, "rank": s.rank, "lr": s.lr} for s in sites]
    spec = spec.changed(tint={"sites": entries, "bits": bits})
    return spec, replace(base, partition=split_for(base.partition.module, spec))


def _prices(
    spec: JobSpec, base: SplitModel, rungs: Sequence[Sites], budget: Budget
) -> list[dict[Bits, float]]:
    """What each rung costs, in the unit of the budget."""
    heads, module = head_shapes(spec, base), base.partition.module
    splits = (partition(module, sites, learned=spec.tint.learned) for sites in rungs)
    return [costs(owned_shapes(split), heads, budget.unit == "numbers") for split in splits]


def _allowed(spec: JobSpec) -> Sequence[Bits]:
    return LADDER if spec.tint.bits is None else (spec.tint.bits,)


def _too_small(
    spec: JobSpec,
    budget: Budget,
    parameters: int,
    sites: Sequence[TintSite],
    price: dict[Bits, float],
) -> str:
    least = min(_allowed(spec))
    said = ", ".join(map(str, sites))
    needed = budget.told(price[least], parameters)
    in_bits = "" if budget.unit == "numbers" else f" in {least} bits"
    return (
        f"tint.budget: at {said} a task owns {needed}{in_bits} in the mean, its head included; "
        f"found {spec.tint.budget}, expected so much at least"
        f"{'' if spec.tint.sites is None else ', or tint.sites left out'}"
    )


def head_shapes(spec: JobSpec, base: SplitModel) -> list[list[Shape]]:
    """Shapes of the tensors of every task's head; only headers of files are read.

    An expert that is not on this machine, or cannot be opened, counts as the one that the base was
    loaded like.
    """
    heads = head_modules(base.partition.module)
    like = [tuple(t.shape) for t in private_state(base.partition.module, heads).values()]
    return [_own_head(spec, task, heads) or like for task in spec.tasks] if heads else []


def _own_head(spec: JobSpec, task: TaskSpec, heads: Sequence[str]) -> list[Shape]:
    if Location(task.expert).path is None:
        return []
    try:
        folder = open_expert(task_config(spec, task), cache_folder())
    except InputError:  # whoever checks the task says what is wrong with it
        return []
    if folder.zero_shot is not None:
        return [(len(folder.zero_shot.classes), int(folder.config.get("projection_dim", 512)))]
    below = tuple(f"{path}." for path in heads)
    named = {name.removeprefix(_OF_ADAPTERS): info for name, info in folder.tensors.items()}
    return [info.shape for name, info in named.items() if name.startswith(below)]
