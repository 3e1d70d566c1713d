"""What becomes of examples when nobody says which task they are of: routed, counted, tabulated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from tintray.data.source import DataSource
from tintray.jobs.config.settings import limits
from tintray.jobs.results import ForeignData, RoutedTask, RoutingTable
from tintray.models.structure import copy_on
from tintray.pools.pool import Pool
from tintray.published.files import reference_file
from tintray.published.merge import Merge
from tintray.references.observing import Observed
from tintray.routing.pools import pool_features
from tintray.routing.router import Route, auroc
from tintray.tasks.evaluation import TaskScore, mean
from tintray.tasks.outputs import Outputs
from tintray.tasks.registry import find_kind
from tintray.tinting.self_labels import predict


@dataclass(frozen=True)
class Routed:
    """Where the examples of one data set go, by example."""

    tasks: Sequence[str | None]  # None: taken for foreign
    likeliest: Sequence[str]
    familiarity: Sequence[float]
    found: float = 0.0  # see ``RoutedTask``

    @classmethod
    def of(cls, routes: Sequence[Route]) -> Self:
        """What becomes of examples with these routes."""
        likeliest = [route.nearest[0][0] for route in routes]
        return cls([route.task for route in routes], likeliest, [route.score for route in routes])

    @property
    def to(self) -> dict[str, float]:
        """The share of the examples by the likeliest task, the largest first."""
        counts = Counter(self.likeliest).most_common()
        return {name: count / len(self.likeliest) for name, count in counts}

    @property
    def unknown(self) -> float:
        """The share that is taken for foreign."""
        return sum(task is None for task in self.tasks) / len(self.tasks)


def route_pool(merge: Merge, pool: Pool, device: str = "cpu") -> Routed:
    """Route every example of a pool by its inputs alone."""
    return Routed.of(merge.router.route(pool_features(pool, device), nearest=1))


def route_answered(
    merge: Merge, pool: Pool, device: str, known: Mapping[str, Outputs] | None = None
) -> Routed:
    """Route every example of a pool, and have the likeliest task answer it, as a server does.

    ``known`` are the answers of tasks that were asked about the whole pool already.
    """
    known = known or {}
    routes = merge.router.route(pool_features(pool, device), nearest=1)
    by_task: dict[str, list[int]] = {}
    for row, route in enumerate(routes):
        by_task.setdefault(route.nearest[0][0], []).append(row)
    for task, rows in by_task.items():
        kind = find_kind(merge.task(task).kind)
        if kind.goes_on or kind.writes or reference_file(task) not in merge.manifest.files:
            continue
        part = pool[torch.tensor(rows)]
        if task in known:
            outputs = known[task][torch.tensor(rows)]
        else:
            outputs = predict(copy_on(merge.for_task(task), device), part, kind, device=device)
        observed = Observed.of(kind, outputs, part.mask)
        judged = merge.judge([routes[row] for row in rows], observed)
        for row, route in zip(rows, judged, strict=True):
            routes[row] = route
    return Routed.of(routes)


def foreign_source(text: str) -> DataSource:
    """The data that ``--foreign`` names: a path, or a path and its split, ``signs.npz#test``."""
    path, _, split = text.partition("#")
    if "://" not in path:
        path = str(Path(path).expanduser().absolute())
    return DataSource(path, split or "train", limits=limits())


def routing_table(
    merge: Merge, pairs: Sequence[tuple[TaskScore, Routed]], foreign: Mapping[str, Routed]
) -> RoutingTable:
    """The tables of ``tintray eval --route``, tasks in the order of the merge."""
    own = torch.tensor([score for _, routed in pairs for score in routed.familiarity])
    tasks = []
    for given, routed in pairs:
        figures = (given.task, given.metric, given.merged, routed.found)
        tasks.append(RoutedTask(*figures, routed.to, routed.unknown, len(routed.tasks)))
    strangers = []
    for name, of in foreign.items():
        apart = auroc(own, torch.tensor(of.familiarity))
        strangers.append(ForeignData(name, len(of.tasks), apart, of.unknown, of.to))
    routed_share = mean([task.to.get(task.name, 0.0) for task in tasks])
    return RoutingTable(tasks, routed_share, merge.router.shared, strangers)
