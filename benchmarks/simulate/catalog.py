"""A catalog with many merges: what is asked of it takes how long, and what it weighs.

Each merge is the tenth version or so of its name, has three files and a job that succeeded. Times
are processor time of this process, in which SQLite computes; medians.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from tintray.errors import NotFoundError
from tintray.jobs.runs.history import history
from tintray.storage.artifacts.blobs import BlobRef
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.states import JobState
from tintray.storage.catalog.tables import Artifact, ArtifactUse, Job, Merge, MergeFile

VERSIONS, FILES, REPEATS = 10, 3, 5


def fill(catalog: Catalog, merges: int) -> None:
    """Enter so many merges, with their jobs and files."""
    now, numbers = datetime.now(UTC), range(merges)
    places = [(f"name{n // VERSIONS}", n % VERSIONS + 1) for n in numbers]
    metrics = {"tasks": 10, "average": 0.9, "normalised_accuracy": 0.95, "site": "head"}
    blobs = [(n, f"{FILES * n + f:064x}", f"file{f}") for n in numbers for f in range(FILES)]
    rows: dict[type, list[dict[str, object]]] = {
        Job: [
            {"id": f"job-{n}", "name": name, "state": JobState.SUCCEEDED, "reason": "published"}
            | {"spec": {}, "store_url": "file:///store", "created_at": now, "updated_at": now}
            for n, (name, _) in enumerate(places)
        ],
        Merge: [
            {"id": n + 1, "name": name, "version": version, "job_id": f"job-{n}", "added": []}
            | {"url": f"file:///store/merges/{name}/v{version}", "manifest_sha256": f"{n:064x}"}
            | {"metrics": metrics, "created_at": now, "published_at": now}
            | {"parent_id": None if version == 1 else n}
            for n, (name, version) in enumerate(places)
        ],
        Artifact: [
            {"sha256": sha256, "size": 1, "kind": "merge", "meta": {}, "created_at": now}
            for _, sha256, _ in blobs
        ],
        MergeFile: [{"merge_id": n + 1, "name": f, "sha256": s} for n, s, f in blobs],
        ArtifactUse: [{"job_id": f"job-{n}", "sha256": s} for n, s, _ in blobs],
    }
    with catalog.database.write() as session:
        for table, values in rows.items():
            session.execute(sa.insert(table), values)


def questions(catalog: Catalog, url: str) -> dict[str, Callable[[], object]]:
    """What people and jobs ask, by what it is called in the table."""
    merges = catalog.merges
    number = iter(range(1_000_000))

    def publish() -> None:
        job = catalog.jobs.create("new", {}, "file:///store")
        version = merges.reserve("new", job)
        file = {"backbone": BlobRef(f"{next(number) + 2**200:064x}", 1)}
        merges.record("new", version, "file:///store/merges/new", job, files=file)

    return {
        "a merge by its name": lambda: merges.find("name5"),
        "the latest merge": lambda: merges.find("latest"),
        "the merge of a job": lambda: merges.of_job("job-50"),
        "children of a merge": lambda: merges.children("name5/v2"),
        "who needs an artifact": lambda: catalog.artifacts.users(f"{5:064x}"),
        "publish": publish,
        "a misspelt name": lambda: merges.find("nam5e"),
        "a version that is not there": lambda: merges.find("name5/v77"),
        "history of a merge": lambda: history("name5", catalog=url),
        "list all": merges.all,
        "what a collection needs": catalog.artifacts.needed,
    }


def measure(merges: int) -> dict[str, float]:
    """Milliseconds of each question in a SQLite catalog of so many merges, and its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.db"
        url = f"sqlite:///{path}"
        with Catalog.open(url) as catalog:
            fill(catalog, merges)
            found = {name: _median(ask) for name, ask in questions(catalog, url).items()}
        return {**found, "MiB": path.stat().st_size / 2**20}


def _median(ask: Callable[[], object]) -> float:
    taken = []
    while len(taken) < REPEATS and sum(taken) < 3:
        began = time.process_time()
        with suppress(NotFoundError):
            ask()
        taken.append(time.process_time() - began)
    return 1e3 * statistics.median(taken)


def round_bytes(tasks: int) -> int:
    """What the catalog keeps of one round of so many tasks."""
    shares = {f"task{k:05}": round(k / tasks, 4) for k in range(tasks)}
    row = {"loss": 1.2345678901234567, "seconds": 1234.5678901234567}
    return len(json.dumps(row | {"agreement": shares, "kept": shares, "held_back": shares}))
