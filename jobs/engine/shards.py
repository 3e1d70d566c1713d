"""Shards: they hold task vectors, merge them into a backbone, and project gradients onto them.

Only shards hold task vectors. A worker sees the merged θ and returns a gradient; the K·P numbers
of T never leave these objects. Each shard has a stretch of the tensors; ``Shards`` is all of them
together, as the coordinator sees them. How many there are never enters a result: tensors are not
cut, and each is merged and projected by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from tintray.checkpoints.tensors import read_tensors
from tintray.jobs.engine.arrays import Floats, Sent, peak_memory, readable, sent
from tintray.jobs.engine.backend import ActorHandle, Backend, Future, Placement, as_argument
from tintray.jobs.engine.plan import FLOAT, gradients_at_once
from tintray.jobs.engine.sources import cache_folder
from tintray.merging import Recipe
from tintray.merging.apply import depths, direct, partial_totals
from tintray.merging.files.tensor_files import TensorFiles, stacked
from tintray.numerics.choices import Format, Optimiser
from tintray.numerics.layout import Layout
from tintray.storage.artifacts.blobs import BlobRef, fetch_blob
from tintray.storage.artifacts.store import open_store
from tintray.vectors.correction import Correction
from tintray.vectors.similarity import Pairs, pairs_of
from tintray.vectors.task_vectors import TaskVectors, row_of

_AT_ONCE = 8
"""Blobs that a shard fetches and hashes at the same time."""


@dataclass(frozen=True)
class ShardConfig:
    """What all shards of a job must know; plain data.

    Attributes
    ----------
    store_url, base
        Where the base's tensors and the task vectors lie as blobs.
    layout
        The whole backbone's.
    format
        How task vectors are kept in memory.
    mapped
        Leave float32 task vectors in their files, mapped, where memory would not hold them.
    device
        Where they lie, merge and project.
    direct
        Whether workers send and are sent tensors, instead of arrays in the object store.
    optimiser
        What moves the shared correction, where one is learned.
    """

    store_url: str
    base: BlobRef
    layout: Layout
    format: Format = "f32"
    mapped: bool = False
    device: str = "cpu"
    direct: bool = False
    optimiser: Optimiser = "adam"


class Shard:
    """T and θ₀ over a stretch of the layout's tensors."""

    def __init__(self, config: ShardConfig, stretch: range) -> None:
        self._config, self._stretch = config, stretch
        self._layout = config.layout.part(stretch)
        self._vectors: TaskVectors | None = None
        self._total: torch.Tensor | None = None  # of the gradients since the last projection
        self._correction: Correction | None = None  # none until it is first learned

    def load(self, tasks: Sequence[str], vectors: Sequence[BlobRef]) -> None:
        """Read θ₀ and one row of T per task, in order, each checked against its hash."""
        names = [slot.name for slot in self._layout.slots]
        (path,) = self._paths([self._config.base])
        base = self._layout.flatten(read_tensors(path, names))
        with ExitStack() as stack:
            opened = [
                stack.enter_context(safe_open(path, framework="pt"))
                for path in self._paths(vectors)
            ]
            files = [(frozenset(file.keys()), file.get_tensor) for file in opened]
            self._vectors = TaskVectors.gather(
                self._layout,
                tasks,
                base,
                lambda slot: [row_of(names, tensor, slot.name) for names, tensor in files],
                self._config.format,
                mapped=self._config.mapped,
                device=self._config.device,
            )

    def totals(self, recipe: Recipe) -> list[Floats]:
        """What a merging method sums over the model: the part of each tensor here, [K, m]."""
        found = partial_totals(self._loaded, recipe, self._depths())
        return [total.cpu().numpy() for total in found]

    def load_directions(
        self,
        recipe: Recipe,
        statistics: Mapping[str, Sequence[BlobRef]],
        totals: Floats | None = None,
    ) -> None:
        """Put a merging method's directions in the place of the task vectors."""
        with ExitStack() as stack:
            files = {
                kind: [
                    stack.enter_context(TensorFiles([path], f"statistics '{kind}'"))
                    for path in self._paths(refs)
                ]
                for kind, refs in statistics.items()
            }
            self._vectors = direct(
                self._loaded,
                recipe,
                lambda name: stacked(files, name),
                where=self._depths(),
                totals=None if totals is None else torch.from_numpy(totals.copy()),
                format=self._config.format,
            )

    def merge(self, coefficients: Floats, direct: bool = False) -> Sent:
        """This stretch of θ for coefficients [K, S] by tensor, with the correction so far."""
        theta = self._loaded.merge(torch.from_numpy(coefficients.copy()))
        if self._correction is not None:
            theta += self._correction.values
        return sent(theta, direct)

    def add(self, *gradients: Sent) -> None:
        """Sum this stretch of the groups' gradients, in the order given, onto what was added."""
        for given in gradients:
            gradient = readable(given, self._config.device)
            if self._total is None:
                self._total = gradient.clone()
            else:
                self._total += gradient

    def project(self, correction_lr: float, *gradients: Sent | None) -> Floats:
        """∂L/∂Λ [K, S] by tensor, of all gradients added since the last projection and these.

        None is what ``add`` answered: whoever passes it on hears here of an addition that failed.
        The correction moves along their sum, unless its learning rate is 0.
        """
        self.add(*(gradient for gradient in gradients if gradient is not None))
        assert self._total is not None, "a projection needs a gradient"
        projected: Floats = self._loaded.project(self._total).cpu().numpy()
        if correction_lr:
            self._correction = self._correction or self._no_correction()
            self._correction.update(self._total, correction_lr)
        self._total = None
        return projected

    def compare(self) -> list[Pairs]:
        """How the task vectors lie to each other, in each tensor here."""
        loaded = self._loaded
        return [pairs_of(stack.blocks(), len(loaded.tasks)) for stack in loaded.stacks]

    def correction(self) -> dict[str, Floats]:
        """The state of this stretch of the correction; empty where none was learned."""
        if self._correction is None:
            return {}
        state = self._correction.state_dict()
        return {name: tensor.cpu().numpy() for name, tensor in state.items()}

    def correct(self, state: Mapping[str, Floats]) -> None:
        """Go back to what ``correction`` returned."""
        self._correction = self._no_correction()
        self._correction.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in state.items()})

    def keep(self, name: str, share: float) -> None:
        """Keep this stretch of the correction under ``name``; see ``Snapshots.keep``."""
        if self._correction is not None:
            self._correction.snapshots.keep(name, share)

    def recall(self, name: str) -> None:
        """Go back to the correction that was kept under ``name``."""
        if self._correction is not None:
            self._correction.snapshots.recall(name)

    def peak_memory(self) -> int:
        """The most memory that this process has held, in bytes."""
        return peak_memory()

    def _no_correction(self) -> Correction:
        return Correction(self._layout, self._config.optimiser, self._config.device)

    @property
    def _loaded(self) -> TaskVectors:
        assert self._vectors is not None, "load() comes first"
        return self._vectors

    def _depths(self) -> Mapping[str, float]:
        return depths(slot.name for slot in self._config.layout.slots)

    def _paths(self, refs: Sequence[BlobRef]) -> list[Path]:
        """Local files of blobs, in order; several are fetched at once, as a bucket is far away.

        Shards on a node share a cache and start at the same moment. Each starts at another blob,
        so that it finds there what another has fetched, instead of fetching all by itself.
        """
        store, whole = open_store(self._config.store_url), len(self._config.layout.slots)
        first = len(refs) * self._stretch.start // whole
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            turned = threads.map(
                lambda ref: fetch_blob(store, ref, cache_folder()), [*refs[first:], *refs[:first]]
            )
            paths = list(turned)
        return paths[len(refs) - first :] + paths[: len(refs) - first]


class Shards:
    """All shards of a job: the whole of T, spread over members of a backend.

    Parameters
    ----------
    count
        How many at most; never more than there are places to cut the layout.
    hosts
        Members beside which they live, one each: what lies on a device is then moved only between
        devices. Without them each has a process of its own.
    in_process
        Have the one shard in the coordinator's process: a round then makes half as many hops.
    """

    member: type[Shard] = Shard

    def __init__(
        self,
        backend: Backend,
        config: ShardConfig,
        count: int,
        hosts: Sequence[ActorHandle[object]] = (),
        *,
        in_process: bool = False,
    ) -> None:
        self._backend = backend
        self._layout = config.layout
        self._direct = config.direct
        self.in_process = in_process
        self._stretches = config.layout.stretches(min(count, len(hosts)) if hosts else count)
        self.members: list[ActorHandle[Shard]] = [
            backend.spawn(
                Placement(
                    f"shard {n + 1}",
                    colocate_with=hosts[n] if hosts else None,
                    in_process=in_process,
                ),
                self.member,
                config,
                stretch,
            )
            for n, stretch in enumerate(self._stretches)
        ]

    @property
    def bounds(self) -> list[slice]:
        """Where each shard's stretch lies in θ [P]."""
        return [self._layout.bounds(stretch) for stretch in self._stretches]

    def load(self, tasks: Sequence[str], vectors: Sequence[BlobRef]) -> list[Future[None]]:
        """Start to read T."""
        return [member.call(Shard.load, tasks, vectors) for member in self.members]

    def load_directions(self, recipe: Recipe, statistics: Mapping[str, Sequence[BlobRef]]) -> None:
        """Put a merging method's directions in the place of T."""
        parts = self._backend.get([member.call(Shard.totals, recipe) for member in self.members])
        each = [total for part in parts for total in part]
        totals = torch.stack([torch.from_numpy(t.copy()) for t in each]).sum(0) if each else None
        given = None if totals is None else totals.numpy()
        self._backend.get(
            [m.call(Shard.load_directions, recipe, statistics, given) for m in self.members]
        )

    def merge(self, coefficients: torch.Tensor, *, for_a_round: bool = False) -> list[Future[Sent]]:
        """θ for Λ [K, L], in pieces, one of each shard.

        ``for_a_round`` it may go to the workers directly; else whoever has the futures can read it.
        """
        spread = self._layout.spread(coefficients).numpy()
        pieces = [np.ascontiguousarray(spread[:, s.start : s.stop]) for s in self._stretches]
        each = list(zip(self.members, pieces, strict=True))
        if for_a_round and self._direct:
            return [member.call_direct(Shard.merge, piece, True) for member, piece in each]
        return [member.call(Shard.merge, piece) for member, piece in each]

    def project(
        self, gradients: Sequence[Sequence[Future[Sent]]], correction_lr: float = 0.0
    ) -> list[Future[Floats]]:
        """∂L/∂Λ by tensor, in pieces; of each group's gradient in pieces, in group order.

        The correction moves along their sum, unless its learning rate is 0.
        Large gradients are summed a few at a time, so that few of them are alive at any time.
        """
        count = gradients_at_once(FLOAT * self._layout.numel // len(self.members))
        by_shard = [list(map(as_argument, mine)) for mine in zip(*gradients, strict=True)]
        answers = []
        for member, mine in zip(self.members, by_shard, strict=True):
            last = max(0, len(mine) - count)
            added = [
                as_argument(member.call(Shard.add, *mine[at : min(last, at + count)]))
                for at in range(0, last, count)
            ]
            answers.append(member.call(Shard.project, correction_lr, *added, *mine[last:]))
        return answers

    def fold(self, pieces: Sequence[Floats]) -> torch.Tensor:
        """∂L/∂Λ [K, L] from what ``project`` answered."""
        whole = np.concatenate(pieces, axis=1)
        return self._layout.fold(torch.from_numpy(whole))

    def gather(self, theta: Sequence[Future[Sent]]) -> Floats:
        """θ [P], here, from the pieces that ``merge`` answered."""
        whole: Any = np.concatenate(self._backend.get(list(theta)))
        gathered: Floats = whole
        return gathered

    def compare(self) -> list[Pairs]:
        """How the task vectors lie to each other, by tensor."""
        parts = self._backend.get([member.call(Shard.compare) for member in self.members])
        return [pairs for part in parts for pairs in part]

    def correction(self) -> dict[str, torch.Tensor]:
        """The state of the correction, [P] each but for ``steps``; empty where none was learned."""
        parts = self._backend.get([member.call(Shard.correction) for member in self.members])
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if whole:
            whole["steps"] = parts[0]["steps"]
        return {name: torch.from_numpy(array.copy()) for name, array in whole.items()}

    def correct(self, state: Mapping[str, torch.Tensor]) -> None:
        """Have every shard go back to its stretch of what ``correction`` returned."""
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        self._backend.get(
            [
                member.call(
                    Shard.correct,
                    {n: a if n == "steps" else a[bounds] for n, a in arrays.items()},
                )
                for member, bounds in zip(self.members, self.bounds, strict=True)
            ]
        )
