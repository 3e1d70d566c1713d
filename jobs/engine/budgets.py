"""``tint.budget``: the sites, ranks and bits that a job's tasks can own for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tintray.errors import InputError, SpecError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.locations import Location
from tintray.jobs.config.sections import TaskSpec
from tintray.jobs.engine.base_model import SplitModel, split_for
from tintray.jobs.engine.sources import cache_folder
from tintray.jobs.engine.task_files import open_expert
from tintray.jobs.engine.worker_pool import task_config
from tintray.limits import Budget, parse_budget
from tintray.models.structure import head_modules, private_state
from tintray.numerics.choices import Bits
from tintray.numerics.sites import HEAD, TintSite
from tintray.tinting.budget import ENOUGH, Shape, choose, costs, ladder, owned_shapes, with_ranks
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
    most = budget.of(base.parameters)
    if tint.sites is None:
        rungs = ladder(module) if tint.learned else [(TintSite(HEAD),)]
        enough = None
    else:
        rungs = with_ranks(module, tint.places)
        enough = next((i for i, r in enumerate(rungs) if len(rungs) == 1 or _rank(r) >= ENOUGH), 0)
    heads = head_shapes(spec, base)
    prices = [
        costs(
            owned_shapes(partition(module, sites, learned=tint.learned)),
            *(heads, budget.unit == "numbers"),
        )
        for sites in rungs
    ]
    allowed = LADDER if tint.bits is None else (tint.bits,)
    chosen = choose(most, prices, allowed, enough)
    if chosen is None:
        raise SpecError(_too_small(spec, budget, base.parameters, rungs[0], prices[0], allowed))
    sites, bits = rungs[chosen[0]], chosen[1]
    entries: list[dict[str, Any]] = [{"site": s.at, "rank": s.rank, "lr": s.lr} for s in sites]
    spec = spec.changed(tint={"sites": entries, "bits": bits})
    return spec, replace(base, partition=split_for(module, spec))


def _rank(sites: Sequence[TintSite]) -> int:
    return max((site.rank or 0 for site in sites), default=0)


def _too_small(
    spec: JobSpec,
    budget: Budget,
    parameters: int,
    sites: Sequence[TintSite],
    price: dict[Bits, float],
    allowed: Sequence[Bits],
) -> str:
    least = min(allowed)
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
