"""A merge as an application of Ray Serve, for clusters whose own proxies take the requests.

A Serve config, such as that of KubeRay's RayService, names it by ``import_path:
tintray.jobs.serving.application:app``. Every replica is a whole server, as ``tintray serve
--replicas 0`` is; Ray spreads requests over them. This is the third module that imports Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tintray.errors import InputError, SpecError, TintrayError, nearest
from tintray.jobs.config.settings import chosen
from tintray.jobs.serving.guarding import Message, Receive, Scope, Send
from tintray.jobs.serving.http import build_app
from tintray.jobs.serving.metrics import Metrics
from tintray.jobs.serving.options import ServeOptions, serve_token
from tintray.jobs.serving.replicas import InProcess
from tintray.jobs.serving.versions import Place, Versions

_RAYS = ("host", "port", "address", "replicas")
"""What Ray decides here."""
_OPTIONS = tuple(f.name for f in fields(ServeOptions) if f.name not in (*_RAYS, "canary"))
"""A canary would be promoted in whichever replica is asked, and in no other."""


def app(args: Mapping[str, Any]) -> Any:
    """The application of a Serve config's ``args``: ``merge``, and options of ``tintray serve``.

    Raises SpecError, InputError: an argument is none, or cannot be what it is.
    """
    given = dict(args)
    merge = given.pop("merge", None)
    if not isinstance(merge, str):
        raise SpecError("args.merge: expected a merge, such as ten-scripts@production")
    for name in given:
        if name not in _OPTIONS:
            hint = nearest(name, _OPTIONS)
            raise SpecError(f"args.{name}: expected one of {', '.join(_OPTIONS)}{hint}")
    try:
        options = ServeOptions(host="0.0.0.0", replicas=0, **given).checked()
    except TypeError as error:
        raise InputError(f"args: {error}") from error
    from ray import serve

    def build() -> _Face:
        return _Face(merge, options)

    deployment: Any = serve.deployment(
        serve.ingress(build)(), name="tintray", max_ongoing_requests=options.max_queued
    )
    return deployment.bind()


class _Face:
    """The HTTP face of one replica; Ray starts and ends it as ASGI's lifespan says."""

    def __init__(self, merge: str, options: ServeOptions) -> None:
        self._merge, self._options = merge, options
        self._inner: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request, or the replica's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._inner(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            versions = await self._open()
        except TintrayError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        watching = asyncio.create_task(versions.watch())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        watching.cancel()
        await versions.close()
        over: Message = {"type": "lifespan.shutdown.complete"}
        await send(over)

    async def _open(self) -> Versions:
        token = serve_token(self._options)
        catalog = chosen(None, None)[1]
        place = await asyncio.to_thread(Place.find, self._merge, catalog, self._options.pin)
        versions = Versions(place, InProcess(), self._options)
        await versions.start()
        self._inner = build_app(versions, self._options, token, Metrics())
        return versions
