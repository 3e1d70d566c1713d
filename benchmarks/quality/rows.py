"""The rows of the tables: each is one tuple of overrides over a bare job file.

Whatever a row does not set is tintray's default.
"""

from __future__ import annotations

from collections.abc import Mapping

SMALL: tuple[str, ...] = ()
MEDIUM = ("tint.budget=1.5%", "tint.bits=32")
"""In float32 a share of the bytes is one of the numbers too."""
BEST = ("recipe=best",)

ROWS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "small": ("**tintray**, at most 0.5 % per task", SMALL),
    "medium": ("tintray, at most 1.5 % per task", MEDIUM),
    "best": ("tintray, as long as it gains", BEST),
}
"""tintray's own: row -> label, overrides."""

LOOP = (
    "objective.labels=hard",
    "objective.temperature=1",
    "fit.updates=in_turn",
    "fit.warmup=0",
    "fit.correction_lr=0",
    "merge.bounds=[0, 1]",
    "objective.filter=agreement",
    "fit.held_back=0",
    "fit.sampling=even",
)
"""The released loop, whatever its rates: hard labels, agreement filter, each task in turn, as many
examples of each, whole pools, and the state of the last round."""

AS_RELEASED = (
    "fit.schedule=constant",
    "fit.coefficient_lr=0.01",
    "fit.tint_lr=0.01",
    "merge.scale=0.3",
)
HEAD = ("tint.sites=head",)
PUBLISHED = (*HEAD, *LOOP, *AS_RELEASED)
"""With the rates that it was released with: Adam 1e-2, from 0.3, Λ in [0, 1]."""

TUNED = (*AS_RELEASED[:-1], "merge.scale=0.15")
"""The loop's rates as the search of ``--only tuning`` finds them for a tinted head: six trials."""
TUNED_SITES = TUNED
"""The same at the sites of ``small``: those that are taken where none is set."""

SOFT = ("objective.labels=soft", "objective.temperature=4")
TOGETHER = ("fit.updates=together",)
CORRECTION = ("fit.correction_lr=auto",)

BLOCK = (
    "fit.tint_lr=0.0005",
    "fit.correction_lr=0.001",
    "fit.correction_optimiser=adam",
    "fit.schedule=cosine",
)
ADAMERGING = (
    "merge.method=adamerging",
    "merge.bounds=[0, 1]",
    "fit.schedule=constant",
    "fit.held_back=0",
    "fit.sampling=even",
)
TUNED_ADAMERGING = ("fit.coefficient_lr=0.001", "merge.scale=0.1")

LADDER: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "published": ("the published loop, as released", PUBLISHED),
    "tuned": ("its rates tuned", (*HEAD, *LOOP, *TUNED)),
    "soft": ("tuned, soft labels at temperature 4", (*HEAD, *LOOP, *TUNED, *SOFT)),
    "together": ("tuned, all tasks in one round", (*HEAD, *LOOP, *TUNED, *TOGETHER)),
    "correction": ("tuned, with the shared correction", (*HEAD, *LOOP, *TUNED, *CORRECTION)),
    "sites": ("at the sites of tintray", (*LOOP, *TUNED_SITES)),
    "head": ("tintray, head alone", HEAD),
    "first_block": ("tintray, first block", ("tint.sites=vit.layers.0", *BLOCK)),
    "coefficients": (
        "tintray, coefficients alone",
        (*HEAD, "tint.learned=false", "fit.correction_lr=0"),
    ),
    "adamerging": ("AdaMerging", (*ADAMERGING, *TUNED_ADAMERGING)),
}
"""What each ingredient brings to the published loop, one at a time; and another learned rival."""


def row(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Label and overrides of a row; None if there is none of this name."""
    return ROWS.get(name) or LADDER.get(name)
