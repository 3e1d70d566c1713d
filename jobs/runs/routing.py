"""What becomes of examples when nobody says which task they are of: routed, counted, tabulated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tintray.data.source import DataSource
from tintray.jobs.config.settings import limits
from tintray.jobs.results import ForeignData, RoutedTask, RoutingTable
from tintray.pools.pool import Pool
from tintray.published.merge import Merge
from tintray.routing.pools import pool_features
from tintray.routing.router import auroc
from tintray.tasks.evaluation import TaskScore, mean


@dataclass(frozen=True)
class Routed:
    """Where the examples of one data set go, by example."""

    tasks: Sequence[str | None]  # None: taken for foreign
    likeliest: Sequence[str]
    familiarity: Sequence[float]
    found: float = 0.0  # see ``RoutedTask``

    @property
    def to(self) -> dict[str, float]:
        """The share of the examples by the likeliest task, the largest first."""
        counts = Counter(self.likeliest).most_common()
        return {name: count / len(self.likeliest) for name, count in counts}

    @property
    def unknown(self) -> float:
        """The share that is taken for foreign."""
        return sum(task is None for task in self.tasks) / len(self.tasks)


def route_pool(merge: Merge, pool: Pool) -> Routed:
    """Route every example of a pool."""
    found = pool_features(pool)
    routes = merge.router.route(found, nearest=1)
    tasks, likeliest = [r.task for r in routes], [r.nearest[0][0] for r in routes]
    return Routed(tasks, likeliest, merge.router.familiarity(found).tolist())


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
