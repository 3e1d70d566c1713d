"""Any sequence of changes leaves a consistent lineage, whole merges, and nothing of what is gone.

Fifteen random sequences, each in a copy of one store; each step is checked as it is made.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, TypedDict

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import tintray
from tests.tiny_zoo import TASKS, TinyZoo
from tintray.jobs import api
from tintray.jobs.results import MergeSummary
from tintray.jobs.runs import grow as growth
from tintray.jobs.runs.history import history
from tintray.jobs.upkeep.stores import remove_merge
from tintray.storage.artifacts.blobs import is_blob
from tintray.storage.artifacts.publish import list_merges, read_manifest
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.collect import collect

QUICK = (
    "growth.rounds=2",
    "growth.coefficient_rounds=1",
    "growth.refit_rounds=1",
    "growth.tolerance=100",
)

changes = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "refresh"]),
        st.sampled_from(TASKS),
        st.sampled_from(["tint", "tint", "coefficients", "joint"]),
    ),
    min_size=1,
    max_size=3,
)


class Place(TypedDict):
    """A store and its catalog, as calls take them."""

    store: str
    catalog: str


class Beginning:
    """A published merge from which every sequence starts, in a store of its own."""

    def __init__(self, zoo: TinyZoo, folder: Path) -> None:
        self.zoo, self.folder = zoo, folder
        self.lines = 0
        api.run(zoo.spec(folder / "begun", ("two", "three"), fit={"rounds": 1}))

    def line(self) -> Line:
        """A copy of the store and its catalog, as if the merge had been made there."""
        self.lines += 1
        begun, store = self.folder / "begun", self.folder / f"line-{self.lines}"
        shutil.copytree(begun, store)
        with closing(sqlite3.connect(store / "catalog.db")) as catalog:
            for table, column in (("merges", "url"), ("jobs", "store_url")):
                change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
                catalog.execute(change, (str(begun), str(store)))
            catalog.commit()
        return Line(self.zoo, store)


class Line:
    """A store in which one merge grows."""

    def __init__(self, zoo: TinyZoo, store: Path) -> None:
        self.zoo, self.store = zoo, store
        self.place: Place = {"store": str(store), "catalog": f"sqlite:///{store}/catalog.db"}

    def step(self, operation: str, task: str, mode: Any) -> MergeSummary:
        """Make a change of the newest version."""
        if operation == "remove":
            return growth.remove("tiny", [task], overrides=QUICK, **self.place)
        if operation == "refresh":
            return growth.refresh("tiny", task, mode=mode, overrides=QUICK, **self.place)
        path = self.zoo.folder / f"only-{task}.yaml"
        path.write_text(yaml.safe_dump(self.zoo.task(task)))
        return growth.add("tiny", [path], mode=mode, overrides=QUICK, **self.place)

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Of every merge that is in the store."""
        opened = open_store(self.store)
        return {str(ref): read_manifest(opened, ref) for ref in list_merges(opened)}

    def blobs(self) -> set[str]:
        """Hashes of all blobs that are in the store."""
        found = (is_blob(entry.key) for entry in open_store(self.store).list("blobs/"))
        return {sha256 for sha256 in found if sha256}

    def collect(self, *gone: str) -> None:
        """Remove merges, and then what nobody needs."""
        for ref in gone:
            remove_merge(ref, catalog=self.place["catalog"])
        with Catalog.open(self.place["catalog"]) as catalog:
            collect(open_store(self.store), catalog, age=0)


def of_tasks(manifest: dict[str, Any]) -> set[str]:
    """What a merge needs of each of its tasks, now and to grow: hashes."""
    own = {file["sha256"] for name, file in manifest["files"].items() if name.startswith("tints/")}
    for task in manifest["tasks"]:
        own |= {task["task_vector"], task["pool"]["labels"]}
        own |= {task["test"]["outputs"]} if task["test"] else set()
    return own


@pytest.fixture(scope="module")
def beginning(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> Beginning:
    """One merge for all sequences: making it costs more than most of them."""
    return Beginning(tiny, tmp_path_factory.mktemp("sequences"))


@settings(
    max_examples=15,
    database=None,
    derandomize=True,
    phases=[Phase.generate],  # a shorter sequence is soon found by hand
    suppress_health_check=list(HealthCheck),
)
@given(changes)
def test_every_sequence_is_sound(beginning: Beginning, steps: list[tuple[str, str, str]]) -> None:
    line = beginning.line()
    made: list[MergeSummary] = []
    tasks = {"two", "three"}
    for operation, task, mode in steps:
        if (operation == "add") == (task in tasks) or (operation == "remove" and len(tasks) == 1):
            continue
        made.append(line.step(operation, task, mode))
        tasks = tasks ^ {task} if operation != "refresh" else tasks
        merge = tintray.load(made[-1].url)
        assert set(merge.tasks) == tasks
        assert merge.coefficients.shape[0] == len(tasks)
        for name in merge.manifest.files:
            merge.file(name)  # verifies its hash
        merge.for_task(task if task in tasks else merge.tasks[0])
    refs = ["tiny/v1", *(f"tiny/{summary.version}" for summary in made)]
    assert [summary.parent for summary in made] == refs[:-1]
    told = {found.ref: found.parent for found in history("tiny", catalog=line.place["catalog"])}
    assert {ref: told[ref] for ref in refs} == dict(zip(refs, [None, *refs[:-1]], strict=True))
    manifests = line.manifests()
    last = manifests[refs[-1]]
    line.collect(*refs[:-1])
    everything = set().union(*(of_tasks(manifest) for manifest in manifests.values()))
    blobs = line.blobs()
    assert of_tasks(last) <= blobs  # what it needs to grow on
    assert not (everything - of_tasks(last)) & blobs  # nothing of tasks and tints that are gone
    line.collect(refs[-1])
    assert not line.blobs()
