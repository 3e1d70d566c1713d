"""``tint.site: auto``: find the module to tint, by probes on the job's own fleet.

The result is an artifact under the hash of the job and of all that it stands on: a job that is
resumed, or run again, finds it and probes nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.backend import Backend, as_argument
from tintray.jobs.engine.base_model import load_base_model
from tintray.jobs.engine.worker import Worker
from tintray.jobs.engine.worker_pool import WorkerPool
from tintray.jobs.events import Notice, OnEvent
from tintray.jobs.runs.methods import PreparedJob, start_coefficients
from tintray.models.structure import HEAD
from tintray.storage.artifacts.blobs import get_blob
from tintray.storage.artifacts.cache import lookup, remember
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.tasks.evaluation import mean
from tintray.tinting.site_search import (
    AUTO,
    Site,
    Trial,
    candidates,
    exhaustive_passes,
    first_steps,
    ranking,
    rungs,
    survivors,
)

_JUDGED = 256  # pool examples per task by which a short fit is judged

Fit = Callable[[PreparedJob, int], Any]
"""Runs so many rounds of a stage's job; answers with its coordinator."""


@dataclass(frozen=True)
class Placement:
    """Where to tint, and how that was found.

    Attributes
    ----------
    probes
        Every probe, in order.
    passes, exhaustive_passes
        Image passes that were spent, and that whole fits of all candidates would take.
    """

    site: str
    probes: tuple[Trial, ...]
    passes: float
    exhaustive_passes: float
    seconds: float

    @property
    def cost_share(self) -> float:
        """What was spent, of what an exhaustive search would."""
        return self.passes / self.exhaustive_passes

    def to_json(self) -> dict[str, Any]:
        """The report, for a manifest: the ranking and the cost."""
        return {
            "site": self.site,
            "ranking": [asdict(probe) for probe in ranking(self.probes)],
            "passes": self.passes,
            "exhaustive_passes": self.exhaustive_passes,
            "cost_share": self.cost_share,
            "seconds": self.seconds,
        }


def at(spec: JobSpec, site: str) -> JobSpec:
    """The same job, tinted there."""
    return spec.changed(tint={"site": site})


def place(
    spec: JobSpec, fleet: Backend, store: ArtifactStore, fit: Fit, on_event: OnEvent
) -> tuple[JobSpec, dict[str, Any]]:
    """The job with its site found, and the report; see the module.

    Raises
    ------
    SpecError
        If no site fits the job's budget of parameters.
    """
    assert spec.tint.site == AUTO
    stage = _staged(at(spec, HEAD), fleet, store)
    sites = candidates(stage.ground.partition.module, spec.tint.max_parameters)
    key = _key(spec, stage)
    found = lookup(store, "placements", key)
    if found is not None:
        report: dict[str, Any] = json.loads(get_blob(store, found.ref.sha256))
        stage.crew.dismiss()
        on_event(Notice(f"tint.site: {report['site']}, as an earlier search has found"))
        return at(spec, report["site"]), report
    placement = _search(spec, stage, sites, fleet, store, fit, on_event)
    report = placement.to_json()
    remember(store, "placements", key, json.dumps(report, sort_keys=True).encode(), {})
    on_event(Notice(_told(placement)))
    return at(spec, placement.site), report


def _search(
    spec: JobSpec,
    stage: PreparedJob,
    sites: Sequence[Site],
    fleet: Backend,
    store: ArtifactStore,
    fit: Fit,
    on_event: OnEvent,
) -> Placement:
    started = time.perf_counter()
    probes = _first_probes(stage, sites, fleet)
    stage.crew.dismiss()
    standing = list(probes)
    for number, rung in enumerate(rungs(len(sites), spec.fit.rounds), start=1):
        on_event(Notice(f"tint.site: probing {', '.join(p.site for p in standing[:rung.survivors])}"
                        f" for {rung.rounds} rounds"))  # fmt: skip
        standing = [
            _short_fit(spec, probe, number, rung.rounds, fleet, store, fit)
            for probe in survivors(standing, rung.survivors)
        ]
        probes += standing
    return Placement(
        site=survivors(standing, 1)[0].site,
        probes=tuple(probes),
        passes=sum(probe.passes for probe in probes),
        exhaustive_passes=exhaustive_passes(
            len(sites), spec.fit.rounds, spec.fit.batch_size, len(spec.tasks)
        ),
        seconds=time.perf_counter() - started,
    )


def _first_probes(stage: PreparedJob, sites: Sequence[Site], fleet: Backend) -> list[Trial]:
    """Tint layers alone, of every task at every site, wherever the tasks are hosted."""
    spec, layout = stage.spec, stage.ground.partition.layout
    pieces = stage.crew.assignment.shards.merge(start_coefficients(spec, layout, stage.facts))
    theta = list(map(as_argument, pieces))
    tasks = stage.crew.assignment.hosts
    refs = [
        worker.call(Worker.probe, name, site.name, first_steps(spec.fit.rounds), *theta)
        for site in sites
        for name, worker in tasks.items()
    ]
    found = fleet.get(refs)
    probes = []
    for index, site in enumerate(sites):
        mine = found[index * len(tasks) : (index + 1) * len(tasks)]
        each = tuple(agreement for agreement, _ in mine)
        passes = sum(passes for _, passes in mine)
        probes.append(Trial(site.name, site.parameters, 0, mean(each), each, passes))
    return survivors(probes, len(probes))


def _short_fit(
    spec: JobSpec,
    probe: Trial,
    rung: int,
    rounds: int,
    fleet: Backend,
    store: ArtifactStore,
    fit: Fit,
) -> Trial:
    short = at(spec, probe.site).changed(fit={"rounds": rounds, "warmup": 0})
    stage = _staged(short, fleet, store)
    coordinator = fit(stage, rounds)
    theta = list(map(as_argument, coordinator.theta()))
    workers = stage.crew.assignment.hosts.items()
    each = fleet.get([w.call(Worker.agreement, name, _JUDGED, *theta) for name, w in workers])
    stage.crew.dismiss()
    passes = float(rounds * spec.fit.batch_size * len(spec.tasks))
    return Trial(probe.site, probe.parameters, rung, mean(each), tuple(each), passes)


def _staged(spec: JobSpec, fleet: Backend, store: ArtifactStore) -> PreparedJob:
    ground = load_base_model(spec)
    crew = WorkerPool(Worker, fleet, spec, ground)
    facts = crew.check()
    stage = PreparedJob(
        spec, ground, fleet, crew, store, facts, crew.prepare(store, lambda done: None)
    )
    stage.aim()
    return stage


def _key(spec: JobSpec, stage: PreparedJob) -> str:
    """Of all that the search depends on."""
    parts = [spec.digest(), stage.ground.digest]
    parts += [f"{f.expert_digest} {f.pool_digest}" for f in stage.facts.values()]
    return hashlib.sha256("\n".join(["placement 1", *parts]).encode()).hexdigest()


def _told(placement: Placement) -> str:
    best = ranking(placement.probes)
    others = ", ".join(f"{p.site} {p.agreement:.1%}" for p in best[1:4])
    rest = f"; then {others}" if others else ""
    return (
        f"tint.site: {placement.site} ({best[0].agreement:.1%} agreement after "
        f"{'a short fit' if best[0].rung else 'a first probe'}{rest}), found at "
        f"{placement.cost_share:.0%} of the cost of fitting every site"
    )
