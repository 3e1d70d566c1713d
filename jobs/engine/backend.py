"""Where work runs: members, and the fleets that host them.

A fleet spawns *members* (plain Python objects: workers, shards, evaluators) and calls their
methods. ``RayBackend`` puts each in an actor of its own; ``InlineFleet`` keeps
them in this process, for debugging and for jobs that are smaller than Ray's start. What a job
computes is the same on both, to the last bit: who hosts a member never enters a result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tintray.errors import SpecError
from tintray.jobs.config.settings import ADDRESS_VARIABLE, is_own_cluster
from tintray.jobs.engine.resources import available_memory
from tintray.jobs.engine.sizes import ClusterSize

GPUS = "cluster.gpus_per_worker"
NO_GPUS = "use machines that have them, or leave it out to compute on CPUs"

Ref = Any
"""A value that may still be on its way: hand it to another call, or to ``Backend.get``."""


class Member(Protocol):
    """One object that a fleet hosts."""

    def call(self, method: str, *args: Any, returns: int = 1, direct: bool = False) -> Ref:
        """Start ``method``; ``returns=2`` splits a pair into a list of two refs.

        With ``direct`` it answers a tensor (of several answers, all but the last are tensors) that
        goes from member to member, on whatever device it is, and not through the object store;
        see ``Backend.connect``. Only members can use such a ref.
        """


class Backend(Protocol):
    """A set of members, on one machine or on many."""

    direct: bool
    """Whether members can exchange tensors directly, once they are connected."""

    def size(self) -> int:
        """How many single-threaded workers it can run at once."""

    def capacity(self) -> ClusterSize:
        """What it has in all: CPUs, memory, object store, nodes."""

    def spawn(
        self,
        cls: type,
        *args: Any,
        threads: float,
        name: str,
        gpus: int = 0,
        beside: Member | None = None,
        here: bool = False,
    ) -> Member:
        """Host ``cls(*args)``, computing with ``threads``; ``name`` is for errors and logs.

        It has ``gpus`` to itself, or lives with another member: on its CPUs and GPUs, in turn; or
        ``here``, in this process, where a call returns when it is done.
        """

    def connect(self, members: Sequence[Member]) -> None:
        """Let these members, all that there are, exchange tensors directly from now on."""

    def put(self, value: Any) -> Ref:
        """Share a value with every member; it is sent once to each machine."""

    def ready(self, members: Sequence[Member]) -> None:
        """Wait until members have been constructed; what a constructor raised is raised here."""

    def dismiss(self, members: Sequence[Member]) -> None:
        """End some members and give back what they held, so that others can take their place."""

    def get(self, refs: Sequence[Ref]) -> list[Any]:
        """Wait for values, in order; the first failure is raised as what the member raised."""

    def as_completed(self, refs: Sequence[Ref]) -> Iterator[tuple[int, Any]]:
        """Yield (index, value) of each ref as soon as it is there."""

    def close(self) -> None:
        """End all members and give back what they held."""


@dataclass(frozen=True)
class _InlineMember:
    target: Any

    def call(self, method: str, *args: Any, returns: int = 1, direct: bool = False) -> Ref:
        result = own(getattr(self.target, method)(*args))
        return list(result) if returns > 1 else result


def own(value: Any) -> Any:
    """A copy of the arrays that a member returned: like Ray's, it must outlive the next call."""
    import torch

    if isinstance(value, tuple):
        return tuple(own(item) for item in value)
    if isinstance(value, torch.Tensor):
        return value.clone()
    return value.copy() if isinstance(value, np.ndarray) else value


class InlineFleet:
    """Everything in this process, one call after another.

    Raises
    ------
    SpecError
        If a GPU is asked for and torch finds none.
    """

    def __init__(self, threads: int, *, gpus: int = 0) -> None:
        import torch

        if gpus and not torch.cuda.is_available():
            raise SpecError(f"{GPUS}: torch finds no GPU on this machine; {NO_GPUS}")
        self.direct = gpus > 0
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)

    def size(self) -> int:
        """One: calls do not overlap."""
        return 1

    def capacity(self) -> ClusterSize:
        """This process: one worker, and the memory that is free."""
        return ClusterSize(cpus=1, memory=available_memory(), gpus=int(self.direct))

    def spawn(
        self,
        cls: type,
        *args: Any,
        threads: float,
        name: str,
        gpus: int = 0,
        beside: Member | None = None,
        here: bool = False,
    ) -> Member:
        """Construct the object here."""
        return _InlineMember(cls(*args))

    def connect(self, members: Sequence[Member]) -> None:
        """They are: nothing leaves this process."""

    def put(self, value: Any) -> Ref:
        """The value itself."""
        return value

    def ready(self, members: Sequence[Member]) -> None:
        """They are: ``spawn`` has constructed them."""

    def dismiss(self, members: Sequence[Member]) -> None:
        """Nothing to do: who drops its last reference ends a member."""

    def get(self, refs: Sequence[Ref]) -> list[Any]:
        """The values themselves."""
        return list(refs)

    def as_completed(self, refs: Sequence[Ref]) -> Iterator[tuple[int, Any]]:
        """In order."""
        yield from enumerate(refs)

    def close(self) -> None:
        """Give torch its threads back."""
        import torch

        torch.set_num_threads(self._threads_before)


def open_backend(
    *, address: str | None, workers: int | str, threads: int, plan: int, gpus: int = 0
) -> Backend:
    """The fleet that a job file's ``cluster`` asks for; ``workers: 0`` is this process.

    ``plan`` is the object store that a local cluster needs, in bytes; ``gpus`` are those of each
    worker.
    """
    if workers == 0:
        return InlineFleet(threads, gpus=gpus)
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and not is_own_cluster(address):
        raise SpecError(
            f"cluster.address: the token of this machine goes only to a cluster that you chose; if "
            f"{address} is yours, set {ADDRESS_VARIABLE} to its dashboard, else unset RAY_AUTH_MODE"
        )
    from tintray.jobs.engine.ray_backend import RayBackend

    count = workers if isinstance(workers, int) else 0
    return RayBackend(
        *(address, count * threads, plan),
        gpus=max(1, count) * gpus,
        transport="nccl" if gpus else None,
    )
