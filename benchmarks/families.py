"""How much of their experts merges keep beyond small image classifiers: texts, dense, LoRA.

    python -m benchmarks.families [--zoos zoo] [--data ../shared/data] [--only text dense lora]
                                  [--rows …] [--rounds N] [--held-back] [--small]

Zoos that are not in the folder ``--zoos`` are made there first, by ``benchmarks.zoos``:
eight MiniLMs, rendered rooms and real images, and 200 LoRA adapters, of which every second one is
merged; with ``--small`` there is less of everything. Each row of a table is one job over the same
experts and pools, measured on the test splits. With ``--held-back`` a fifth of each pool
takes their place, and the figure is agreement with the experts: what settings are chosen by.

Rows that were measured before, by the same job, are taken from ``--zoos``/rows. The last line is
one JSON object of normalised accuracies; what was not asked for is null in it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tintray
from benchmarks.adapters import memory_table
from benchmarks.quality.rows import PUBLISHED
from benchmarks.zoos import omniglot, scenes, text
from benchmarks.zoos.dense_recipe import SMALL, DenseRecipe
from benchmarks.zoos.text_recipe import TEXT
from tintray.jobs.config.job_file import JobSpec, load_spec

RANK = 4
ADAPTERS = 100
_TRAIN = re.compile(r"(?P<name>\w+)(\[:(?P<stop>\d+)\])?")

HEAD = ("tint.sites=head",)
FIRST_STAGE = ("tint.sites=segformer.stages.0",)
AVERAGE = ("merge.method=average", *HEAD)
ARITHMETIC = ("merge.method=task_arithmetic", *HEAD)


@dataclass(frozen=True)
class Family:
    """A job file of a zoo, and the rows of its table: label -> what is laid over the job file."""

    title: str
    zoo: str
    job: str
    rows: Mapping[str, tuple[str, ...]]
    tasks: int | None = None  # spread over all of the job's; None is all


def _rows(**own: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Rivals, a tinted head, and a family's ``own``."""
    rivals = {"average": AVERAGE, "task_arithmetic": ARITHMETIC, "published": PUBLISHED}
    return rivals | {"head": HEAD} | own


FAMILIES = {
    "text": Family(
        "Eight texts on MiniLM",
        "text",
        "job.yaml",
        _rows(block=("tint.sites=bert.encoder.layer.5", "fit.correction_lr=0.00003")),
    ),
    "scenes": Family(
        "Segmentation, depth and normals of rendered rooms",
        "scenes",
        "job.yaml",
        _rows(stage=FIRST_STAGE),
    ),
    "segmentation": Family(
        "Segmentation of rooms, streets and faces",
        "scenes",
        "segmentation.yaml",
        _rows(stage=FIRST_STAGE),
    ),
    "lora": Family(f"{ADAPTERS} LoRA adapters", "lora", "job.yaml", _rows(), tasks=ADAPTERS),
}
CHOSEN = {"scenes": "stage", "segmentation": "stage", "lora": "head"}
"""The row that stands for a family: the one with the highest agreement on held-back pools."""
PARTS = {"text": ("text",), "dense": ("scenes", "segmentation"), "lora": ("lora",)}


@dataclass(frozen=True)
class Score:
    """One task of one row, by the first metric of its kind."""

    metric: str
    merged: float
    expert: float
    normalised: float
    details: Mapping[str, Sequence[float]]  # metric -> merge, expert


@dataclass(frozen=True)
class Row:
    """One job: its tasks' scores, and the mean of what it keeps of each expert."""

    tasks: Mapping[str, Score]
    normalised: float


def job(family: Family, zoos: Path, overrides: Sequence[str], options: Any) -> JobSpec:
    """The job of one row; with ``--held-back``, tested on a fifth of its pools."""
    given = (
        f"store={(options.store or zoos / 'store').resolve()}",
        f"cluster.workers={options.workers}",
        *overrides,
        *options.set,
        *([f"fit.rounds={options.rounds}"] if options.rounds else []),
    )
    spec = load_spec(zoos / family.zoo / family.job, given)
    every = spec.tasks
    count = min(options.tasks or family.tasks or len(every), len(every))
    chosen = [every[len(every) * index // count] for index in range(count)]
    if options.held_back:
        chosen = [_held_back(task) for task in chosen]
    return spec.changed(tasks=chosen)


def _held_back(task: Any) -> Any:
    found = _TRAIN.fullmatch(task.pool.split)
    assert found is not None, f"{task.pool.split}: the zoos' job files take pools from the start"
    name, stop = found["name"], found["stop"]
    edge = f"{int(stop) * 4 // 5}" if stop else "80%"
    test = task.pool.changed(split=f"{name}[{edge}:{stop or ''}]")
    return task.changed(pool={"split": f"{name}[:{edge}]"}, test=test)


def measured(spec: JobSpec, folder: Path, held_back: bool) -> Row:
    """Run a job, or take what it gave before from ``folder``."""
    document = spec.model_dump_json(exclude={"store", "catalog", "cluster"})
    path = folder / f"{hashlib.sha256(f'{document}{held_back}'.encode()).hexdigest()[:24]}.json"
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        tasks = {name: Score(**score) for name, score in known["tasks"].items()}
        return Row(tasks, known["normalised"])
    merge = tintray.run(spec)
    found: dict[str, Score] = {}
    for task in merge.summary().tasks:
        details = merge.task(task.name).score.details
        if held_back:
            found[task.name] = Score("agreement", task.agreement, 1.0, task.agreement, details)
        else:
            expert, kept = task.expert or 0.0, task.normalised or 0.0
            found[task.name] = Score(task.metric, task.merged, expert, kept, details)
    row = Row(found, sum(score.normalised for score in found.values()) / len(found))
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(row), indent=1) + "\n", encoding="utf-8")
    return row


def table(title: str, rows: Mapping[str, Row]) -> str:
    """Markdown: methods by rows; a column per metric of each task, or their means if many."""
    first = next(iter(rows.values()))
    columns = [
        (task, metric)
        for task, score in first.tasks.items()
        for metric in (score.details or {score.metric: ()})
    ]
    if len(columns) > 12:
        return _means(title, rows)
    names = [f"{task}: {metric.replace('_', ' ')}" for task, metric in columns]
    lines = [
        f"### {title}",
        "",
        f"| | {' | '.join(names)} | kept |",
        "|---" * (len(names) + 2) + "|",
    ]

    def line(label: str, row: Row, side: int, kept: float) -> str:
        values = [_shown(metric, _value(row.tasks[task], metric, side)) for task, metric in columns]
        return f"| {label} | {' | '.join(values)} | {100 * kept:.1f} % |"

    lines.append(line("experts", first, 1, 1.0))
    lines += [line(label, row, 0, row.normalised) for label, row in rows.items()]
    return "\n".join([*lines, ""])


def _means(title: str, rows: Mapping[str, Row]) -> str:
    lines = [f"### {title}", "", "| | mean | kept | least kept |", "|---|---|---|---|"]
    for label, row in rows.items():
        scores = row.tasks.values()
        if label == next(iter(rows)):
            lines.append(f"| experts | {_mean([s.expert for s in scores])} | 100.0 % | |")
        least = min(row.tasks, key=lambda name: row.tasks[name].normalised)
        lines.append(
            f"| {label} | {_mean([s.merged for s in scores])} | {100 * row.normalised:.1f} % | "
            f"{100 * row.tasks[least].normalised:.0f} % {least} |"
        )
    return "\n".join([*lines, ""])


def _mean(values: Sequence[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f}"


def _value(score: Score, metric: str, side: int) -> float:
    if metric in score.details:
        return score.details[metric][side]
    return (score.merged, score.expert)[side]


def _shown(metric: str, value: float) -> str:
    """Shares as percent, angles in degrees, errors as they are."""
    if metric == "degrees":
        return f"{value:.1f}°"
    return f"{value:.3f}" if metric.endswith("error") else f"{100 * value:.1f}"


def make_zoos(zoos: Path, data: Path, parts: Sequence[str], small: bool) -> None:
    """Build what is not there; a finished zoo is only looked at."""
    texts = replace(TEXT, examples=500) if small else TEXT
    rooms = SMALL if small else DenseRecipe()
    drawings, adapters = data / "vision" / "omniglot.npz", ADAPTERS if small else None
    builders: dict[str, Callable[[], Path]] = {
        "text": lambda: text.build(zoos / "text", data / "text", recipe=texts, on_progress=_say),
        "dense": lambda: scenes.build(
            zoos / "scenes", data / "dense", recipe=rooms, on_progress=_say
        ),
        "lora": lambda: omniglot.build(
            zoos / "lora", drawings, tasks=adapters, lora=RANK, on_progress=_say
        ),
    }
    for part in parts:
        if not (zoos / FAMILIES[PARTS[part][0]].zoo / "zoo.json").is_file():
            builders[part]()


def _say(line: str) -> None:
    print(line, flush=True)


def results(kept: Mapping[tuple[str, str], float]) -> dict[str, float | None]:
    """The last line: normalised accuracies of 1; the dense one is the lower of its two settings."""
    pairs = [(family, CHOSEN[family]) for family in PARTS["dense"]]
    dense = [kept[pair] for pair in pairs if pair in kept]
    found = {
        "text_block": kept.get(("text", "block")),
        "text_head": kept.get(("text", "head")),
        "dense": min(dense) if len(dense) == len(PARTS["dense"]) else None,
        "lora": kept.get(("lora", CHOSEN["lora"])),
    }
    return {name: None if value is None else round(value, 4) for name, value in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print markdown tables and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--zoos", type=Path, default=Path("zoo"), help="folder of the zoos")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="what they need")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rows", nargs="+", help="rows of the tables, such as head published")
    parser.add_argument("--rounds", type=int, help="of every fit; by default those of its job file")
    parser.add_argument("--tasks", type=int, help="use so many tasks, spread over each job's")
    parser.add_argument("--small", action="store_true", help="make smaller zoos")
    parser.add_argument("--held-back", action="store_true", help="measure agreement on pools")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], help="laid over every job: fit.seed=1"
    )
    parser.add_argument("--store", type=Path, help="artifact store; by default in --zoos")
    parser.add_argument("--workers", type=int, default=0, help="of Ray; 0 is this process")
    options = parser.parse_args(arguments)
    make_zoos(options.zoos, options.data, options.only, options.small)
    kept: dict[tuple[str, str], float] = {}
    for name in (family for part in options.only for family in PARTS[part]):
        family, rows = FAMILIES[name], {}
        for label in options.rows or family.rows:
            if label in family.rows:
                spec = job(family, options.zoos, family.rows[label], options)
                rows[label] = measured(spec, options.zoos / "rows", options.held_back)
                kept[name, label] = rows[label].normalised
                print(f"{name}, {label}: {100 * rows[label].normalised:.2f} %", flush=True)
        if rows:
            print(f"\n{table(family.title, rows)}", flush=True)
    if "lora" in options.only:
        print(memory_table(options.zoos / "lora" / "job.yaml"))
    print(json.dumps(results(kept)))


if __name__ == "__main__":
    main()
