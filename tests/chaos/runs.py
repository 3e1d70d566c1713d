"""One job after another, each with some faults; what became of them, and what was left behind."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from tests.chaos.faults import FAULTS
from tests.chaos.jobs import GROWN, Begun, Sorts, wait_a_little
from tests.chaos.progress import Place, Progress, newest
from tests.chaos.world import World, tended
from tests.growing import hashes
from tintray.jobs.queue.submission import resume
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.states import JobState

MOST = 8  # faults of one job
GAP = (0.5, 8.0)  # seconds between two of them: a job may still be busy with the one before
ENDS = 900.0  # seconds that a job may take after its last fault
SOON = 60.0  # within half of which a job meets its first fault, however long it takes
USUAL = 20.0  # that a job takes, where nobody has looked
AGAIN = 120.0  # seconds after which a server answers again

Say = Callable[[dict[str, Any]], None]


@dataclass
class Tally:
    """What came of all jobs."""

    faults: int = 0
    jobs: int = 0
    lost: int = 0
    wrong: int = 0
    by_hand: int = 0
    unanswered: int = 0  # faults after which the server did not answer again
    seconds: list[float] = field(default_factory=list)  # lost by each fault
    round_seconds: float = 0.0  # of an undisturbed fit


def run(
    world: World,
    plan: Sequence[tuple[str, Sequence[str]]],
    seed: int,
    say: Say,
    *,
    compared: bool = True,
    until: float | None = None,
) -> Tally:
    """Run jobs of these sorts, each with the faults that it is to meet; none begins after then.

    ``compared``, a fit runs undisturbed first, to tell how long its rounds take.
    """
    tally, random = Tally(), Random(seed)
    sorts = Sorts(world)
    serving = any("kill replica" in faults for _, faults in plan)
    kinds = {sort for sort, _ in plan} | ({"fit"} if compared else set())
    sorts.prepare(sorted(kinds), grown=serving)
    if serving:
        image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).tolist()
        world.serving.start("grown/v1", {"inputs": [{"task": "two", "array": image}]})
    with tended(world):
        length = USUAL
        if compared:
            length, tally.round_seconds = _undisturbed(world, sorts, say)
        for sort, faults in plan:
            left = list(faults)
            while left and (until is None or time.monotonic() < until):
                left = _disturb(world, sorts, sort, left, length, random, tally, say)
    return tally


def _watched(world: World, sorts: Sorts, sort: str) -> tuple[Begun, Progress]:
    before = newest(world, "grown") if sort in GROWN else None
    began = time.monotonic()
    job = sorts.begin(sort)
    return job, Progress(world, job.name, began, after=before)


def _undisturbed(world: World, sorts: Sorts, say: Say) -> tuple[float, float]:
    """How long a fit takes that nothing happens to, and a round of it."""
    job, progress = _watched(world, sorts, "fit")
    _wait_for_end(job, progress, ENDS)
    progress.close()
    assert progress.state is JobState.SUCCEEDED, f"an undisturbed fit: {progress.reason}"
    assert _published(world, progress) == sorts.expected["fit"], "an undisturbed fit: other bytes"
    rounds = [(at, round_) for at, (_, round_) in progress.passed if round_]
    (first, low), (last, high) = rounds[0], rounds[-1]
    each, took = (last - first) / max(1, high - low), progress.passed[-1][0] - progress.began
    say({"undisturbed": "fit", "seconds": round(took, 1), "round_seconds": round(each, 3)})
    return took, each


def _disturb(
    world: World,
    sorts: Sorts,
    sort: str,
    faults: Sequence[str],
    length: float,
    random: Random,
    tally: Tally,
    say: Say,
) -> list[str]:
    """One job and its faults; those that it ended too early for."""
    if mended := world.cluster.mend():
        say({"brought back": mended})
    job, progress = _watched(world, sorts, sort)
    met: list[tuple[str, float, Place, str]] = []
    left = list(faults)
    wait_a_little(progress.began + random.uniform(0, min(length, SOON) / 2))
    while left and not progress.over:
        name = left.pop(0)
        moment, place = time.monotonic(), progress.place
        hit = FAULTS[name](world, random)
        if hit is None:
            say({"fault": name, "sort": sort, "hit": "nothing"})
            continue
        tally.faults += 1
        met.append((name, moment, place, hit))
        wait_a_little(time.monotonic() + random.uniform(*GAP))
    _wait_for_end(job, progress, ENDS)
    tally.jobs += 1
    _judge(world, sorts, job, progress, tally, say)
    progress.close()
    for name, moment, place, hit in met:
        took = _lost(progress, moment, place)
        tally.seconds.append(took)
        say({"fault": name, "sort": sort, "at": place, "hit": hit, "seconds_lost": round(took, 1),
             "job": progress.job_id, "ended": str(progress.state)})  # fmt: skip
    if world.serving.runs and not world.serving.answers(AGAIN):
        tally.unanswered += 1
        say({"server": "does not answer", "after": list(faults)})
    return left


def _judge(
    world: World, sorts: Sorts, job: Begun, progress: Progress, tally: Tally, say: Say
) -> None:
    if progress.state is not JobState.SUCCEEDED:
        say({"job": progress.job_id, "state": str(progress.state), "reason": progress.reason})
        if job.command is not None:
            said = (world.folder / "commands.log").read_text(errors="replace")
            say({"job": progress.job_id, "command": job.command.poll(), "said": said[-2000:]})
        tally.lost += 1
        if job.command is None and progress.job_id is not None:
            try:
                catalog = world.postgres.url(through=False)
                resume(progress.job_id, catalog=catalog, address=world.cluster.address)
            except Exception as error:  # noqa: BLE001 - it is told, and the run goes on
                say({"job": progress.job_id, "resume": str(error)})
                return
            _wait_for_end(job, progress, ENDS)
            if progress.state is JobState.SUCCEEDED:
                tally.lost, tally.by_hand = tally.lost - 1, tally.by_hand + 1
    if progress.state is JobState.SUCCEEDED:
        found = _published(world, progress)
        if found != sorts.expected[job.sort]:
            tally.wrong += 1
            expected = sorts.expected[job.sort]
            differ = sorted(n for n in found | expected if found.get(n) != expected.get(n))
            say({"job": progress.job_id, "wrong": differ})


def _wait_for_end(job: Begun, progress: Progress, seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while not progress.over and time.monotonic() < give_up:
        if job.command is not None and job.command.poll() is not None:
            time.sleep(1)  # what it has entered is seen by now
            break
        time.sleep(0.1)
    if job.command is not None:
        if job.command.poll() is None and not progress.over:
            job.command.kill()
        job.command.wait(60)


def _published(world: World, progress: Progress) -> dict[str, str]:
    assert progress.job_id is not None
    with Catalog.open(world.postgres.url(through=False)) as catalog:
        merge = catalog.merges.of_job(progress.job_id)
        assert merge is not None
        return hashes(catalog.merges.find(merge).url)


def _lost(progress: Progress, moment: float, place: Place) -> float:
    """Seconds until the job was further than at the fault: what it lost, and no less."""
    beyond = progress.when_beyond(place)
    return 0.0 if beyond is None else beyond - moment


def median(values: Sequence[float]) -> float:
    """0 where there is none."""
    return statistics.median(values) if values else 0.0
