"""Where a job's members run: backends that host them, and typed handles to call them by.

A *member* is a plain Python object: a worker, a shard, an evaluator. A backend hosts it, in an
actor of its own (``RayBackend``) or in this process (``InProcessBackend``), and gives a handle. A
call names the member's method and gives a future at once; an error is raised where the answer is
asked for. Who hosts a member never enters a result, to the last bit.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from tintray.errors import FitError, SpecError, TintrayError
from tintray.jobs.config.settings import ADDRESS_VARIABLE, is_own_cluster
from tintray.jobs.engine.plan import ClusterSize

GPUS = "cluster.gpus_per_worker"
NO_GPUS = "use machines that have them, or leave it out to compute on CPUs"

P = ParamSpec("P")
T = TypeVar("T")
Part = TypeVar("Part")
A = TypeVar("A")
T_co = TypeVar("T_co", covariant=True)
A_co = TypeVar("A_co", covariant=True)
Args = Sequence[Any]


class Future(ABC, Generic[T_co]):
    """The answer to a call, which may still be on its way."""

    @abstractmethod
    def result(self) -> T_co:
        """Wait for the answer; what the member raised is raised here."""


def as_argument(future: Future[T]) -> T:
    """A future as an argument of another call: the member is given the answer itself."""
    return cast(T, future)


class ActorHandle(ABC, Generic[A_co]):
    """One member that a backend hosts. Its calls run one after another, in the order made."""

    def call(
        self, method: Callable[Concatenate[A_co, P], T], /, *args: P.args, **options: P.kwargs
    ) -> Future[T]:
        """Start a method of the member's class, such as ``handle.call(Worker.tint, name)``."""
        return self._start(method.__name__, args, options)

    def call_direct(
        self, method: Callable[Concatenate[A_co, P], T], /, *args: P.args, **options: P.kwargs
    ) -> Future[T]:
        """As ``call``; the answer is a tensor that only other members use.

        It goes to them by the backend's tensor transport, if there is one; see ``Backend.connect``.
        """
        return self._start(method.__name__, args, options, direct=True)

    def call_direct_parts(
        self,
        method: Callable[Concatenate[A_co, P], tuple[Sequence[Part], T]],
        parts: int,
        /,
        *args: P.args,
        **options: P.kwargs,
    ) -> tuple[list[Future[Part]], Future[T]]:
        """Start a method that answers so many parts, which go as by ``call_direct``, and a rest."""
        return self._start_parts(method.__name__, parts, args, options)

    @abstractmethod
    def ready(self, name_node: bool) -> Future[None]:
        """Fails as the constructor did, and names the node if that is wanted."""

    @abstractmethod
    def _start(
        self, method: str, args: Args, options: Mapping[str, Any], *, direct: bool = False
    ) -> Future[Any]: ...

    @abstractmethod
    def _start_parts(
        self, method: str, parts: int, args: Args, options: Mapping[str, Any]
    ) -> tuple[list[Future[Any]], Future[Any]]: ...


@dataclass(frozen=True)
class Placement:
    """Where a member runs; ``name`` is for errors and logs."""

    name: str
    threads: float = 0  # what it computes with, and has to itself
    gpus: float = 0  # none, one, or a part of one
    colocate_with: ActorHandle[object] | None = None  # on whose CPUs and GPUs it lives instead
    beside: tuple[ActorHandle[object], ...] = ()  # with which of them each of several lives, if any
    in_process: bool = False  # in the process of the backend itself


@dataclass(frozen=True)
class Where:
    """Where members compute that are needed for a while: on CPUs, or on the GPUs of the workers."""

    device: str = "cpu"
    hosts: Sequence[ActorHandle[object]] = ()  # the workers, where they have GPUs

    def placement(self, name: str) -> Placement:
        """For several members of a name."""
        return Placement(name, beside=tuple(self.hosts))


ON_CPUS = Where()


class Backend(ABC):
    """A set of members, on one machine or on many."""

    tensor_transport = False
    """Whether members can exchange tensors directly, once they are connected."""

    def size(self) -> int:
        """How many single-threaded workers it can run at once."""
        return self.capacity().cpus

    @abstractmethod
    def capacity(self) -> ClusterSize:
        """What it has in all: CPUs, memory, object store, nodes."""

    @abstractmethod
    def spawn(
        self, placement: Placement, cls: Callable[P, A], /, *args: P.args, **options: P.kwargs
    ) -> ActorHandle[A]:
        """Host ``cls(*args, **options)``; the constructor is not waited for, see ``ready``."""

    def ready(self, members: Sequence[ActorHandle[object]]) -> None:
        """Wait until members have been constructed, or raise as ``construction_error`` says.

        Among several nodes, a failure names its own.
        """
        several = self.capacity().nodes > 1
        self.get([member.ready(several) for member in members])

    @contextmanager
    def spread(
        self,
        count: int,
        placement: Placement,
        cls: Callable[P, A],
        /,
        *args: P.args,
        **options: P.kwargs,
    ) -> Iterator[list[ActorHandle[A]]]:
        """A member, of at most as many as CPUs or GPUs, for each piece of work; let go after.

        With a placement ``beside`` others there is one with each of them at most.
        """
        most = max(1, int(self.size() / max(1, placement.threads)))
        if placement.gpus:  # more would wait for ever
            most = max(1, min(most, int(self.capacity().gpus / placement.gpus)))
        hosts = placement.beside or [None] * most
        each = [
            replace(placement, name=f"{placement.name} {n + 1}", colocate_with=host)
            for n, host in enumerate(hosts[:count])
        ]
        members = [self.spawn(place, cls, *args, **options) for place in each]
        try:
            yield [members[n % len(members)] for n in range(count)]
        finally:
            self.dismiss(members)

    @abstractmethod
    def connect(self, members: Sequence[ActorHandle[object]]) -> None:
        """Let these members, all that there are, exchange tensors directly from now on."""

    @abstractmethod
    def put(self, value: T) -> Future[T]:
        """Share a value with every member; it is sent once to each machine."""

    def get(self, futures: Sequence[Future[T]]) -> list[T]:
        """Wait for answers, in order; the first failure is raised as what the member raised."""
        return [future.result() for future in futures]

    def as_completed(self, futures: Sequence[Future[T]]) -> Iterator[tuple[int, T]]:
        """Yield (index, answer) of each future as soon as it is there."""
        for index, future in enumerate(futures):
            yield index, future.result()

    @abstractmethod
    def dismiss(self, members: Sequence[ActorHandle[object]]) -> None:
        """End some members, so that others can take their place; calls that wait fail."""

    @abstractmethod
    def close(self) -> None:
        """End all members and give back what they held."""


def construction_error(error: Exception, where: str = "") -> TintrayError:
    """What is raised of a member whose constructor raised this: a bug is no input error."""
    if isinstance(error, TintrayError):
        return type(error)(f"{error}{where}")
    return FitError(f"a worker could not be started ({type(error).__name__}: {error}){where}")


def open_backend(
    *, address: str | None, workers: int | str, threads: int, plan: int, gpus: float = 0
) -> Backend:
    """The backend that a job file's ``cluster`` asks for; ``workers: 0`` is this process.

    ``plan`` is the object store that a local cluster needs, in bytes; ``gpus`` are of each worker.
    """
    if workers == 0:
        from tintray.jobs.engine.in_process import InProcessBackend

        return InProcessBackend(threads, gpus=gpus)
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
