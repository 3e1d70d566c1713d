"""How well examples find their task, whether foreign ones are noticed, and what it costs.

Prints the tables of ``tintray eval --route`` as figures, the share of a forward pass that routing
takes, and one line of JSON: ``routed`` (share of test examples whose likeliest task is their own),
``lost`` (points of the mean metric lost where nobody names the task), ``auroc`` (a mean over the
foreign data), ``latency`` (time to route a batch / time of its forward pass).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor

import tintray

BATCH, REPEATS = 32, 25


def main() -> None:
    """Measure a published merge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("merge", help="a merge, as tintray eval takes it")
    parser.add_argument("--foreign", action="append", default=[], metavar="FILE[#SPLIT]")
    parser.add_argument("--store")
    parser.add_argument("--catalog")
    given = parser.parse_args()
    torch.set_num_threads(1)
    merge = tintray.load(given.merge, store=given.store, catalog=given.catalog)
    print(json.dumps(figures(merge, given.foreign)))


def figures(merge: tintray.Merge, foreign: list[str]) -> dict[str, float | None]:
    """The figures of the last line, for a merge of images."""
    table = merge.evaluate(route=True, foreign=foreign)
    routing = table.routing
    assert routing is not None, "it was asked for"
    for task in routing.tasks:
        own = task.to.get(task.name, 0.0)
        print(f"{task.name:24} given {task.given:.3f}  found {task.found:.3f}  "
              f"to its task {own:.2%}  unknown {task.unknown:.2%}")  # fmt: skip
    for one in routing.foreign:
        print(f"{one.data}: AUROC {one.auroc:.3f}, unknown {one.unknown:.1%}")
    print("same inputs:", ", ".join(f"{a} and {b}" for a, b, _ in routing.shared) or "none")
    count = len(routing.tasks)
    lost = sum(task.given - task.found for task in routing.tasks) / count
    apart = [one.auroc for one in routing.foreign]
    return {
        "routed": round(routing.routed, 4),
        "lost": round(100 * lost, 2),
        "auroc": round(sum(apart) / len(apart), 3) if apart else None,
        "latency": round(latency(merge), 4),
    }


def latency(merge: tintray.Merge) -> float:
    """Time to route a batch of images / time of its forward pass; medians, taken in turns."""
    task = merge.tasks[0]
    blank = torch.rand(BATCH, 64, 64, 3).mul(255).byte().numpy()
    inputs: Mapping[str, Tensor] = dict(merge.processor(task)([*blank], return_tensors="pt"))
    taken: dict[str, list[float]] = {"route": [], "forward": []}
    calls: dict[str, Callable[[], Any]] = {
        "route": lambda: merge.route(inputs),
        "forward": lambda: merge.predict(task, inputs),
    }
    for call in calls.values():
        call()
    for _ in range(REPEATS):
        for name, call in calls.items():
            started = time.thread_time()
            call()
            taken[name].append(time.thread_time() - started)
    route, forward = (median(taken[name]) for name in ("route", "forward"))
    print(f"{1e3 * route / BATCH:.2f} ms to route an example, {1e3 * forward / BATCH:.2f} ms for "
          "the forward pass (medians of CPU time, one thread)")  # fmt: skip
    return route / forward


if __name__ == "__main__":
    main()
