"""A merge that answers: the backbone once, and mixed batches in one pass through what all share.

Examples of different tasks pass the shared layers together and part at the tint layers and heads,
as the batches of a fit do. What a task owns is read on first use and kept within a budget. A merge
whose tasks do more than that of their own (a whole backbone, a surgery module), or write texts, is
answered task by task; its backbone is in memory once all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tintray.data.source import DataSource
from tintray.errors import InputError, IntegrityError, TintrayError
from tintray.limits import DEFAULTS, Limits
from tintray.merging.surgery import DOWN as SURGERY
from tintray.models.calling import answer
from tintray.models.norms import norm_paths
from tintray.numerics.layout import build_layout
from tintray.pools import sequences
from tintray.pools.pool import BATCH, Pool, joined
from tintray.pools.preparing import ANSWER_LENGTH
from tintray.published.files import config_file
from tintray.published.merge import Merge
from tintray.references.observing import Observed
from tintray.routing.router import UNKNOWN, Route
from tintray.serving.answers import Answer, Reader, class_names
from tintray.serving.inputs import MAX_CHARACTERS, Form, Preparation, Prepared
from tintray.serving.recency import Budget, Recency
from tintray.tasks.registry import find_kind
from tintray.tinting.tint_layers import FusedModel, TintLayer
from tintray.vectors.task_vectors import DOWN, UP

T = TypeVar("T")

AUTO = "auto"
"""The task of an example of which nobody says which task it is of."""


@dataclass(frozen=True)
class ServedTask:
    """What is needed of a task to answer for it, beside its tensors."""

    name: str
    width: int  # classes, values, or tokens of the vocabulary
    answer_length: int  # tokens that it writes at most
    preparation: Preparation
    reader: Reader


class Engine:
    """Answers batches of mixed tasks of one version of a merge.

    Parameters
    ----------
    merge
        The published merge; its backbone is shared with every model of ``merge.for_task``.
    tint_memory
        How much of what tasks own is kept in memory; see ``Budget.read``.
    batch_size
        Examples of one forward pass at most.
    limits, max_characters
        What one image, and one text, may have.
    passes
        How many batches are computed at once; all use the same tensors.

    Any number of threads may ask; one batch is prepared at a time.
    """

    def __init__(
        self,
        merge: Merge,
        *,
        tint_memory: int | str | None = None,
        batch_size: int = BATCH,
        limits: Limits = DEFAULTS,
        max_characters: int = MAX_CHARACTERS,
        passes: int = 1,
    ) -> None:
        self.merge, self.version = merge, merge.manifest.ref
        self._source = DataSource("the request", limits=limits)
        self._max_characters, self._batch_size = max_characters, batch_size
        self._preparations: dict[Any, Preparation] = {}
        self._served: dict[str, ServedTask] = {}
        self._preparing, self._fetching = Lock(), Lock()
        budget = Budget.read(tint_memory)
        module = merge.for_task(merge.tasks[0])
        self._pad = getattr(getattr(module, "config", None), "pad_token_id", None) or 0
        self._names = self._private_names(module)
        self.fused = self._names is not None
        self._tints = Recency(self._layer, lambda layer: _bytes(layer.tensors.values()), budget)
        self._models = Recency(merge.for_task, self._own_bytes, budget)
        self._free: SimpleQueue[FusedModel | None] = SimpleQueue()
        for _ in range(passes):
            self._free.put(None if self._names is None else self._fuse(module, self._names))

    # -- what is in memory ---------------------------------------------------------------------

    def _private_names(self, module: nn.Module) -> frozenset[str] | None:
        """Names of what a task owns; None if that is more than tint layers, head and statistics."""
        manifest = self.merge.manifest
        names = frozenset(self.merge.tint(manifest.tasks[0].name))
        paths = (*manifest.private_modules, *norm_paths(module))
        below = tuple(f"{path}." for path in paths)
        known = all(name.startswith(below) or name.endswith((UP, DOWN)) for name in names)
        writes = any(find_kind(task.kind).writes for task in manifest.tasks)
        return names if known and not writes and SURGERY not in names else None

    def _fuse(self, module: nn.Module, names: frozenset[str]) -> FusedModel:
        parameters = dict(module.named_parameters())
        shared = {n: t for n, t in self.merge.backbone.items() if n in parameters}
        layout = build_layout({name: tensor.shape for name, tensor in shared.items()})
        low_rank = [name.removesuffix(UP) for name in names if name.endswith(UP)]
        model = FusedModel(module, layout, self.merge.manifest.private_modules, low_rank)
        model.bind([shared[slot.name].reshape(-1) for slot in layout.slots], None)
        model.use_statistics("running")
        model.answer_stacked()
        return model

    def _layer(self, task: str) -> TintLayer:
        """What a task owns, from the merge's files."""
        tensors = self.merge.tint(task)
        if tensors.keys() != self._names:
            odd = sorted(tensors.keys() ^ (self._names or set()))[0]
            raise IntegrityError(
                f"{self.merge.url}: the tint of task '{task}' and that of '{self.merge.tasks[0]}' "
                f"are not of one merge: only one has '{odd}'; publish the merge again"
            )
        return TintLayer(task, tensors, {})

    def _own_bytes(self, module: nn.Module) -> int:
        shared = {tensor.data_ptr() for tensor in self.merge.backbone.values()}
        state = module.state_dict().values()
        return _bytes(tensor for tensor in state if tensor.data_ptr() not in shared)

    @property
    def tints(self) -> dict[str, int]:
        """Tasks whose tints are in memory, the bytes that they take, and how often one was."""
        kept = self._tints if self.fused else self._models
        return {
            "tasks": len(kept),
            "bytes": kept.size,
            "hits": kept.hits,
            "misses": kept.misses,
        }

    # -- tasks ---------------------------------------------------------------------------------

    def task(self, name: str) -> ServedTask:
        """What is needed to answer for a task.

        Raises NotFoundError with the nearest name.
        """
        if name not in self._served:
            self._served[name] = self._opened(name)
        return self._served[name]

    def _opened(self, name: str) -> ServedTask:
        merge, entry = self.merge, self.merge.task(name)
        kind = find_kind(entry.kind)
        files = [(file, merge.manifest.files[file].sha256) for file in merge.config_files(name)]
        prefix = config_file(name, "")
        content = tuple(
            (file.removeprefix(prefix), sha256)
            for file, sha256 in files
            if file != config_file(name, "config.json")
        )
        pool = entry.pool
        key = (content, kind.name, pool.prefix, pool.max_length)
        if key not in self._preparations:
            processor = merge.processor(name)
            texts = processor is not None and hasattr(processor, "get_vocab")
            form: Form = "image"
            if texts:
                form = "words" if kind.of_words else "text"
            self._preparations[key] = Preparation(
                *(processor, kind, form, self._source, pool.prefix, pool.max_length),
                max_characters=self._max_characters,
            )
        names = class_names(merge.config(name), entry.classes)
        reader = Reader(name, self.version, kind, names)
        length = pool.max_target_length or ANSWER_LENGTH
        return ServedTask(name, entry.classes, length, self._preparations[key], reader)

    # -- answering -----------------------------------------------------------------------------

    def answer(self, examples: Sequence[tuple[str, Any]]) -> list[Answer | TintrayError]:
        """Answers to examples, each a task and an input, in their order.

        The task ``auto`` is told by the input. An input is an image (an array, the bytes of a file,
        or one of Pillow's), a text or a pair of texts, or a list of words, as the task's expert
        takes it. What is wrong with an example stands in the place of its answer; the others are
        none the worse for that.
        """
        found: list[Any] = [None] * len(examples)
        names = [name for name, _ in examples]
        with self._preparing:
            prepared = self._prepared(examples, found)
            routes = self._routed(names, prepared, found)
        alike: dict[Any, list[int]] = {}
        for number, one in prepared.items():
            alike.setdefault(one.signature, []).append(number)
        order = {name: number for number, name in enumerate(self.merge.tasks)}
        model = self._free.get()
        try:
            with torch.inference_mode():
                for numbers in alike.values():
                    numbers.sort(key=lambda number: order[names[number]])
                    for start in range(0, len(numbers), self._batch_size):
                        part = numbers[start : start + self._batch_size]
                        self._pass(model, [(n, names[n], prepared[n]) for n in part], found)
        finally:
            self._free.put(model)
        self._judge(routes, found)
        return found

    def warm(self) -> None:
        """Answer blank examples of some tasks, so that the first who asks does not wait longer."""
        blanks: dict[Form, Any] = {"text": "a", "words": ["a"]}
        blanks["image"] = np.zeros((32, 32, 3), np.uint8)
        names = self.merge.tasks[: self._batch_size]
        self.answer([(name, blanks[self.task(name).preparation.form]) for name in names])

    def _prepared(
        self, examples: Sequence[tuple[str, Any]], found: list[Any]
    ) -> dict[int, Prepared]:
        """Those examples that can be used, by number; what is wrong with the others is found."""
        groups: dict[int, tuple[Preparation, list[int]]] = {}
        for number, (name, _) in enumerate(examples):
            try:
                preparation = self._preparation(name)
            except TintrayError as error:
                found[number] = error
                continue
            groups.setdefault(id(preparation), (preparation, []))[1].append(number)
        prepared: dict[int, Prepared] = {}
        for preparation, numbers in groups.values():
            made = preparation.prepare([examples[number][1] for number in numbers])
            for number, one in zip(numbers, made, strict=True):
                if isinstance(one, Prepared):
                    prepared[number] = one
                else:
                    found[number] = one
        return prepared

    def _preparation(self, name: str) -> Preparation:
        """How an example of a task is prepared; where none is named, all are prepared alike."""
        if name == AUTO and AUTO not in self.merge.tasks:
            _ = self.merge.router  # raises if it cannot be told
            name = self.merge.tasks[0]
        return self.task(name).preparation

    def _routed(
        self, names: list[str], prepared: dict[int, Prepared], found: list[Any]
    ) -> dict[int, Route]:
        """Routes of the examples without a task, by number; ``names`` gets their likeliest tasks.

        How surely those answer tells more of what is foreign: see ``_judge``.
        """
        alike: dict[Any, list[int]] = {}
        if AUTO not in self.merge.tasks:
            for number in prepared:
                if names[number] == AUTO:
                    alike.setdefault(prepared[number].signature, []).append(number)
        routes: dict[int, Route] = {}
        for numbers in alike.values():
            inputs = self._inputs([(number, prepared[number]) for number in numbers])
            try:
                routes |= zip(numbers, self.merge.route(inputs), strict=True)
            except TintrayError as error:
                for number in numbers:
                    found[number] = error
                    del prepared[number]
        for number, route in routes.items():
            names[number] = route.nearest[0][0]
        return routes

    def _judge(self, routes: Mapping[int, Route], found: list[Any]) -> None:
        """Give answers their routes; those to examples of no task say no more than that."""
        judged, alike = dict(routes), dict[Any, list[int]]()
        for number in routes:
            answer = found[number]
            if not isinstance(answer, Answer) or answer.values is None or answer.kind is None:
                continue
            if not find_kind(answer.kind).goes_on:  # with one token; known are all of a text's
                alike.setdefault((answer.kind, answer.values.shape), []).append(number)
        for (kind, _), numbers in alike.items():
            outputs = torch.from_numpy(np.stack([found[number].values for number in numbers]))
            observed = Observed.of(find_kind(kind), outputs, None)
            theirs = [routes[number] for number in numbers]
            judged |= zip(numbers, self.merge.judge(theirs, observed), strict=True)
        for number, route in judged.items():
            if route.task is None:
                found[number] = Answer(UNKNOWN, self.version, None, None, None, None, route)
            elif isinstance(found[number], Answer):
                found[number] = replace(found[number], route=route)

    def _portions(self, kept: Recency[T], names: Sequence[str]) -> Iterator[dict[str, T]]:
        """What these tasks own, as much at once as the budget allows."""
        portions = kept.portions(names)
        while True:
            with self._fetching:
                portion = next(portions, None)
            if portion is None:
                return
            yield portion

    def _pass(
        self,
        fused: FusedModel | None,
        batch: Sequence[tuple[int, str, Prepared]],
        found: list[Any],
    ) -> None:
        """Answer examples whose inputs are alike, in the order of their tasks."""
        by_task: dict[str, list[tuple[int, Prepared]]] = {}
        for number, name, one in batch:
            by_task.setdefault(name, []).append((number, one))
        try:
            if fused is not None:
                for tints in self._portions(self._tints, list(by_task)):
                    inputs = [self._inputs(by_task[name]) for name in tints]
                    outputs = fused.forward(inputs, list(tints.values()))
                    for name, rows in zip(tints, outputs, strict=True):
                        self._read(name, rows, by_task[name], found)
                return
            for models in self._portions(self._models, list(by_task)):
                for name, model in models.items():
                    self._ask(name, model, by_task[name], found)
        except Exception as error:  # noqa: BLE001 - whatever a model raises: each has its own
            if len(by_task) > 1:  # one task's tint, or input: the others are answered without it
                for name, part in by_task.items():
                    self._pass(fused, [(number, name, one) for number, one in part], found)
                return
            sentence = error if isinstance(error, TintrayError) else InputError(
                f"the model of {self.version} does not take the input ({type(error).__name__}: "
                f"{error}); is it of the size and the kind that the expert was trained on?"
            )  # fmt: skip
            for number, _, _ in batch:
                if found[number] is None:
                    found[number] = sentence

    def _inputs(self, rows: Sequence[tuple[int, Prepared]]) -> dict[str, Tensor]:
        return joined([dict(one.inputs) for _, one in rows], self._pad)

    def _ask(
        self, name: str, model: Any, rows: Sequence[tuple[int, Prepared]], found: list[Any]
    ) -> None:
        """Answer examples of one task by a model of its own."""
        task, inputs = self.task(name), self._inputs(rows)
        if not task.reader.kind.writes:
            self._read(name, answer(model, inputs).float(), rows, found)
            return
        pool = Pool(inputs, None, None, "", answer_length=task.answer_length)
        tokens = sequences.write(model, pool)
        for (number, _), row in zip(rows, tokens, strict=True):
            text = task.preparation.processor.decode(row[row >= 0], skip_special_tokens=True)
            found[number] = task.reader.answer(text, None, None)

    def _read(
        self,
        name: str,
        outputs: Tensor,
        rows: Sequence[tuple[int, Prepared]],
        found: list[Any],
    ) -> None:
        """Answers from a task's outputs [n, …], without what other tasks padded them with."""
        task = self.task(name)
        kind = task.reader.kind
        outputs = outputs.narrow(kind.axis, 0, min(task.width, outputs.shape[kind.axis]))
        if not torch.isfinite(outputs).all():
            raise TintrayError(f"task '{name}' of {self.version} answers with NaN or infinity")
        masks: list[Tensor | None] = [one.mask for _, one in rows]
        if kind.goes_on:
            read = self._next_tokens(task, outputs, rows)
        else:
            read = task.reader.rows(outputs, masks)
        for (number, _), one in zip(rows, read, strict=True):
            found[number] = one

    @staticmethod
    def _next_tokens(
        task: ServedTask, outputs: Tensor, rows: Sequence[tuple[int, Prepared]]
    ) -> list[Answer]:
        """The token that goes on with each text, from the logits of its last token."""
        last = torch.tensor([one.inputs["input_ids"].shape[1] - 1 for _, one in rows])
        logits = outputs[torch.arange(len(rows)), last]
        tokens, confidence = task.reader.kind.read(logits)
        assert tokens is not None and confidence is not None, "texts have tokens"
        decode: Callable[[int], str] = task.preparation.processor.decode
        said = zip(tokens.tolist(), confidence.tolist(), logits, strict=True)
        return [task.reader.answer(decode(token), sure, row) for token, sure, row in said]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
