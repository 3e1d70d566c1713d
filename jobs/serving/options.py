"""What a server is told when it starts: where it listens, what it may take, what it serves."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass

from tintray.errors import InputError
from tintray.serving.inputs import MAX_CHARACTERS
from tintray.serving.recency import Budget

TOKEN_VARIABLE = "TINTRAY_SERVE_TOKEN"
_SHORTEST = 16  # characters of a token that nobody guesses


@dataclass(frozen=True)
class ServeOptions:
    """The options of ``tintray serve``; times are in seconds unless the name says otherwise."""

    host: str = "127.0.0.1"
    port: int = 8000
    address: str | None = None  # of a Ray cluster; None starts one on this machine
    replicas: int = 1  # 0: answer in this process, without Ray
    threads: int = 1  # of each pass
    passes: int = 0  # that a replica computes at once; 0: as many as there are cores for
    max_batch_size: int = 32  # examples of one pass
    batch_wait_ms: float = 2.0  # how long an example waits for others while some are computed
    max_queued: int = 256  # examples that wait; beyond that a request is told to come back
    max_body: int = 32 * 2**20  # bytes of a request
    max_examples: int = 256  # of a request
    max_pixels: int = 16 * 2**20  # of an image, before it is resized
    max_characters: int = MAX_CHARACTERS  # of a text
    timeout: float = 30.0
    tint_memory: str | None = None
    pin: int | None = None  # the only version that is served
    canary: float = 0.0  # share of requests that a new version gets until it is promoted
    observe: int = 0  # answers of each task of which is kept how sure they were
    poll: float = 5.0  # how often the store is asked for a new version

    def checked(self) -> ServeOptions:
        """The same; raises InputError for a budget that is none, or a pinned canary."""
        try:
            Budget.read(self.tint_memory)
        except ValueError as error:
            raise InputError(f"--tint-memory: {error}") from error
        if self.pin is not None and self.canary:
            raise InputError(
                f"--canary gives a share of requests to new versions, and --pin v{self.pin} takes "
                "none up; leave one of them out"
            )
        return self

    @property
    def passes_at_once(self) -> int:
        """Passes of one replica; together they use the cores of this machine."""
        cores = len(os.sched_getaffinity(0))
        return self.passes or max(1, cores // (self.threads * max(1, self.replicas)))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def serve_token(
    options: ServeOptions,
    environment: Mapping[str, str] = os.environ,
    variable: str = TOKEN_VARIABLE,
) -> str | None:
    """The token from a variable of the environment; None where it is not set.

    Raises InputError for one that is short or has spaces, or for none where others than this
    machine can reach the server.
    """
    token = environment.get(variable) or None
    if token is None and not options.is_loopback:
        raise InputError(
            f"--host {options.host} can be reached from other machines, and {variable} is "
            f"not set; set it to a secret of {_SHORTEST} characters or more, or listen on 127.0.0.1"
        )
    if token is not None and (len(token) < _SHORTEST or not token.isascii() or " " in token):
        raise InputError(
            f"{variable}: expected {_SHORTEST} or more ASCII characters without spaces"
        )
    return token
