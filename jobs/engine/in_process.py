"""Members in this process, for debugging and for jobs that are smaller than Ray's start."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch

from tintray.errors import CancelledError, FitError, SpecError
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
from tintray.jobs.engine.plan import ClusterSize
from tintray.jobs.engine.resources import available_memory, free_on_card, keep_to_share


class LocalFuture(Future[T]):
    """An answer of a member in this process; the call runs when the answer is asked for."""

    def __init__(self, waiting: deque[LocalFuture[Any]], run: Callable[[], Any]) -> None:
        waiting.append(self)
        self._waiting = waiting
        self._run: Callable[[], Any] | None = run
        self._value: Any = None
        self._error: BaseException | None = None

    def value(self) -> Any:
        """The answer, or a future of it where the backend has put it elsewhere."""
        while self._run is not None:
            self._waiting.popleft()._run_now()
        if self._error is not None:
            raise self._error
        return self._value

    def result(self) -> T:
        """The answer itself."""
        value = self.value()
        return cast(T, value.result() if isinstance(value, Future) else value)

    def fail(self, error: Exception) -> None:
        """Never run the call."""
        self._run, self._value, self._error = None, None, error

    def _run_now(self) -> None:
        run, self._run = self._run, None  # what the call was given is let go with it
        assert run is not None, "a call waits once"
        try:
            self._value = run()
        except BaseException as error:
            self._error = error
            if isinstance(error, CancelledError) or not isinstance(error, Exception):
                raise  # whoever waits, whatever for: the job is to stop


class LocalHandle(ActorHandle[A]):
    """A member in this process, for a backend that gets the arguments that are futures.

    ``keep`` makes an answer outlive the member's next call; ``threads`` is what it computes with.
    """

    def __init__(
        self,
        backend: Backend,
        keep: Callable[[Any], Any],
        construct: Callable[[], A],
        threads: int | None = None,
    ) -> None:
        self._backend = backend
        self._keep = keep
        self._threads = threads
        self._waiting: deque[LocalFuture[Any]] = deque()
        self._member = self._later(construct)

    def ready(self, name_node: bool) -> Future[None]:
        """Fails as the constructor did."""

        def check() -> None:
            try:
                self._member.result()
            except Exception as error:
                raise construction_error(error) from error

        return self._later(check)

    def dismiss(self) -> None:
        """Let the member go; calls that wait, and later ones, fail."""
        error = FitError("the worker was dismissed before it answered")
        for future in (self._member, *self._waiting):
            future.fail(error)
        self._waiting.clear()

    def _later(self, run: Callable[[], T]) -> LocalFuture[T]:
        return LocalFuture(self._waiting, run)

    def _start(
        self, method: str, args: Args, options: Mapping[str, Any], *, direct: bool = False
    ) -> Future[Any]:
        return self._later(lambda: self._run(method, args, options))

    def _start_parts(
        self, method: str, parts: int, args: Args, options: Mapping[str, Any]
    ) -> tuple[list[Future[Any]], Future[Any]]:
        whole = self._start(method, args, options)

        def part(number: int) -> Future[Any]:
            return self._later(lambda: whole.result()[0][number])

        return [part(n) for n in range(parts)], self._later(lambda: whole.result()[1])

    def _run(self, method: str, args: Args, options: Mapping[str, Any]) -> Any:
        member = self._member.result()
        answers = iter(self._backend.get([arg for arg in args if isinstance(arg, Future)]))
        given = [next(answers) if isinstance(arg, Future) else arg for arg in args]
        with nullcontext() if self._threads is None else _computing_with(self._threads):
            return self._keep(getattr(member, method)(*given, **options))


def own(value: Any) -> Any:
    """A copy of the arrays that a member answered: like Ray's, it must outlive the next call."""
    if isinstance(value, tuple | list):
        return type(value)(own(item) for item in value)
    if isinstance(value, torch.Tensor):
        return value.clone()
    return value.copy() if isinstance(value, np.ndarray) else value


@contextmanager
def _computing_with(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class InProcessBackend(Backend):
    """Everything in this process, one call after another, with so many threads of torch.

    ``capacity`` is what plans may count on; without it one worker, and the memory that is free.
    """

    def __init__(
        self, threads: int, *, gpus: float = 0, capacity: ClusterSize | None = None
    ) -> None:
        if gpus and not torch.cuda.is_available():
            raise SpecError(f"{GPUS}: torch finds no GPU on this machine; {NO_GPUS}")
        self.tensor_transport = gpus > 0
        self._capacity = capacity or ClusterSize(
            1, available_memory(), gpus=int(gpus > 0), card=free_on_card(gpus) if gpus else None
        )
        self._share = gpus
        keep_to_share(gpus)
        self._members: list[LocalHandle[Any]] = []
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)

    def capacity(self) -> ClusterSize:
        """What was said, or this process."""
        return self._capacity

    def spawn(
        self, placement: Placement, cls: Callable[P, A], /, *args: P.args, **options: P.kwargs
    ) -> ActorHandle[A]:
        """A member here; it is constructed when it is first asked for anything."""
        handle = LocalHandle(self, own, lambda: cls(*args, **options))
        self._members.append(handle)
        return handle

    def connect(self, members: Sequence[ActorHandle[object]]) -> None:
        """They are: nothing leaves this process."""

    def put(self, value: T) -> Future[T]:
        """The value itself."""
        return LocalFuture(deque(), lambda: value)

    def dismiss(self, members: Sequence[ActorHandle[object]]) -> None:
        """Drop the members and the calls that wait for them."""
        for member in [member for member in self._members if member in members]:
            self._members.remove(member)
            member.dismiss()

    def close(self) -> None:
        """Drop all members; give torch its threads and its GPU back."""
        self.dismiss(self._members)
        if 0 < self._share < 1:
            keep_to_share(1)
        torch.set_num_threads(self._threads_before)
