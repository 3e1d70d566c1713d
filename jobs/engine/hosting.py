"""What a worker does with experts before it lets them go: checks, self-labels, task vectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from tintray.checkpoints.model_folder import ModelFolder, open_model_folder
from tintray.checkpoints.processors import check_same_tokens, has_tokenizer, load_processor
from tintray.checkpoints.tensors import Later, TensorFile, read_tensors
from tintray.data.labels import check_class_names, class_names
from tintray.errors import CheckpointError, DataError, NotFoundError
from tintray.jobs.config.settings import share_factories
from tintray.jobs.engine.configs import FitConfig, Prepared, TaskConfig, TaskFacts
from tintray.jobs.engine.sources import cache_folder, local_data, local_folder
from tintray.jobs.engine.task_files import TaskFiles, open_expert
from tintray.models.adapters import read_adapter, task_vector
from tintray.models.base_similarity import change
from tintray.models.calling import answer
from tintray.models.comparing import check_same_backbone, check_same_computation
from tintray.models.loading import load_base, load_expert
from tintray.models.norms import norm_buffers
from tintray.models.structure import (
    backbone_names,
    copy_on,
    head_modules,
    private_state,
    resolve_site,
)
from tintray.numerics.choices import Precision
from tintray.numerics.randomness import stream
from tintray.numerics.sites import HEAD
from tintray.pools import overlap, sequences
from tintray.pools.feeding import examples_at_once
from tintray.pools.pool import Pool
from tintray.pools.tokens import check_known
from tintray.references.reference import passes
from tintray.routing.pools import routing_key, routing_of
from tintray.storage.artifacts.blobs import BlobRef, blob_key, fetch_blob
from tintray.storage.artifacts.cache import lookup, remember
from tintray.storage.artifacts.store import open_store
from tintray.tasks.doubts import doubt
from tintray.tasks.outputs import Outputs, as_tensors, from_tensors
from tintray.tasks.registry import KINDS
from tintray.tinting import self_labels
from tintray.tinting.on_demand import Asking, LabelsOnDemand, SelfLabels
from tintray.tinting.partition import partition
from tintray.tinting.pseudo_labels import TrueLabels
from tintray.tinting.tint_layers import TintLayer, low_rank_factors
from tintray.vectors.task_vectors import pack, vector_key

_NAMES = {"zero-shot-heads": "head", "self-features": "features"}  # of the tensor that is kept


@dataclass(frozen=True)
class CheckedTask:
    """A task that can be used: its expert and its data were tried out."""

    task: TaskConfig
    facts: TaskFacts
    layer: TintLayer
    pool: Pool
    test: Pool | None
    test_labels: Any
    true_labels: TrueLabels | None


@dataclass(frozen=True)
class HostedTask(CheckedTask):
    """A task whose expert has answered; ``pool`` has what its decoder reads, if it has one."""

    labels: SelfLabels
    expert_test: Outputs | None
    features: Tensor | None
    asking: Asking


class Experts:
    """Opens the experts of a job's tasks on this machine, and has done with each as soon as it can.

    ``first`` is any of its tasks; a published one tells of itself, where experts may be gone.
    ``cache`` is where copies are of what came from elsewhere, ``partition`` the base, split.
    """

    def __init__(self, config: FitConfig, first: TaskConfig) -> None:
        self._config = config
        share_factories()
        self.store = open_store(config.store_url)
        self.cache = cache_folder()
        folder, built = local_folder(config.base, self.cache), config.factory
        self._base = open_model_folder(folder, role="base", factory=built)
        self._opened: dict[tuple[str, str], ModelFolder] = {}
        if first.published is not None:
            self._like = self.folder(first)
        else:
            location, role = config.like
            folder = local_folder(location, self.cache)
            self._like = open_model_folder(folder, role=role, base=self._base, factory=built)
        base = load_base(self._base, like=self._like, as_stored=True)
        self.partition = partition(
            *(base, config.sites, config.granularity),
            learned=config.learned,
            tint_lr=config.tint_lr,
        )

    def check(self, task: TaskConfig) -> tuple[CheckedTask, nn.Module]:
        """Check a task's expert and data: what the task owns, and the expert.

        The expert is run on one example of each, where the job computes, and nothing is written.
        """
        folder = self.folder(task)
        notices: list[str] = []
        if task.published is None:
            notices = check_same_computation(self._base, folder, "the base", task.role)
            if task.factory is None:  # of a factory's module, heads are in the configuration too
                check_same_computation(self._like, folder, self._config.like[1], task.role)
            expert = load_expert(folder.without_texts(), task.role, as_stored=True)
        else:
            expert = task.published.module()
        check_same_backbone(self.partition.module, expert, "the base", task.role)
        task.kind.check_model(expert, task.role)
        private = self._private(expert) if task.published is None else task.published.tint()
        layer = TintLayer.of_expert(
            *(task.name, private, self.partition.rate), device=self._config.device
        )
        width, files = task.kind.answer_width(expert), TaskFiles(task, folder)
        pool = files.pool()
        self._check_tokens(task, pool, folder)
        there = copy_on(expert, self._config.device)
        self._try_out(task, there, pool, width, "pool")
        if task.kind.has_class_names:
            source, role = local_data(task.pool, self.cache), f"tasks.{task.name}.pool"
            check_class_names(class_names(source, role), width, f"{role}: {source.path}")
        test, test_labels = files.test(expert), None
        if test is not None:
            self._try_out(task, there, test, width, "test")
            test_labels = files.labels("test", test, expert)
            if common := overlap.shared(pool, test):
                notices.append(overlap.warning(task.name, common, len(test)))
            if task.test is not None and not task.kind.any_counts(test_labels):
                raise DataError(
                    f"tasks.{task.name}.test: {task.test.path} has no label that counts; expected "
                    "one at least, or no 'test', so that the task is judged by agreement"
                )
        self._check_published(task, pool, test)
        digest = folder.digest() if task.published is None else task.published.expert
        moved = change(self.partition.module, there)
        facts = TaskFacts(
            name=task.name,
            classes=width,
            tint_parameters=layer.count(),
            head_parameters=layer.count(head_modules(expert)),
            expert_digest=digest,
            pool_digest=pool.digest,
            pool_examples=len(pool),
            test_digest=None if test is None else test.digest,
            test_examples=0 if test is None else len(test),
            configs=folder.configs(),
            base_similarity=moved.similarity,
            change=moved.size,
            sketch=moved.sketch.numpy().tobytes() if task.published is None else b"",
            notices=tuple(notices),
            pool_bytes=pool.memory,
            test_bytes=0 if test is None else test.memory,
            disturbed=passes(pool if test is None else test, task.kind),
        )
        true = self._true_labels(files, pool, expert) if task.labelled else None
        return CheckedTask(task, facts, layer, pool, test, test_labels, true), expert

    def prepare(self, checked: CheckedTask, asking: Asking) -> tuple[HostedTask, Prepared]:
        """Have the expert's outputs over pool and test set, and its task vector.

        Of the pool as much as ``asking`` says, of the test set all in float32. What another job has
        computed from the same content is taken from the artifact store.
        """
        started = time.perf_counter()
        task, test = checked.task, checked.test
        self._give_head(checked)
        expert = cache(lambda: self._expert(task))  # read once, and only if it is needed
        there = cache(lambda: copy_on(expert(), self._config.device))
        pool, labels, labels_blob, cached = self._labels(checked, asking, there)
        expert_test, test_blob, features, features_blob = None, None, None, None
        if test is not None:
            _, expert_test, test_blob, _ = self._predictions(checked, test, there, "float32")
        if self._config.settings.features:
            features, features_blob = self._features(checked, pool, there)
        vector, vector_cached = self._task_vector(checked, expert)
        routing = self._routing(pool) if task.published is None and self._config.route else None
        seconds = time.perf_counter() - started
        suspicion = None  # of a published merge, the expert has been judged
        if task.published is None:
            of_test = (expert_test, checked.test_labels, test.mask) if test is not None else ()
            answers, rows = labels.first
            mask = pool.mask if rows is None or pool.mask is None else pool.mask[rows]
            suspicion = doubt(task.kind, answers, mask, *of_test)
        hosted = HostedTask(
            *(task, checked.facts, checked.layer, pool, test, checked.test_labels),
            *(checked.true_labels, labels, expert_test, features, asking),
        )
        return hosted, Prepared(
            *(task.name, seconds, cached, vector_cached),
            labels=labels_blob,
            test_outputs=test_blob,
            vector=vector,
            features=features_blob,
            doubt=suspicion,
            routing=routing,
        )

    def _check_published(self, task: TaskConfig, pool: Pool, test: Pool | None) -> None:
        """Refuse other examples than those that a published task was fitted or measured on."""
        if (known := task.published) is None:
            return
        parts = [("pool", task.pool, pool, known.pool), ("test", task.test, test, known.test)]
        for part, source, found, published in parts:
            if source is not None and found is not None and found.digest != published:
                raise DataError(
                    f"tasks.{task.name}.{part}: {source.path} is not what the merge was published "
                    "with; expected the same examples, restore the file or `tintray refresh-task` "
                    "it"
                )

    def _try_out(
        self, task: TaskConfig, expert: nn.Module, pool: Pool, width: int, part: str
    ) -> None:
        """Run an expert on an example or two; that of a published merge has been."""
        if "input_ids" in pool.inputs:
            check_known(pool.inputs["input_ids"], expert, task.role)
        if task.published is None:
            one = sequences.placeholder(pool.extremes(), getattr(expert, "config", None))
            where = f"tasks.{task.name}.{part}"
            asked = (one, task.kind, width, task.role, where)
            self_labels.try_out(partial(answer, expert), *asked, device=self._config.device)

    def _check_tokens(self, task: TaskConfig, pool: Pool, folder: ModelFolder) -> None:
        """Refuse a tokenizer that gives other numbers to tokens than the base's does."""
        if "input_ids" not in pool.inputs:
            return
        reference, said = self._base, "the base"
        if not has_tokenizer(reference.preparing_folder):
            reference, said = self._like, self._config.like[1]
        if reference.preparing_folder != folder.preparing_folder:
            one, other = (
                load_processor(source, role, text=True)
                for source, role in ((reference, said), (folder, task.role))
            )
            check_same_tokens(one, other, said, task.role)

    def folder(self, task: TaskConfig) -> ModelFolder:
        """A task's expert, opened; of a published task, what the merge has of it."""
        if task.published is not None:
            return task.published.model_folder(self.cache)
        return self._expert_folder(task)

    def _expert(self, task: TaskConfig) -> nn.Module:
        """The expert itself, as it is stored."""
        if task.published is None:
            return self.loaded(self._expert_folder(task), task.role)
        try:
            folder = self._expert_folder(task)
            if folder.digest() == task.published.expert:
                return self.loaded(folder, task.role)
            said = f"{task.expert} is another expert by now"
        except CheckpointError as error:
            said = str(error)
        raise NotFoundError(
            f"task '{task.name}': its self-labels or its task vector are gone from "
            f"{self.store.url} and its expert cannot compute them again ({said}); copy the "
            "artifacts back, or `tintray refresh-task` the task"
        )

    def loaded(self, folder: ModelFolder, role: str) -> nn.Module:
        """An expert as it is stored, with the head of a CLIP tower as it is in the store."""
        return load_expert(folder, role, head=self._text_head(folder, role), as_stored=True)

    def _give_head(self, hosted: CheckedTask) -> None:
        """Put the head of texts into a task's layer: when it was checked, nothing was computed."""
        if hosted.task.published is not None:
            return
        head = self._text_head(self.folder(hosted.task), hosted.task.role)
        if head is not None:
            module: Any = self.partition.module
            with torch.no_grad():
                hosted.layer.tensors["classifier.weight"].copy_(head * module.root)

    def _text_head(self, folder: ModelFolder, role: str) -> Tensor | None:
        """The head that a CLIP tower's names of classes make, computed once or from the store."""
        base, texts = folder.base, folder.zero_shot
        if base is None or texts is None:
            return None
        from tintray.models.clip import head_key, text_head

        device = self._config.device
        key = head_key(folder, self._config.base_digest, device)
        return self._once("zero-shot-heads", key, lambda: text_head(base, texts, role, device))[0]

    def _once(self, kind: str, key: str, compute: Callable[[], Tensor]) -> tuple[Tensor, BlobRef]:
        """A tensor from the store, or computed and kept there."""
        if (found := lookup(self.store, kind, key)) is not None:
            return next(iter(self._read(found).values())), found
        tensor = compute().clone(memory_format=torch.contiguous_format)
        return tensor, self.remember(kind, key, {_NAMES[kind]: tensor})

    def _read(self, ref: BlobRef) -> dict[str, Tensor]:
        return read_tensors(fetch_blob(self.store, ref, self.cache))

    def _expert_folder(self, task: TaskConfig) -> ModelFolder:
        """Looked at once, so that what is computed later comes from the files that were checked."""
        key = (task.name, task.expert)
        if key not in self._opened:
            self._opened[key] = open_expert(task, self.cache, self._base)
        return self._opened[key]

    def _private(self, expert: nn.Module) -> dict[str, Tensor]:
        """What a task starts from, of its expert; factors where its tint is a product."""
        private, ranks = private_state(expert, self.partition.private), self.partition.low_rank
        for name in ranks:
            product = self._difference(expert, name).to(self._config.device)
            private |= low_rank_factors({name: product}, ranks)
        return private | norm_buffers(expert)

    def _difference(self, expert: nn.Module, name: str) -> Tensor:
        base = self.partition.module.get_parameter(name).detach()
        return expert.get_parameter(name).detach() - base.float()

    def feature_path(self) -> str:
        """Where features are read, as the module spells it; one module, not a pattern."""
        site, field = self._config.feature_site, "objective.feature_site"
        found = resolve_site(self.partition.module, site, field=field)
        return HEAD if site == HEAD else found[0]

    def _features(
        self, hosted: CheckedTask, pool: Pool, there: Callable[[], nn.Module]
    ) -> tuple[Tensor, BlobRef]:
        """The expert's features over the pool at the job's depth, computed or from the store.

        They are float32 wherever they come from: a child needs them when the expert may be gone.
        """
        path, device = self.feature_path(), self._config.device
        key = self_labels.features_key(hosted.facts.expert_digest, pool.digest, path)
        return self._once(
            *("self-features", key),
            lambda: self_labels.predict_features(there(), pool, path, device=device),
        )

    def _routing(self, pool: Pool) -> BlobRef | None:
        """What tells a pool's examples from others, computed or from the store; None if nothing."""
        key = routing_key(pool, self._config.device)
        if (found := lookup(self.store, "routing", key)) is not None:
            return found
        tensors = routing_of(pool, self._config.device)
        return None if tensors is None else self.remember("routing", key, tensors)

    def _true_labels(self, files: TaskFiles, pool: Pool, expert: nn.Module) -> TrueLabels:
        """Which examples of the pool may be read with their label, by the seed, and the labels."""
        task, examples = files.task, len(pool)
        if not task.kind.takes_labels:
            labelled = [name for name, kind in KINDS.items() if kind.takes_labels]
            raise DataError(
                f"tasks.{task.name}.labelled: expected a task of one of the kinds "
                f"{', '.join(labelled)}, found '{task.kind.name}', which has no labels beside its "
                "texts"
            )
        if task.labelled > examples:
            raise DataError(
                f"tasks.{task.name}.labelled: expected at most the {examples:,} examples of the "
                f"pool, found {task.labelled:,}"
            )
        labels = files.labels("pool", pool, expert)
        generator = stream(self._config.settings.seed, task.name, "labelled")
        rows = torch.randperm(examples, generator=generator)[: task.labelled]
        few = labels[rows] if isinstance(labels, Tensor) else [labels[row] for row in rows.tolist()]
        return TrueLabels(rows, few)

    def _task_vector(
        self, hosted: CheckedTask, read: Callable[[], nn.Module]
    ) -> tuple[BlobRef, bool]:
        """θₖ − θ₀ over the whole backbone, whatever the site, so that every job can reuse it."""
        key = vector_key(self._config.base_digest, hosted.facts.expert_digest)
        if (found := lookup(self.store, "task-vectors", key)) is not None:
            return found, True
        base, folder = self.partition.module, self.folder(hosted.task)
        names = backbone_names(base)
        if hosted.task.published is None and folder.adapter is not None:
            adapter = read_adapter(folder, base, hosted.task.role, with_head=False)
            vector: Mapping[str, Tensor | Later] = pack(task_vector(adapter, base, names))
        else:
            expert = read()  # each tensor is made as it is written: all have the bytes of a model
            vector = {
                name: Later(
                    tuple(base.get_parameter(name).shape), partial(self._difference, expert, name)
                )
                for name in names
            }
        return self.remember("task-vectors", key, vector), False

    def _labels(
        self, hosted: CheckedTask, asking: Asking, there: Callable[[], nn.Module]
    ) -> tuple[Pool, SelfLabels, BlobRef, bool]:
        """The pool, as ``_predictions`` gives it, and the self-labels that are needed at first."""
        precision, pool = asking.precision, hosted.pool
        if asking.order is None:
            pool, outputs, ref, cached = self._predictions(hosted, pool, there, precision)
            return pool, SelfLabels(outputs), ref, cached
        found = lookup(self.store, "self-labels", self.labels_key(hosted, asking))
        labels = LabelsOnDemand(
            asking,
            examples_at_once(pool, self._config.device),
            lambda: copy_on(self._expert(hosted.task), self._config.device),
            lambda expert, rows: self._answers(hosted, pool[rows], expert, precision),
            None if found is None else from_tensors(self._read(found)),
        )
        missing = labels.ask_first(there)
        if found is None or missing:
            found = self._stored(hosted, asking, labels)
        return pool, labels, found, not missing

    def keep_labels(self, hosted: HostedTask) -> BlobRef | None:
        """Keep all self-labels of a task, if it was asked for more of them than are kept."""
        return self._stored(hosted, hosted.asking, hosted.labels) if hosted.labels.grown else None

    def _stored(self, hosted: CheckedTask, asking: Asking, labels: SelfLabels) -> BlobRef:
        tensors = as_tensors(labels.outputs)
        if labels.rows is not None:
            tensors["rows"] = labels.rows.clone()
        labels.grown = False
        return self.remember("self-labels", self.labels_key(hosted, asking), tensors)

    def labels_key(self, hosted: CheckedTask, asking: Asking) -> str:
        """Under which key the store has a task's self-labels, if it has them."""
        device, pool = self._config.device, hosted.pool
        how = self_labels.asked(asking.precision, device)
        if asking.order is not None:
            how += f" {asking.digest(examples_at_once(pool, device))}"
        return self_labels.labels_key(hosted.facts.expert_digest, pool.digest, how)

    def _predictions(
        self,
        hosted: CheckedTask,
        pool: Pool,
        there: Callable[[], nn.Module],
        precision: Precision,
    ) -> tuple[Pool, Outputs, BlobRef, bool]:
        """A pool with what its decoder reads, if it has one, and the expert's outputs over it.

        ``there`` gives the expert, where the job computes. A published task has those that it was
        published with, however they were asked for, and what of the pool they are of.
        """
        task, device = hosted.task, self._config.device
        how = self_labels.asked(precision, device)
        key = self_labels.labels_key(hosted.facts.expert_digest, pool.digest, how)
        found = self._published_answers(task, pool) or lookup(self.store, "self-labels", key)
        if found is not None:
            kept, config = self._read(found), getattr(self.partition.module, "config", None)
            outputs = from_tensors(kept)
            if (rows := kept.get("rows")) is not None:
                rows, order = rows.sort()
                pool, outputs = pool.narrowed(rows), outputs[order]
            return sequences.recalled(pool, kept, config), outputs, found, True
        expert = there()
        whole = sequences.completed(expert, pool, device)
        outputs = self._answers(hosted, whole, expert, precision)
        tensors = as_tensors(outputs) | sequences.written(pool, whole)
        return whole, outputs, self.remember("self-labels", key, tensors), False

    def _answers(
        self, hosted: CheckedTask, pool: Pool, expert: nn.Module, precision: Precision
    ) -> Outputs:
        """What an expert answers, where the job computes; refused if it is of no use."""
        task = hosted.task
        outputs = self_labels.self_labels(
            *(expert, pool, task.role, task.kind), device=self._config.device, precision=precision
        )
        task.kind.check_outputs(outputs, hosted.facts.classes, task.role)
        return outputs

    def _published_answers(self, task: TaskConfig, pool: Pool) -> BlobRef | None:
        """What the store has by name of a published task's answers to its pool or test set."""
        if (known := task.published) is None:
            return None
        sha256 = {known.pool: known.labels, known.test: known.outputs}.get(pool.digest)
        stat = None if sha256 is None else self.store.stat(blob_key(sha256))
        return None if sha256 is None or stat is None else BlobRef(sha256, stat.size)

    def remember(self, kind: str, key: str, tensors: Mapping[str, Tensor | Later]) -> BlobRef:
        """Keep tensors as an artifact of this kind, under the hash of what they come from."""
        return remember(self.store, kind, key, TensorFile(tensors))
