"""Rounds: who moves the coefficients of a job, from its last checkpoint on if it has one."""

from __future__ import annotations

from collections.abc import Sequence

from tintray.errors import GrownError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.backend import Backend
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.coordinator import Coordinator
from tintray.jobs.engine.fit_checkpoints import Checkpoints, Ownership
from tintray.jobs.engine.worker import Worker
from tintray.jobs.engine.worker_pool import WorkerPool
from tintray.jobs.events import Notice, RoundDone
from tintray.jobs.runs.job_run import JobRun
from tintray.jobs.runs.methods import PreparedJob, correction_rate, start_coefficients
from tintray.numerics.schedules import Rates
from tintray.pools.held_back import MOST, held_back_count
from tintray.storage.catalog.states import JobState
from tintray.tinting.plateau import Plateau
from tintray.tinting.watching import Watch, plan_watch
from tintray.vectors.coefficients import Coefficients

WORTH = 4.0
"""How many times as long as beginning the rounds that are left must take, for more workers."""


def coordinator_for(job: PreparedJob, *, watched: bool = False) -> tuple[Coefficients, Coordinator]:
    """The coefficients of a job at their start, and who moves them.

    ``watched``, the fit looks at held-back agreement and ends in its best state.
    """
    spec, fit = job.spec, job.spec.fit
    start = start_coefficients(spec, job.base.partition.layout, job.facts)
    coefficients = Coefficients(start, spec.merge.bounds)
    members = (job.base, job.backend, job.workers, coefficients)
    watch = watch_of(job) if watched else None
    rate = correction_rate(spec, job.facts)
    return coefficients, make_coordinator(
        spec, *members, fit.rounds, correction_lr=rate, watch=watch
    )


def watch_of(job: PreparedJob) -> Watch | None:
    """When and on what a job's fit is watched; None where nothing may be held back."""
    fit = job.spec.fit
    if fit.held_back == 0:
        return None
    totals = [facts.pool_examples for facts in job.facts.values()]
    held = [held_back_count(total, fit.held_back) or min(total, MOST) for total in totals]
    per_round = fit.batch_size * min(fit.tasks_per_round or len(held), len(held))
    return plan_watch(fit.rounds, per_round, held, fit.window)


def make_coordinator(
    spec: JobSpec,
    base: SplitModel,
    backend: Backend,
    workers: WorkerPool[Worker],
    coefficients: Coefficients,
    rounds: int,
    *,
    correction_lr: float = 0.0,
    watch: Watch | None = None,
) -> Coordinator:
    """Who moves the coefficients of some tasks over so many rounds, as the job's fit says."""
    fit = spec.fit

    def rates(rounds: int) -> Rates:
        return Rates(
            fit.rate(spec.coefficient_lr(len(workers.tasks)), rounds),
            fit.rate(1.0, rounds),
            fit.rate(correction_lr, rounds) if correction_lr else None,
        )

    return Coordinator(
        backend,
        workers.assignment,
        coefficients,
        rates=rates,
        in_turn=fit.updates == "in_turn",
        plateau=Plateau(fit.window, fit.min_delta) if fit.window else None,
        cool_down=fit.schedule == "until_flat",
        draws=workers.draws(),
        watch=watch,
    )


def run_all_rounds(run: JobRun, coordinator: Coordinator, rounds: int) -> None:
    """Run rounds without checkpoints; a stop takes effect at the end of a round."""

    def on_round(event: RoundDone) -> None:
        run.round_done(event)
        run.stopper.check()

    coordinator.fit(rounds, on_round)
    _tell_early_end(run, coordinator, rounds)


def run_rounds_left(run: JobRun, job: PreparedJob, coordinator: Coordinator) -> None:
    """Run the rounds that are left of a job, with checkpoints; those before count as its time."""
    fit = job.spec.fit
    checkpoints = Checkpoints(
        job.store,
        run.catalog,
        Ownership(run.job_id, run.lease.token),
        coordinator,
        job.workers,
        every=fit.checkpoint_every,
        basis=_basis(job),
    )
    done = checkpoints.resume()
    run.seconds[JobState.FITTING.value] = done.seconds
    if done.rounds:
        run.on_event(Notice(f"goes on after round {done.rounds} of {fit.rounds}"))

    def on_round(event: RoundDone) -> None:
        run.round_done(event)
        last = event.round == event.rounds
        if run.stopper.asked or (checkpoints.due(event.round) and not last):
            run.flush()
            run.checkpoint_saved(checkpoints.save(event))
            _look_for_room(run, job, event)
        run.stopper.check()

    coordinator.fit(fit.rounds, on_round, first=done.rounds, seconds=done.seconds)
    _tell_early_end(run, coordinator, fit.rounds)
    best = coordinator.best
    if best is not None and best.rounds != [coordinator.rounds]:
        run.on_event(Notice(f"{_told(best.rounds)} agrees most with the experts: it is kept"))


def _look_for_room(run: JobRun, job: PreparedJob, done: RoundDone) -> None:
    """Raise GrownError where more workers would save more than they cost: beginning again."""
    left = done.seconds / done.round * (done.rounds - done.round)
    begin = sum(run.seconds.get(state, 0.0) for state in ("planning", "preparing"))
    if not run.stopper.asked and left > WORTH * begin and job.workers.outgrown():
        raise GrownError(f"the cluster has room for more workers after round {done.round}")


def _told(rounds: Sequence[int]) -> str:
    """A state of a fit in a few words: that after a round, or the average of several."""
    if len(rounds) == 1:
        return f"the state after round {rounds[0]}"
    return f"the average of the states after rounds {', '.join(map(str, rounds))}"


def _tell_early_end(run: JobRun, coordinator: Coordinator, rounds: int) -> None:
    if coordinator.rounds < rounds:
        run.on_event(Notice(f"agreement stopped growing: ended after round {coordinator.rounds}"))


def _basis(job: PreparedJob) -> dict[str, str]:
    """What the fit stands on, by its content: another base or expert would be another fit."""
    basis = {"the job file": job.spec.digest(), "base": job.base.digest}
    for name, facts in job.facts.items():
        basis[f"tasks.{name}.expert"] = facts.expert_digest
        basis[f"tasks.{name}.pool"] = facts.pool_digest
    return basis
