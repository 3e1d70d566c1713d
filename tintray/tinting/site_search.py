"""Which module to tint: candidates, and successive halving over trials of growing cost.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): all candidates get a little of the
budget, the better half gets more, and so on. The first trials learn tint layers under the backbone
that a fit would start from, so that what lies before the site runs once (``prefix``); those that
follow are whole fits of few rounds, since coefficients shift what a site has to make up for.

Costs are counted in *image passes*: one image forward and backward through the whole model is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tintray.errors import SpecError
from tintray.models.structure import backbone_names, head_modules
from tintray.numerics.sites import HEAD

_FIRST_STEPS = 40


@dataclass(frozen=True)
class Site:
    """A candidate: where, and how many parameters a task would own, its head included."""

    name: str
    parameters: int


@dataclass(frozen=True)
class Trial:
    """What one trial found; agreement is on pool examples that it did not learn from."""

    site: str
    parameters: int
    rung: int  # 0: tint layers alone under the starting backbone; 1, 2, …: short fits
    agreement: float  # with the experts, mean over tasks
    per_task: tuple[float, ...]  # the same of each task, in the order of the job
    passes: float  # what it cost, in image passes


@dataclass(frozen=True)
class Rung:
    """How many candidates get short fits of how many rounds."""

    survivors: int
    rounds: int


def candidates(module: nn.Module, budget: float | None = None) -> list[Site]:
    """The head and every block of the backbone, within a budget of parameters per task.

    Blocks are the members of the backbone's longest lists of modules.

    Raises
    ------
    SpecError
        If nothing fits the budget.
    """
    names = [HEAD, *blocks(module)]
    sites = [Site(name, _parameters(module, name)) for name in names]
    fitting = [site for site in sites if budget is None or site.parameters <= budget]
    if not fitting:
        least = min(sites, key=lambda site: site.parameters)
        raise SpecError(
            f"tint.budget: no site has at most {budget:,.0f} numbers with the head; expected at "
            f"least {least.parameters:,}, those of '{least.name}'"
        )
    return fitting


def first_steps(rounds: int) -> int:
    """Steps of a tint layer in the first trials: a tenth of the rounds of the fit, at most 40."""
    return max(1, min(_FIRST_STEPS, rounds // 10))


def rungs(count: int, rounds: int) -> list[Rung]:
    """The short fits after the first trials of ``count`` candidates, for a fit of ``rounds``.

    The better half gets a fifteenth of the rounds, the best two a sixth: together less than a
    tenth of what fits of all candidates would take, from seven candidates on.
    """
    later = []
    if count > 2:
        later.append(Rung(-(-count // 2), max(1, rounds // 15)))
    if count > 1:
        later.append(Rung(min(2, count), max(1, rounds // 6)))
    return later


def survivors(trials: Sequence[Trial], count: int) -> list[Trial]:
    """The ``count`` best trials, the best first; of equals, the one with fewer parameters."""
    return sorted(trials, key=lambda trial: (-trial.agreement, trial.parameters))[:count]


def ranking(trials: Sequence[Trial]) -> list[Trial]:
    """Every site once, by its last trial: those that got further first, then by agreement."""
    last = {trial.site: trial for trial in sorted(trials, key=lambda trial: trial.rung)}
    return sorted(last.values(), key=lambda p: (-p.rung, -p.agreement, p.parameters))


def exhaustive_passes(count: int, rounds: int, batch: int, tasks: int) -> float:
    """What whole fits of all candidates would cost."""
    return float(count * rounds * batch * tasks)


def suffix_share(module: nn.Module, site: str) -> float:
    """About which share of a forward and backward pass remains behind a site: by parameters."""
    if site == HEAD:
        return 0.0
    names = backbone_names(module)
    first = next(index for index, name in enumerate(names) if name.startswith(f"{site}."))
    sizes = [module.get_parameter(name).numel() for name in names]
    return sum(sizes[first:]) / sum(sizes)


def blocks(module: nn.Module) -> list[str]:
    """Paths of the members of the backbone's longest lists of modules, in order."""
    lists = [
        (path, child)
        for path, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len(child) > 1
    ]
    outer = [
        (path, child)
        for path, child in lists
        if not any(path.startswith(f"{other}.") for other, _ in lists)
    ]
    return [f"{path}.{index}" for path, child in outer for index in range(len(child))]


def _parameters(module: nn.Module, name: str) -> int:
    paths = (*head_modules(module), *(() if name == HEAD else (name,)))
    return sum(p.numel() for path in paths for p in module.get_submodule(path).parameters())
