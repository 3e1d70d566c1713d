"""A worker: it hosts task groups, each with its tint layers, pools and self-labels.

A worker never holds a task vector. It checks its tasks' experts, computes their self-labels once,
lets each expert go, and from then on needs one backbone at a time and what its own tasks own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tintray.checkpoints.tensors import read_tensors, tensors_as_bytes
from tintray.errors import DataError
from tintray.jobs.engine.arrays import Arrays, Sent, as_arrays, peak_memory, readable, sent
from tintray.jobs.engine.configs import FitConfig, Prepared, TaskConfig, TaskFacts
from tintray.jobs.engine.hosting import CheckedTask, Experts, HostedTask
from tintray.jobs.engine.machine_speed import Speed, benchmark_machine
from tintray.jobs.engine.trials import Candidate, try_site
from tintray.numerics.choices import Bits, Precision
from tintray.pools import sequences
from tintray.pools.held_back import MOST, held_back_count, split_pool
from tintray.pools.pool import Pool
from tintray.references.observing import HeadInputs, Observed
from tintray.references.reference import LEAST, Reference
from tintray.storage.artifacts.blobs import BlobRef, fetch_blob, put_blob
from tintray.tasks.evaluation import TaskScore, calibrated_score, score
from tintray.tasks.outputs import Outputs
from tintray.tinting import self_labels as labels
from tintray.tinting.draws import Draw
from tintray.tinting.on_demand import Asking, DrawnLabels, asking
from tintray.tinting.pseudo_labels import prepare_targets
from tintray.tinting.stacked_step import form_group
from tintray.tinting.step import TaskGroup, TaskMetrics, TaskState
from tintray.tinting.stored_tints import LADDER, decode, encode
from tintray.tinting.tint_layers import FusedModel, TintLayer, without_learning

MAY_LOSE = 0.002
"""The share of agreement with its expert that rounding a task's tint may cost."""

JUDGED = 2000
"""Examples of a pool, at most, by which it is judged what rounding costs."""

Tint = tuple[Arrays, Bits, float, Arrays]
"""What a task owns, as it is stored; in how many bits; what rounding cost; and its reference."""

MARK = "checkpoint"
"""Name of the tensor that makes the blobs of a checkpoint its own: no other job shares them."""


class Worker:
    """Hosts task groups; see the module."""

    def __init__(self, config: FitConfig, groups: Mapping[int, Sequence[TaskConfig]]) -> None:
        self._config = config
        self._tasks = {number: list(tasks) for number, tasks in groups.items()}
        self._experts = Experts(config, next(task for tasks in groups.values() for task in tasks))
        self._partition = self._experts.partition
        self._store, self._cache = self._experts.store, self._experts.cache
        self._checked: dict[str, CheckedTask] = {}
        self._hosted: dict[str, HostedTask] = {}
        self._operations: dict[Hashable, int] = {}  # by the shapes of an example and its answer
        self._rounding: dict[str, tuple[Bits, float]] = {}  # task -> bits, and what they cost
        self._references: dict[str, dict[str, Tensor]] = {}  # of each task that was measured
        self._groups: dict[int, TaskGroup] = {}
        self._starts: dict[str, dict[str, Tensor]] = {}  # of each task, where there is a floor
        self._model: FusedModel | None = None
        self._bounds: list[slice] = []

    # -- before the fit ------------------------------------------------------------------------

    def check(self, task: TaskConfig) -> TaskFacts:
        """Check a task's expert and data, and keep what the task owns.

        One example of each is run, by the expert and by the model that is fitted; nothing is
        written.

        Raises
        ------
        CheckpointError, DataError
            Naming the field, the tensor or the file.
        """
        checked, expert = self._experts.check(task)
        self._checked[task.name] = checked
        self._held_back(checked)
        if self._model is None:
            split = self._partition
            self._model = FusedModel(
                *(expert, split.layout, split.private, split.low_rank), device=self._config.device
            )
            if self._config.checkpointed:
                self._model.checkpoint()
            if self._config.settings.features:
                self._model.capture(self._experts.feature_path())
        del expert  # two backbones at once are more than this takes
        # The model that is fitted, on an example or two of the task, all at its start.
        one = self._placeholder(checked.pool.extremes())
        alike = (*((n, t.shape) for n, t in one.inputs.items()), checked.facts.classes)
        counter = FlopCounterMode(display=False)  # it makes a pass several times as long
        counting = nullcontext() if alike in self._operations else counter
        with self._bound(checked.layer, (self._base_theta().numpy(),)) as run, counting:
            labels.try_out(
                *(run, one, task.kind, checked.facts.classes),
                *(f"the model tinted as {task.name}", f"tasks.{task.name}.pool"),
                device=self._config.device,
            )
        key = self._experts.labels_key(checked, self._asking(checked))
        operations = self._operations.setdefault(alike, counter.get_total_flops() // len(one))
        return replace(checked.facts, operations=operations, labels_key=key)

    def _placeholder(self, pool: Pool) -> Pool:
        return sequences.placeholder(pool, getattr(self._partition.module, "config", None))

    def _base_theta(self) -> Tensor:
        """θ₀ [P]."""
        module = self._partition.module
        return self._partition.layout.flatten({n: p.detach() for n, p in module.named_parameters()})

    @property
    def _fused(self) -> FusedModel:
        assert self._model is not None, "check() comes first"
        return self._model

    def benchmark(self, name: str, seconds: float) -> Speed:
        """Time the steps of a checked task on this machine, under θ₀, for about ``seconds``."""
        checked, settings = self._checked[name], self._config.settings
        pool = self._placeholder(checked.pool[: settings.micro_batch])
        batch, theta = pool.batch(slice(0, len(pool))), self._base_theta()
        return benchmark_machine(
            self._fused, checked.layer, batch, theta, settings.precision, seconds
        )

    def prepare(self, name: str) -> Prepared:
        """Have the expert's outputs over pool and test set, and its task vector.

        What another job has computed from the same content is taken from the artifact store.
        """
        checked = self._checked.pop(name)
        self._hosted[name], prepared = self._experts.prepare(checked, self._asking(checked))
        return prepared

    def _asking(self, checked: CheckedTask) -> Asking:
        """Which self-labels are asked for at first, and how; see ``asking.first_drawn``."""
        task, settings, first = checked.task, self._config.settings, self._config.first_drawn
        whole = task.test is None or task.labelled or sequences.is_open(checked.pool)
        if first is None or whole or task.published is not None:
            return Asking("float32")
        learned, held_back = self._rows(checked)
        if not len(held_back) and self._config.held_back != 0:
            return Asking(settings.precision)
        return asking(settings.precision, learned, held_back, settings.seed, task.name, first)

    def keep_labels(self, name: str) -> BlobRef | None:
        """Keep a task's self-labels, if its expert was asked for more of them since ``prepare``."""
        return self._experts.keep_labels(self._hosted[name])

    def begin(self, bounds: Sequence[slice]) -> None:
        """Form the task groups; gradients will be returned in pieces, cut at ``bounds``.

        Tasks learn from what they do not hold back of their pools.
        """
        self._bounds = list(bounds)
        # One group steps at a time.
        gradient = torch.zeros(self._partition.layout.numel, device=self._config.device)
        for number, tasks in self._tasks.items():
            hosted = [self._hosted[task.name] for task in tasks]
            states = [self._state(task, self._rows(task)[0]) for task in hosted]
            if self._config.floor:
                self._starts |= {task.name: without_learning(task.layer) for task in states}
            self._groups[number] = form_group(states, self._fused, gradient, self._config.settings)

    def _state(self, hosted: HostedTask, rows: Tensor) -> TaskState:
        """A task at the beginning of its fit, which learns from these examples of its pool."""
        targets, confidence_filter = prepare_targets(
            *(hosted.task.kind, hosted.labels.outputs, hosted.true_labels),
            *(self._config.pseudo_labels, self._config.settings.filter, hosted.pool.mask),
        )
        of_all = hosted.labels.rows is None
        labels = targets[rows] if of_all else DrawnLabels(hosted.labels, rows)
        features = hosted.features
        return TaskState(
            *(hosted.task.name, hosted.layer, part(hosted.pool, rows), labels),
            confidence_filter=confidence_filter,
            features=None if features is None else features[rows],
            kind=hosted.task.kind,
        )

    def _rows(self, hosted: CheckedTask, watched: int | None = None) -> tuple[Tensor, Tensor]:
        """Which examples of the pool are learned from, and which are held back.

        With ``watched``, so many of the latter; of the pool itself where none is held back.
        """
        total, count = len(hosted.pool), self._held_back(hosted)
        spared = None
        if hosted.true_labels is not None and self._config.pseudo_labels.true_labels:
            spared = hosted.true_labels.rows
        if watched is not None:
            spared = spared if count else None
            count = min(watched, count or min(total, MOST))
        seed = self._config.settings.seed
        return split_pool(total, count, seed, hosted.task.name, spared)

    def _held_back(self, checked: CheckedTask) -> int:
        """How many examples of a task's pool are held back."""
        total, name = len(checked.pool), checked.task.name
        count = held_back_count(total, self._config.held_back)
        if count >= total:
            raise DataError(
                f"tasks.{name}.pool: expected more examples than the {count:,} that fit.held_back "
                f"keeps back, found {total:,}"
            )
        return count

    # -- rounds --------------------------------------------------------------------------------

    def step(
        self, group: int, round_: int, pace: float, draws: Mapping[str, Draw], *theta: Sent
    ) -> tuple[list[Sent], dict[str, TaskMetrics]]:
        """One round of one group under θ in pieces; each of its tasks in ``draws`` takes part.

        Answers Σ ∂L/∂θ over its tasks, in as many pieces, and the metrics per task.
        """
        result = self._groups[group].step(self._backbone(theta), round_, pace, draws=draws)
        pieces = [result.gradient[stretch] for stretch in self._bounds]
        return [sent(piece, self._config.direct) for piece in pieces], result.metrics

    def watch(self, name: str, examples: int, *theta: Sent) -> float:
        """Agreement with the expert under θ, on so many examples that were held back at most.

        It computes in the precision of the rounds.
        """
        hosted = self._hosted[name]
        rows = self._rows(hosted, examples)[1]
        return self._agreement_at(hosted, rows, theta, self._config.settings.precision)

    def keep_group(self, group: int, name: str, share: float) -> None:
        """Keep the present tint layers of a group's tasks; see ``Snapshots.keep``."""
        for task in self._groups[group].tasks:
            task.snapshots.keep(name, share)

    def recall_group(self, group: int, name: str) -> None:
        """Let a group's tasks go back to the tint layers that were kept under ``name``."""
        for task in self._groups[group].tasks:
            task.snapshots.recall(name)

    def start_group(self, group: int) -> None:
        """Let a group's tasks have what they own without learning; see ``without_learning``."""
        for task in self._groups[group].tasks:
            with torch.no_grad():
                for name, tensor in self._starts[task.name].items():
                    task.layer.tensors[name].copy_(tensor)

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

    def try_site(self, name: str, site: str, steps: int, *theta: Sent) -> tuple[float, float]:
        """Try a site for one task under θ in pieces; see ``trials.try_site``."""
        hosted = self._hosted[name]
        candidate = Candidate(
            task=name,
            kind=hosted.task.kind,
            site=site,
            expert=self._experts.loaded(self._experts.folder(hosted.task), hosted.task.role),
            pool=hosted.pool,
            labels=hosted.labels.all(),
            theta=self._backbone(theta),
            layout=self._partition.layout,
            device=self._config.device,
        )
        return try_site(candidate, self._partition.module, self._config.settings, steps)

    # -- after the fit -------------------------------------------------------------------------

    def evaluate(self, name: str, *theta: Sent) -> TaskScore:
        """Measure one task under θ: on its labelled test set, else by agreement on its pool."""
        hosted = self._hosted[name]
        pool = hosted.pool if hosted.test is None else hosted.test
        expert = hosted.labels.all() if hosted.test is None else hosted.expert_test
        assert expert is not None, "a test set has the expert's answers"
        self._estimate(hosted, theta)
        kind = hosted.task.kind
        self._references[name] = {}
        if kind.writes:  # new answers are its own; here it was given right ones to go on
            merged = self._predict(hosted, pool, theta)
            return calibrated_score(name, kind, merged, expert, hosted.test_labels, pool.mask)
        [(merged, observed)] = self._observe(hosted, [pool], theta)
        score = calibrated_score(name, kind, merged, expert, hosted.test_labels, pool.mask)
        if hosted.test is None:  # on what it has learned from it would be surer
            held_back = self._rows(hosted, MOST)[1]
            if len(held_back) >= LEAST:
                observed, pool = observed[held_back], pool[held_back]

        def answered(pools: Iterable[Pool]) -> list[Observed]:
            return [noted for _, noted in self._observe(hosted, pools, theta)]

        if (reference := Reference.of(observed, score, pool, answered)) is not None:
            self._references[name] = reference.tensors()
        return score

    def agreement(self, name: str, examples: int, *theta: Sent) -> float:
        """Agreement with the expert on the first ``examples`` of the pool; no label is read."""
        hosted = self._hosted[name]
        rows = torch.arange(min(examples, len(hosted.pool)))
        return self._agreement_at(hosted, rows, theta)

    def round_tint(self, name: str, bits: Bits, only: bool, *theta: Sent) -> None:
        """Round a task's tint to what is stored, so that it is measured as it is published.

        Where 8 or 4 bits cost more than ``MAY_LOSE`` of agreement on the pool under θ, it gets more
        of them, unless ``only`` these will do.
        """
        layer = self._hosted[name].layer
        exact = {key: tensor.detach().clone() for key, tensor in layer.tensors.items()}
        before = self.agreement(name, JUDGED, *theta) if bits < 16 else 0.0
        for rounded in LADDER[LADDER.index(bits) :]:
            layer.assign(decode(encode(exact, rounded)))
            self._rounding[name] = rounded, 0.0
            if rounded >= 16:
                return
            lost = before - self.agreement(name, JUDGED, *theta)
            self._rounding[name] = rounded, lost
            if only or lost <= MAY_LOSE:
                return

    def tint(self, name: str) -> Tint:
        """What a task owns, as it is stored."""
        bits, lost = self._rounding.get(name, (32, 0.0))
        stored = encode({k: v.cpu() for k, v in self._hosted[name].layer.tensors.items()}, bits)
        return as_arrays(stored), bits, lost, as_arrays(self._references.get(name, {}))

    def peak_memory(self) -> int:
        """The most memory that this process has held, in bytes."""
        return peak_memory()

    # -- helpers -------------------------------------------------------------------------------

    def _backbone(self, theta: Sequence[Sent]) -> list[Tensor]:
        """θ in pieces, where rounds compute."""
        return [readable(piece, self._config.device) for piece in theta]

    def _estimate(self, hosted: HostedTask, theta: Sequence[Sent]) -> None:
        """Let a task keep the statistics of batch normalisation that it has under θ."""
        self._fused.bind(self._backbone(theta), None)
        self._fused.estimate(hosted.layer, hosted.pool)
        if hosted.task.name in self._rounding:
            bits, _ = self._rounding[hosted.task.name]
            hosted.layer.assign(decode(encode(hosted.layer.tensors, bits)))

    def _agreement_at(
        self,
        hosted: HostedTask,
        rows: Tensor,
        theta: Sequence[Sent],
        precision: Precision = "float32",
    ) -> float:
        """Agreement with the expert on these examples of a task's pool; no label is read."""
        pool, kind = part(hosted.pool, rows), hosted.task.kind
        self._estimate(hosted, theta)
        merged = self._predict(hosted, pool, theta, precision)
        expert = hosted.labels.at(rows)
        return score(hosted.task.name, kind, merged, expert, None, pool.mask).agreement

    def _predict(
        self,
        hosted: HostedTask,
        pool: Pool,
        theta: Sequence[Sent],
        precision: Precision = "float32",
    ) -> Outputs:
        with self._bound(hosted.layer, theta, precision) as run:
            return labels.ask(run, pool, hosted.task.kind, self._config.device)

    def _observe(
        self, hosted: HostedTask, pools: Iterable[Pool], theta: Sequence[Sent]
    ) -> list[tuple[Outputs, Observed]]:
        """The merged model's answers to each pool under θ, and what is noted of each example."""
        kind, found = hosted.task.kind, []
        with self._bound(hosted.layer, theta) as run:
            for pool in pools:
                inputs = HeadInputs()
                with self._fused.hooked(inputs):
                    merged = labels.ask(inputs.told_of(run), pool, kind, self._config.device)
                found.append((merged, Observed.of(kind, merged, pool.mask, inputs)))
        return found

    @contextmanager
    def _bound(
        self, layer: TintLayer, theta: Sequence[Sent], precision: Precision = "float32"
    ) -> Iterator[Callable[[Mapping[str, Tensor]], Tensor]]:
        """The merged model with a tint layer under θ in pieces, in this block."""
        fused = self._fused
        fused.bind(self._backbone(theta), None)
        fused.use_statistics("running")
        try:
            yield lambda batch: fused.forward([batch], [layer], precision)[0]
        finally:
            fused.use_statistics("batch")
            fused.release()


def part(pool: Pool, rows: Tensor) -> Pool:
    """The examples of a pool at ``rows``, in their order, as a pool of the same class."""
    return pool if torch.equal(rows, torch.arange(len(pool))) else pool[rows]
