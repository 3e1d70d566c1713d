"""How well examples find their task, whether foreign ones are noticed, and what it costs.

Prints the tables of ``tintray eval --route`` as figures, the share of a forward pass that routing
takes, and one line of JSON: ``routed`` (share of test examples whose likeliest task is their own),
``lost`` (points of the mean metric lost where nobody names the task), ``auroc`` (a mean over the
foreign data), ``latency`` (what a batch of images takes longer where nobody names their task).
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

import torch

import tintray
from tintray.serving.answers import Answer
from tintray.serving.engine import AUTO, Engine

BATCH, REPEATS = 32, 100


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
    """Time of a batch whose task is found / time where it is given, less 1; medians, in turns."""
    images = [*torch.rand(BATCH, 32, 32, 3).mul(255).byte().numpy()]
    engine = Engine(merge)
    answers = engine.answer([(AUTO, image) for image in images])
    routes = [one.route for one in answers if isinstance(one, Answer) and one.route is not None]
    tasks = [route.nearest[0][0] for route in routes]
    taken: list[list[float]] = [[], []]
    for _ in range(REPEATS):
        for times, named in zip(taken, ([AUTO] * BATCH, tasks), strict=True):
            started = time.thread_time()
            engine.answer(list(zip(named, images, strict=True)))
            times.append(time.thread_time() - started)
    found, given = map(median, taken)
    print(f"{1e3 * found / BATCH:.2f} ms to answer an example, {1e3 * given / BATCH:.2f} ms where "
          "its task is given (medians of CPU time, one thread)")  # fmt: skip
    return found / given - 1


if __name__ == "__main__":
    main()
