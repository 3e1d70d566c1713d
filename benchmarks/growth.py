"""What growing a merge costs and keeps, against merging all at once.

    python -m benchmarks.growth [--rounds 300] [--site vit.layers.5] [--only quality|adds|prefix]

``quality``  the ten-scripts zoo: a merge of six tasks, then four more added one at a time in
             ``auto``; beside it, all ten merged at once by the same job. Full merges with 7, 8, 9
             and 10 tasks are taken to cost as much as that one in proportion to their tasks: the
             cost of the four additions is given as a share of these four. Self-labels are made
             once and count for neither side.
``adds``     adding one task by a tint to a merge of K = 200 tasks and of K = 8 (three tasks,
             interleaved, the median).
``prefix``   learning a head with cached prefix activations and without.

Settings were chosen by agreement on held-back pool examples; the test sets serve for the table
alone. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict

import numpy as np
import torch
import yaml

import tintray
from jobs.growth import api as growth
from jobs.growth.run import GuardError
from jobs.results import MergeSummary
from jobs.spec.sections import JobSpec, TaskSpec, parse_spec

JOB = Path(__file__).parent.parent / "examples" / "ten-scripts.yaml"
FIRST = 6
OLD = ("mnist", "kannada_mnist", "hoda_persian_digits", "notmnist")
NEWCOMERS = ("gtsrb", "eurosat", "cmater_bangla_numerals")
EXACT = ("fit.precision=float32",)


class Place(TypedDict):
    """A store and its catalog, as commands take them."""

    store: str
    catalog: str


def place(store: Path) -> Place:
    """The store in this folder, with the catalog beside it."""
    return {"store": str(store), "catalog": f"sqlite:///{store}/catalog.db"}


def job(store: Path, tasks: slice, *overrides: str) -> JobSpec:
    """The ten-scripts job with some of its tasks."""
    where = (f"store={store}", f"catalog=sqlite:///{store}/catalog.db", "cluster.workers=0")
    spec = tintray.load_spec(JOB, (*overrides, *where))
    return spec.model_copy(update={"tasks": spec.tasks[tasks]})


def task_file(folder: Path, task: TaskSpec) -> Path:
    """A file with one task to add."""
    path = folder / f"{task.name}.yaml"
    path.write_text(yaml.safe_dump(task.model_dump(mode="json")))
    return path


# -- quality ---------------------------------------------------------------------------------------


def quality(
    scratch: Path, kept: Path | None, rounds: int, site: str, overrides: Sequence[str]
) -> dict[str, Any]:
    """Grow a merge from six tasks to ten, and merge ten at once, in one store."""
    store = (kept or scratch / "grown").resolve()
    common = (f"fit.rounds={rounds}", f"tint.site={site}")
    joint = tintray.run(job(store, slice(None), "name=at-once", *common))
    joint_seconds = _cost(joint)
    now = tintray.run(job(store, slice(FIRST), "name=grown", *common))
    added = job(store, slice(FIRST, None), *common).tasks
    print(
        "| step | tasks | way | new task: agreement held back | kept of the experts | "
        "worst old task | cost |"
    )
    print("|---|---|---|---|---|---|---|")
    print(_line("six at once", now, "", "", "", ""), flush=True)
    worst, spent, full = 0.0, 0.0, 0.0
    for task in added:
        before = {found.name: found.merged for found in now.tasks}
        try:
            now = growth.add(
                "grown", [task_file(scratch, task)], overrides=overrides, **place(store)
            )
        except GuardError as error:
            print(f"| add {task.name} | refused: {error} | | | | | |")
            continue
        seconds = _cost(now)
        spent += seconds
        full += joint_seconds * len(now.tasks) / len(joint.tasks)
        drops = {t.name: 100 * (before[t.name] - t.merged) for t in now.tasks if t.name in before}
        worst = max(worst, *drops.values())
        change = tintray.load(now.url).manifest["change"]
        way = " → ".join(tried["mode"] for tried in change["attempts"])
        agreed = f"{100 * change['agreement'][task.name]:.1f} %"
        lost = max(drops, key=lambda name: drops[name])
        print(
            _line(
                f"add {task.name}",
                now,
                way if way.endswith(change["mode"]) else f"{way}; {change['mode']} taken",
                agreed,
                f"{lost} {-drops[lost]:+.1f}",
                f"{seconds:.0f} s",
            ),
            flush=True,
        )
    print(_line("ten at once", joint, "", "", "", f"{joint_seconds:.0f} s"), flush=True)
    below = 100 * ((joint.normalised_accuracy or 0) - (now.normalised_accuracy or 0))
    return {
        "auto_points_below_joint": below,
        "worst_old_task_drop_points": worst,
        "cost_over_four_full": spent / full,
    }


def _cost(merge: MergeSummary) -> float:
    """Seconds of a job without its self-labels, which all jobs in a store share."""
    return sum(took for stage, took in merge.seconds.items() if stage != "preparing")


def _line(step: str, merge: MergeSummary, way: str, agreed: str, lost: str, cost: str) -> str:
    kept = f"{100 * (merge.normalised_accuracy or 0):.1f} %"
    return f"| {step} | {len(merge.tasks)} | {way} | {agreed} | {kept} | {lost} | {cost} |"


# -- time ------------------------------------------------------------------------------------------


def add_times(scratch: Path) -> dict[str, float]:
    """How much longer one more task takes a merge of many than a merge of few: by a tint, all in.

    Each newcomer is added to both, one after the other; everything about it is computed each time.
    """
    source = tintray.load_spec(JOB)
    merges: dict[int, Place] = {}
    for tasks in (8, 200):
        store = scratch / f"of-{tasks}"
        tintray.run(many(store, source, tasks))
        merges[tasks] = place(store)
    ratios = []
    for task in source.tasks:
        if task.name not in NEWCOMERS:
            continue
        path = task_file(scratch, task)
        took = {}
        for tasks, where in merges.items():
            began = time.perf_counter()
            growth.add("many/v1", [path], mode="tint", **where)
            took[tasks] = time.perf_counter() - began
        ratios.append(took[200] / took[8])
        print(f"add {task.name}: {took[8]:.1f} s to K = 8, {took[200]:.1f} s to K = 200")
    return {"add_k200_over_k8": statistics.median(ratios)}


def many(store: Path, source: JobSpec, tasks: int) -> JobSpec:
    """A merge of many tasks that costs little: four experts under many names, short pools."""
    section = []
    store.mkdir(parents=True, exist_ok=True)
    for number in range(tasks):
        task = next(task for task in source.tasks if task.name == OLD[number % len(OLD)])
        pool = store / f"{task.name}.npz"
        if not pool.is_file():
            with np.load(str(task.adapt.path)) as arrays:
                np.savez(pool, x_train=arrays["x_train"][:64])
        one = {"name": f"task{number}", "expert": str(task.expert), "adapt": {"path": str(pool)}}
        section.append(one)
    return parse_spec(
        {
            "name": "many",
            "base": str(source.base),
            "tasks": section,
            "merge": {"method": "task_arithmetic", "scale": 0.01},
            "cluster": {"workers": 0},
            **place(store),
        }
    )


def prefix_speedup(scratch: Path) -> dict[str, float]:
    """How much faster a head is learned on cached prefix activations; the same result."""
    from jobs.fit.crew import survey
    from jobs.fleet import InlineFleet
    from jobs.growth.attempts import tint_order
    from jobs.growth.crew import GrowthCrew

    spec = job(scratch / "prefix", slice(-1, None), *EXACT)
    order = tint_order(spec, spec.growth.rounds, whole=True)
    fleet = InlineFleet(1)
    ground = survey(spec)
    theta = ground.partition.layout.flatten(ground.partition.module.state_dict()).numpy()
    name = spec.tasks[0].name

    def learned(prefix: bool) -> tuple[float, dict[str, torch.Tensor]]:
        crew = GrowthCrew(fleet, spec, ground)
        crew.check()
        crew.label(lambda _: None)
        began = time.process_time()  # of one thread: others on the machine do not count
        found = crew.fit_tints([name], replace(order, prefix=prefix), theta)[0]
        took = time.process_time() - began
        assert found.prefixed == prefix
        return took, crew.tints()[name]

    (quick, one), (slow, other) = learned(True), learned(False)
    fleet.close()
    apart = max(float((one[name] - other[name]).abs().max()) for name in one)
    print(
        f"a head, {spec.growth.rounds} rounds: {quick:.1f} s with the prefix cached "
        f"(caching included), {slow:.1f} s without; largest difference {apart:.1e}"
    )
    return {"prefix_speedup": slow / quick, "prefix_difference": apart}


def main() -> None:
    """Print tables and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--site", default="vit.layers.5")
    parser.add_argument("--store", type=Path, help="keeps merges, and labels for the next run")
    parser.add_argument("--only", choices=["quality", "adds", "prefix"])
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    with TemporaryDirectory(prefix="tintray-growth-") as name:
        scratch = Path(name)
        if arguments.only in (None, "quality"):
            result |= quality(
                scratch, arguments.store, arguments.rounds, arguments.site, arguments.overrides
            )
        if arguments.only in (None, "adds"):
            result |= add_times(scratch)
        if arguments.only in (None, "prefix"):
            result |= prefix_speedup(scratch)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
