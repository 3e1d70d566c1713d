"""What is done to a cluster, its store, its database and its machines; and that it is undone.

Servers and machines that were killed are brought back after some seconds, as whoever runs them
does. Nothing is done for a job.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from random import Random

from tests.chaos.machines import RAYLET, SHARDS, WORKERS
from tests.chaos.world import LEASE_SECONDS, World
from tests.gate import Gate

DRIVER, ENTRY = "tintray.jobs.queue.driving", "tintray.jobs.queue.entry"
OUTAGE = 2.0  # seconds that a server is gone
_LOOK = 180.0  # seconds that a process may take to be there

Fault = Callable[[World, Random], str | None]
"""Does it, and undoes it; what was hit, None if there was nothing to hit."""


def _send(number: signal.Signals, processes: list[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _find(world: World, part: str) -> list[int]:
    until = time.monotonic() + _LOOK
    while not (found := world.cluster.find(part)) and time.monotonic() < until:
        time.sleep(0.3)
    return found


def _kill(*parts: str) -> Fault:
    """SIGKILL one process of the first name, and all of the others."""

    def fault(world: World, random: Random) -> str | None:
        found = _find(world, parts[0])
        if not found:
            return None
        hit = [random.choice(sorted(found))]
        for part in parts[1:]:
            hit += world.cluster.find(part)
        _send(signal.SIGKILL, hit)
        return f"{len(hit)} killed"

    return fault


def _stop(part: str, seconds: float) -> Fault:
    """SIGSTOP a process, and SIGCONT."""

    def fault(world: World, random: Random) -> str | None:
        found = _find(world, part)
        if not found:
            return None
        process = random.choice(sorted(found))
        _send(signal.SIGSTOP, [process])
        time.sleep(seconds)
        _send(signal.SIGCONT, [process])
        return f"{seconds:g} s"

    return fault


def _raylet(number: signal.Signals, seconds: float) -> Fault:
    """A signal to the raylet of a node; the node is started again after some seconds."""

    def fault(world: World, random: Random) -> str | None:
        node = random.choice(world.cluster.nodes)
        found = [process for process, name in node.processes() if RAYLET in name]
        if not found:
            return None
        _send(number, found)
        time.sleep(seconds)
        _send(signal.SIGCONT, found)
        world.cluster.restart(node)
        return node.name

    return fault


def node(world: World, random: Random) -> str:
    """A node loses its power."""
    found = random.choice(world.cluster.nodes)
    found.kill()
    time.sleep(OUTAGE)
    world.cluster.restart(found)
    return found.name


def head(world: World, _: Random) -> str:
    """The head loses its power: with it go the cluster and the driver."""
    world.cluster.head.kill()
    time.sleep(OUTAGE)
    world.cluster.restart(world.cluster.head)
    return "head"


def s3(world: World, _: Random) -> str:
    """The S3 server is killed."""
    world.swift.kill()
    time.sleep(OUTAGE)
    world.swift.start()
    return f"{OUTAGE:g} s"


def postgres(world: World, _: Random) -> str:
    """The database is killed."""
    world.postgres.kill()
    time.sleep(OUTAGE)
    world.postgres.start()
    return f"{OUTAGE:g} s"


def _gates(world: World, name: str) -> Gate:
    return world.swift.gate if name == "s3" else world.postgres.gate


def _cut(name: str) -> Fault:
    """All connections are cut, and none goes through for a second."""

    def fault(world: World, _: Random) -> str:
        gate = _gates(world, name)
        gate.shut()
        time.sleep(1)
        gate.open()
        return "1 s"

    return fault


def _slow(name: str) -> Fault:
    """Every piece that goes through is held back."""

    def fault(world: World, _: Random) -> str:
        gate = _gates(world, name)
        gate.pace = 0.4
        time.sleep(4)
        gate.pace = 0.0
        return "0.4 s a piece, for 4 s"

    return fault


def corrupt(world: World, _: Random) -> str:
    """A byte is altered in every tenth piece on the way to and from the store."""
    world.swift.gate.corrupt = 0.1
    time.sleep(4)
    world.swift.gate.corrupt = 0.0
    return "a tenth of the pieces, for 4 s"


def full_store(world: World, _: Random) -> str | None:
    """The disk of the S3 server is full."""
    return _fill(world.swift.disk) if world.swift.disk.own else None


def full_cache(world: World, _: Random) -> str | None:
    """The disk is full where workers keep copies."""
    return _fill(world.cache) if world.cache.own else None


def _fill(disk: object) -> str:
    from tests.chaos.places import Disk

    assert isinstance(disk, Disk)
    disk.fill()
    time.sleep(4)
    disk.free()
    return "4 s"


def _clock(name: str) -> Fault:
    """A clock is stepped by hours, and back."""

    def fault(world: World, random: Random) -> str | None:
        clock = world.clocks[name]
        if clock.library is None:
            return None
        step = random.choice([-7200, 7200])
        clock.set(step)
        time.sleep(4)
        clock.set(0)
        return f"{step:+d} s for 4 s"

    return fault


def replica(world: World, random: Random) -> str | None:
    """A process that answers requests is killed."""
    found = world.serving.replicas()
    if not found:
        return None
    _send(signal.SIGKILL, [random.choice(sorted(found))])
    return "1 killed"


FAULTS: Mapping[str, Fault] = {
    "kill worker": _kill(WORKERS),
    "kill shard": _kill(SHARDS),
    "kill driver": _kill(DRIVER),
    "kill driver and parent": _kill(DRIVER, ENTRY),
    "kill raylet": _raylet(signal.SIGKILL, OUTAGE),
    "kill node": node,
    "kill head": head,
    "kill S3": s3,
    "kill PostgreSQL": postgres,
    "kill replica": replica,
    "stop driver": _stop(DRIVER, LEASE_SECONDS + 3),
    "stop worker": _stop(WORKERS, 8),
    "stop raylet": _raylet(signal.SIGSTOP, 25),
    "cut S3": _cut("s3"),
    "cut PostgreSQL": _cut("postgres"),
    "slow S3": _slow("s3"),
    "slow PostgreSQL": _slow("postgres"),
    "corrupt S3": corrupt,
    "full store": full_store,
    "full cache": full_cache,
    "clock of S3": _clock("s3"),
    "clock of PostgreSQL": _clock("postgres"),
}

HERE = frozenset(
    {"kill driver", "kill driver and parent", "kill head", "stop driver", "kill shard"}
)
"""What is left out where the driver is a command that somebody waits for, which has no shards."""

SHORT = (
    "kill shard", "kill worker", "kill S3", "kill driver", "cut PostgreSQL", "corrupt S3",
    "kill PostgreSQL", "slow S3", "kill driver and parent", "full store",
)  # fmt: skip
"""Those of the short form: each kind of answer, none that takes long.

A shard and a worker first: they are looked for, and a job that has lost its driver has neither."""
