"""One round against the bare compute that it contains, and against the published scheme.

    python -m benchmarks.round [--repeats 7] [--device cuda] [--model vit-b-32]

For K = 8 and K = 32 tasks of 16 images, on the ViT of the ten-scripts zoo (1.2 M parameters, 32×32
images) or one in the shape of ViT-B/32 (86 M, 224×224), in one process, interleaved, medians:

* ``round``      merge, fused step of all task groups, projection, updates of Λ and of the tints
* ``bare``       forward and backward of the same images through one merged model, in the same
                 micro-batches and the same precision, and nothing else
* ``published``  what the released code of Model Tinting does, task by task in float32: the expert
                 labels the batch, base and all K task vectors are merged inside autograd (a sum of
                 products per tensor), forward, backward, one Adam step on Λ and the tint layer
* ``published, tuned``  the same with each sum of products written as one matrix product, and with
                 labels computed beforehand: how much of the difference is the scheme itself

``round`` and ``bare`` are measured in the precision that a job takes on this machine (bfloat16
where the processor has it) and in float32.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification

from tintray.jobs.engine.grouping import DEFAULT_MICRO_BATCH, default_groups, form_groups
from tintray.models.structure import private_state
from tintray.numerics.choices import Precision
from tintray.numerics.precision import computing, resolve
from tintray.numerics.sites import TintSite
from tintray.pools.pool import Pool
from tintray.tinting.partition import Partition, partition
from tintray.tinting.step import StepSettings, TaskGroup, TaskState
from tintray.tinting.tint_layers import FusedModel, TintLayer
from tintray.vectors.coefficients import Coefficients
from tintray.vectors.task_vectors import TaskVectors

BATCH = 16
CLASSES = 10
POOL = 64


SHAPES: dict[str, dict[str, int]] = {
    "zoo": {
        "hidden_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "image_size": 32,
        "patch_size": 4,
    },
    "vit-b-32": {"image_size": 224, "patch_size": 32},  # the rest as the class has it
}


def base_model(shape: str) -> ViTForImageClassification:
    """A model of a shape; weights do not matter to the time it takes."""
    torch.manual_seed(0)
    config = ViTConfig(
        **SHAPES[shape],
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTForImageClassification(config).eval()


class Contest:
    """The same tasks, images and task vectors for all contestants."""

    def __init__(self, tasks: int, shape: str, device: str) -> None:
        self.tasks = tasks
        self.device = device
        self.module = base_model(shape)
        self.parts: Partition = partition(self.module, [TintSite("head")])
        layout = self.parts.layout
        generator = torch.Generator().manual_seed(1)
        size = SHAPES[shape]["image_size"]
        self.images = torch.randn(tasks, POOL, 3, size, size, generator=generator)
        self.labels = torch.randn(tasks, POOL, CLASSES, generator=generator)
        matrix = torch.randn(tasks, layout.numel, generator=generator).mul_(0.01)
        names = tuple(f"task{k}" for k in range(tasks))
        base = layout.flatten(self.module.state_dict())
        self.vectors = TaskVectors.gather(
            layout, names, base, lambda slot: [*matrix[:, slot.start : slot.stop]], device=device
        )
        start = torch.full((tasks, len(layout.units)), 0.1)
        self.coefficients = Coefficients(start)

    # -- ours ----------------------------------------------------------------------------------

    def round(self, precision: Precision) -> Callable[[int], None]:
        """Merge, step every group, project, update: what a job does in a round."""
        settings = StepSettings(
            0, BATCH, DEFAULT_MICRO_BATCH, "soft", "agreement", precision=precision
        )
        fused = FusedModel(self.module, self.parts.layout, self.parts.private, device=self.device)
        buffer = torch.zeros(self.parts.layout.numel, device=self.device)
        groups = [
            TaskGroup([self._task(k) for k in stretch], fused, buffer, settings)
            for stretch in form_groups(self.tasks, default_groups(self.tasks, BATCH))
        ]
        total = torch.zeros_like(buffer)

        def one(round_: int) -> None:
            theta = self.vectors.merge(self.coefficients.values)
            total.zero_()
            for group in groups:
                total.add_(group.step(theta, round_, 0.1).gradient)
            self.coefficients.update(self.vectors.project(total).cpu(), 1e-3)

        return one

    def _task(self, k: int) -> TaskState:
        layer = TintLayer.of_expert(
            f"task{k}",
            private_state(self.module, self.parts.private),
            self.parts.rate,
            device=self.device,
        )
        pool = Pool({"pixel_values": self.images[k]}, None, None, "")
        return TaskState(f"task{k}", layer, pool, self.labels[k])

    # -- the bare compute ------------------------------------------------------------------------

    def bare(self, precision: Precision) -> Callable[[int], None]:
        """Forward and backward of the round's images through one model; no task, no merge."""
        module = deepcopy(self.module).to(self.device)
        images = self.images[:, :BATCH].flatten(0, 1).to(self.device)
        targets = self.labels[:, :BATCH].flatten(0, 1).softmax(-1).to(self.device)

        def one(round_: int) -> None:
            module.zero_grad(set_to_none=False)
            pieces = zip(
                images.split(DEFAULT_MICRO_BATCH), targets.split(DEFAULT_MICRO_BATCH), strict=True
            )
            for piece, target in pieces:
                with computing(precision, module, self.device):
                    logits = module(pixel_values=piece).logits
                cross_entropy(logits.float(), target).backward()

        return one

    # -- the published scheme --------------------------------------------------------------------

    def published(self, *, tuned: bool) -> Callable[[int], None]:
        """Task by task: label, merge inside autograd, forward, backward, one Adam step."""
        module = deepcopy(self.module).to(self.device)  # as it is, every task's expert
        slots = self.parts.layout.slots
        base = self.parts.layout.views(self.vectors.base)
        matrix = self.vectors.matrix
        stacked = {
            slot.name: matrix[:, slot.start : slot.stop].reshape(-1, *slot.shape) for slot in slots
        }
        separate = {name: [base[name], *tensor.unbind()] for name, tensor in stacked.items()}
        coefficients = nn.Parameter(self.coefficients.values.to(self.device, copy=True))
        heads = [
            {
                name: nn.Parameter(tensor.to(self.device, copy=True))
                for name, tensor in private_state(self.module, self.parts.private).items()
            }
            for _ in range(self.tasks)
        ]
        everything = [coefficients, *(p for head in heads for p in head.values())]
        optimiser = torch.optim.Adam(everything, lr=1e-3)

        def merged() -> dict[str, Tensor]:
            if tuned:
                return {
                    slot.name: base[slot.name]
                    + torch.tensordot(coefficients[:, column], stacked[slot.name], 1)
                    for column, slot in enumerate(slots)
                }
            ones = torch.ones(1, len(slots), device=self.device)
            rows = torch.cat([ones, coefficients.clamp(0, 1)]).t()
            return {
                slot.name: sum(  # type: ignore[misc]
                    tensor * coefficient
                    for tensor, coefficient in zip(separate[slot.name], row, strict=True)
                )
                for slot, row in zip(slots, rows, strict=True)
            }

        def one(round_: int) -> None:
            for k, head in enumerate(heads):
                inputs = {"pixel_values": self.images[k, :BATCH].to(self.device)}
                target = self.labels[k, :BATCH].to(self.device)
                if not tuned:
                    with torch.no_grad():
                        target = module(**inputs).logits
                output = functional_call(module, merged() | head, (), inputs)
                loss = cross_entropy(output.logits, target.softmax(-1))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()

        return one


def measure(tasks: int, repeats: int, shape: str, device: str) -> dict[str, float]:
    """Median seconds of each contestant, one round of each in turn."""
    contest = Contest(tasks, shape, device)
    precision = resolve("auto", device)
    contestants = {
        "round": contest.round(precision),
        "bare": contest.bare(precision),
        "round, float32": contest.round("float32"),
        "bare, float32": contest.bare("float32"),
        "published": contest.published(tuned=False),
        "published, tuned": contest.published(tuned=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, one in contestants.items():
            started = time.perf_counter()
            one(repeat)
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat > 0:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _ratio(seconds: dict[str, float], numerator: str, denominator: str) -> float:
    return round(seconds[numerator] / seconds[denominator], 3)


def main() -> None:
    """Print a table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", choices=list(SHAPES), default="zoo")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {}
    for tasks in (8, 32):
        seconds = measure(tasks, arguments.repeats, arguments.model, arguments.device)
        print(
            f"K = {tasks}, {BATCH} images per task, threads: {arguments.threads}, "
            f"precision of a job here: {resolve('auto', arguments.device)}"
        )
        for name, value in seconds.items():
            print(f"  {name:18} {value * 1e3:9.1f} ms   {value / seconds['bare']:6.2f} × bare")
        result[f"k{tasks}"] = {
            "over_bare": _ratio(seconds, "round", "bare"),
            "speedup_over_published": _ratio(seconds, "published", "round"),
            "over_bare_float32": _ratio(seconds, "round, float32", "bare, float32"),
            "speedup_over_published_float32": _ratio(seconds, "published", "round, float32"),
            "speedup_over_tuned_float32": _ratio(seconds, "published, tuned", "round, float32"),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
