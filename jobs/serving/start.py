"""Start a server and keep it up until it is told to stop; what the commands ask a running one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tintray.errors import ClusterError, InputError, TintrayError, check_installed
from tintray.files import reason
from tintray.jobs.engine.finding import load_merge
from tintray.jobs.serving.metrics import Metrics
from tintray.jobs.serving.options import TOKEN_VARIABLE, ServeOptions, serve_token
from tintray.jobs.serving.replicas import InProcess, RayServe
from tintray.jobs.serving.versions import Place, Versions

_NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
_MOST = 16 * 2**20  # bytes of an answer of a running server


def serve(
    merge: str,
    options: ServeOptions,
    *,
    catalog: str,
    factory: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve a merge until SIGINT or SIGTERM comes; ``say`` is told when it is ready.

    Raises InputError: options, token, merge or port cannot be used; ClusterError: no replica could
    be started.
    """
    check_installed("serving", _NEEDED, "serve")
    options = options.checked()
    token = serve_token(options)
    place = Place.find(merge, catalog, options.pin)
    load_merge(place.url, factory)  # what is wrong with it shows before Ray is started
    with closing(_listening(options)) as listening:
        hosting = InProcess() if options.replicas == 0 else RayServe(options)
        try:
            versions = Versions(place, hosting, options, factory)
            asyncio.run(_serve(versions, options, token, listening, say))
        finally:
            hosting.close()


def _listening(options: ServeOptions) -> socket.socket:
    """The port, before anything is spent on what is behind it."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        raise InputError(
            f"--port {options.port}: it cannot be listened on at {options.host} "
            f"({error.strerror}); is another server there?"
        ) from error


async def _serve(
    versions: Versions,
    options: ServeOptions,
    token: str | None,
    listening: socket.socket,
    say: Callable[[str], None],
) -> None:
    import uvicorn

    from tintray.jobs.serving.http import build_app

    class Server(uvicorn.Server):
        """One that leaves signals to whoever runs it, who has more to close."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    await versions.start()
    settings = uvicorn.Config(
        build_app(versions, options, token, Metrics()),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(options.timeout) + 1,
    )
    server = Server(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread
            loop.add_signal_handler(number, setattr, server, "should_exit", True)
    live, watching = versions.stable, asyncio.create_task(versions.watch())
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    say(f"{live.ref}: {len(live.merge.tasks):,} tasks at http://{shown}:{port}")
    try:
        await server.serve(sockets=[listening])
    finally:
        watching.cancel()
        await versions.close()


def ask(url: str, path: str, *, change: bool = False) -> dict[str, Any]:
    """What a running server answers to ``path``; the token comes from the environment.

    Raises InputError with the server's own sentence; ClusterError: nobody answers.
    """
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get(TOKEN_VARIABLE):
        headers["Authorization"] = f"Bearer {token}"
    if not url.startswith(("http://", "https://")):
        raise InputError(f"--url {url!r:.100}: expected one such as http://127.0.0.1:8000")
    asked = Request(url.rstrip("/") + path, b"{}" if change else None, headers)
    try:
        with urlopen(asked, timeout=30) as found:
            document: dict[str, Any] = json.loads(found.read(_MOST))
            return document
    except HTTPError as error:
        try:
            said = str(json.loads(error.read(_MOST))["error"])
        except (ValueError, LookupError, TypeError):
            said = f"HTTP {error.code}"
        kind = InputError if error.code < 500 else TintrayError
        raise kind(f"{url}: {said}") from error
    except (URLError, OSError, ValueError) as error:
        raise ClusterError(
            f"no server of tintray answers at {url} ({reason(error)}); is it started, and is the "
            "address right?"
        ) from error
