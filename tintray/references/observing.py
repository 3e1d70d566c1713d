"""What is noted of each example that a task's model answers: how surely, what, and from what.

No label is read. Everything comes of answers that are there anyway, and of what the head was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from tintray.models.structure import head_modules
from tintray.numerics.randomness import stream
from tintray.references.inputs import looks
from tintray.tasks.classes import ClassKind
from tintray.tasks.kind import Kind
from tintray.tasks.outputs import Mask, Outputs, TopTokens, mean_of, stretches

FEATURES = 32
"""Numbers that are kept of the features of an example: random projections of them."""

Run = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Observed:
    """What was noted of N examples.

    ``numbers`` are [N] each, by name: ``confidence`` and ``entropy`` of kinds that have classes or
    tokens, ``answer`` and its ``spread`` of kinds that have values, and those of ``inputs.looks``
    where inputs were seen. ``classes`` are those that were answered, int64 [N, S], −1 where nothing
    counts. ``features`` [N, FEATURES] of what the head was given; None where it was given none of a
    known form.
    """

    numbers: Mapping[str, Tensor]
    classes: Tensor | None
    features: Tensor | None

    @classmethod
    def of(cls, kind: Kind, outputs: Outputs, mask: Mask, inputs: HeadInputs | None = None) -> Self:
        """What is noted of answers [N, …], of their tokens that ``mask`` [N, S] counts.

        ``inputs`` saw what was answered, if anyone did.
        """
        parts = [
            _of_values(outputs[part])
            if isinstance(outputs, Tensor) and not isinstance(kind, ClassKind)
            else _of_classes(kind, outputs[part], None if mask is None else mask[part])
            for part in stretches(len(outputs))
        ]
        numbers = {name: torch.cat([of[name] for of, _ in parts]) for name in parts[0][0]}
        classes = [of for _, of in parts if of is not None]
        features = None
        if inputs is not None:
            numbers |= inputs.looks(len(outputs))
            features = inputs.features(len(outputs))
        return cls(numbers, torch.cat(classes) if classes else None, features)

    def __len__(self) -> int:
        return len(next(iter(self.numbers.values())))

    def __getitem__(self, rows: Tensor) -> Observed:
        """What was noted of some examples."""
        classes, features = (
            None if of is None else of[rows] for of in (self.classes, self.features)
        )
        return Observed({n: of[rows] for n, of in self.numbers.items()}, classes, features)


def _of_values(values: Tensor) -> tuple[dict[str, Tensor], None]:
    flat = values.float().flatten(1)
    several = {"spread": flat.std(1)} if flat.shape[1] > 1 else {}
    return {"answer": flat.mean(1), **several}, None


def _of_classes(kind: Kind, outputs: Outputs, mask: Mask) -> tuple[dict[str, Tensor], Tensor]:
    if isinstance(outputs, TopTokens):
        logs, classes = outputs.logs.float(), outputs.likeliest
        rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp_min(1e-12)
        logs = torch.cat([logs, rest.log()], -1)
    elif kind.several:
        logs = torch.stack([-outputs, outputs], -1).float()
        logs = torch.nn.functional.logsigmoid(logs)
        classes = torch.where(outputs > 0, torch.arange(outputs.shape[1]), -1)
    else:
        assert isinstance(kind, ClassKind), "others answer with values"
        logs = kind.logits_last(outputs).float().log_softmax(-1)
        classes = logs.argmax(-1)
    cut = None if mask is None or logs.ndim < 3 else mask[:, : logs.shape[1]]
    if cut is not None:
        classes = classes.masked_fill(~cut.bool(), -1)
    sure, entropy = logs.amax(-1).exp(), -(logs.exp() * logs).sum(-1)
    numbers = {"confidence": mean_of(sure, cut), "entropy": mean_of(entropy, cut)}
    return numbers, classes.reshape(len(classes), -1)


class HeadInputs:
    """Collects what a model's head is given, pass by pass, as one vector for each example.

    Beside that what the model itself is given looks like.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._looks: list[dict[str, Tensor]] = []
        self._batch: Mapping[str, Tensor] = {}

    def told_of(self, run: Run) -> Run:
        """The same model, which says here what it is run on."""

        def noting(batch: Mapping[str, Tensor]) -> Tensor:
            self._batch = batch
            self._looks.append(looks(batch))
            return run(batch)

        return noting

    @contextmanager
    def hooked(self, module: nn.Module, head: str) -> Iterator[Self]:
        """Collect in this block, by a hook on the module at the path ``head``."""
        place = module.get_submodule(head)
        hook = place.register_forward_pre_hook(self._note, with_kwargs=True)
        try:
            yield self
        finally:
            hook.remove()

    def _note(self, _: nn.Module, given: Any, named: Any) -> None:
        tensor: Any = given or tuple(named.values())
        while isinstance(tensor, tuple | list) and len(tensor):
            tensor = tensor[0] if tensor is given else tensor[-1]  # of a pyramid, the deepest
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.ndim > 1:
            self._parts.append(self._pooled(tensor.detach().float()))

    def _pooled(self, tensor: Tensor) -> Tensor:
        """[N, d] from [N, d], from tokens [N, S, d] or from maps [N, d, H, W]."""
        if tensor.ndim != 3:
            return tensor.flatten(2).mean(2) if tensor.ndim > 3 else tensor.clone()
        real = (self._batch.get(f"{of}attention_mask") for of in ("decoder_", ""))
        fits = (mask for mask in real if mask is not None and mask.shape == tensor.shape[:2])
        weights = next(fits, tensor.new_ones(tensor.shape[:2])).to(tensor)
        return (weights[..., None] * tensor).sum(1) / weights.sum(1, keepdim=True).clamp_min(1)

    def looks(self, examples: int) -> dict[str, Tensor]:
        """Numbers [N] of the inputs of so many examples, by name; see ``inputs.looks``."""
        parts = self._looks
        found = {name: torch.cat([of[name] for of in parts]).cpu() for name in (parts or [{}])[0]}
        return {name: of for name, of in found.items() if len(of) == examples}

    def features(self, examples: int) -> Tensor | None:
        """[N, FEATURES]: random projections of what was given for so many examples."""
        if sum(map(len, self._parts)) != examples or len({of.shape[1] for of in self._parts}) != 1:
            return None  # the head is run in another way than once for each example
        given = torch.cat(self._parts).cpu()  # once: a copy for each batch would wait for a GPU
        width = given.shape[1]
        mixing = torch.randn(width, FEATURES, generator=stream(0, "drift", str(width)))
        mixed: Tensor = given @ (mixing / width**0.5)
        return mixed


def head_of(module: nn.Module) -> str:
    """The path of the module whose inputs are a model's features."""
    return (*head_modules(module), "")[0]
