"""A gate before a server: what goes through it can be cut off, and let through again."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self


class Gate:
    """Forwards TCP from ``port`` of this machine to a server, while it is open."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open = threading.Event()
        self._open.set()
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shut()
        self._listener.close()

    def shut(self) -> None:
        """Cut all connections, and refuse new ones."""
        self._open.clear()
        for end in self._ends:
            _close(end)
        self._ends.clear()

    def open(self) -> None:
        """Let new connections through."""
        self._open.set()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                near, _ = self._listener.accept()
                if not self._open.is_set():
                    _close(near)
                    continue
                far = socket.create_connection(self._target)
                self._ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=_copy, args=(one, other), daemon=True).start()


def _copy(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(1 << 16):
            other.sendall(data)
    _close(other)


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
