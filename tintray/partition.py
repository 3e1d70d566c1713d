"""How a model splits for a tint site: what all tasks share, and what each keeps for itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tintray.layout import Granularity, Layout, build_layout
from tintray.models import backbone_names, head_modules, resolve_site


@dataclass(frozen=True)
class Partition:
    """A base, split.

    Attributes
    ----------
    site
        Paths of the tinted modules.
    private
        Paths of all modules that a task owns: the tint site and the head.
    layout
        The shared tensors, and the layer units that they form.
    """

    module: nn.Module
    site: tuple[str, ...]
    private: tuple[str, ...]
    layout: Layout


def partition(base: nn.Module, site: str, granularity: Granularity = "tensor") -> Partition:
    """Resolve a tint site on a base, and lay out what is left to share.

    A tinted module's tensors are not in the layout: no task would use a merged version of them.

    Raises
    ------
    SpecError
        If the model has no such site; see ``resolve_site``.
    """
    paths = resolve_site(base, site)
    private = tuple(dict.fromkeys(paths + head_modules(base)))
    below = tuple(f"{path}." for path in private)
    shapes = {
        name: base.get_parameter(name).shape
        for name in backbone_names(base)
        if not name.startswith(below)
    }
    return Partition(base, paths, private, build_layout(shapes, granularity))
