"""Start a server and keep it up until it is told to stop; what the commands ask a running one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable
from contextlib import closing
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tintray.errors import ClusterError, InputError, TintrayError, check_installed
from tintray.files import reason
from tintray.jobs.engine.finding import load_merge
from tintray.jobs.serving.listening import answer, listen, shown
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
    with closing(listen(options.host, options.port)) as listening:
        hosting = InProcess() if options.replicas == 0 else RayServe(options)
        try:
            versions = Versions(place, hosting, options, factory)
            asyncio.run(_serve(versions, options, token, listening, say))
        finally:
            hosting.close()


async def _serve(
    versions: Versions,
    options: ServeOptions,
    token: str | None,
    listening: socket.socket,
    say: Callable[[str], None],
) -> None:
    from tintray.jobs.serving.http import build_app

    await versions.start()
    live, watching = versions.stable, asyncio.create_task(versions.watch())
    say(f"{live.ref}: {len(live.merge.tasks):,} tasks at {shown(listening)}")
    try:
        app = build_app(versions, options, token, Metrics())
        await answer(app, listening, options.timeout)
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
