"""Replicas of a version: on Ray Serve, one application each, or one in this process.

This is the second module that imports Ray.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from uuid import uuid4

from tintray.errors import ClusterError, TintrayError
from tintray.files import reason
from tintray.jobs.engine.ray_backend import join_ray
from tintray.jobs.serving.options import ServeOptions
from tintray.jobs.serving.replica import Example, Replica, ReplicaConfig
from tintray.serving.answers import Answer

_OBJECT_STORE = 256 * 2**20  # bytes: batches pass through, nothing stays
_SERVE = {
    "CONTROL_LOOP_INTERVAL_S": "0.5",  # of the controller, which is busy for a tenth of 0.1 s
    "USE_GRPC_BY_DEFAULT": "1",  # to a replica's own port, without the detour by objects
    "RUN_ROUTER_IN_SEPARATE_LOOP": "0",  # the face waits for answers and does nothing else
    "RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # a replica has threads of its own for passes
}
"""How Ray Serve is set, where nobody set it: late answers on a busy machine are half as late."""
_AGAIN = 0.5  # seconds after which a batch whose replica died is sent to another one


class Replicas(Protocol):
    """What answers batches for one version."""

    async def predict(self, examples: Sequence[Example]) -> list[Answer | TintrayError]:
        """Answers in the order of the examples."""

    async def stats(self) -> dict[str, int]:
        """What one replica has of tints in memory."""

    def close(self) -> None:
        """Let go of it."""


class Hosting(Protocol):
    """Where replicas run."""

    def open(self, config: ReplicaConfig, ref: str) -> Replicas:
        """Replicas of a version, once all of them are warm."""

    def close(self) -> None:
        """Let go of all."""


class InProcess:
    """One replica, in the process that has the HTTP face."""

    def open(self, config: ReplicaConfig, ref: str) -> Replicas:
        """Build the replica here."""
        return _Own(Replica(config))

    def close(self) -> None:
        """Nothing is held."""


class _Own:
    def __init__(self, replica: Replica) -> None:
        self.predict, self.stats = replica.predict, replica.stats

    def close(self) -> None:
        """It goes when nobody has it any more."""


class RayServe:
    """Applications of Ray Serve, one for each version that is served.

    Ray restarts a replica that dies. HTTP is no part of them: Ray's own proxies are not started.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._cpus = options.threads * options.passes_at_once
        for name, value in _SERVE.items():
            os.environ.setdefault(f"RAY_SERVE_{name}", value)
        room = 2 * (options.replicas + 1) * self._cpus  # the next version's beside this one's
        join_ray(options.address, room, _OBJECT_STORE, where="--address")
        from ray import serve

        self._serve: Any = serve
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        self._quiet: Any = {"log_level": "ERROR", "enable_access_log": False}
        serve.start(proxy_location="Disabled", logging_config=self._quiet)

    def open(self, config: ReplicaConfig, ref: str) -> Replicas:
        """Start an application and wait until its replicas are warm.

        Raises ClusterError: they could not be started.
        """
        options = self._options
        deployment: Any = self._serve.deployment(
            Replica,
            name="replica",
            num_replicas=options.replicas,
            max_ongoing_requests=options.passes_at_once + 3,  # batches, and who asks for figures
            ray_actor_options={"num_cpus": self._cpus},
            logging_config=self._quiet,
            graceful_shutdown_timeout_s=options.timeout,
            health_check_period_s=2,
            health_check_timeout_s=max(10.0, options.timeout),
            max_constructor_retry_count=3,
        )
        name = f"tintray-{ref.replace('/', '-')}-{uuid4().hex[:8]}"  # another server may have it
        try:
            handle = self._serve.run(deployment.bind(config), name=name, route_prefix=None)
        except Exception as error:
            self._delete(name)
            raise ClusterError(f"no replica of {ref} could be started ({reason(error)})") from error
        return _Application(handle, options.timeout, lambda: self._delete(name))

    def _delete(self, name: str) -> None:
        self._serve.delete(name)

    def close(self) -> None:
        """Leave Ray, which ends if it was started here; who else serves there goes on."""
        import ray

        ray.shutdown()


class _Application:
    def __init__(self, handle: Any, timeout: float, delete: Callable[[], None]) -> None:
        self._handle, self._timeout, self.close = handle, timeout, delete

    async def predict(self, examples: Sequence[Example]) -> list[Answer | TintrayError]:
        """Ask a replica; if it dies over the question, another one, or the same when it is back.

        A batch may be asked again: an answer changes nothing.
        """
        from ray.exceptions import RayActorError, RayTaskError

        loop = asyncio.get_running_loop()
        until = loop.time() + self._timeout
        while True:
            try:
                found: list[Answer | TintrayError] = await self._handle.predict.remote(examples)
                return found
            except RayTaskError as error:
                raise ClusterError(f"a replica failed over a batch ({reason(error)})") from error
            except (RayActorError, ConnectionError) as error:
                if loop.time() + _AGAIN > until:
                    raise ClusterError("no replica is up; one is being started") from error
                await asyncio.sleep(_AGAIN)

    async def stats(self) -> dict[str, int]:
        """Those of whichever replica answers."""
        found: dict[str, int] = await self._handle.stats.remote()
        return found
