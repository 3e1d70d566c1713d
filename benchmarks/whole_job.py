"""A whole job in this process: where its time goes, beside the bare passes of its fit.

    python -m benchmarks.whole_job [JOB.yaml] [--device cuda] [--rounds 500] [--tasks 20]
                                   [--images 2000] [--no-route]

Without a job file it merges experts that were never trained, of the ViT of the ten-scripts zoo (1.2
M parameters, 32×32 images), on random images: what they answer does not matter to the time it
takes. Everything else is tintray's default. *Bare passes* are the forward and backward passes of
as many images as the fit draws, through one model, in the precision and the micro-batches of a job,
timed on this machine for a few of them. *Least* is what no job can do without: these, one pass of
an expert for every image that the fit draws, the first time, and one of the expert and of the merge
for every image of a test set; preparing images, merging and all else would then take no time.

The last line is one JSON object, in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import ViTImageProcessor

import tintray
from benchmarks.round import Contest
from benchmarks.scaling import BATCH, CLASSES, ZOO, base_model
from tintray.data.counting import extent
from tintray.jobs.config.documents import read_document
from tintray.jobs.config.job_file import parse_spec
from tintray.jobs.events import PhaseStarted
from tintray.numerics.precision import computing, resolve
from tintray.pools.pool import BATCH as AT_ONCE

TEST = 300  # images of each test set


def random_job(folder: Path, tasks: int, images: int) -> dict[str, Any]:
    """A job file's value, with its models and data in ``folder``."""
    base, side = base_model(ZOO), ZOO["image_size"]
    processor = ViTImageProcessor(size={"height": side, "width": side})
    random = np.random.default_rng(0)

    def saved(model: Any, name: str) -> str:
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        return str(folder / name)

    listed = []
    for number in range(tasks):
        expert = base_model(ZOO)
        with torch.no_grad():
            for name, parameter in expert.named_parameters():
                scale = 0.3 if name.startswith("classifier") else 0.01
                parameter += scale * torch.randn_like(parameter)
        data = str(folder / f"{number}.npz")
        arrays: dict[str, Any] = {}
        for split, count in (("train", images), ("test", TEST)):
            shape = (count, side, side, 3)
            arrays[f"x_{split}"] = random.integers(0, 256, shape, dtype=np.uint8)
            arrays[f"y_{split}"] = random.integers(0, CLASSES, count)
        np.savez(data, **arrays)
        pool, test = ({"path": data, "split": split} for split in ("train", "test"))
        listed.append(
            {
                "name": f"task{number}",
                "expert": saved(expert, f"expert{number}"),
                "pool": pool,
                "test": test,
            }
        )
    return {"name": "random", "base": saved(base, "base"), "tasks": listed}


def bare_passes(device: str) -> tuple[float, float]:
    """Seconds of one image, there and back; and of its answer alone. They are timed in turn."""
    contest = Contest(8, "zoo", device)
    precision = resolve("auto", device)
    module = deepcopy(contest.module).to(device)
    images = contest.images[:, :BATCH].flatten(0, 1).to(device)

    @torch.inference_mode()
    def there(_: int) -> None:
        for piece in images.split(AT_ONCE):
            with computing(precision, module, device):
                module(pixel_values=piece)

    both = contest.bare(precision)
    times: dict[Callable[[int], None], list[float]] = {both: [], there: []}
    for repeat in range(10):
        for passes, taken in times.items():
            began = time.perf_counter()
            passes(repeat)
            if device != "cpu":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
    one, other = (statistics.median(taken[2:]) / len(images) for taken in times.values())
    return one, other


@dataclass(frozen=True)
class Measured:
    """Seconds of each phase of a job; images that its fit drew, and answers that it needed."""

    seconds: dict[str, float]
    drawn: int
    answers: int


def measure(value: dict[str, Any], folder: Path, store: Path) -> Measured:
    """Run a job, and time its phases."""
    spec = parse_spec({**value, "store": str(store)}, folder=folder)
    began: list[tuple[str, float]] = []

    def on_event(event: object) -> None:
        if isinstance(event, PhaseStarted):
            began.append((event.phase, time.perf_counter()))

    summary = tintray.run(spec, on_event=on_event).summary()
    began.append(("", time.perf_counter()))
    starts = [at for _, at in began]
    seconds = {
        phase: round(stop - start, 1)
        for (phase, _), start, stop in zip(began, starts, starts[1:], strict=False)
    }
    of_each = summary.rounds * spec.fit.batch_size
    pools = [extent(task.pool.source()).examples or of_each for task in spec.tasks]
    tests = [extent(task.test.source()).examples or 0 for task in spec.tasks if task.test]
    answers = sum(min(of_each, pool) for pool in pools) + 2 * sum(tests)
    return Measured(seconds, of_each * len(spec.tasks), answers)


def main() -> None:
    """Print the phases and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("job", nargs="?", type=Path, help="a job file of ViTs of that shape")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--images", type=int, default=2000, help="in the pool of each task")
    parser.add_argument("--no-route", action="store_true", help="with `route: false`")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with TemporaryDirectory(prefix="tintray-whole-job-") as name:
        folder = Path(name)
        if given.job is None:
            value = random_job(folder, given.tasks, given.images)
        else:
            value, folder = read_document(given.job).value, given.job.absolute().parent
        value |= {"cluster": {"workers": 0, "gpus_per_worker": int(given.device == "cuda")}}
        value["cluster"] |= {"threads_per_worker": given.threads}
        value["fit"] = {"rounds": given.rounds}
        value["route"] = not given.no_route
        found = measure(value, folder, Path(name) / "store")
    both, there = bare_passes(given.device)
    bare = found.drawn * both
    least = bare + found.answers * there
    for phase, taken in found.seconds.items():
        print(f"{phase:12} {taken:8.1f} s")
    print(f"{'bare passes':12} {bare:8.1f} s, of {found.drawn:,} images")
    print(f"{'least':12} {least:8.1f} s, with {found.answers:,} answers")
    whole = sum(found.seconds.values())
    result = {**found.seconds, "whole": round(whole, 1), "bare_passes": round(bare, 1)}
    result |= {"least": round(least, 1), "whole_over_bare": round(whole / bare, 2)}
    print(json.dumps(result | {"least_over_bare": round(least / bare, 2)}))


if __name__ == "__main__":
    main()
