"""Members as Ray actors; who else imports Ray, `tests/test_imports.py` says.

An actor hosts a member, or several where one lives beside another. Values go through Ray's object
store, which members on a node read without a copy; tensors may go from actor to actor by one of its
direct transports (``Backend.connect``).
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import numpy as np

from tintray.errors import (
    FitError,
    LostError,
    NoMemoryError,
    PreemptedError,
    SpecError,
    TintrayError,
)
from tintray.jobs.engine.backend import (
    GPUS,
    NO_GPUS,
    A,
    ActorHandle,
    Args,
    Backend,
    Future,
    P,
    Placement,
    T,
    construction_error,
)
from tintray.jobs.engine.in_process import LocalFuture, LocalHandle, own
from tintray.jobs.engine.plan import ClusterSize
from tintray.jobs.engine.resources import free_on_card, is_out_of_memory, keep_to_share

_LARGE = 2**16  # bytes; Ray itself sends smaller values along with a call
_LESS = "use fewer cluster.workers or a smaller fit.micro_batch"
_PATIENCE = 20.0  # seconds between two looks whether what is waited for can still come
_CARD_SECONDS = 30.0  # that a GPU may take to say how much of it is free


class _Host:
    """The actor: a member, or several, with the threads that their results were promised for.

    What a member's constructor raises is raised by its first call: Ray takes an actor that could
    not be constructed for one that died.
    """

    def __init__(self, threads: int, gpus: float) -> None:
        import torch

        torch.set_num_threads(threads)
        keep_to_share(gpus)
        self._members: list[Any] = []
        self._refusals: dict[int, Exception] = {}
        self._parts: deque[Any] = deque()  # tensors that were answered, until each is taken

    def host(self, cls: Callable[..., Any], args: Sequence[Any], options: dict[str, Any]) -> None:
        try:
            self._members.append(cls(*args, **options))
        except Exception as error:  # noqa: BLE001 -- whatever it is, ``call`` raises it
            self._refusals[len(self._members)] = error
            self._members.append(None)

    def call(self, number: int, method: str, *args: Any, **options: Any) -> Any:
        if number in self._refusals:
            raise self._refusals[number]
        return getattr(self._members[number], method)(*args, **options)

    def call_parts(self, number: int, method: str, *args: Any, **options: Any) -> Any:
        parts, rest = self.call(number, method, *args, **options)
        return (*parts, rest)

    def keep_parts(self, count: int, number: int, method: str, *args: Any, **options: Any) -> Any:
        try:
            parts, rest = self.call(number, method, *args, **options)
        except Exception as error:
            self._parts.extend([error] * count)
            raise
        # Copies: what was answered is sent later, when the member may be at its next call.
        self._parts.extend(tensor.clone() for tensor in parts)
        return rest

    def take_part(self) -> Any:
        part = self._parts.popleft()
        if isinstance(part, Exception):
            raise part
        return part

    def ready(self, number: int, name_node: bool) -> None:
        import ray

        if (error := self._refusals.get(number)) is not None:
            where = f" (on the node {ray.util.get_node_ip_address()})" if name_node else ""
            raise construction_error(error, where) from error

    def leave(self, number: int) -> None:
        self._members[number] = None
        self._refusals[number] = FitError("the worker was dismissed before it answered")


class _RayFuture(Future[T]):
    """An answer that Ray has, or waits for."""

    def __init__(self, backend: RayBackend, ref: Any) -> None:
        self.ref, self._backend = ref, backend

    def result(self) -> T:
        return self._backend.get([self])[0]


def _sendable(value: Any) -> Any:
    """What Ray is given of an argument or a future: its own reference, or the value."""
    if isinstance(value, LocalFuture):
        value = value.value()
    return value.ref if isinstance(value, _RayFuture) else value


class _RayHandle(ActorHandle[A]):
    """One of an actor's members; ``transport`` is how tensors go from actor to actor."""

    def __init__(
        self, backend: RayBackend, actor: Any, number: int, name: str, transport: str | None
    ) -> None:
        self.actor = actor
        self.hosts = number + 1  # members of the actor by now, if this is the first of them
        self.number = number
        self._backend, self._name = backend, name
        self._direct = {} if transport is None else {"tensor_transport": transport}

    @property
    def is_guest(self) -> bool:
        """Whether it lives in another member's actor."""
        return self.number > 0

    def ready(self, name_node: bool) -> Future[None]:
        return _RayFuture(self._backend, self.actor.ready.remote(self.number, name_node))

    def _start(
        self, method: str, args: Args, options: Mapping[str, Any], *, direct: bool = False
    ) -> Future[Any]:
        task = self._task("call", method, **(self._direct if direct else {}))
        ref = task(self.number, method, *map(_sendable, args), **options)
        return _RayFuture(self._backend, ref)

    def _start_parts(
        self, method: str, parts: int, args: Args, options: Mapping[str, Any]
    ) -> tuple[list[Future[Any]], Future[Any]]:
        called = (self.number, method, *map(_sendable, args))
        if self._direct:  # an answer goes by one way: the actor keeps the parts, to be asked for
            rest = self._task("keep_parts", method)(parts, *called, **options)
            take = self._task("take_part", method, **self._direct)
            refs = [*(take() for _ in range(parts)), rest]
        else:
            refs = self._task("call_parts", method, num_returns=parts + 1)(*called, **options)
        *found, last = (_RayFuture[Any](self._backend, ref) for ref in refs)
        return [*found], last

    def _task(self, task: str, method: str, **options: Any) -> Callable[..., Any]:
        """One of the actor's own methods, which Ray's logs name as the member's."""
        found = getattr(self.actor, task).options(name=f"{self._name}.{method}", **options)
        return cast(Callable[..., Any], found.remote)


@contextmanager
def _signals_kept(undo: Callable[[], object]) -> Iterator[None]:
    """Leave SIGTERM to who listened before: Ray takes it, and would end the process by it.

    One that came while Ray had it is raised again, after ``undo``.
    """
    if threading.current_thread() is not threading.main_thread():  # where Ray takes none
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        signal.signal(signal.SIGTERM, before)
        undo()
        if error.code == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _import_ray(address: str | None) -> Any:
    # Set before Ray is imported: it reads them then. Nothing of a job leaves the machine.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        # Ray runs workers at niceness 15, for the sake of its own processes on a shared
        # cluster; on a busy machine that would starve a fit that has the cluster to itself.
        os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    return ray


def join_ray(
    address: str | None, cpus: int, object_store_bytes: int, where: str = "cluster.address"
) -> None:
    """Join the cluster at ``address``, or start one on this machine that goes with this process.

    Raises SpecError naming ``where``: no cluster answers there, or one of other versions; FitError:
    none could be started here.
    """
    ray = _import_ray(address)
    local: dict[str, Any] = {
        # More workers than cores are slower but not wrong; Ray would let them wait for ever.
        "num_cpus": max(cpus, os.cpu_count() or 1) if cpus else None,
        "object_store_memory": object_store_bytes,
        "include_dashboard": False,
    }
    try:
        with _signals_kept(ray.shutdown):
            ray.init(
                # Said outright: else Ray would join whatever cluster it finds on this machine.
                address=address or "local",
                log_to_driver=False,
                logging_level="ERROR",
                **({} if address else local),
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if address is None:
            raise FitError(f"Ray could not be started on this machine: {error}") from error
        if "Version mismatch" in str(error):
            raise SpecError(
                f"{where}: expected Ray and Python at '{address}' to be of this "
                f"process's versions: {' '.join(str(error).split())}; install the same on both"
            ) from error
        raise SpecError(
            f"{where}: no Ray cluster answers at '{address}' ({_line(error, 0)}); "
            "check it, or leave it out to start one on this machine"
        ) from error


class RayBackend(Backend):
    """Members as Ray actors, on the cluster at ``address`` or on one started here for the job.

    ``cpus`` (0 where they go by the cluster) and ``gpus`` are what members will ask for at once: of
    a cluster that has fewer they would wait for ever, so it is refused. A cluster started here sets
    aside ``object_store_bytes`` of shared memory. ``transport`` is the one of Ray's by which
    members exchange tensors directly: ``nccl`` between GPUs, ``gloo`` in memory.
    """

    def __init__(
        self,
        address: str | None,
        cpus: int,
        object_store_bytes: int,
        *,
        gpus: float = 0,
        transport: str | None = None,
    ) -> None:
        self._ray = ray = _import_ray(address)
        self._transport, self._share = transport, min(1, gpus)
        self.tensor_transport = transport is not None
        self._group: Any = None
        self._connected: frozenset[Any] = frozenset()  # the actors that are in it
        self._actors: dict[Any, float] = {}  # with the CPUs that each takes
        self._local: list[LocalHandle[Any]] = []
        self._spread = 0  # how many members that ask for no CPU were given a node
        self._owns_cluster = not ray.is_initialized()
        self._made_to_measure = self._owns_cluster and address is None
        if self._owns_cluster:
            join_ray(address, cpus, object_store_bytes)
        found, there, short = self.size(), self._gpus(), ""
        if cpus > found:
            short = (
                f"cluster.workers: the workers need {cpus} CPUs and the cluster has {found}; ask "
                "for fewer workers or threads, or write workers: auto"
            )
        elif gpus > there:
            needed = f"{gpus:g} GPU{'' if gpus <= 1 else 's'}"
            short = f"{GPUS}: the workers need {needed} and the cluster has {there}; {NO_GPUS}"
        if short:
            self.close()
            raise SpecError(short)

    def capacity(self) -> ClusterSize:
        """The cluster's, as its nodes told when they joined."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        stores = [int(node.get("object_store_memory", 0)) for node in nodes]
        return ClusterSize(
            cpus=max(1, int(self._ray.cluster_resources().get("CPU", 1))),
            memory=sum(int(node.get("memory", 0)) for node in nodes) + sum(stores),
            nodes=max(1, len(nodes)),
            gpus=self._gpus(),
            card=self._card() if self._gpus() and self._transport == "nccl" else None,
            object_store=None if self._made_to_measure else min(stores, default=0),
        )

    def _card(self) -> int | None:
        """Bytes that are free on a GPU of the cluster; None if none of them is free to tell."""
        asked = self._ray.remote(num_gpus=self._share, num_cpus=0)(free_on_card).remote(self._share)
        told, _ = self._ray.wait([asked], timeout=_CARD_SECONDS)
        if told:
            found: int | None = self._ray.get(asked)
            return found
        self._ray.cancel(asked, force=True)
        return None

    def _gpus(self) -> int:
        return int(self._ray.cluster_resources().get("GPU", 0))

    def spawn(
        self, placement: Placement, cls: Callable[P, A], /, *args: P.args, **options: P.kwargs
    ) -> ActorHandle[A]:
        """Start an actor; the constructor runs there and is not waited for."""
        threads, name = max(1, int(placement.threads)), placement.name
        if placement.in_process:
            member = LocalHandle(self, self._kept, lambda: cls(*args, **options), threads)
            self._local.append(member)
            return member
        host = placement.colocate_with
        if isinstance(host, _RayHandle):
            host.actor.host.remote(cls, args, options)
            host.hosts += 1
            return _RayHandle(self, host.actor, host.hosts - 1, name, self._transport)
        # Who asks for no CPU (shards) would all be put on one node; they hold memory: spread them.
        strategy = "DEFAULT" if placement.threads else self._next_node()
        remote = self._ray.remote(
            num_cpus=placement.threads,
            num_gpus=placement.gpus,
            scheduling_strategy=strategy,
            enable_tensor_transport=self.tensor_transport,
        )(_Host)
        actor = remote.remote(threads, placement.gpus)
        actor.host.remote(cls, args, options)
        self._actors[actor] = placement.threads
        return _RayHandle(self, actor, 0, name, self._transport)

    def _kept(self, value: Any) -> Any:
        """Large arrays go into the object store once, not along with every call."""
        large = isinstance(value, np.ndarray) and value.nbytes > _LARGE
        return self.put(value) if large else own(value)

    def _next_node(self) -> Any:
        """Each node in turn; SPREAD and a soft affinity are wishes, and may put all on one node.

        A node that is lost before its member starts is as one that is lost a moment later.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        alive = sorted(node["NodeID"] for node in self._ray.nodes() if node["Alive"])
        self._spread += 1
        return NodeAffinitySchedulingStrategy(alive[self._spread % len(alive)], soft=False)

    def connect(self, members: Sequence[ActorHandle[object]]) -> None:
        """Make the one group that Ray's collective transports ask for, of the members' actors."""
        from ray.experimental.collective import create_collective_group

        self._disconnect()
        # Ray warns that what an actor is given back of its own is no copy; nobody writes into it.
        warnings.filterwarnings("ignore", message="RDT ObjectRef", category=UserWarning)
        actors = dict.fromkeys(m.actor for m in members if isinstance(m, _RayHandle))
        with self._translated():
            self._group = create_collective_group(list(actors), backend=self._transport)
        self._connected = frozenset(actors)

    def _disconnect(self) -> None:
        if self._group is not None:
            from ray.experimental.collective import destroy_collective_group

            group, self._group, self._connected = self._group, None, frozenset()
            with suppress(self._ray.exceptions.RayError):  # members that have died
                destroy_collective_group(group)

    def put(self, value: T) -> Future[T]:
        """Into the object store, where members read it without a copy."""
        return _RayFuture(self, self._ray.put(value))

    def get(self, futures: Sequence[Future[T]]) -> list[T]:
        """Answers in order, with members' own errors."""
        given = [_sendable(future) for future in futures]
        refs = [value for value in given if isinstance(value, self._ray.ObjectRef)]
        with self._translated():
            found = iter(self._wait(refs))
        return [next(found) if isinstance(v, self._ray.ObjectRef) else v for v in given]

    def as_completed(self, futures: Sequence[Future[T]]) -> Iterator[tuple[int, T]]:
        """Answers as they come; first those of members in this process."""
        index = {}
        for position, future in enumerate(futures):
            if isinstance(future, _RayFuture):
                index[future.ref] = position
            else:
                yield position, future.result()
        waiting = list(index)
        while waiting:
            with self._translated():
                ready, waiting = self._ray.wait(waiting, num_returns=1, timeout=_PATIENCE)
                values = self._ray.get(ready)
                if not ready:
                    self._check_room()
            yield from zip(map(index.__getitem__, ready), values, strict=True)

    def _wait(self, refs: list[Any]) -> Any:
        while True:
            try:
                return self._ray.get(refs, timeout=_PATIENCE)
            except self._ray.exceptions.GetTimeoutError:
                self._check_room()

    def _check_room(self) -> None:
        """Raise LostError if members wait for CPUs that have gone: they would wait for ever."""
        asked, there = sum(self._actors.values()), self._ray.cluster_resources().get("CPU", 0)
        if asked > there:
            raise LostError(
                f"the cluster lost CPUs that the job's workers wait for: they need {asked:g}, and "
                f"{there:g} are left"
            )

    def dismiss(self, members: Sequence[ActorHandle[object]]) -> None:
        """Kill their actors; Ray gives their CPUs to the next ones spawned.

        One that lives beside another is let go by it.
        """
        ended = [member for member in members if isinstance(member, _RayHandle)]
        if any(member.actor in self._connected for member in ended if not member.is_guest):
            self._disconnect()
        for member in members:
            if isinstance(member, LocalHandle):
                member.dismiss()
                self._local = [other for other in self._local if other is not member]
        for member in ended:
            if member.actor not in self._actors:
                continue
            if member.is_guest:
                member.actor.leave.remote(member.number)
            else:
                self._ray.kill(member.actor)
                del self._actors[member.actor]

    def close(self) -> None:
        """Kill the actors; stop the cluster if it was started here."""
        self._disconnect()
        self.dismiss(self._local)
        for actor in self._actors:
            with suppress(self._ray.exceptions.RayError):  # the cluster itself may be gone
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
            if isinstance(error.cause, TintrayError):
                raise error.cause from None
            if is_out_of_memory(error.cause):
                raise NoMemoryError(f"a worker ran {_line(error.cause, 0)}; {_LESS}") from error
            if isinstance(error.cause, exceptions.RayError):  # what another was to give for it
                with self._translated():
                    raise error.cause from error
            raise
        except exceptions.OutOfMemoryError as error:
            raise NoMemoryError(
                f"a worker was ended because the machine ran out of memory; {_LESS}"
            ) from error
        except exceptions.RayActorError as error:
            if error.actor_init_failed:
                raise FitError(
                    f"a worker could not be started ({_line(error, -1)}); every node needs the "
                    "same Python packages, tintray among them"
                ) from error
            lost = PreemptedError if getattr(error, "preempted", False) else LostError
            raise lost(
                f"a worker process died while computing ({_line(error, 0)}); "
                "run the job again, what was cached is kept"
            ) from error
        except exceptions.RayError as error:  # an object, a node, or the cluster itself
            raise LostError(
                f"the cluster lost something that the job needs ({type(error).__name__}: "
                f"{_line(error, 0)}); run the job again, what was cached is kept"
            ) from error


def _line(error: BaseException, number: int) -> str:
    """One line of an error; the last of a traceback is the exception."""
    return (str(error).strip() or type(error).__name__).splitlines()[number].strip()
