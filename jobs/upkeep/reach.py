"""What the nodes of a cluster reach: asked here, told there.

``reached`` submits ``python -m tintray.jobs.upkeep.reach STORE`` as a job of Ray, which runs as a
driver of tintray would: it looks at the catalog, and lets every node look at store and catalog.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any
from uuid import uuid4

from tintray.errors import TintrayError
from tintray.jobs.engine.backend import Placement, open_backend
from tintray.jobs.queue.driving import open_catalog
from tintray.jobs.queue.handover import entrypoint, environment
from tintray.jobs.queue.ray_jobs import RayJobs
from tintray.jobs.upkeep.results import Check
from tintray.storage.artifacts.store import open_store
from tintray.storage.artifacts.urls import local_folder
from tintray.storage.secrets import redact

SECONDS = 120.0  # in which a cluster starts a driver, and each node a process
_POLL = 0.3
_MARK = "reached: "


def reached(jobs: RayJobs, store: str, catalog: str) -> Iterator[Check]:
    """Which tintray a cluster has, and whether it reaches a store and a catalog.

    Raises ClusterError: it takes no job, or does not answer any more.
    """
    name = f"tintray-doctor-{uuid4().hex[:8]}"
    jobs.submit(entrypoint("tintray.jobs.upkeep.reach", store), name, environment(catalog))
    until = time.monotonic() + SECONDS
    while (found := jobs.find(name)) is None or not found.over:
        if time.monotonic() > until:
            jobs.stop(name)
            said = f"no driver has answered within {SECONDS:.0f} s"
            yield Check("driver", False, said, f"look at {jobs.address}: are its CPUs taken?")
            return
        time.sleep(_POLL)
    lines = (jobs.logs(name) or found.message).strip().splitlines()
    told = [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]
    if not told:
        fix = "install tintray there at the path that it has here, or set TINTRAY_PYTHON"
        yield Check("driver", False, redact(lines[-1]) if lines else "it said nothing", fix)
        return
    yield from _checks(json.loads(told[-1]), store)


def _checks(told: Mapping[str, Any], store: str) -> Iterator[Check]:
    mine, nodes = version("tintray"), told["nodes"]
    others = sorted({node["tintray"] for node in nodes} - {mine})
    fix = f"install tintray {mine} on every node" if others else None
    yield Check("tintray there", not others, ", ".join(others) or f"{mine} on every node", fix)
    yield _checked("catalog there", told["catalog"], _reached_by(nodes))
    wrong = [f"{node['node']}: {node['store']}" for node in nodes if node["store"]]
    reached_by = "its one node reaches" if len(nodes) == 1 else f"all {len(nodes)} nodes reach"
    yield _checked("store there", wrong[0] if wrong else None, f"{reached_by} {store}")


def _reached_by(nodes: Sequence[Mapping[str, Any]]) -> str:
    """Who reaches the catalog, where drivers do: a job needs it on no other node."""
    away = [node for node in nodes if node["catalog"]]
    if not away:
        return "its one node reaches it" if len(nodes) == 1 else f"all {len(nodes)} nodes reach it"
    others = f"{len(away)} of {len(nodes)} nodes do not, and could run no driver"
    return f"the node of drivers reaches it; {others}: {away[0]['node']}: {away[0]['catalog']}"


def _checked(name: str, problem: str | None, well: str) -> Check:
    return Check(name, True, well) if problem is None else Check.failed(name, problem)


# There


class Node:
    """A process on one node, which looks around."""

    def look(self, store: str) -> dict[str, str | None]:
        """The node's name, its tintray, and why it does not reach store or catalog, if so."""
        told = {"node": platform.node(), "tintray": version("tintray")}
        return {**told, "store": _problem_of_store(store), "catalog": _problem_of_catalog()}


def _problem_of_store(store: str) -> str | None:
    folder = local_folder(store)
    if folder is not None and not folder.is_dir():
        return f"there is no folder {folder}; mount it there, or name an s3:// store"
    try:
        open_store(store).check_writable()
    except TintrayError as error:
        return redact(str(error))
    return None


def _problem_of_catalog() -> str | None:
    try:
        catalog, _ = open_catalog()
    except TintrayError as error:
        return redact(str(error))
    catalog.close()
    return None


def main() -> int:
    """Look from each node of the cluster that this runs on, and print what was found."""
    backend = open_backend(address="auto", workers=1, threads=0, plan=0)
    try:
        count = backend.capacity().nodes
        nodes = [backend.spawn(Placement(f"doctor {n + 1}"), Node) for n in range(count)]
        told = backend.get([node.call(Node.look, sys.argv[1]) for node in nodes])
    finally:
        backend.close()
    print(_MARK + json.dumps({"catalog": _problem_of_catalog(), "nodes": told}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
