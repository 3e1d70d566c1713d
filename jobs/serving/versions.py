"""Which versions of a merge are served: one, or beside it a new one that is being tried.

A new version is opened and warm before it gets a request; the old one answers until then, and goes
when it has answered all that it was asked.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tintray.errors import (
    InputError,
    NotFoundError,
    StateConflictError,
    TintrayError,
    nearest,
)
from tintray.jobs.engine.finding import load_merge, locate
from tintray.jobs.serving import describing
from tintray.jobs.serving.batching import Batcher
from tintray.jobs.serving.options import ServeOptions
from tintray.jobs.serving.replica import ReplicaConfig
from tintray.jobs.serving.replicas import Hosting, Replicas
from tintray.published.merge import Merge
from tintray.published.signatures import digest
from tintray.serving.engine import AUTO
from tintray.storage.artifacts.aliases import read_alias, split_alias
from tintray.storage.artifacts.publish import MergeRef, list_merges, parse_merge_url

_TRY_AGAIN = 30.0  # seconds after a version could not be opened


@dataclass
class Live:
    """A version that answers."""

    merge: Merge
    replicas: Replicas
    batcher: Batcher
    described: dict[str, Any]  # see ``describing.tasks``
    asked: int = 0  # requests that it has not answered yet
    requests: int = 0
    failed: int = 0

    @property
    def ref(self) -> str:
        """Its name and version, such as ``digits/v3``."""
        return self.merge.manifest.ref

    def check(self, task: str) -> None:
        """Raise NotFoundError with the nearest name, if it has no such task."""
        tasks = self.merge.tasks
        if task not in tasks and task != AUTO:
            raise NotFoundError(
                f"{self.ref} has no task {task!r:.100}{nearest(task, tasks)}; GET /v1/tasks lists "
                f"its {len(tasks):,}"
            )


@dataclass(frozen=True)
class Place:
    """Where the versions of a merge lie.

    ``ref`` is None for a folder that lies in no store. ``fixed``: no other version is meant. Of
    an ``alias`` the version is meant that it names, be it older than the one before.
    """

    url: str
    ref: MergeRef | None
    fixed: bool = True
    alias: str | None = None

    @classmethod
    def find(cls, merge: str, catalog: str, pin: int | None) -> Place:
        """The place that a user means: a name or ``<store>/merges/<name>`` is its newest version.

        Raises NotFoundError: there is no such merge; InputError: a version is pinned of what has
        none.
        """
        if (aliased := split_alias(merge)) is not None:
            url = locate(merge, catalog)
            place = cls(url, parse_merge_url(url)[1], fixed=False, alias=aliased[1])
            return place if pin is None else place.at(pin, fixed=True)
        root, mark, name = merge.rstrip("/").rpartition("/merges/")
        if mark and "/" not in name:
            place = cls("", MergeRef(name, 1), fixed=False).at(1, root)
            newest = place.newest()
            if newest is None:
                raise NotFoundError(f"{root} holds no merge called {name!r:.100}")
            return newest if pin is None else newest.at(pin, fixed=True)
        url = locate(merge, catalog)
        try:
            ref = parse_merge_url(url)[1]
        except InputError:
            if pin is not None:
                raise
            return cls(url, None)
        named = merge.rstrip("/").endswith(f"/v{ref.version}")
        place = cls(url, ref, fixed=named)
        return place if pin is None else place.at(pin, fixed=True)

    def at(self, version: int, root: str | None = None, *, fixed: bool = False) -> Place:
        """Another version of the same merge."""
        assert self.ref is not None, "a folder has no versions"
        ref = replace(self.ref, version=version)
        root = self.url.rstrip("/").rpartition("/merges/")[0] if root is None else root
        return Place(f"{root}/{ref.key}", ref, fixed, None if fixed else self.alias)

    def newest(self) -> Place | None:
        """The newest version that is published now, or the one that the alias means now."""
        assert self.ref is not None, "a folder has no versions"
        if self.alias is not None:
            store = parse_merge_url(self.url)[0]
            return self.at(read_alias(store, self.ref.name, self.alias).version)
        found = list_merges(parse_merge_url(self.url)[0], self.ref.name)
        return self.at(found[-1].version) if found else None


class Versions:
    """The versions that are served, of one event loop."""

    def __init__(
        self,
        place: Place,
        hosting: Hosting,
        options: ServeOptions,
        factory: str | None = None,
    ) -> None:
        self._place, self._hosting, self._options = place, hosting, options
        self._factory = factory
        self._follow = not place.fixed
        self._stable: Live | None = None
        self._candidate: Live | None = None
        self._refused: dict[int, str] = {}  # version -> why it is not taken up
        self._not_before: dict[int, float] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()

    # -- requests ------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether there is a version that answers."""
        return self._stable is not None

    @property
    def stable(self) -> Live:
        """The version that answers all that the candidate does not get."""
        if self._stable is None:
            raise StateConflictError("no version is warm yet")
        return self._stable

    @property
    def live(self) -> list[Live]:
        """The versions that answer."""
        return [one for one in (self._stable, self._candidate) if one is not None]

    @contextmanager
    def chosen(self, tasks: Sequence[str]) -> Iterator[Live]:
        """The version that answers a request for these tasks; it stays until that is done.

        The candidate gets its share, and what only it has tasks for.
        """
        live, other = self.stable, self._candidate
        if other is not None:
            known, new = {AUTO, *live.merge.tasks}, {AUTO, *other.merge.tasks}
            only_new = not set(tasks) <= known and set(tasks) <= new
            drawn = random.random() < self._options.canary and set(tasks) <= new
            live = other if only_new or drawn else live
        live.asked += 1
        live.requests += 1
        try:
            yield live
        except TintrayError as error:
            live.failed += not isinstance(error, InputError)
            raise
        finally:
            live.asked -= 1

    # -- changes -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the first version; raises what keeps it from being served."""
        self._stable = await self._open(self._place)

    async def watch(self) -> None:
        """Take up new versions as they are published, for ever."""
        while self._follow:
            await asyncio.sleep(self._options.poll)
            await self.look()

    async def look(self) -> None:
        """Take up the newest version, if there is a newer one."""
        try:
            newest = await asyncio.to_thread(self._place.newest)
        except TintrayError as error:  # the store may answer the next time
            self._refused[0] = str(error)
            return
        self._refused.pop(0, None)
        if newest is None or newest.ref is None:  # all were removed: what is in memory goes on
            return
        version, now = newest.ref.version, asyncio.get_running_loop().time()
        if self._is_known(version) or self._not_before.get(version, now) > now:
            return
        async with self._changing:
            try:
                live = await self._open(newest)
            except TintrayError as error:
                self._refused[version] = str(error)
                self._not_before[version] = now + _TRY_AGAIN
                return
            self._refused.pop(version, None)
            if self._options.canary:
                old, self._candidate = self._candidate, live
            else:
                old, self._stable = self._stable, live
            self._retire(old)

    def _is_known(self, version: int) -> bool:
        """Whether a version is served, or is older than one that is and no alias asks for it."""
        live = self.live
        served = [one.merge.manifest.version for one in live]
        if self._place.alias is not None:
            return version in served
        return version <= max(served, default=0)

    async def _open(self, place: Place) -> Live:
        merge = await asyncio.to_thread(load_merge, place.url, self._factory)
        ref = merge.manifest.ref
        config = ReplicaConfig(place.url, digest(merge.manifest), self._factory, self._options)
        replicas = await asyncio.to_thread(self._hosting.open, config, ref)
        described = await asyncio.to_thread(describing.tasks, merge)
        return Live(merge, replicas, Batcher(replicas, self._options), described)

    def _retire(self, live: Live | None) -> None:
        """Let a version go when it has answered everything."""
        if live is None:
            return

        async def leave(live: Live) -> None:
            while live.asked:
                await asyncio.sleep(0.05)
            await live.batcher.close()
            await asyncio.to_thread(live.replicas.close)

        task = asyncio.create_task(leave(live))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def promote(self) -> str:
        """Let the candidate answer everything; its name. StateConflictError: there is none."""
        async with self._changing:
            candidate = self._tried()
            self._retire(self._stable)
            self._stable, self._candidate = candidate, None
        return candidate.ref

    async def abort(self) -> str:
        """Let the candidate go, and never take it up again; its name. See ``promote``."""
        async with self._changing:
            candidate = self._tried()
            version = candidate.merge.manifest.version
            self._refused[version], self._not_before[version] = "aborted", float("inf")
            self._candidate = None
            self._retire(candidate)
        return candidate.ref

    def _tried(self) -> Live:
        if self._candidate is None:
            raise StateConflictError(f"no new version of {self.stable.ref} is being tried")
        return self._candidate

    async def close(self) -> None:
        """Let all versions go."""
        for live in (self._stable, self._candidate):
            self._retire(live)
        self._stable = self._candidate = None
        await asyncio.gather(*self._retiring, return_exceptions=True)

    # -- what is told --------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """What is served, how much of it, and what the guard measured of both versions."""
        stable, candidate = self.stable, self._candidate
        return {
            "stable": await self._told(stable),
            "candidate": None if candidate is None else await self._told(candidate),
            "canary": self._options.canary,
            "pinned": not self._follow,
            "refused": {f"v{v}" if v else "store": said for v, said in self._refused.items()},
            "tasks": _figures(stable.merge, None if candidate is None else candidate.merge),
        }

    async def _told(self, live: Live) -> dict[str, Any]:
        try:
            tints = await asyncio.wait_for(live.replicas.stats(), 5)
        except Exception:  # noqa: BLE001 - a replica that is busy or gone tells nothing
            tints = {}
        batcher = live.batcher
        return {
            "version": live.ref,
            "requests": live.requests,
            "failed": live.failed,
            "queued": batcher.queued,
            "batches": batcher.batches,
            "examples": batcher.examples,
            "tints": tints,
        }


def _figures(stable: Merge, candidate: Merge | None) -> list[dict[str, Any]]:
    """Each task's metric in either version, as their guards measured it."""
    merges = [stable] + ([] if candidate is None else [candidate])
    names = list(dict.fromkeys(name for merge in merges for name in merge.tasks))

    def score(merge: Merge | None, name: str) -> Any:
        try:
            return None if merge is None else merge.task(name).task_score
        except NotFoundError:
            return None

    rows = []
    for name in names:
        one, other = score(stable, name), score(candidate, name)
        rows.append(
            {
                "task": name,
                "metric": (other or one).metric,
                "stable": one and one.merged,
                "candidate": other and other.merged,
                "stable_agreement": one and one.agreement,
                "candidate_agreement": other and other.agreement,
            }
        )
    return rows
