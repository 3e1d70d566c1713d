"""A worker: it hosts task groups, each with its tint layers, pools and self-labels.

A worker never holds a task vector. It checks its tasks' experts, computes their self-labels once,
lets each expert go, and from then on needs one backbone at a time and what its own tasks own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.fit.arrays import Floats, Sent, peak_memory, readable, sent
from jobs.fit.checkpointing import MARK
from jobs.fit.probing import Candidate, probe
from jobs.merges.kept import Kept, kept_checkpoint, kept_module, kept_tint
from jobs.planning.calibration import Speed, calibrate
from jobs.running.sources import cache_folder, local_data, local_folder
from storage.artifacts import open_store
from storage.blobs import BlobRef, fetch_blob, put_blob
from storage.cache import lookup, remember
from tintray import labels, models, pools, sequences
from tintray.adapters import is_adapter, read_adapter, task_vector
from tintray.bundle import read_tensors, tensors_as_bytes
from tintray.checkpoints import TEMPLATES, Checkpoint, ZeroShot, open_checkpoint
from tintray.data import Answers, DataOrder, check_class_names, class_names
from tintray.errors import CheckpointError, DataError, NotFoundError
from tintray.evaluation import TaskScore, confidences, score
from tintray.kinship import kinship
from tintray.layout import Granularity
from tintray.norms import norm_buffers
from tintray.partition import partition
from tintray.randomness import stream
from tintray.schedule import BLOCK_LR, HEAD_LR
from tintray.step import StepSettings, TaskGroup, TaskState
from tintray.task_vectors import pack
from tintray.tasks import Kind, Outputs, as_tensors, check_outputs, chosen, from_tensors
from tintray.text import check_known, check_same_tokens, has_tokenizer
from tintray.tint import FusedModel, TintLayer, low_rank_factors
from tintray.trust import LABELLED, TrueLabels, Trust, trusted


@dataclass(frozen=True)
class TaskOrder:
    """What a worker must know of a task to host it; plain data, from the job file."""

    name: str
    kind: Kind
    expert: str
    pool: DataOrder
    test: DataOrder | None
    labelled: int = 0  # how many of the pool's examples may be read with their label
    base: str = ""  # what the expert was fine-tuned from; an adapter is nothing without
    factory: str | None = None  # what builds the module, if not transformers
    kept: Kept | None = None  # of a published merge: its expert is not needed
    classes: tuple[str, ...] | None = None  # of a zero-shot head; None: as the data name them
    templates: tuple[str, ...] = TEMPLATES

    @property
    def role(self) -> str:
        """How messages call its expert: by the field of the job file."""
        return f"tasks.{self.name}.expert"


def open_expert(task: TaskOrder, cache: Path, base: Checkpoint | None = None) -> Checkpoint:
    """A task's expert, on this machine; ``base`` saves opening that too.

    Raises
    ------
    CheckpointError
        If either cannot be opened.
    """
    if base is None:
        base = open_checkpoint(local_folder(task.base, cache), role="base", factory=task.factory)
    folder = local_folder(task.expert, cache)
    checkpoint = open_checkpoint(folder, role=task.role, base=base, factory=task.factory)
    if not checkpoint.is_tower or checkpoint.has_head:
        _check_no_texts(task, checkpoint)
        return checkpoint
    where = f"tasks.{task.name}.adapt"
    names = task.classes or class_names(local_data(task.pool, cache), where)
    if names is None:
        raise CheckpointError(
            f"tasks.{task.name}.zero_shot.classes: {task.pool.path} does not name its classes; "
            "expected a list of names, of which the head of a CLIP tower is made"
        )
    return checkpoint.with_classes(ZeroShot(tuple(names), task.templates))


def _check_no_texts(task: TaskOrder, checkpoint: Checkpoint) -> None:
    """Refuse names of classes for an expert whose head is not made of them."""
    if task.classes is None and task.templates == TEMPLATES:
        return
    kind = (checkpoint.config.get("architectures") or ["model of a factory"])[0]
    found = f"{checkpoint.folder} has a head of its own" if checkpoint.is_tower else f"a {kind}"
    raise CheckpointError(
        f"tasks.{task.name}.zero_shot: expected a CLIP vision tower as the expert, whose head is "
        f"made of texts; found {found}: leave 'zero_shot' out"
    )


@dataclass(frozen=True)
class FitOrder:
    """What all workers of a job must know; plain data, from the job file and the base."""

    store_url: str
    base: str
    base_digest: str
    like: tuple[str, str]  # an expert, for the class of all of them, and how messages call it
    site: str
    rank: int | None
    feature_site: str  # whose features the fit compares, where it does
    learned: bool
    granularity: Granularity
    settings: StepSettings
    trust: Trust
    factory: str | None = None  # what builds the modules, if not transformers
    device: str = "cpu"  # where rounds and evaluations compute
    direct: bool = False  # whether gradients are answered as tensors, not as arrays


@dataclass(frozen=True)
class TaskFacts:
    """What a worker found out about a task while it checked it."""

    name: str
    classes: int
    tint_parameters: int
    head_parameters: int
    expert_digest: str
    pool_digest: str
    pool_examples: int
    test_digest: str | None
    test_examples: int
    configs: Mapping[str, bytes]  # file name -> content
    kinship: float = 1.0  # cosine between the base's weights and the expert's


@dataclass(frozen=True)
class Prepared:
    """A task's self-labels and task vector are at hand, as artifacts."""

    task: str
    seconds: float
    cached: bool  # the self-labels came from the store
    vector_cached: bool  # so did the task vector
    labels: BlobRef
    test_outputs: BlobRef | None  # the expert's outputs on the test set
    vector: BlobRef
    features: BlobRef | None = None


@dataclass
class _Hosted:
    """A task between its check and the end of the fit."""

    order: TaskOrder
    facts: TaskFacts
    layer: TintLayer
    pool: pools.Pool
    test: pools.Pool | None
    test_labels: Any
    true: TrueLabels | None = None
    labels: Outputs | None = None
    expert_test: Outputs | None = None
    features: Tensor | None = None


class Worker:
    """Hosts task groups; see the module."""

    def __init__(self, order: FitOrder, groups: Mapping[int, Sequence[TaskOrder]]) -> None:
        self._order = order
        self._store = open_store(order.store_url)
        self._cache = cache_folder()
        self._orders = {number: list(tasks) for number, tasks in groups.items()}
        self._hosted: dict[str, _Hosted] = {}
        self._groups: dict[int, TaskGroup] = {}
        folder, built = local_folder(order.base, self._cache), order.factory
        self._base = open_checkpoint(folder, role="base", factory=built)
        base = models.load_base(self._base, like=self._like())
        self._partition = partition(base, order.site, order.granularity, order.rank)
        self._fused: FusedModel | None = None
        self._bounds: list[slice] = []

    def _like(self) -> Checkpoint:
        """An expert of the job, for its configuration."""
        location, role = self._order.like
        folder, built = local_folder(location, self._cache), self._order.factory
        return open_checkpoint(folder, role=role, base=self._base, factory=built)

    # -- before the fit ------------------------------------------------------------------------

    def check(self, task: TaskOrder) -> TaskFacts:
        """Check a task's expert and data, and keep what the task owns.

        Nothing is computed with the expert yet, and nothing is written.

        Raises
        ------
        CheckpointError, DataError
            Naming the field, the tensor or the file.
        """
        checkpoint = self._checkpoint(task)
        if task.kept is None:
            models.check_same_computation(self._base, checkpoint, "the base", task.role)
            expert = models.load_expert(checkpoint.without_texts(), task.role)
        else:
            expert = kept_module(task.kept, task.name)
        models.check_same_backbone(self._partition.module, expert, "the base", task.role)
        sequences.check_writes(expert, task.kind, task.role)
        if task.kept is None:
            private = models.private_state(expert, self._partition.private)
            private |= self._low_rank_start(expert) | norm_buffers(expert)
        else:
            private = kept_tint(task.kept, task.name)
        layer = TintLayer.of_expert(
            *(task.name, private, self._partition.site),
            learn=self._order.learned,
            device=self._order.device,
        )
        width = models.answer_width(expert, task.kind)
        known = models.answers(expert, width, task.role)
        pool = self._pool(task, "adapt", task.pool, checkpoint)
        self._check_tokens(task, pool, checkpoint, expert)
        if task.kind in ("classification", "segmentation"):
            order = local_data(task.pool, self._cache)
            check_class_names(order, width, f"tasks.{task.name}.adapt")
        test, test_labels = None, None
        if task.test is not None:
            test = self._test(task, task.test, checkpoint, expert)
            test_labels = pools.labels_of(
                local_data(task.test, self._cache),
                *(task.kind, test, known, f"tasks.{task.name}.test"),
            )
        if task.kept is not None and pool.digest != task.kept.pool:
            raise DataError(
                f"tasks.{task.name}.adapt: {task.pool.path} is not what "
                "the merge was published with; expected the same examples, restore the file or "
                "`tintray refresh` the task"
            )
        digest = checkpoint.digest() if task.kept is None else task.kept.expert
        facts = TaskFacts(
            name=task.name,
            classes=width,
            tint_parameters=layer.count(self._partition.site),
            head_parameters=layer.count(models.head_modules(expert)),
            expert_digest=digest,
            pool_digest=pool.digest,
            pool_examples=len(pool),
            test_digest=None if test is None else test.digest,
            test_examples=0 if test is None else len(test),
            configs=checkpoint.configs(),
            kinship=kinship(self._partition.module, expert),
        )
        true = self._true_labels(task, pool, known) if task.labelled else None
        self._hosted[task.name] = _Hosted(task, facts, layer, pool, test, test_labels, true)
        if self._fused is None:
            split = self._partition
            self._fused = FusedModel(
                *(expert, split.layout, split.private, split.low_rank), device=self._order.device
            )
            if self._order.settings.features:
                self._fused.listen(self._feature_path())
        return facts

    def calibrate(self, name: str, seconds: float) -> Speed:
        """Time the steps of a checked task on this machine, under θ₀, for about ``seconds``."""
        hosted, settings = self._hosted[name], self._order.settings
        assert self._fused is not None, "check() comes first"
        module, layout = self._partition.module, self._partition.layout
        config = getattr(module, "config", None)
        pool = sequences.placeholder(hosted.pool.first(settings.micro_batch), config)
        batch = pool.batch(slice(0, len(pool)))
        theta = layout.flatten({n: p.detach() for n, p in module.named_parameters()})
        return calibrate(self._fused, hosted.layer, batch, theta, settings.precision, seconds)

    def prepare(self, name: str) -> Prepared:
        """Have the expert's outputs over pool and test set, and its task vector.

        What another job has computed from the same content is taken from the artifact store.
        """
        hosted = self._hosted[name]
        started = time.perf_counter()
        self._give_head(hosted)
        expert = cache(lambda: self._expert(hosted.order))  # read once, and only if it is needed
        hosted.pool, hosted.labels, ref, cached = self._predictions(hosted, hosted.pool, expert)
        test_ref = None
        if hosted.test is not None:
            _, hosted.expert_test, test_ref, _ = self._predictions(hosted, hosted.test, expert)
        features_ref = self._features(hosted) if self._order.settings.features else None
        vector, vector_cached = self._task_vector(hosted, expert)
        seconds = time.perf_counter() - started
        return Prepared(name, seconds, cached, vector_cached, ref, test_ref, vector, features_ref)

    def begin(self, bounds: Sequence[slice]) -> None:
        """Form the task groups; gradients will be returned in pieces, cut at ``bounds``."""
        assert self._fused is not None, "check() comes first"
        self._bounds = list(bounds)
        # One group steps at a time.
        gradient = torch.zeros(self._partition.layout.numel, device=self._order.device)
        for number, orders in self._orders.items():
            states = [self._state(self._hosted[order.name]) for order in orders]
            self._groups[number] = TaskGroup(states, self._fused, gradient, self._order.settings)

    def _state(self, hosted: _Hosted) -> TaskState:
        """A task at the beginning of its fit."""
        assert hosted.labels is not None, "prepare() comes first"
        order = self._order
        targets, judge = trusted(
            hosted.order.kind,
            hosted.labels,
            hosted.true,
            order.trust,
            order.settings.filter,
            hosted.pool.mask,
        )
        return TaskState(
            *(hosted.order.name, hosted.layer, hosted.pool, targets, judge),
            features=hosted.features,
            kind=hosted.order.kind,
        )

    # -- rounds --------------------------------------------------------------------------------

    def step(
        self, group: int, round_: int, tint_lr: float, only: Collection[str] | None, *theta: Sent
    ) -> tuple[Any, ...]:
        """One round of one group, or ``only`` of some tasks of it, under θ in pieces.

        Answers Σ ∂L/∂θ over its tasks, in as many pieces, and last the metrics per task.
        """
        result = self._groups[group].step(self._backbone(theta), round_, tint_lr, only=only)
        pieces = [result.gradient[stretch] for stretch in self._bounds]
        return (*(sent(piece, self._order.direct) for piece in pieces), result.metrics)

    def save_group(self, group: int, mark: Tensor) -> BlobRef:
        """Write the state of a group's tasks to the store; ``mark`` makes the blob its own."""
        tensors = {
            f"{task.name}/{name}": tensor
            for task in self._groups[group].tasks
            for name, tensor in task.state_dict().items()
        }
        return put_blob(self._store, tensors_as_bytes({**tensors, MARK: mark}))

    def load_group(self, group: int, ref: BlobRef) -> None:
        """Let a group's tasks go back to what ``save_group`` wrote."""
        tensors = read_tensors(fetch_blob(self._store, ref, self._cache))
        for task in self._groups[group].tasks:
            start = f"{task.name}/"
            task.load_state_dict(
                {
                    name.removeprefix(start): tensor
                    for name, tensor in tensors.items()
                    if name.startswith(start)
                }
            )

    def probe(self, name: str, site: str, steps: int, *theta: Floats) -> tuple[float, float]:
        """Try a site for one task under θ in pieces; see ``jobs.fit.probing.probe``."""
        hosted = self._hosted[name]
        assert hosted.labels is not None, "prepare() comes first"
        candidate = Candidate(
            task=name,
            kind=hosted.order.kind,
            site=site,
            expert=self._loaded(self._checkpoint(hosted.order), hosted.order.role),
            pool=hosted.pool,
            labels=hosted.labels,
            theta=[readable(piece) for piece in theta],
            layout=self._partition.layout,
        )
        rate = HEAD_LR if site == models.HEAD else BLOCK_LR
        return probe(candidate, self._partition.module, self._order.settings, steps, rate)

    # -- after the fit -------------------------------------------------------------------------

    def evaluate(self, name: str, *theta: Floats) -> TaskScore:
        """Measure one task under θ: on its labelled test set, else by agreement on its pool."""
        hosted = self._hosted[name]
        pool = hosted.pool if hosted.test is None else hosted.test
        expert = hosted.labels if hosted.test is None else hosted.expert_test
        assert expert is not None and self._fused is not None, "prepare() comes first"
        self._estimate(hosted, theta)
        merged = self._predict(hosted, pool, theta)
        kind, known = hosted.order.kind, hosted.test_labels
        found = score(name, kind, merged, expert, known, pool.mask)
        sure = confidences(kind, merged, expert, known, pool.mask)
        return replace(found, calibration=sure)

    def agreement(self, name: str, examples: int, *theta: Floats) -> float:
        """Agreement with the expert on the first ``examples`` of the pool; no label is read."""
        hosted = self._hosted[name]
        assert hosted.labels is not None, "prepare() comes first"
        pool = hosted.pool.first(examples)
        self._estimate(hosted, theta)
        merged = self._predict(hosted, pool, theta)
        expert = chosen(hosted.labels, slice(0, len(pool)))
        return score(name, hosted.order.kind, merged, expert, None, pool.mask).agreement

    def tint(self, name: str) -> dict[str, NDArray[Any]]:
        """The private tensors of a task, as arrays."""
        return {k: v.detach().cpu().numpy() for k, v in self._hosted[name].layer.tensors.items()}

    def peak_memory(self) -> int:
        """The most memory that this process has held, in bytes."""
        return peak_memory()

    # -- helpers -------------------------------------------------------------------------------

    def _checkpoint(self, task: TaskOrder) -> Checkpoint:
        if task.kept is not None:
            return kept_checkpoint(task.kept, task.name, self._cache)
        return self._own_checkpoint(task)

    def _expert(self, task: TaskOrder) -> nn.Module:
        """The expert itself, to compute with."""
        if task.kept is None:
            return self._loaded(self._own_checkpoint(task), task.role)
        try:
            checkpoint = self._own_checkpoint(task)
            if checkpoint.digest() == task.kept.expert:
                return self._loaded(checkpoint, task.role)
            said = f"{task.expert} is another expert by now"
        except CheckpointError as error:
            said = str(error)
        raise NotFoundError(
            f"task '{task.name}': its self-labels or its task vector are gone from "
            f"{self._store.url} and its expert cannot compute them again ({said}); copy the "
            "artifacts back, or `tintray refresh` the task"
        )

    def _loaded(self, checkpoint: Checkpoint, role: str) -> nn.Module:
        """An expert, with the head of a CLIP tower as it is in the store."""
        return models.load_expert(checkpoint, role, head=self._text_head(checkpoint, role))

    def _give_head(self, hosted: _Hosted) -> None:
        """Put the head of texts into a task's layer: when it was checked, nothing was computed."""
        if hosted.order.kept is not None:
            return
        head = self._text_head(self._checkpoint(hosted.order), hosted.order.role)
        if head is not None:
            module: Any = self._partition.module
            with torch.no_grad():
                hosted.layer.tensors["classifier.weight"].copy_(head * module.root)

    def _text_head(self, checkpoint: Checkpoint, role: str) -> Tensor | None:
        """The head that a CLIP tower's names of classes make, computed once or from the store."""
        if checkpoint.zero_shot is None or checkpoint.base is None:
            return None
        from tintray.models.clip import head_key, text_head

        key = head_key(checkpoint, self._order.base_digest)
        found = lookup(self._store, "zero-shot-heads", key)
        if found is not None:
            return read_tensors(fetch_blob(self._store, found.ref, self._cache))["head"]
        head = text_head(checkpoint.base.folder, checkpoint.zero_shot, role).clone()
        self._remember("zero-shot-heads", key, {"head": head})
        return head

    def _own_checkpoint(self, task: TaskOrder) -> Checkpoint:
        return open_expert(task, self._cache, self._base)

    def _pool(
        self, task: TaskOrder, part: str, order: DataOrder, checkpoint: Checkpoint
    ) -> pools.Pool:
        order = local_data(order, self._cache)
        where = f"tasks.{task.name}.{part}"
        return pools.open_pool(order, checkpoint, task.kind, task.role, where, self._cache)

    def _test(
        self, task: TaskOrder, order: DataOrder, checkpoint: Checkpoint, expert: nn.Module
    ) -> pools.Pool:
        pool = self._pool(task, "test", order, checkpoint)
        if not sequences.is_open(pool):
            return pool
        tokenizer = pools.load_processor(checkpoint, task.role, text=True)
        local = local_data(order, self._cache)
        config = getattr(expert, "config", None)
        where = f"tasks.{task.name}.test"
        return sequences.with_right_answers(pool, local, tokenizer, config, where)

    def _check_tokens(
        self, task: TaskOrder, pool: pools.Pool, checkpoint: Checkpoint, expert: nn.Module
    ) -> None:
        """Refuse a tokenizer that gives other numbers to tokens than the base's does."""
        if "input_ids" not in pool.inputs:
            return
        check_known(pool.inputs["input_ids"], expert, task.role)
        reference, said = self._base, "the base"
        if not has_tokenizer(reference.preparing_folder):
            reference, said = self._like(), self._order.like[1]
        if reference.preparing_folder != checkpoint.preparing_folder:
            one, other = (
                pools.load_processor(source, role, text=True)
                for source, role in ((reference, said), (checkpoint, task.role))
            )
            check_same_tokens(one, other, said, task.role)

    def _low_rank_start(self, expert: nn.Module) -> dict[str, Tensor]:
        """The factors that a low-rank tint starts from; none where a task has a full copy."""
        if self._order.rank is None:
            return {}
        base = self._partition.module
        vectors = {
            name: expert.get_parameter(name).detach() - base.get_parameter(name).detach()
            for name in self._partition.low_rank
        }
        return low_rank_factors(vectors, self._order.rank)

    def _feature_path(self) -> str:
        """Where features are read, as the module spells it; one module, not a pattern."""
        found = models.resolve_site(
            self._partition.module, self._order.feature_site, field="objective.feature_site"
        )
        return models.HEAD if self._order.feature_site == models.HEAD else found[0]

    def _features(self, hosted: _Hosted) -> BlobRef:
        """The expert's features over the pool at the job's depth, computed or from the store."""
        path = self._feature_path()
        key = labels.features_key(hosted.facts.expert_digest, hosted.pool.digest, path)
        found = lookup(self._store, "self-features", key)
        if found is not None:
            file = fetch_blob(self._store, found.ref, self._cache)
            hosted.features = read_tensors(file)["features"]
            return found.ref
        expert = self._loaded(self._checkpoint(hosted.order), hosted.order.role)
        hosted.features = labels.predict_features(expert, hosted.pool, path).clone()
        return self._remember("self-features", key, {"features": hosted.features})

    def _true_labels(self, task: TaskOrder, pool: pools.Pool, answers: Answers) -> TrueLabels:
        """Which examples of the pool may be read with their label, by the seed, and the labels."""
        examples = len(pool)
        if task.kind not in LABELLED:
            raise DataError(
                f"tasks.{task.name}.labelled: expected a task of one of the kinds "
                f"{', '.join(LABELLED)}, found '{task.kind}', which has no labels beside its texts"
            )
        if task.labelled > examples:
            raise DataError(
                f"tasks.{task.name}.labelled: expected at most the {examples:,} examples of the "
                f"pool, found {task.labelled:,}"
            )
        labels = pools.labels_of(
            local_data(task.pool, self._cache),
            *(task.kind, pool, answers, f"tasks.{task.name}.adapt"),
        )
        order = torch.randperm(
            examples, generator=stream(self._order.settings.seed, task.name, "labelled")
        )
        rows = order[: task.labelled]
        few = labels[rows] if isinstance(labels, Tensor) else [labels[row] for row in rows.tolist()]
        return TrueLabels(rows, few)

    def _task_vector(self, hosted: _Hosted, read: Callable[[], nn.Module]) -> tuple[BlobRef, bool]:
        """θₖ − θ₀ over the whole backbone, whatever the site, so that every job can reuse it."""
        key = f"{self._order.base_digest[:32]}{hosted.facts.expert_digest[:32]}"
        found = lookup(self._store, "task-vectors", key)
        if found is not None:
            return found.ref, True
        base, role = self._partition.module, hosted.order.role
        names = models.backbone_names(base)
        checkpoint = self._checkpoint(hosted.order)
        if hosted.order.kept is None and is_adapter(checkpoint):
            adapter = read_adapter(checkpoint, base, role, with_head=False)
            vector = pack(task_vector(adapter, base, names))
            return self._remember("task-vectors", key, vector), False
        expert = read()
        difference = {
            name: expert.get_parameter(name).detach() - base.get_parameter(name).detach()
            for name in names
        }
        return self._remember("task-vectors", key, difference), False

    def _predictions(
        self, hosted: _Hosted, pool: pools.Pool, read: Callable[[], nn.Module]
    ) -> tuple[pools.Pool, Outputs, BlobRef, bool]:
        """A pool with what its decoder reads, if it has one, and the expert's outputs over it."""
        key = labels.labels_key(hosted.facts.expert_digest, pool.digest)
        found = lookup(self._store, "self-labels", key)
        config = getattr(self._partition.module, "config", None)
        if found is not None:
            kept = read_tensors(fetch_blob(self._store, found.ref, self._cache))
            return sequences.recalled(pool, kept, config), from_tensors(kept), found.ref, True
        order = hosted.order
        expert = read()
        whole = sequences.completed(expert, pool)
        outputs = labels.self_labels(expert, whole, order.role, order.kind)
        check_outputs(order.kind, outputs, hosted.facts.classes, order.role)
        tensors = as_tensors(outputs) | sequences.written(pool, whole)
        return whole, outputs, self._remember("self-labels", key, tensors), False

    def _remember(self, kind: str, key: str, tensors: Mapping[str, Tensor]) -> BlobRef:
        return remember(self._store, kind, key, tensors_as_bytes(tensors), {}).ref

    def _backbone(self, theta: Sequence[Sent]) -> list[Tensor]:
        """θ in pieces, where rounds compute."""
        return [readable(piece, self._order.device) for piece in theta]

    def _estimate(self, hosted: _Hosted, theta: Sequence[Floats]) -> None:
        """Let a task keep the statistics of batch normalisation that it has under θ."""
        assert self._fused is not None, "check() comes first"
        self._fused.bind(self._backbone(theta), None)
        self._fused.estimate(hosted.layer, hosted.pool)

    def _predict(self, hosted: _Hosted, pool: pools.Pool, theta: Sequence[Floats]) -> Outputs:
        fused, layer = self._fused, hosted.layer
        assert fused is not None, "check() comes first"
        fused.bind(self._backbone(theta), None)
        fused.use_statistics("kept")
        try:
            return labels.ask(
                lambda batch: fused.forward([batch], [layer])[0], pool, hosted.order.kind
            )
        finally:
            fused.use_statistics("batch")
