"""Which self-labels a job asks for: those that a fit draws or holds back, or whole pools."""

from __future__ import annotations

from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.configs import TaskFacts
from tintray.pools.held_back import held_back_count


def drawn(spec: JobSpec) -> int | None:
    """How many examples of each task a fit draws in the mean, beside those it holds back.

    None where a pool is needed as a whole:

    * ``objective.filter: top_p`` compares the expert's answers over the pool;
    * ``objective.feature_weight`` divides by the variance of its features over the pool;
    * ``tint.bits`` 8 and 4 are judged on the first examples of the pool.

    A task needs all of its pool, in float32, where the merge is measured on it, since there is no
    test set; where some examples are read with their label; and where the expert writes texts for
    it. So do operations other than a fit, which compare in float32 and may come later, without the
    expert: comparison, merging methods, growth, and site search with the fit that follows. A pool
    of which nothing is held back, since it is small, is watched as a whole.
    """
    fit, objective = spec.fit, spec.objective
    whole = objective.filter == "top_p" or objective.feature_weight > 0
    if not spec.merge.learned or whole or (spec.tint.bits or 32) < 16:
        return None
    if fit.sampling == "even":
        return fit.rounds * fit.batch_size
    taking_part = min(fit.tasks_per_round or len(spec.tasks), len(spec.tasks))
    return max(1, fit.rounds * fit.batch_size * taking_part // len(spec.tasks))


def first_drawn(spec: JobSpec) -> int | None:
    """How many of them are asked for at first: half, where some tasks draw less than others."""
    count = drawn(spec)
    return count if count is None or spec.fit.sampling == "even" else max(1, count // 2)


def expected(spec: JobSpec, facts: TaskFacts) -> int:
    """How many examples of a task's pool its expert will be asked for, as far as is known."""
    count, total = drawn(spec), facts.pool_examples
    if count is None or not facts.test_examples:
        return total
    return min(total, held_back_count(total, spec.fit.held_back) + count)
