"""What growing a merge costs and keeps, against merging all at once.

    python -m benchmarks.growth [--rounds 300] [--site vit.layers.5] [--only quality|adds|prefix]
                                [--store FOLDER] [--set fit.correction_lr=0.001]

``quality``  the ten-scripts zoo: a merge of six tasks, then four more added one at a time in
             ``auto``; beside it, all ten merged at once by the same job. Full merges with 7, 8, 9
             and 10 tasks are taken to cost as much as that one in proportion to their tasks: the
             cost of the four additions is given as a share of these four. Self-labels are made
             once and count for neither side. With ``--store`` a run that was broken off goes on.
``adds``     adding one task by a tint to a merge of K = 200 tasks and of K = 8 (three tasks,
             taking turns, the median).
``prefix``   learning a tint layer with cached prefix activations and without: everything from the
             fit's beginning to the agreement on what was held back. The figure is of the head, the
             default site; that of the last block is printed too. The first block has hardly
             anything before it, and nothing to gain.

Settings were chosen by agreement on held-back pool examples; the test sets serve for the table
alone. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict

import numpy as np
import torch
import yaml

import tintray
from tintray.errors import GuardError
from tintray.jobs.api import run, show
from tintray.jobs.config.job_file import JobSpec, parse_spec
from tintray.jobs.config.task_sections import TaskSpec
from tintray.jobs.events import Event, PhaseStarted
from tintray.jobs.results import MergeSummary
from tintray.jobs.runs import grow as growth

JOB = Path(__file__).parent.parent / "examples" / "ten-scripts.yaml"
FIRST = 6
OLD = ("mnist", "kannada_mnist", "hoda_persian_digits", "notmnist")
NEWCOMERS = ("gtsrb", "eurosat", "cmater_bangla_numerals")
SETTINGS = (
    *("merge.scale=0.3", "fit.tint_lr=0.002", "fit.correction_lr=0.001"),
    *("fit.correction_optimiser=adam", "fit.schedule=cosine", "objective.filter=agreement"),
)
"""In place of what the job file has for its own sites: those of the reported figures."""

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
    spec = tintray.load_spec(JOB, (*SETTINGS, *overrides, *where))
    return spec.changed(tasks=spec.tasks[tasks])


def task_file(folder: Path, task: TaskSpec) -> Path:
    """A file with one task to add."""
    path = folder / f"{task.name}.yaml"
    path.write_text(yaml.safe_dump(task.model_dump(mode="json")))
    return path


# -- quality ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One merge of the table: what came of it and what it cost.

    Attributes
    ----------
    cost
        Seconds of processor time without self-labels, which all steps share. Everything runs in
        one thread of this process, so that others on the machine do not count.
    refused
        What the guard said, where nothing was published.
    """

    merge: str
    cost: float
    refused: str = ""


class Meter:
    """Counts the processor time of a job's stages, but for the one that makes self-labels."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._stage, self._since = "", time.process_time()

    def __call__(self, event: Event) -> None:
        """Take note of a stage that begins."""
        if isinstance(event, PhaseStarted):
            self.stop()
            self._stage = event.phase

    def stop(self) -> None:
        """Count what has passed since the last stage began."""
        now = time.process_time()
        if self._stage != "preparing":
            self.spent += now - self._since
        self._since = now


class Diary:
    """The steps that were taken, kept beside the store: a run that was broken off goes on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._steps = json.loads(path.read_text()) if path.is_file() else {}

    def step(self, name: str, work: Callable[[Meter], MergeSummary]) -> Step:
        """Take a step, unless an earlier run has."""
        if name in self._steps:
            return Step(**self._steps[name])
        meter = Meter()
        try:
            made = work(meter)
            merge, refused = f"{made.name}/{made.version}", ""
        except GuardError as error:
            merge, refused = "", str(error)
        meter.stop()
        taken = Step(merge, meter.spent, refused)
        self._steps[name] = asdict(taken)
        self._path.write_text(json.dumps(self._steps, indent=1))
        return taken


def quality(
    store: Path, rounds: int, site: str, settings: Sequence[str], overrides: Sequence[str]
) -> dict[str, Any]:
    """Grow a merge from six tasks to ten, and merge ten at once, in one store."""
    common = (f"fit.rounds={rounds}", f"tint.sites={site}", *settings)
    whole = job(store, slice(None), "name=at-once", *common)
    where = place(store)
    store.mkdir(parents=True, exist_ok=True)
    diary = Diary(store / "steps.json")

    def full(name: str, tasks: slice) -> Callable[[Meter], MergeSummary]:
        return lambda meter: run(job(store, tasks, f"name={name}", *common), on_event=meter)

    def one_more(task: TaskSpec) -> Callable[[Meter], MergeSummary]:
        file = task_file(store, task)
        return lambda meter: growth.add(
            "grown", [file], overrides=overrides, on_event=meter, **where
        )

    head = ("step", "tasks", "way", "new task: agreement held back", "kept of the experts")
    print("| " + " | ".join((*head, "worst old task", "cost")) + " |")
    print("|---|---|---|---|---|---|---|")
    first = diary.step("six", full("grown", slice(FIRST)))
    now = show(first.merge, **where)
    print(_line("six at once", now, "", "", "", first.cost), flush=True)
    worst, spent, sizes = 0.0, 0.0, []
    for task in whole.tasks[FIRST:]:
        before = {found.name: found.merged for found in now.tasks}
        step = diary.step(f"add {task.name}", one_more(task))
        spent += step.cost
        sizes.append(len(now.tasks) + 1)
        if step.refused:
            print(f"| add {task.name} | refused: {step.refused} | | | | | {step.cost:.0f} s |")
            continue
        now = show(step.merge, **where)
        drops = {t.name: 100 * (before[t.name] - t.merged) for t in now.tasks if t.name in before}
        lost = max(drops, key=lambda name: drops[name])
        worst = max(worst, drops[lost])
        change = tintray.load(now.url).manifest.change
        assert change is not None and change.mode is not None, "a merge that was grown"
        way = " → ".join(tried["mode"] for tried in change.attempts)
        way = way if way.endswith(change.mode) else f"{way}; {change.mode} taken"
        agreed = f"{100 * change.agreement[task.name]:.1f} %"
        fell = f"{lost} {-drops[lost]:+.1f}" if drops[lost] else "all as before"
        print(_line(f"add {task.name}", now, way, agreed, fell, step.cost), flush=True)
    last = diary.step("at once", full("at-once", slice(None)))
    joint = show(last.merge, **where)
    print(_line("ten at once", joint, "", "", "", last.cost), flush=True)
    below = 100 * ((joint.normalised_accuracy or 0) - (now.normalised_accuracy or 0))
    return {
        "auto_points_below_joint": below,
        "worst_old_task_drop_points": worst,
        "cost_over_four_full": spent / sum(last.cost * size / len(joint.tasks) for size in sizes),
    }


def _line(step: str, merge: MergeSummary, way: str, agreed: str, lost: str, cost: float) -> str:
    kept = f"{100 * (merge.normalised_accuracy or 0):.1f} %"
    return f"| {step} | {len(merge.tasks)} | {way} | {agreed} | {kept} | {lost} | {cost:.0f} s |"


# -- time ------------------------------------------------------------------------------------------


def add_times(scratch: Path) -> dict[str, float]:
    """How much longer one more task takes a merge of many than a merge of few: by a tint, all in.

    Each newcomer is added to both, one after the other; everything about it is computed each time.
    """
    source = tintray.load_spec(JOB)
    merges: dict[int, Place] = {}
    for tasks in (8, 200):
        store = scratch / f"of-{tasks}"
        run(many(store, source, tasks))
        merges[tasks] = place(store)
    ratios = []
    for task in source.tasks:
        if task.name not in NEWCOMERS:
            continue
        path = task_file(scratch, task)
        took = {}
        # In turns: who comes first in a process pays for what is loaded once.
        turns = list(merges.items()) if len(ratios) % 2 else list(merges.items())[::-1]
        for tasks, where in turns:
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
            with np.load(str(task.pool.path)) as arrays:
                np.savez(pool, x_train=arrays["x_train"][:64])
        one = {"name": f"task{number}", "expert": str(task.expert), "pool": {"path": str(pool)}}
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


def prefix_speedups(scratch: Path, overrides: Sequence[str]) -> dict[str, float]:
    """How much faster tint layers are learned on cached prefix activations; the same result."""
    head = prefix_speedup(scratch, "head", overrides)
    prefix_speedup(scratch, "vit.layers.5", overrides)
    return {"prefix_speedup": head}


def prefix_speedup(scratch: Path, site: str, overrides: Sequence[str]) -> float:
    """How much faster at this site."""
    from tintray.jobs.engine.base_model import load_base_model
    from tintray.jobs.engine.in_process import InProcessBackend
    from tintray.jobs.engine.tint_worker import TintWorkerPool
    from tintray.jobs.runs.growth_modes import tint_config

    spec = job(
        scratch / f"prefix-{site}", slice(-1, None), *EXACT, f"tint.sites={site}", *overrides
    )
    backend = InProcessBackend(1)
    base = load_base_model(spec)
    config = tint_config(spec, base, spec.growth.rounds, new=True)
    theta = base.partition.layout.flatten(base.partition.module.state_dict()).numpy()
    name = spec.tasks[0].name

    def learned(prefix: bool, rounds: int = config.rounds) -> tuple[float, dict[str, torch.Tensor]]:
        workers = TintWorkerPool(backend, spec, base)
        workers.check()
        workers.label(lambda _: None)
        began = time.process_time()  # of one thread: others on the machine do not count
        found = workers.fit_tints([name], replace(config, prefix=prefix, rounds=rounds), theta)[0]
        took = time.process_time() - began
        assert found.prefixed == prefix
        return took, dict(workers.tints()[name].tensors)

    learned(False, rounds=2)  # what a process does once counts for neither
    (quick, one), (slow, other) = learned(True), learned(False)
    backend.close()
    apart = max(float((one[name] - other[name]).abs().max()) for name in one)
    print(
        f"{site}, {spec.growth.rounds} rounds: {quick:.1f} s with the prefix cached "
        f"(caching included), {slow:.1f} s without; largest difference {apart:.1e}"
    )
    return slow / quick


def main() -> None:
    """Print tables and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--site", default="vit.layers.5")
    parser.add_argument("--store", type=Path, help="keeps merges; a run that broke off goes on")
    parser.add_argument("--only", choices=["quality", "adds", "prefix"])
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    with TemporaryDirectory(prefix="tintray-growth-") as name:
        scratch = Path(name)
        if arguments.only in (None, "quality"):
            store = (arguments.store or scratch / "grown").resolve()
            overrides = arguments.overrides
            asked = [text for text in overrides if text.startswith("growth.")]
            others = [text for text in overrides if text not in asked]
            result |= quality(store, arguments.rounds, arguments.site, others, asked)
        if arguments.only in (None, "adds"):
            result |= add_times(scratch)
        if arguments.only in (None, "prefix"):
            result |= prefix_speedups(scratch, arguments.overrides)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
