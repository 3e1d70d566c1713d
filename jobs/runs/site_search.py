"""``tint.sites: auto``: find the module to tint, by trials on the job's own workers.

The result is an artifact under the hash of the job and of all that it stands on: a job that is
resumed, or run again, finds it and tries nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.backend import Backend, as_argument
from tintray.jobs.engine.base_model import load_base_model
from tintray.jobs.engine.worker import Worker
from tintray.jobs.events import Notice, OnEvent
from tintray.jobs.runs.fitting import coordinator_for
from tintray.jobs.runs.methods import PreparedJob, start_coefficients
from tintray.numerics.sites import HEAD
from tintray.storage.artifacts.blobs import get_blob
from tintray.storage.artifacts.cache import lookup, remember
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.tasks.evaluation import mean
from tintray.tinting.site_search import (
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


def at(spec: JobSpec, site: str) -> JobSpec:
    """The same job, tinted there."""
    return spec.changed(tint={"sites": site})


def find_site(
    spec: JobSpec, backend: Backend, store: ArtifactStore, on_event: OnEvent
) -> tuple[JobSpec, dict[str, Any]]:
    """The job of ``tint.sites: auto`` with its site found, and the report; see the module.

    Raises SpecError if no site fits the job's budget of parameters.
    """
    job = _prepared(at(spec, HEAD), backend, store)
    sites = candidates(job.base.partition.module, spec.tint.most_numbers(job.base.parameters))
    key = _key(spec, job)
    known = lookup(store, "placements", key)
    if known is not None:
        report: dict[str, Any] = json.loads(get_blob(store, known.sha256))
        job.workers.dismiss()
        on_event(Notice(f"tint.sites: {report['site']}, as an earlier search has found"))
        return at(spec, report["site"]), report
    report = _search(spec, job, sites, on_event)
    remember(store, "placements", key, json.dumps(report, sort_keys=True).encode())
    on_event(Notice(_told(report)))
    return at(spec, report["site"]), report


def _search(
    spec: JobSpec, job: PreparedJob, sites: Sequence[Site], on_event: OnEvent
) -> dict[str, Any]:
    """Try all sites, and those that stand longer and longer; ``job``'s workers are dismissed."""
    started = time.perf_counter()
    trials = _first_trials(job, sites)
    job.workers.dismiss()
    standing = list(trials)
    for number, rung in enumerate(rungs(len(sites), spec.fit.rounds), start=1):
        names = ", ".join(trial.site for trial in standing[: rung.survivors])
        on_event(Notice(f"tint.sites: probing {names} for {rung.rounds} rounds"))
        standing = [
            _short_fit(spec, trial, number, rung.rounds, job.backend, job.store)
            for trial in survivors(standing, rung.survivors)
        ]
        trials += standing
    passes = sum(trial.passes for trial in trials)
    rounds, batch_size = spec.fit.rounds, spec.fit.batch_size
    exhaustive = exhaustive_passes(len(sites), rounds, batch_size, len(spec.tasks))
    return {
        "site": survivors(standing, 1)[0].site,
        "ranking": [asdict(trial) for trial in ranking(trials)],
        "passes": passes,  # of examples, that were spent
        "exhaustive_passes": exhaustive,  # that whole fits of all candidates would take
        "cost_share": passes / exhaustive,
        "seconds": time.perf_counter() - started,
    }


def _first_trials(job: PreparedJob, sites: Sequence[Site]) -> list[Trial]:
    """Tint layers alone, of every task at every site, wherever the tasks are hosted."""
    spec, layout = job.spec, job.base.partition.layout
    pieces = job.workers.assignment.shards.merge(start_coefficients(spec, layout, job.facts))
    theta = list(map(as_argument, pieces))
    steps = first_steps(spec.fit.rounds)
    asked = [job.workers.each(None, Worker.try_site, site.name, steps, *theta) for site in sites]
    trials = []
    for site, of_site in zip(sites, map(job.backend.get, asked), strict=True):
        each, passes = zip(*of_site, strict=True)
        trials.append(Trial(site.name, site.parameters, 0, mean(each), each, sum(passes)))
    return survivors(trials, len(trials))


def _short_fit(
    spec: JobSpec, trial: Trial, rung: int, rounds: int, backend: Backend, store: ArtifactStore
) -> Trial:
    """A fit that only tries something: nobody is told of its rounds."""
    short = at(spec, trial.site).changed(fit={"rounds": rounds, "warmup": 0})
    job = _prepared(short, backend, store)
    _, coordinator = coordinator_for(job)
    coordinator.fit(rounds, lambda event: None)
    theta = list(map(as_argument, coordinator.theta()))
    each = backend.get(job.workers.each(None, Worker.agreement, _JUDGED, *theta))
    job.workers.dismiss()
    passes = float(rounds * spec.fit.batch_size * len(spec.tasks))
    return Trial(trial.site, trial.parameters, rung, mean(each), tuple(each), passes)


def _prepared(spec: JobSpec, backend: Backend, store: ArtifactStore) -> PreparedJob:
    job = PreparedJob.of(spec, load_base_model(spec), backend, store)
    job.load_directions()
    return job


def _key(spec: JobSpec, job: PreparedJob) -> str:
    """Of all that the search depends on."""
    parts = [spec.digest(), job.base.digest]
    parts += [f"{f.expert_digest} {f.pool_digest}" for f in job.facts.values()]
    return hashlib.sha256("\n".join(["placement 1", *parts]).encode()).hexdigest()


def _told(report: Mapping[str, Any]) -> str:
    best, *others = (Trial(**trial) for trial in report["ranking"])
    rest = ", ".join(f"{trial.site} {trial.agreement:.1%}" for trial in others[:3])
    return (
        f"tint.sites: {report['site']} ({best.agreement:.1%} agreement after "
        f"{'a short fit' if best.rung else 'a first trial'}{f'; then {rest}' if rest else ''}), "
        f"found at {report['cost_share']:.0%} of the cost of fitting every site"
    )
