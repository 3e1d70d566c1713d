"""Self-labels against the bare forward passes that they contain.

    python -m benchmarks.labels [--device cuda] [--model vit-b-32] [--examples 8192] [--repeats 5]

An expert answers a pool of images that lies in memory as bytes, as pools do, on the ViT of the
ten-scripts zoo (1.2 M parameters, 32×32 images) or one in the shape of ViT-B/32 (86 M, 224×224).
Interleaved, medians:

* ``labels``    what a job does: batches are cut, moved and turned into floats, the expert answers,
                its answers come back to memory and are checked
* ``evaluated`` the merged model with the task's tint, over the same pool and in that precision
* ``bare``      forward passes of batches of the same size that are on the device as floats, in the
                same precision, and nothing else; answers stay there

The last line is one JSON object: examples per second, and shares of bare throughput.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.round import SHAPES
from benchmarks.scaling import CLASSES, base_model
from tintray.models.structure import copy_on, private_state
from tintray.numerics.precision import computing, resolve
from tintray.numerics.sites import TintSite
from tintray.pools.feeding import batches_on, examples_at_once
from tintray.pools.pool import Pool
from tintray.tasks.classes import CLASSIFICATION
from tintray.tinting.partition import partition
from tintray.tinting.self_labels import ask, self_labels
from tintray.tinting.tint_layers import FusedModel, TintLayer


def pool_of(shape: str, examples: int) -> Pool:
    """Random images in bytes, with what turns them into floats."""
    size = SHAPES[shape]["image_size"]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (examples, 3, size, size), dtype=torch.uint8, generator=generator
    )
    scale = torch.full((3, 1, 1), 1 / 127.5)
    return Pool({"pixel_values": pixels}, scale, torch.full((3, 1, 1), -1.0), "random")


def contestants(shape: str, device: str, pool: Pool) -> dict[str, Callable[[], object]]:
    """What is compared, each over as many examples as the pool has."""
    precision, expert = resolve("auto", device), base_model(SHAPES[shape])
    there = copy_on(expert, device)
    split = partition(expert, [TintSite("head")])
    layer = TintLayer.of_expert(
        *("task", private_state(expert, split.private), split.rate), device=device
    )
    fused = FusedModel(expert, split.layout, split.private, device=device)
    parameters = {name: parameter.detach() for name, parameter in expert.named_parameters()}
    fused.bind(split.layout.flatten(parameters).to(device), None)
    size = examples_at_once(pool, device)
    batch = next(batches_on(pool, device, size))
    whole, rest = divmod(len(pool), size)

    @torch.inference_mode()
    def bare() -> None:
        with computing(precision, there, device):
            for _ in range(whole):
                there(**batch)
            if rest:
                there(**{name: tensor[:rest] for name, tensor in batch.items()})

    return {
        "labels": lambda: self_labels(
            *(there, pool, "the expert", CLASSIFICATION), device=device, precision=precision
        ),
        "evaluated": lambda: ask(
            lambda given: fused.forward([given], [layer], precision)[0],
            *(pool, CLASSIFICATION, device),
        ),
        "bare": bare,
    }


def measure(
    contest: dict[str, Callable[[], object]], device: str, repeats: int
) -> dict[str, float]:
    """Median seconds of each, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in contest}
    for repeat in range(repeats + 1):
        for name, run in contest.items():
            started = time.perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Print a table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", choices=list(SHAPES), default="zoo")
    parser.add_argument("--examples", type=int, help="images of the pool")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    examples = arguments.examples or (256 if arguments.device == "cpu" else 8192)
    pool = pool_of(arguments.model, examples)
    contest = contestants(arguments.model, arguments.device, pool)
    seconds = measure(contest, arguments.device, arguments.repeats)
    print(
        f"{examples:,} images, {examples_at_once(pool, arguments.device)} at once, "
        f"{CLASSES} classes, {resolve('auto', arguments.device)}, {arguments.device}"
    )
    for name, value in seconds.items():
        print(f"  {name:10} {examples / value:12,.0f} images per second")
    shares = {
        f"{name}_over_bare": round(seconds["bare"] / seconds[name], 3)
        for name in ("labels", "evaluated")
    }
    rates = {name: round(examples / value, 1) for name, value in seconds.items()}
    print(json.dumps({"model": arguments.model, "examples_per_second": rates, **shares}))


if __name__ == "__main__":
    main()
