"""A store with a merge of the tiny zoo, and what grows there."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tests.tiny_zoo import TinyZoo
from tintray.jobs import api
from tintray.jobs.engine.finding import load_merge, manifest_of
from tintray.jobs.results import MergeSummary
from tintray.jobs.runs import grow
from tintray.jobs.upkeep.stores import remove_merge
from tintray.published.manifest import Manifest
from tintray.storage.artifacts.blobs import is_blob
from tintray.storage.artifacts.publish import list_merges
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.collect import collect

QUICK = ("growth.rounds=6", "growth.coefficient_rounds=3", "growth.refit_rounds=3")
EASY = (*QUICK, "growth.target=0.01", "growth.tolerance=100")


def hashes(url: str) -> dict[str, str]:
    """sha256 by name of all files of a merge."""
    return {name: file.sha256 for name, file in load_merge(url).manifest.files.items()}


@dataclass
class GrowingStore:
    """One store, its catalog, and every event that its jobs told."""

    zoo: TinyZoo
    store: Path
    overrides: Sequence[str] = EASY
    events: list[Any] = field(default_factory=list)
    summary: MergeSummary = field(init=False)  # of what was merged last

    @property
    def place(self) -> dict[str, Any]:
        """The store and its catalog, as calls take them."""
        return {"store": str(self.store), "catalog": f"sqlite:///{self.store}/catalog.db"}

    @property
    def words(self) -> list[str]:
        """The same, as commands take them."""
        return [word for name, url in self.place.items() for word in (f"--{name}", url)]

    def run(self, *tasks: str, **sections: Any) -> MergeSummary:
        """Merge some tasks from their experts."""
        spec = self.zoo.spec(self.store, tasks, **sections)
        self.summary = api.run(spec, on_event=self.events.append)
        return self.summary

    def file(self, *tasks: str, **changed: Any) -> Path:
        """A file with these tasks."""
        path = self.zoo.folder / f"{'-'.join(tasks)}.yaml"
        path.write_text(yaml.safe_dump([self.zoo.task(name) | changed for name in tasks]))
        return path

    def add(self, *tasks: str, merge: str = "tiny", **options: Any) -> MergeSummary:
        """Add tasks to the newest version, or to another."""
        return self._grow(grow.add, merge, [self.file(*tasks)], **{"mode": "tint"} | options)

    def remove(self, *tasks: str, merge: str = "tiny", **options: Any) -> MergeSummary:
        """Remove tasks."""
        return self._grow(grow.remove, merge, tasks, **options)

    def refresh(self, task: str, merge: str = "tiny", **options: Any) -> MergeSummary:
        """Take a task anew."""
        return self._grow(grow.refresh, merge, task, **{"mode": "tint"} | options)

    def _grow(self, change: Callable[..., MergeSummary], *of: Any, **options: Any) -> MergeSummary:
        known = {"overrides": self.overrides, "on_event": self.events.append}
        return change(*of, **self.place, **known | options)

    def manifests(self) -> dict[str, Manifest]:
        """Of every merge that is in the store."""
        store = open_store(str(self.store))
        return {str(ref): manifest_of(store, ref) for ref in list_merges(store)}

    def manifest(self, summary: MergeSummary) -> Manifest:
        """That of one merge."""
        return self.manifests()[f"{summary.name}/{summary.version}"]

    def hashes(self, summary: MergeSummary) -> dict[str, str]:
        """sha256 by name of all files of a merge."""
        return hashes(summary.url)

    def blobs(self) -> set[str]:
        """Hashes of all blobs that are in the store."""
        found = (is_blob(entry.key) for entry in open_store(str(self.store)).list("blobs/"))
        return {sha256 for sha256 in found if sha256}

    def collect(self, *gone: str) -> None:
        """Delete merges, and then what nobody needs."""
        for ref in gone:
            remove_merge(ref, catalog=self.place["catalog"])
        with Catalog.open(self.place["catalog"]) as catalog:
            collect(open_store(str(self.store)), catalog, age=0)

    def copy(self, store: Path) -> GrowingStore:
        """A copy of the store and its catalog, as if all had been made there."""
        shutil.copytree(self.store, store)
        with closing(sqlite3.connect(store / "catalog.db")) as catalog:
            for table, column in (("merges", "url"), ("jobs", "store_url")):
                change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
                catalog.execute(change, (str(self.store), str(store)))
            catalog.commit()
        copied = GrowingStore(self.zoo, store, self.overrides)
        url = self.summary.url.replace(str(self.store), str(store))
        copied.summary = replace(self.summary, url=url)
        return copied
