"""Fine-tuning a transformers image classifier: the head on frozen features first, then everything.

Small on purpose: enough to make honest little experts on a CPU, and deterministic. Every random
number is drawn from a generator seeded by the caller, and training runs on a single thread, so the
same call on the same machine gives the same bits, in whatever process it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from benchmarks.zoos.recipe import Schedule

INFERENCE_BATCH = 256  # images; bounds the memory of passes without gradients


def fine_tune(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    schedule: Schedule,
    *,
    seed: int,
    adapt: Callable[[nn.Module], nn.Module] | None = None,
) -> nn.Module:
    """Train ``model`` in place: its ``classifier`` alone for a while, then every parameter.

    Returns it, or what ``adapt`` made of it.

    Parameters
    ----------
    model
        A transformers image classifier: answers ``model(pixel_values=...).logits`` and keeps its
        head in ``model.classifier``.
    pixels
        Preprocessed images, float32 ``[N, C, H, W]``.
    labels
        Class indices, int64 ``[N]``.
    schedule
        Epochs and rates. AdamW, one-cycle, cross-entropy.
    seed
        Seeds the order of the examples.
    adapt
        What becomes of the model between the two: adapters are put into it, and the rest frozen.
    """
    random = torch.Generator().manual_seed(seed)
    with single_thread():
        if schedule.head_epochs:
            _fit_head(model, pixels, labels, schedule, random)
        trained = model if adapt is None else adapt(model)
        _fit_everything(trained, pixels, labels, schedule, random)
    return trained


def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """The share of the labels ``[N]`` that ``model`` gives to the images ``[N, C, H, W]``."""
    model.eval()
    with single_thread(), torch.inference_mode():
        answers = [
            model(pixel_values=part).logits.argmax(dim=-1)
            for part in torch.split(pixels, INFERENCE_BATCH)
        ]
    return float((torch.cat(answers) == labels).float().mean())


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute on one thread, so that sums come out in one order whatever the machine's load."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit_head(
    model: nn.Module, pixels: Tensor, labels: Tensor, schedule: Schedule, random: torch.Generator
) -> None:
    head = model.get_submodule("classifier")
    features = _head_inputs(model, head, pixels)
    steps = _Descent(head, schedule, schedule.head_learning_rate, schedule.head_epochs, len(labels))
    for batch in steps.batches(random):
        steps.descend(cross_entropy(head(features[batch]), labels[batch]))


def _fit_everything(
    model: nn.Module, pixels: Tensor, labels: Tensor, schedule: Schedule, random: torch.Generator
) -> None:
    model.train()
    steps = _Descent(model, schedule, schedule.learning_rate, schedule.epochs, len(labels))
    for batch in steps.batches(random):
        images = _shifted(pixels[batch], schedule.shift, random)
        steps.descend(cross_entropy(model(pixel_values=images).logits, labels[batch]))
    model.eval()


def _shifted(images: Tensor, most: int, random: torch.Generator) -> Tensor:
    """The batch moved by up to ``most`` pixels each way; what comes in at an edge is its border."""
    if most == 0:
        return images
    down, right = torch.randint(0, 2 * most + 1, (2,), generator=random).tolist()
    height, width = images.shape[-2:]
    padded = pad(images, (most, most, most, most), mode="replicate")
    return padded[..., down : down + height, right : right + width]


def _head_inputs(model: nn.Module, head: nn.Module, pixels: Tensor) -> Tensor:
    """What ``head`` is fed for every image, ``[N, features]``, while the model is frozen."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _head, inputs: seen.append(inputs[0]))
    model.eval()
    try:
        with torch.no_grad():
            for part in torch.split(pixels, INFERENCE_BATCH):
                model(pixel_values=part)
    finally:
        hook.remove()
    return torch.cat(seen)


class _Descent:
    """AdamW under a one-cycle schedule, and the shuffled batches that it runs over."""

    def __init__(
        self, module: nn.Module, schedule: Schedule, peak: float, epochs: int, examples: int
    ) -> None:
        self._examples, self._epochs, self._batch_size = examples, epochs, schedule.batch_size
        self._optimiser = torch.optim.AdamW(
            module.parameters(), lr=peak, weight_decay=schedule.weight_decay, fused=True
        )
        self._cycle = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser,
            max_lr=peak,
            total_steps=epochs * -(-examples // schedule.batch_size),
            pct_start=schedule.warmup,
        )

    def batches(self, random: torch.Generator) -> Iterator[Tensor]:
        """Indices of each batch, int64 ``[<= batch_size]``; every epoch in a new order."""
        for _ in range(self._epochs):
            order = torch.randperm(self._examples, generator=random)
            yield from torch.split(order, self._batch_size)

    def descend(self, loss: Tensor) -> None:
        """One step down the gradient of ``loss``."""
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self._cycle.step()
