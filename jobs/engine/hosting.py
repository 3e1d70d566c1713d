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
from tintray.checkpoints.tensors import read_tensors, tensors_as_bytes
from tintray.data.labels import Answers, check_class_names
from tintray.data.source import DataSource
from tintray.errors import CheckpointError, DataError, NotFoundError
from tintray.jobs.config.settings import share_factories
from tintray.jobs.engine.configs import FitConfig, Prepared, TaskConfig, TaskFacts, open_expert
from tintray.jobs.engine.sources import cache_folder, local_data, local_folder
from tintray.models.adapters import read_adapter, task_vector
from tintray.models.base_similarity import base_similarity
from tintray.models.calling import answer, answer_space
from tintray.models.comparing import check_same_backbone, check_same_computation
from tintray.models.loading import load_base, load_expert
from tintray.models.norms import norm_buffers
from tintray.models.structure import HEAD, backbone_names, head_modules, private_state, resolve_site
from tintray.numerics.randomness import stream
from tintray.pools import overlap, sequences
from tintray.pools.pool import Pool
from tintray.pools.preparing import labels_of, open_pool
from tintray.pools.tokens import check_known
from tintray.storage.artifacts.blobs import BlobRef, fetch_blob
from tintray.storage.artifacts.cache import lookup, remember
from tintray.storage.artifacts.store import open_store
from tintray.tasks.doubts import Doubt, doubt
from tintray.tasks.outputs import Outputs, as_tensors, from_tensors
from tintray.tasks.registry import KINDS
from tintray.tinting import self_labels as labels
from tintray.tinting.partition import partition
from tintray.tinting.pseudo_labels import TrueLabels
from tintray.tinting.tint_layers import TintLayer, low_rank_factors
from tintray.vectors.task_vectors import pack


@dataclass
class HostedTask:
    """A task between its check and the end of the fit."""

    order: TaskConfig
    facts: TaskFacts
    layer: TintLayer
    pool: Pool
    test: Pool | None
    test_labels: Any
    true: TrueLabels | None = None
    labels: Outputs | None = None
    expert_test: Outputs | None = None
    features: Tensor | None = None


class Experts:
    """Opens the experts of a job's tasks on this machine, and has done with each as soon as it can.

    Parameters
    ----------
    order
        The job.
    first
        Any of its tasks; a published one tells of itself, where experts may be gone.

    Attributes
    ----------
    store, cache
        Where artifacts are, and copies of what came from elsewhere.
    partition
        The base, split for the tint site.
    """

    def __init__(self, order: FitConfig, first: TaskConfig) -> None:
        self._order = order
        share_factories()
        self.store = open_store(order.store_url)
        self.cache = cache_folder()
        folder, built = local_folder(order.base, self.cache), order.factory
        self._base = open_model_folder(folder, role="base", factory=built)
        self._opened: dict[tuple[str, str], ModelFolder] = {}
        self._like = self._known(first)
        base = load_base(self._base, like=self._like)
        self.partition = partition(
            *(base, order.site, order.granularity, order.rank), learned=order.learned
        )

    def check(self, task: TaskConfig) -> tuple[HostedTask, nn.Module]:
        """Check a task's expert and data: what the task owns, and the expert.

        The expert is run on one example of each, and nothing is written.

        Raises
        ------
        CheckpointError, DataError
            Naming the field, the tensor or the file.
        """
        checkpoint = self.checkpoint(task)
        notices: list[str] = []
        if task.published is None:
            notices = check_same_computation(self._base, checkpoint, "the base", task.role)
            if task.factory is None:  # of a factory's module, heads are in the configuration too
                like = self._order.like[1]
                check_same_computation(self._like, checkpoint, like, task.role)
            expert = load_expert(checkpoint.without_texts(), task.role)
        else:
            expert = task.published.module()
        check_same_backbone(self.partition.module, expert, "the base", task.role)
        task.kind.check_model(expert, task.role)
        if task.published is None:
            private = private_state(expert, self.partition.private)
            private |= self._low_rank_start(expert) | norm_buffers(expert)
        else:
            private = task.published.tint()
        layer = TintLayer.of_expert(
            *(task.name, private, self.partition.site),
            learn=self._order.learned,
            device=self._order.device,
        )
        width = task.kind.answer_width(expert)
        known = answer_space(expert, width, task.role)
        pool = self._pool(task, "pool", task.pool, checkpoint)
        self._check_tokens(task, pool, checkpoint)
        self._try_out(task, expert, pool, width, "pool")
        if task.kind.has_class_names:
            order = local_data(task.pool, self.cache)
            check_class_names(order, width, f"tasks.{task.name}.pool")
        test, test_labels = None, None
        if task.test is not None:
            test = self._test(task, task.test, checkpoint, expert)
            self._try_out(task, expert, test, width, "test")
            test_labels = labels_of(
                local_data(task.test, self.cache),
                *(task.kind, test, known, f"tasks.{task.name}.test"),
            )
            common = overlap.shared(pool, test)
            if common:
                notices.append(overlap.warning(task.name, common, len(test)))
            if not task.kind.any_counts(test_labels):
                raise DataError(
                    f"tasks.{task.name}.test: {task.test.path} has no label that counts; expected "
                    "one at least, or no 'test', so that the task is judged by agreement"
                )
        if task.published is not None:
            self._check_same(task, "pool", task.pool, pool.digest, task.published.pool)
            if task.test is not None and test is not None:
                self._check_same(task, "test", task.test, test.digest, task.published.test)
        digest = checkpoint.digest() if task.published is None else task.published.expert
        facts = TaskFacts(
            name=task.name,
            classes=width,
            tint_parameters=layer.count(self.partition.site),
            head_parameters=layer.count(head_modules(expert)),
            expert_digest=digest,
            pool_digest=pool.digest,
            pool_examples=len(pool),
            test_digest=None if test is None else test.digest,
            test_examples=0 if test is None else len(test),
            configs=checkpoint.configs(),
            base_similarity=base_similarity(self.partition.module, expert),
            notices=tuple(notices),
            pool_bytes=pool.memory,
            test_bytes=0 if test is None else test.memory,
        )
        true = self._true_labels(task, pool, known) if task.labelled else None
        return HostedTask(task, facts, layer, pool, test, test_labels, true), expert

    def prepare(self, hosted: HostedTask) -> Prepared:
        """Have the expert's outputs over pool and test set, and its task vector.

        What another job has computed from the same content is taken from the artifact store.
        """
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
        found = (cached, vector_cached, ref, test_ref, vector, features_ref)
        return Prepared(hosted.order.name, seconds, *found, doubt=self._doubt(hosted))

    def _doubt(self, hosted: HostedTask) -> Doubt | None:
        """What speaks against an expert; that of a published merge has been judged."""
        if hosted.order.published is not None:
            return None
        assert hosted.labels is not None, "the expert has answered"
        given = (hosted.order.kind, hosted.labels, hosted.pool.mask)
        if hosted.test is None:
            return doubt(*given)
        return doubt(*given, hosted.expert_test, hosted.test_labels, hosted.test.mask)

    def _check_same(
        self, task: TaskConfig, part: str, order: DataSource, found: str, published: str | None
    ) -> None:
        """Refuse other examples than those that a published task was fitted or measured on."""
        if found != published:
            raise DataError(
                f"tasks.{task.name}.{part}: {order.path} is not what the merge was published "
                "with; expected the same examples, restore the file or `tintray refresh-task` it"
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
            labels.try_out(partial(answer, expert), one, task.kind, width, task.role, where)

    def _check_tokens(self, task: TaskConfig, pool: Pool, checkpoint: ModelFolder) -> None:
        """Refuse a tokenizer that gives other numbers to tokens than the base's does."""
        if "input_ids" not in pool.inputs:
            return
        reference, said = self._base, "the base"
        if not has_tokenizer(reference.preparing_folder):
            reference, said = self._like, self._order.like[1]
        if reference.preparing_folder != checkpoint.preparing_folder:
            one, other = (
                load_processor(source, role, text=True)
                for source, role in ((reference, said), (checkpoint, task.role))
            )
            check_same_tokens(one, other, said, task.role)

    def checkpoint(self, task: TaskConfig) -> ModelFolder:
        """A task's expert, opened; of a published task, what the merge has of it."""
        if task.published is not None:
            return task.published.model_folder(self.cache)
        return self._own_checkpoint(task)

    def _expert(self, task: TaskConfig) -> nn.Module:
        """The expert itself, to compute with."""
        if task.published is None:
            return self.loaded(self._own_checkpoint(task), task.role)
        try:
            checkpoint = self._own_checkpoint(task)
            if checkpoint.digest() == task.published.expert:
                return self.loaded(checkpoint, task.role)
            said = f"{task.expert} is another expert by now"
        except CheckpointError as error:
            said = str(error)
        raise NotFoundError(
            f"task '{task.name}': its self-labels or its task vector are gone from "
            f"{self.store.url} and its expert cannot compute them again ({said}); copy the "
            "artifacts back, or `tintray refresh-task` the task"
        )

    def loaded(self, checkpoint: ModelFolder, role: str) -> nn.Module:
        """An expert, with the head of a CLIP tower as it is in the store."""
        return load_expert(checkpoint, role, head=self._text_head(checkpoint, role))

    def _give_head(self, hosted: HostedTask) -> None:
        """Put the head of texts into a task's layer: when it was checked, nothing was computed."""
        if hosted.order.published is not None:
            return
        head = self._text_head(self.checkpoint(hosted.order), hosted.order.role)
        if head is not None:
            module: Any = self.partition.module
            with torch.no_grad():
                hosted.layer.tensors["classifier.weight"].copy_(head * module.root)

    def _text_head(self, checkpoint: ModelFolder, role: str) -> Tensor | None:
        """The head that a CLIP tower's names of classes make, computed once or from the store."""
        if checkpoint.zero_shot is None or checkpoint.base is None:
            return None
        from tintray.models.clip import head_key, text_head

        key = head_key(checkpoint, self._order.base_digest)
        found = lookup(self.store, "zero-shot-heads", key)
        if found is not None:
            return read_tensors(fetch_blob(self.store, found.ref, self.cache))["head"]
        head = text_head(checkpoint.base, checkpoint.zero_shot, role).clone()
        self.remember("zero-shot-heads", key, {"head": head})
        return head

    def _own_checkpoint(self, task: TaskConfig) -> ModelFolder:
        """Looked at once, so that what is computed later comes from the files that were checked."""
        key = (task.name, task.expert)
        if key not in self._opened:
            self._opened[key] = open_expert(task, self.cache, self._base)
        return self._opened[key]

    def _pool(
        self, task: TaskConfig, part: str, order: DataSource, checkpoint: ModelFolder
    ) -> Pool:
        order = local_data(order, self.cache)
        where = f"tasks.{task.name}.{part}"
        return open_pool(order, checkpoint, task.kind, task.role, where, self.cache)

    def _test(
        self, task: TaskConfig, order: DataSource, checkpoint: ModelFolder, expert: nn.Module
    ) -> Pool:
        pool = self._pool(task, "test", order, checkpoint)
        if not sequences.is_open(pool):
            return pool
        tokenizer = load_processor(checkpoint, task.role, text=True)
        local = local_data(order, self.cache)
        config = getattr(expert, "config", None)
        where = f"tasks.{task.name}.test"
        return sequences.with_right_answers(pool, local, tokenizer, config, where)

    def _low_rank_start(self, expert: nn.Module) -> dict[str, Tensor]:
        """The factors that a low-rank tint starts from; none where a task has a full copy."""
        if self._order.rank is None:
            return {}
        base = self.partition.module
        vectors = {
            name: expert.get_parameter(name).detach() - base.get_parameter(name).detach()
            for name in self.partition.low_rank
        }
        return low_rank_factors(vectors, self._order.rank)

    def feature_path(self) -> str:
        """Where features are read, as the module spells it; one module, not a pattern."""
        found = resolve_site(
            self.partition.module, self._order.feature_site, field="objective.feature_site"
        )
        return HEAD if self._order.feature_site == HEAD else found[0]

    def _features(self, hosted: HostedTask) -> BlobRef:
        """The expert's features over the pool at the job's depth, computed or from the store."""
        path = self.feature_path()
        key = labels.features_key(hosted.facts.expert_digest, hosted.pool.digest, path)
        found = lookup(self.store, "self-features", key)
        if found is not None:
            file = fetch_blob(self.store, found.ref, self.cache)
            hosted.features = read_tensors(file)["features"]
            return found.ref
        expert = self.loaded(self.checkpoint(hosted.order), hosted.order.role)
        hosted.features = labels.predict_features(expert, hosted.pool, path).clone()
        return self.remember("self-features", key, {"features": hosted.features})

    def _true_labels(self, task: TaskConfig, pool: Pool, answers: Answers) -> TrueLabels:
        """Which examples of the pool may be read with their label, by the seed, and the labels."""
        examples = len(pool)
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
        labels = labels_of(
            local_data(task.pool, self.cache),
            *(task.kind, pool, answers, f"tasks.{task.name}.pool"),
        )
        order = torch.randperm(
            examples, generator=stream(self._order.settings.seed, task.name, "labelled")
        )
        rows = order[: task.labelled]
        few = labels[rows] if isinstance(labels, Tensor) else [labels[row] for row in rows.tolist()]
        return TrueLabels(rows, few)

    def _task_vector(
        self, hosted: HostedTask, read: Callable[[], nn.Module]
    ) -> tuple[BlobRef, bool]:
        """θₖ − θ₀ over the whole backbone, whatever the site, so that every job can reuse it."""
        key = f"{self._order.base_digest[:32]}{hosted.facts.expert_digest[:32]}"
        found = lookup(self.store, "task-vectors", key)
        if found is not None:
            return found.ref, True
        base, role = self.partition.module, hosted.order.role
        names = backbone_names(base)
        checkpoint = self.checkpoint(hosted.order)
        if hosted.order.published is None and checkpoint.adapter is not None:
            adapter = read_adapter(checkpoint, base, role, with_head=False)
            vector = pack(task_vector(adapter, base, names))
            return self.remember("task-vectors", key, vector), False
        expert = read()
        difference = {
            name: expert.get_parameter(name).detach() - base.get_parameter(name).detach()
            for name in names
        }
        return self.remember("task-vectors", key, difference), False

    def _predictions(
        self, hosted: HostedTask, pool: Pool, read: Callable[[], nn.Module]
    ) -> tuple[Pool, Outputs, BlobRef, bool]:
        """A pool with what its decoder reads, if it has one, and the expert's outputs over it."""
        key = labels.labels_key(hosted.facts.expert_digest, pool.digest)
        found = lookup(self.store, "self-labels", key)
        config = getattr(self.partition.module, "config", None)
        if found is not None:
            kept = read_tensors(fetch_blob(self.store, found.ref, self.cache))
            return sequences.recalled(pool, kept, config), from_tensors(kept), found.ref, True
        order = hosted.order
        expert = read()
        whole = sequences.completed(expert, pool)
        outputs = labels.self_labels(expert, whole, order.role, order.kind)
        order.kind.check_outputs(outputs, hosted.facts.classes, order.role)
        tensors = as_tensors(outputs) | sequences.written(pool, whole)
        return whole, outputs, self.remember("self-labels", key, tensors), False

    def remember(self, kind: str, key: str, tensors: Mapping[str, Tensor]) -> BlobRef:
        """Keep tensors as an artifact of this kind, under the hash of what they come from."""
        return remember(self.store, kind, key, tensors_as_bytes(tensors), {}).ref

    def _known(self, first: TaskConfig) -> ModelFolder:
        """An expert of the job, for its configuration; of a published task, from its merge."""
        if first.published is not None:
            return self.checkpoint(first)
        location, role = self._order.like
        folder, built = local_folder(location, self.cache), self._order.factory
        return open_model_folder(folder, role=role, base=self._base, factory=built)
