"""A port, and an application that answers at it until the process is told to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tintray.errors import InputError


def listen(host: str, port: int) -> socket.socket:
    """The port, before anything is spent on what is behind it; InputError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"--port {port}: it cannot be listened on at {host} ({error.strerror}); is another "
            "server there?"
        ) from error


def shown(listening: socket.socket) -> str:
    """Its address, for people."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def answer(app: Any, listening: socket.socket, patience: float) -> None:
    """Answer until SIGINT or SIGTERM comes; open requests have ``patience`` seconds then."""
    import uvicorn

    class Server(uvicorn.Server):
        """One that leaves signals to whoever runs it, who has more to close."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(patience) + 1,
    )
    server = Server(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread
            loop.add_signal_handler(number, setattr, server, "should_exit", True)
    await server.serve(sockets=[listening])
