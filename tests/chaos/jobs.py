"""The sorts of jobs that faults hit: how each is begun, and what it publishes undisturbed."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import tintray
from tests.chaos.faults import FAULTS, HERE
from tests.chaos.world import STORE, World
from tests.growing import EASY, hashes
from tests.tiny_zoo import TinyZoo
from tintray.jobs import api
from tintray.jobs.runs import grow

OLD = ("two", "three", "four")
PARENT = {"rounds": 6, "groups": 2}
FIT = {"rounds": 150, "groups": 2, "checkpoint_every": 10, "correction_lr": 1e-3}
SUBMITTED: Mapping[str, Mapping[str, Any]] = {
    "fit": {"fit": FIT, "merge": {"granularity": "block"}},
    "data-free": {"fit": {"groups": 2}, "merge": {"method": "ties"}},
}
GROWN = ("add", "refresh", "remove")
RESTARTS = 30  # ten by default: here a job meets in two minutes what others meet in a year
GROWTH = (*EASY, "growth.coefficient_rounds=40", "growth.refit_rounds=40")
_HERE_TOO = tuple(name for name in FAULTS if name not in HERE)


@dataclass
class Begun:
    """A job on its way; ``command`` is that of one that nobody has submitted."""

    sort: str
    name: str
    command: subprocess.Popen[bytes] | None = None

    @property
    def merge(self) -> str:
        """What it publishes."""
        return self.name


class Sorts:
    """Begins jobs, and knows what they publish."""

    def __init__(self, world: World) -> None:
        self._world, self._number = world, 0
        self.expected: dict[str, dict[str, str]] = {}
        self._tasks = world.zoo.folder / "five-alone.yaml"
        self._tasks.write_text(yaml.safe_dump(world.zoo.task("five")))

    def faults(self, sort: str) -> Sequence[str]:
        """What may be done during a job of a sort."""
        return tuple(FAULTS) if sort in SUBMITTED else _HERE_TOO

    def prepare(self, sorts: Sequence[str], *, grown: bool) -> None:
        """Publish all that jobs of these sorts do undisturbed, in a folder, and what grows."""
        zoo, store = self._world.zoo, self._world.folder / "alone"
        place = {"store": str(store), "catalog": f"sqlite:///{store}/catalog.db"}
        catalog = place["catalog"]
        for sort in sorts:
            if sort in SUBMITTED:
                spec = zoo.spec(store, name=sort, catalog=catalog, **_sections(sort))
                self.expected[sort] = hashes(api.run(spec).url)
        growing = [sort for sort in sorts if sort in GROWN]
        if growing or grown:
            api.run(self._parent(zoo, store, catalog=catalog, cluster={"workers": 0}))
            self._publish_parent()
        for sort in growing:
            options: Any = {**place, "overrides": GROWTH}
            if sort == "add":
                child = grow.add("grown/v1", [self._tasks], mode="joint", **options)
            elif sort == "refresh":
                child = grow.refresh("grown/v1", "two", mode="coefficients", **options)
            else:
                child = grow.remove("grown/v1", ["four"], **options)
            self.expected[sort] = hashes(child.url)

    @staticmethod
    def _parent(zoo: TinyZoo, store: Path | str, **sections: Any) -> Any:
        return zoo.spec(store, OLD, name="grown", fit=PARENT, **sections)  # type: ignore[arg-type]

    def _publish_parent(self) -> None:
        """By a command: this process joins no cluster, which would end it when its head does."""
        world = self._world
        job = world.zoo.job(
            f"{STORE}/grown", OLD, fit=PARENT,
            cluster={"address": world.cluster.gcs, "workers": "auto", "restarts": RESTARTS},
        )  # fmt: skip
        path = world.zoo.folder / "grown.yaml"
        path.write_text(yaml.safe_dump({**job, "name": "grown"}))
        command = world.command("run", str(path))
        assert command.wait(300) == 0, (world.folder / "commands.log").read_text()[-3000:]

    def begin(self, sort: str) -> Begun:
        """Begin a job; each has a store of its own, so that nothing is found there."""
        world = self._world
        self._number += 1
        name = f"{sort}-{self._number}"
        if sort in SUBMITTED:
            spec = world.zoo.spec(
                f"{STORE}/{name}", name=name, catalog=world.postgres.url(through=False),
                **_sections(sort, workers="auto"),
            )  # type: ignore[arg-type]  # fmt: skip
            tintray.submit(spec, address=world.cluster.address, key=name)
            return Begun(sort, name)
        place = ["--store", f"{STORE}/grown"]
        words = {
            "add": ["add-task", "grown/v1", str(self._tasks), "--mode", "joint"],
            "refresh": ["refresh-task", "grown/v1", "two", "--mode", "coefficients"],
            "remove": ["remove-task", "grown/v1", "four"],
        }[sort]
        overrides = [word for text in GROWTH for word in ("--set", text)]
        return Begun(sort, "grown", world.command(*words, *place, *overrides))


def _sections(sort: str, **cluster: Any) -> dict[str, Any]:
    sections = json.loads(json.dumps(SUBMITTED[sort]))
    given = {"workers": 0, "restarts": RESTARTS, **cluster}
    return {**sections, "cluster": {**given, **({"shards": 1} if cluster else {})}}


def wait_a_little(until: float) -> None:
    """Sleep up to a moment of the monotonic clock."""
    time.sleep(max(0.0, until - time.monotonic()))
