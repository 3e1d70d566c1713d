"""A gate before a server: what goes through it can be cut off, slowed down and altered."""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import suppress
from typing import Self


class Gate:
    """Forwards TCP from ``port`` of this machine to a server, while it is open.

    ``seed`` decides which bytes are altered while it is ``corrupt``.
    """

    def __init__(self, host: str, port: int, seed: int = 0) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open = threading.Event()
        self._open.set()
        self._ends: list[socket.socket] = []
        self._random = random.Random(seed)
        self.pace = 0.0
        """Seconds that every piece of at most 64 KiB is held back."""
        self.corrupt = 0.0
        """The share of pieces in which a byte is altered."""
        self.answers = True
        """Whether that happens on the way back too."""
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shut()
        self._listener.close()

    def shut(self) -> None:
        """Cut all connections, and refuse new ones."""
        self._open.clear()
        self.cut()

    def cut(self) -> None:
        """Cut all connections; new ones go through."""
        for end in self._ends[:]:
            _close(end)
        self._ends.clear()

    def open(self) -> None:
        """Let new connections through."""
        self._open.set()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        try:
            if not self._open.is_set():
                raise ConnectionRefusedError
            far = socket.create_connection(self._target)
        except OSError:  # the server is away
            _close(near)
            return
        self._ends += [near, far]
        for one, other in ((near, far), (far, near)):
            arguments = (one, other, one is far)
            threading.Thread(target=self._copy, args=arguments, daemon=True).start()

    def _copy(self, one: socket.socket, other: socket.socket, answer: bool) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                time.sleep(self.pace)
                share = self.corrupt if self.answers or not answer else 0.0
                if share and self._random.random() < share:
                    data = self._altered(data)
                other.sendall(data)
        for end in (one, other):
            _close(end)
            with suppress(ValueError):
                self._ends.remove(end)

    def _altered(self, data: bytes) -> bytes:
        changed = bytearray(data)
        changed[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        return bytes(changed)


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
