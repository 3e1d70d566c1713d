"""What a job file leaves out, by the name of a recipe: how long to learn.

Nothing of a job has to be set beside its tasks. What fields default to is the recipe ``default``;
``fast`` and ``best`` differ from it in the few fields below. What a job file says itself goes
before any recipe. A recorded job has every field, so that recipes may change between versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

RecipeName = Literal["fast", "default", "best"]

RECIPES: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "fast": {"fit": {"rounds": 60}},
        "default": {},
        "best": {"fit": {"rounds": 3000, "schedule": "until_flat"}},
    }
)
"""Recipe -> section -> field -> value, where a job file says nothing."""


def completed(job: Any) -> Any:
    """A job as a document has it, with the fields that its recipe sets and it leaves out."""
    if not isinstance(job, Mapping):
        return job
    name = job.get("recipe")
    sections = RECIPES.get(name, {}) if isinstance(name, str) else {}  # no such recipe: told later
    return {**job, **{name: _laid_under(job.get(name), of) for name, of in sections.items()}}


def _laid_under(section: Any, fields: Mapping[str, Any]) -> Any:
    if section is None:
        return dict(fields)
    return {**fields, **section} if isinstance(section, Mapping) else section
