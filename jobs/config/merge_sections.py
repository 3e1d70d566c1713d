"""A job file's ``merge`` and ``tint``: how task vectors are merged, what each task keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from tintray.errors import SpecError, nearest
from tintray.jobs.config.fields import Bounds, Budget, Memory, Scale
from tintray.jobs.config.section import Section
from tintray.limits import parse_budget
from tintray.numerics.choices import Bits, Format, Granularity
from tintray.numerics.sites import AUTO, HEAD, TintSite

TINT = "tint"
ADAMERGING = {"adamerging": "tensor", "adamerging_task": "task"}
"""The layer-wise and the task-wise form of AdaMerging, with the granularity of each."""
SURGERY = "surgery"
"""A module per task behind the merge that ``init`` names; coefficients stay where they start."""
_FROM_INIT = (TINT, *ADAMERGING, SURGERY)


class MergeSpec(Section):
    """How the task vectors are merged."""

    method: str = Field(default=TINT, examples=["ties"])
    """`tint` (all is learned), `adamerging`, `surgery`, or a merging method to run alone."""
    init: str = Field(default="task_arithmetic", examples=["average"])
    """The merging method whose directions the coefficients multiply; `base` starts them at zero."""
    parameters: dict[str, int | float] = Field(default={}, examples=[{"density": 0.2}])
    """Parameters of the merging method: `method`, or `init` where coefficients are learned."""
    scale: Scale = Field(default=None, examples=[0.3])
    """The coefficient that all start with, or `own`: the merging method's own for so many tasks.

    Left out, 1/K where coefficients are learned and the method's own where it runs alone."""
    task_vectors: Format = "f32"
    """How task vectors are kept during the fit: `f32`, or `bf16`, `int8`, `int4` to save memory."""
    memory: Memory = Field(
        default=2 * 2**30, examples=["8GiB"], json_schema_extra={"default": "2GiB"}
    )
    """What a process that runs a merging method may hold, such as 2GiB."""
    granularity: Granularity = "tensor"
    """How much of a task vector shares one coefficient."""
    bounds: Bounds = Field(default=None, examples=[[0, 1]])
    """The lowest and the highest value that a coefficient may take, as [low, high]."""

    @property
    def learned(self) -> bool:
        """Whether coefficients are learned, rather than a merging method run alone."""
        return self.method in (TINT, *ADAMERGING)

    @property
    def directions(self) -> str:
        """The merging method that is run alone, or whose directions the coefficients multiply."""
        if self.method not in _FROM_INIT:
            return self.method
        return "task_arithmetic" if self.init == "base" else self.init

    @field_validator("method", "init")
    @classmethod
    def _method_exists(cls, name: str, info: ValidationInfo) -> str:
        extra = _FROM_INIT if info.field_name == "method" else ("base",)
        if name in (*extra, "task_arithmetic", "average"):
            return name
        from tintray.merging import methods

        known = (*extra, *methods())
        if name not in known:
            hint = f"{nearest(name, known)}; there are {', '.join(known)}"
            raise ValueError(f"expected a merging method, found {name!r}{hint}")
        return name

    @field_validator("parameters")
    @classmethod
    def _parameters_fit(
        cls, given: dict[str, int | float], info: ValidationInfo
    ) -> dict[str, int | float]:
        if given and {"method", "init"} <= info.data.keys():
            from tintray.merging import recipe

            method, init = info.data["method"], info.data["init"]
            try:
                recipe(init if method in _FROM_INIT else method, given)
            except SpecError as error:
                raise ValueError(str(error).removeprefix("merge.parameters.")) from error
        return given

    @field_validator("bounds")
    @classmethod
    def _start_within_bounds(cls, bounds: Bounds, info: ValidationInfo) -> Bounds:
        # A method's own scale gives way to bounds; what the job asks for does not.
        start = 0.0 if info.data.get("init") == "base" else info.data.get("scale")
        if bounds and isinstance(start, int | float) and not bounds[0] <= start <= bounds[1]:
            raise ValueError(
                f"expected bounds around the start of the coefficients ({start:g}), found "
                f"[{bounds[0]:g}, {bounds[1]:g}]"
            )
        return bounds


class SiteSpec(Section):
    """One place where every task keeps numbers of its own."""

    site: str = Field(min_length=1, examples=["vit.layers.5"])
    """`head`, `prompt`, a module's path such as vit.layers.5, `norms`, a pattern (`*.mlp`)."""
    rank: int | None = Field(default=None, ge=1, examples=[4])
    """A low-rank product added to each linear weight there, instead of a copy; of a prompt, 8."""
    lr: float | None = Field(default=None, gt=0, examples=[0.005])
    """Its highest learning rate; left out, `fit.tint_lr`, or by the kind of place."""

    @property
    def place(self) -> TintSite:
        """The same as the fit takes it."""
        return TintSite(self.site, self.rank, self.lr)


def _site_entries(value: Any) -> Any:
    """`head` and `[prompt, head]` as entries with a site alone."""
    listed = [value] if isinstance(value, str | Mapping) else value
    if not isinstance(listed, list | tuple):
        return listed
    return tuple({"site": entry} if isinstance(entry, str) else entry for entry in listed)


_Site = Annotated[str, Field(min_length=1)] | SiteSpec
Sites = Annotated[
    tuple[SiteSpec, ...],
    Field(min_length=1, strict=False),
    BeforeValidator(
        _site_entries,
        json_schema_input_type=_Site | Annotated[tuple[_Site, ...], Field(min_length=1)],
    ),
]


class TintSpec(Section):
    """The layer that every task keeps for itself."""

    sites: Sites | None = Field(default=None, examples=[["prompt", "head"]])
    """Where: one or more of `head`, `prompt`, a module's path, `norms`, a pattern; or `auto`.

    Left out, what the budget buys; without one, a prompt and the head where coefficients are
    learned, else the head."""
    budget: Budget | None = Field(default=None, examples=["0.5%"])
    """The most that a task may own, its head included, in the mean: 0.5%, 300KiB, 2000 numbers."""
    bits: Bits | None = None
    """What a number that a task owns is stored in: 32, or rounded to 16, 8 or 4; left out, 32."""
    learned: bool = True
    """Whether the tint layers learn; otherwise each stays as its expert has it."""

    @property
    def auto(self) -> bool:
        """Whether the site is to be found by trials."""
        return any(entry.site == AUTO for entry in self.sites or ())

    @property
    def places(self) -> tuple[TintSite, ...]:
        """The sites as the fit takes them; the head, where they are still to be decided."""
        if self.sites is None or self.auto:
            return (TintSite(HEAD),)
        return tuple(entry.place for entry in self.sites)

    def most_numbers(self, parameters: int) -> float | None:
        """The budget in numbers, beside a backbone of so many parameters; None without one."""
        if self.budget is None:
            return None
        budget = parse_budget(self.budget)
        most = budget.of(parameters)
        return most if budget.unit == "numbers" else most * 8 / (self.bits or 32)

    @property
    def told(self) -> str:
        """The sites in a few words."""
        return AUTO if self.auto else ", ".join(map(str, self.places))

    @field_validator("sites")
    @classmethod
    def _sites_fit_together(cls, sites: tuple[SiteSpec, ...] | None) -> Any:
        if sites is None:
            return None
        names = [entry.site for entry in sites]
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise ValueError(f"expected a different place for each site, found {name!r} twice")
        if AUTO in names and (len(names) > 1 or sites[0].rank is not None):
            raise ValueError("expected 'auto' alone and without a rank: it tries full copies")
        return sites
