"""Where work runs: the only module that knows Ray.

A fleet spawns *members* (plain Python objects: workers, shards, evaluators) and calls their
methods. ``RayFleet`` puts each in an actor of its own; ``InlineFleet`` keeps them in this process,
for debugging and for jobs that are smaller than Ray's start. What a job computes is the same on
both, to the last bit: who hosts a member never enters a result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jobs.planning.needs import ClusterSize
from jobs.resources import available_memory
from tintray.errors import FitError, SpecError, TintrayError

Ref = Any
"""A value that may still be on its way: hand it to another call, or to ``Fleet.get``."""


class Member(Protocol):
    """One object that a fleet hosts."""

    def call(self, method: str, *args: Any, returns: int = 1) -> Ref:
        """Start ``method``; ``returns=2`` splits a pair into a list of two refs."""


class Fleet(Protocol):
    """A set of members, on one machine or on many."""

    def size(self) -> int:
        """How many single-threaded workers it can run at once."""

    def capacity(self) -> ClusterSize:
        """What it has in all: CPUs, memory, object store, nodes."""

    def spawn(self, cls: type, *args: Any, threads: float, name: str) -> Member:
        """Host ``cls(*args)``, computing with ``threads``; ``name`` is for errors and logs."""

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


# --- in this process ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _InlineMember:
    target: Any

    def call(self, method: str, *args: Any, returns: int = 1) -> Ref:
        result = _own(getattr(self.target, method)(*args))
        return list(result) if returns > 1 else result


def _own(value: Any) -> Any:
    """A copy of the arrays that a member returned: like Ray's, it must outlive the next call."""
    if isinstance(value, tuple):
        return tuple(_own(item) for item in value)
    return value.copy() if isinstance(value, np.ndarray) else value


class InlineFleet:
    """Everything in this process, one call after another."""

    def __init__(self, threads: int) -> None:
        import torch

        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)

    def size(self) -> int:
        """One: calls do not overlap."""
        return 1

    def capacity(self) -> ClusterSize:
        """This process: one worker, and the memory that is free."""
        return ClusterSize(cpus=1, memory=available_memory())

    def spawn(self, cls: type, *args: Any, threads: float, name: str) -> Member:
        """Construct the object here."""
        return _InlineMember(cls(*args))

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


# --- on Ray -------------------------------------------------------------------------------------


class _Host:
    """The actor: one member, with the number of threads that its results were promised for.

    What the member's constructor raises on purpose is raised by the first call instead: Ray takes
    an actor that could not be constructed for one that died.
    """

    def __init__(self, threads: int, cls: type, *args: Any) -> None:
        import torch

        torch.set_num_threads(threads)
        self._target: Any = None
        self._refusal: TintrayError | None = None
        try:
            self._target = cls(*args)
        except TintrayError as error:
            self._refusal = error

    def call(self, method: str, *args: Any) -> Any:
        if self._refusal is not None:
            raise self._refusal
        return getattr(self._target, method)(*args)

    def ready(self, name_node: bool) -> None:
        if self._refusal is None:
            return
        if name_node:
            import ray

            where = f" (on the node {ray.util.get_node_ip_address()})"
            raise type(self._refusal)(f"{self._refusal}{where}")
        raise self._refusal


class _RayMember:
    def __init__(self, actor: Any, name: str) -> None:
        self.actor = actor
        self.name = name

    def call(self, method: str, *args: Any, returns: int = 1) -> Ref:
        return self.actor.call.options(num_returns=returns, name=f"{self.name}.{method}").remote(
            method, *args
        )


class RayFleet:
    """Members as Ray actors, on a cluster that exists or on one started here for the job.

    Parameters
    ----------
    address
        A running cluster's address, or ``None`` to start one on this machine.
    cpus
        How many CPUs the members will ask for at once; 0 where they go by the cluster.
    object_store_bytes
        How much shared memory a cluster started here sets aside; the job's plan knows.

    Raises
    ------
    SpecError
        If no cluster answers at the address, or it has fewer CPUs than are asked for: its members
        would wait for ever.
    """

    def __init__(self, address: str | None, cpus: int, object_store_bytes: int) -> None:
        # Set before Ray is imported: it reads them then. Nothing of a job leaves the machine.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if address is None:
            # Ray runs workers at niceness 15, for the sake of its own processes on a shared
            # cluster; on a busy machine that would starve a fit that has the cluster to itself.
            os.environ.setdefault("RAY_worker_niceness", "0")
        import ray

        self._ray = ray
        self._actors: list[Any] = []
        self._owns_cluster = not ray.is_initialized()
        self._made_to_measure = self._owns_cluster and address is None
        if self._owns_cluster:
            self._start(address, cpus, object_store_bytes)
        if cpus > self.size():
            found = self.size()
            self.close()
            raise SpecError(
                f"cluster.workers: the workers need {cpus} CPUs and the cluster has {found}; ask "
                "for fewer workers or threads, or write workers: auto"
            )

    def _start(self, address: str | None, cpus: int, object_store_bytes: int) -> None:
        local: dict[str, Any] = {
            # More workers than cores are slower but not wrong; Ray would let them wait for ever.
            "num_cpus": max(cpus, os.cpu_count() or 1) if cpus else None,
            "object_store_memory": object_store_bytes,
            "include_dashboard": False,
        }
        try:
            self._ray.init(
                address=address,
                log_to_driver=False,
                logging_level="ERROR",
                **({} if address else local),
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            if address is None:
                raise FitError(f"Ray could not be started on this machine: {error}") from error
            if "Version mismatch" in str(error):
                raise SpecError(
                    f"cluster.address: expected Ray and Python at '{address}' to be of this "
                    f"process's versions: {' '.join(str(error).split())}; install the same on both"
                ) from error
            raise SpecError(
                f"cluster.address: no Ray cluster answers at '{address}' ({_first_line(error)}); "
                "check it, or leave it out to start one on this machine"
            ) from error

    def size(self) -> int:
        """The cluster's CPUs."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def capacity(self) -> ClusterSize:
        """The cluster's, as its nodes told when they joined."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        stores = [int(node.get("object_store_memory", 0)) for node in nodes]
        return ClusterSize(
            cpus=self.size(),
            memory=sum(int(node.get("memory", 0)) for node in nodes) + sum(stores),
            nodes=max(1, len(nodes)),
            gpus=int(sum(node.get("GPU", 0) for node in nodes)),
            object_store=None if self._made_to_measure else min(stores, default=0),
        )

    def spawn(self, cls: type, *args: Any, threads: float, name: str) -> Member:
        """Start an actor; its constructor runs there and is not waited for."""
        # Who asks for no CPU (shards) would all be put on one node; they hold memory: spread them.
        strategy = "DEFAULT" if threads else "SPREAD"
        remote = self._ray.remote(_Host).options(num_cpus=threads, scheduling_strategy=strategy)
        actor = remote.remote(max(1, int(threads)), cls, *args)
        self._actors.append(actor)
        return _RayMember(actor, name)

    def put(self, value: Any) -> Ref:
        """Into the object store, where members read it without a copy."""
        return self._ray.put(value)

    def ready(self, members: Sequence[Member]) -> None:
        """Wait for their constructors; among several nodes, a failure names its own."""
        several = self.capacity().nodes > 1
        started = [m.actor.ready.remote(several) for m in members if isinstance(m, _RayMember)]
        self.get(started)

    def dismiss(self, members: Sequence[Member]) -> None:
        """Kill their actors; Ray gives their CPUs to the next ones spawned."""
        for member in members:
            if isinstance(member, _RayMember):
                self._ray.kill(member.actor)
                self._actors.remove(member.actor)

    def get(self, refs: Sequence[Ref]) -> list[Any]:
        """Values in order, with members' own errors."""
        with self._translated():
            values: list[Any] = self._ray.get(list(refs))
            return values

    def as_completed(self, refs: Sequence[Ref]) -> Iterator[tuple[int, Any]]:
        """Values as they come."""
        index = {ref: position for position, ref in enumerate(refs)}
        waiting = list(refs)
        while waiting:
            with self._translated():
                done, waiting = self._ray.wait(waiting, num_returns=1)
                value = self._ray.get(done[0])
            yield index[done[0]], value

    def close(self) -> None:
        """Kill the actors; stop the cluster if it was started here."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors.clear()
        if self._owns_cluster:
            self._ray.shutdown()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Ray wraps what a member raised; give back the sentence that it raised it with."""
        exceptions = self._ray.exceptions
        try:
            yield
        except exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, TintrayError):
                raise cause from None
            raise
        except exceptions.OutOfMemoryError as error:
            raise FitError(
                "a worker was ended because the machine ran out of memory; use fewer "
                "cluster.workers or a smaller fit.micro_batch"
            ) from error
        except exceptions.RayActorError as error:
            if error.actor_init_failed:
                raise FitError(
                    f"a worker could not be started ({_last_line(error)}); every node needs the "
                    "same Python packages, tintray among them"
                ) from error
            raise FitError(
                f"a worker process died while computing ({_first_line(error)}); "
                "run the job again, what was cached is kept"
            ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(_lines(error)), type(error).__name__)


def _last_line(error: BaseException) -> str:
    """Of a traceback: the exception."""
    return _lines(error)[-1].strip() if _lines(error) else type(error).__name__


def _lines(error: BaseException) -> list[str]:
    return str(error).strip().splitlines()


def open_fleet(*, address: str | None, workers: int | str, threads: int, plan: int) -> Fleet:
    """The fleet that a job file's ``cluster`` asks for; ``workers: 0`` is this process.

    ``plan`` is the object store that a local cluster needs, in bytes.
    """
    if workers == 0:
        return InlineFleet(threads)
    return RayFleet(address, workers * threads if isinstance(workers, int) else 0, plan)
