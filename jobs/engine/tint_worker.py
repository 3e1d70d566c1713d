"""A worker that learns tint layers under a backbone that stays, on cached prefix activations.

New tasks keep a part of their pool back: by how the merge agrees with the expert there, which no
fit has seen, the way of growing is chosen. Labels are never read.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tintray.checkpoints.tensors import read_tensors
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.arrays import Floats
from tintray.jobs.engine.backend import Backend, as_argument
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.hosting import CheckedTask, HostedTask
from tintray.jobs.engine.published_tasks import PublishedTask
from tintray.jobs.engine.worker import Worker, part
from tintray.jobs.engine.worker_pool import WorkerPool
from tintray.jobs.events import OnEvent, TintLearned, ignore
from tintray.models.norms import norm_buffers
from tintray.numerics.randomness import stream
from tintray.numerics.schedules import Shape, schedule
from tintray.pools.pool import Pool
from tintray.storage.artifacts.blobs import BlobRef, fetch_blob
from tintray.storage.artifacts.cache import lookup
from tintray.tasks.evaluation import TaskScore, score
from tintray.tasks.outputs import Outputs
from tintray.tinting import self_labels as labels
from tintray.tinting.prefix import CachedPool, NoPrefixError, PrefixModel, fit_tints, prefix_key
from tintray.tinting.stored_tints import decode
from tintray.tinting.tint_layers import FusedModel

HELD_BACK, MOST_HELD = 0.2, 1000
"""The share of a new task's pool that no fit sees, and the most examples of it."""

EPOCHS, LEAST_SEEN = 8, 1024
"""A tint layer under a backbone that stays learns from so many examples of its pool that it comes
back to each as often as this, and from no fewer than that many: what lies before the site runs once
for each of them."""

MOST_BYTES = 256 * 2**20
"""Activations of one task that are kept in the store; larger ones are computed again."""

KIND = "prefix-activations"


@dataclass(frozen=True)
class TintConfig:
    """How tint layers are learned.

    Attributes
    ----------
    new
        The tasks are new: their agreement with the expert is measured on what they hold back, and
        activations stay in the store for the next attempt.
    """

    rounds: int
    batch_size: int
    shape: Shape
    new: bool
    warmup: int = 0
    prefix: bool = True  # False only to measure what the prefix saves


@dataclass(frozen=True)
class Tinted:
    """A tint layer was learned.

    Attributes
    ----------
    agreement
        With the expert, on the part of the pool that was held back; None where none was.
    kept
        Share of the last batch that the confidence filter kept.
    prefixed
        The prefix ran once, and not in every round.
    reused
        The prefix activations came from the store.
    activations
        Where they are by now, if they are kept.
    """

    task: str
    agreement: float | None
    kept: float
    seconds: float
    prefixed: bool
    reused: bool
    activations: BlobRef | None


class TintWorker(Worker):
    """Hosts new tasks with their experts, and old ones without; see the module."""

    def _held_back(self, checked: CheckedTask) -> int:
        """Of a new task more than a fit holds back: the way of growing depends on it alone."""
        total = len(checked.pool)
        if checked.task.published is not None or total < 2:
            return 0
        return min(max(1, int(total * HELD_BACK)), MOST_HELD)

    # -- tint layers ---------------------------------------------------------------------------

    def fit_tint(self, name: str, config: TintConfig, *theta: Floats) -> Tinted:
        """Learn a task's tint layer under θ, from where it is."""
        hosted = self._hosted[name]
        started = time.perf_counter()
        self._rounding.pop(name, None)  # it goes on from what was stored, in full precision
        if not hosted.layer.parameters:  # the merge's tint layers do not learn
            return self._as_it_is(hosted, config, theta, started)
        backbone, device = self._backbone(theta), self._config.device
        rows, held = self._rows(hosted)
        rows = self._visited(hosted, rows, config)
        held = held if config.new else held[:0]
        state = self._state(hosted, rows)
        # Features may lie before the site, where nothing runs any more.
        settings = replace(
            self._config.settings,
            features=0.0,
            batch_size=config.batch_size,
            micro_batch=max(config.batch_size, self._config.settings.micro_batch),
        )
        model: FusedModel
        pool: Pool
        ref, reused = None, False
        try:
            if not config.prefix or norm_buffers(self._partition.module):
                raise NoPrefixError("not asked for, or statistics of the batch go into it")
            prefix = PrefixModel(
                self._partition.module,
                self._partition.layout,
                self._partition.private,
                self._partition.site,
                self._partition.low_rank,
                device,
            )
            prefix.bind(backbone, None)
            pool, ref, reused = self._cached(
                prefix, hosted, torch.cat([rows, held]), theta, keep=config.new
            )
            model = prefix
        except NoPrefixError:  # the same result, at the cost of the whole model in every round
            model, pool = self._fused, part(hosted.pool, torch.cat([rows, held]))
        inside = torch.arange(len(pool))
        task = replace(state, pool=part(pool, inside[: len(rows)]), features=None)
        pace = schedule(1.0, config.shape, config.rounds, config.warmup)
        metrics = fit_tints([task], model, backbone, settings, pace, config.rounds, device)
        seconds = time.perf_counter() - started
        prefixed = isinstance(pool, CachedPool)
        agreement = None
        if len(held) and prefixed:
            held_pool = part(pool, inside[len(rows) :])
            agreement = self._agreement(hosted, model, held_pool, hosted.labels.at(held))
        elif len(held):
            agreement = self.held_agreement(name, *theta)
        return Tinted(
            name, agreement, metrics[name].selected_fraction, seconds, prefixed, reused, ref
        )

    def _as_it_is(
        self, hosted: HostedTask, config: TintConfig, theta: Sequence[Floats], started: float
    ) -> Tinted:
        """What ``fit_tint`` answers of a layer in which nothing is to be learned."""
        name = hosted.task.name
        agreement = self.held_agreement(name, *theta) if config.new else None
        return Tinted(name, agreement, 1.0, time.perf_counter() - started, False, False, None)

    def held_agreement(self, name: str, *theta: Floats) -> float:
        """Agreement with the expert on what was held back, under θ."""
        hosted = self._hosted[name]
        held = self._rows(hosted)[1]
        rows = held if len(held) else torch.arange(len(hosted.pool))
        return self._agreement_at(hosted, rows, theta)

    def give_tint(self, name: str, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Let a task's tint layer go on from these tensors."""
        given = {key: torch.from_numpy(array.copy()) for key, array in tensors.items()}
        self._hosted[name].layer.assign(given)

    def _visited(self, hosted: HostedTask, rows: Tensor, config: TintConfig) -> Tensor:
        """Which examples the rounds come back to; see ``EPOCHS``."""
        most = max(LEAST_SEEN, config.rounds * config.batch_size // EPOCHS)
        if most >= len(rows):
            return rows
        seed = self._config.settings.seed
        some = torch.randperm(len(rows), generator=stream(seed, hosted.task.name, "visited"))
        return rows[some[:most]].sort().values

    def _cached(
        self,
        model: PrefixModel,
        hosted: HostedTask,
        rows: Tensor,
        theta: Sequence[Floats],
        *,
        keep: bool,
    ) -> tuple[CachedPool, BlobRef | None, bool]:
        """These examples from the site on, and whether the store had their activations."""
        precision = self._config.settings.precision
        pool = part(hosted.pool, rows)
        if not keep:
            return model.cached(pool, hosted.layer, precision), None, False
        digest = hashlib.sha256(self._config.base_digest.encode())
        for piece in theta:
            digest.update(np.ascontiguousarray(piece).view(np.uint8).data)
        key = prefix_key(digest.hexdigest(), hosted.pool.digest, rows, model.site, precision)
        found = lookup(self._store, KIND, key)
        if found is not None:
            kept = read_tensors(fetch_blob(self._store, found, self._cache))
            return model.cached(pool, hosted.layer, precision, kept), found, True
        cached = model.cached(pool, hosted.layer, precision)
        ref = None
        if sum(tensor.nbytes for tensor in cached.activations.values()) <= MOST_BYTES:
            ref = self._experts.remember(KIND, key, cached.activations)
        return cached, ref, False

    def _agreement(
        self, hosted: HostedTask, model: FusedModel, pool: Pool, expert: Outputs
    ) -> float:
        """Agreement with the expert's answers to a pool of activations."""
        precision, kind = self._config.settings.precision, hosted.task.kind
        merged = labels.ask(
            lambda batch: model.forward([batch], [hosted.layer], precision)[0],
            *(pool, kind, self._config.device),
        )
        return score(hosted.task.name, kind, merged, expert, None, pool.mask).agreement


class TintWorkerPool(WorkerPool[TintWorker]):
    """Workers that also learn tint layers under a backbone that stays."""

    def __init__(
        self,
        backend: Backend,
        spec: JobSpec,
        base: SplitModel,
        published: Mapping[str, PublishedTask] | None = None,
    ) -> None:
        super().__init__(TintWorker, backend, spec, base, published=published)

    def fit_tints(
        self,
        names: Iterable[str],
        config: TintConfig,
        theta: Floats,
        on_event: OnEvent = ignore,
    ) -> list[Tinted]:
        """Learn these tasks' tint layers under θ [P]; each is told of when it is done."""
        shared = as_argument(self._backend.put(theta))
        asked = self.each(names, TintWorker.fit_tint, config, shared)
        made: dict[int, Tinted] = {}
        for number, tint in self._backend.as_completed(asked):
            made[number] = tint
            told = (len(made), len(asked), tint.seconds, tint.agreement)
            on_event(TintLearned(tint.task, *told))
        return [made[number] for number in range(len(asked))]

    def held_agreement(self, theta: Floats) -> dict[str, float]:
        """Each task's agreement with its expert on what was held back, under θ [P]."""
        shared = as_argument(self._backend.put(theta))
        found = self._backend.get(self.each(None, TintWorker.held_agreement, shared))
        return {task.name: agreement for task, agreement in zip(self.tasks, found, strict=True)}

    def evaluate(self, names: Iterable[str], theta: Floats) -> list[TaskScore]:
        """Round these tasks' tints to what is stored, and measure them under θ [P]."""
        put = self._backend.put(theta)
        self.round_tints(names, put)
        shared = as_argument(put)
        return self._backend.get(self.each(names, TintWorker.evaluate, shared))

    def give_tints(self, tints: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Let tasks go on from these tint layers."""
        self._backend.get(
            [
                self._hosts[name].call(
                    TintWorker.give_tint, name, {k: t.numpy() for k, t in decode(own).items()}
                )
                for name, own in tints.items()
            ]
        )
