"""An end to every operation on a server: connections of one that has had its time are cut.

The timeouts of a client begin anew with every byte that arrives, so a server that trickles could
hold it for ever. Cutting its sockets wakes whoever waits on them.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from urllib3 import HTTPResponse

_WHOLE = {"enforce_content_length": True}
_AGAIN = 1.0  # seconds after which what was opened since is cut too


class OverdueError(Exception):
    """The operation has had its time."""


class Connections:
    """The sockets of one client, and the operations that are watched on it, thread by thread."""

    def __init__(self, client: S3Client, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._open: WeakSet[socket.socket] = WeakSet()
        self._cut: WeakSet[socket.socket] = WeakSet()
        self._watching = threading.local()
        client.meta.events.register("before-send.s3", self._before_send)
        # botocore offers no way in for a connection class; a test fails if this one is gone.
        session: Any = client._endpoint.http_session  # type: ignore[attr-defined]
        session._pool_classes_by_scheme.update(_pools(self))

    def cut(self) -> None:
        """Shut every socket down. Other operations that use one begin their request anew."""
        with self._lock:
            sockets = list(self._open)
            self._cut.update(sockets)
        for found in sockets:
            with suppress(OSError):  # it was closed meanwhile
                found.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def watched(self, seconds: float) -> Iterator[Watch]:
        """End what the block does on this client after ``seconds``, or later if it is extended.

        Raises ``OverdueError`` in place of whatever the block raises then. A block inside
        another one in the same thread shares the time of the outer one.
        """
        outer: Watch | None = getattr(self._watching, "watch", None)
        if outer is not None:
            yield outer
            return
        watch = Watch(self, seconds)
        self._watching.watch = watch
        try:
            yield watch
        except Exception as error:
            if watch.expired:
                raise OverdueError from error
            raise
        finally:
            del self._watching.watch
            watch.end()
        if watch.expired:  # what looks like success may be an answer that was cut
            raise OverdueError

    def opened(self, found: socket.socket) -> None:
        """Know a socket, to be cut when the time has come."""
        with self._lock:
            self._open.add(found)

    def checked(self, answer: HTTPResponse, used: socket.socket) -> HTTPResponse:
        """An answer whose head has come whole; else ``ConnectionError``."""
        with self._lock:
            cut = used in self._cut
        endless = answer.version == 11 and answer.length_remaining is None and not answer.chunked
        if cut or (endless and "close" not in answer.headers.get("Connection", "").lower()):
            raise ConnectionError("the answer broke off in its head")
        return answer

    def _before_send(self, **_: object) -> None:
        """No request of an operation that has had its time, be it the retry of one that was cut."""
        watch: Watch | None = getattr(self._watching, "watch", None)
        if watch is not None and watch.expired:
            raise OverdueError


class Watch:
    """The time of one operation."""

    def __init__(self, connections: Connections, seconds: float) -> None:
        self.expired = False
        self.cancel: Callable[[], object] | None = None  # for work that other threads do
        self._connections = connections
        self._clock = connections.clock
        self._until = self._clock() + seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._guard, name="deadline", daemon=True)
        self._thread.start()

    def extend(self, seconds: float) -> None:
        """Give the operation more time, for content whose size is known only now."""
        self._until += seconds

    def end(self) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()

    def _guard(self) -> None:
        while not self._over.wait(self._pause()):
            if self._clock() < self._until:
                continue
            self.expired = True
            if self.cancel is not None:
                self.cancel()
            self._connections.cut()

    def _pause(self) -> float:
        return _AGAIN if self.expired else max(0.0, self._until - self._clock())


def _pools(connections: Connections) -> dict[str, type]:
    """botocore's connection pools, by scheme, whose connections are known and whose answers whole.

    botocore takes an answer that broke off for a whole one, if all of its body is missing: a
    listing would then be empty, without a word.
    """

    class Plain(AWSHTTPConnection):
        def connect(self) -> None:
            super().connect()
            connections.opened(self.sock)

        def request(self, method: str, url: str, *args: Any, **options: Any) -> Any:
            return super().request(method, url, *args, **options | _WHOLE)

        def getresponse(self) -> Any:
            used = self.sock
            return connections.checked(super().getresponse(), used)

    class Secure(AWSHTTPSConnection):
        def connect(self) -> None:
            super().connect()
            connections.opened(self.sock)

        def request(self, method: str, url: str, *args: Any, **options: Any) -> Any:
            return super().request(method, url, *args, **options | _WHOLE)

        def getresponse(self) -> Any:
            used = self.sock
            return connections.checked(super().getresponse(), used)

    class PlainPool(AWSHTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(AWSHTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
