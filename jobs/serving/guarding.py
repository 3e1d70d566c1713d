"""What stands before every request: who may ask, from where, and how large a body may be."""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tintray.jobs.serving.metrics import Metrics
from tintray.jobs.serving.options import TOKEN_VARIABLE

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/", "/healthz", "/readyz"})
"""Paths that say nothing of the merge, and ask for no token."""

_HOSTS = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})


FAILED = "something failed over this request; the server's log says what"


class TooLargeError(Exception):
    """A body turned out to be larger than a body may be."""


log = logging.getLogger("tintray.serve")


class Guard:
    """Refuses a request before anything reads its body, and has what was answered counted.

    Without a token only this machine is listened to, and a web page of somebody else could ask a
    browser here: a name that is not this machine's (``Host``) is refused then.
    """

    open_paths, challenge, variable = OPEN, "Bearer", TOKEN_VARIABLE

    def __init__(
        self, app: App, token: str | None, max_body: int, metrics: Metrics | None = None
    ) -> None:
        self._app, self._max_body, self._metrics = app, max_body, metrics
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, code, taken = time.perf_counter(), 0, 0
        headers = dict(scope["headers"])

        async def counted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._max_body:
                raise TooLargeError
            return message

        refused = self._refusal(scope["path"], headers)
        try:
            if refused is None:
                await self._app(scope, bounded, counted)
        except TooLargeError:
            refused = self.too_large()
        except Exception:  # whatever it is, its words are for the log alone
            log.exception("a request failed")
            refused = 500, FAILED
        if refused is not None and not code:
            await self._answer(counted, *refused)
        if self._metrics is not None:
            self._metrics.request(code, time.perf_counter() - began)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        if self._token is None:
            host = headers.get(b"host", b"").decode("latin-1")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name not in _HOSTS:
                said = "without a token this server answers to 127.0.0.1 and localhost alone"
                return 421, f"{said}, not to {host!r:.60}"
        elif path not in self.open_paths:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if not hmac.compare_digest(self.given(scheme.lower(), given.strip()), self._token):
                return 401, self.expected()
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body:
            return self.too_large()
        return None

    def given(self, scheme: bytes, value: bytes) -> bytes:
        """The token that a header ``Authorization`` gives; nothing where it gives none."""
        return value if scheme == b"bearer" else b""

    def expected(self) -> str:
        """What is said to whoever gave no token, or another."""
        return f"expected the header Authorization: Bearer <{self.variable}>"

    def too_large(self) -> tuple[int, str]:
        """The code and the sentence for a body that is."""
        return 413, f"the body has more than the {self._max_body:,} bytes that it may have"

    async def _answer(self, send: Send, code: int, sentence: str) -> None:
        """Send a refusal."""
        body, kind = self.refusal(sentence)
        headers = [(b"content-type", kind), (b"connection", b"close")]
        if code == 401:
            headers.append((b"www-authenticate", self.challenge.encode()))
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def refusal(self, sentence: str) -> tuple[bytes, bytes]:
        """The body of a refusal, and its type."""
        return json.dumps({"error": sentence}).encode(), b"application/json"
