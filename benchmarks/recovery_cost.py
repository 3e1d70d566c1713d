"""What a fit pays for being able to recover, when nothing fails.

    python -m benchmarks.recovery_cost JOB.yaml [--rounds 200] [--block 20] [--set KEY=VALUE]

One fit runs in blocks of rounds, in turn with and without all that recovery needs: checkpoints (one
in each block that has them, far more often than the one a minute that a job writes by itself), the
renewal of the lease, and the look for a request to stop. Rounds after which the fit looks at
held-back agreement are left out: they are few, and longer. Time is that of the processor, of all
threads of this process, since other processes may be at work: with ``cluster.workers: 0`` that is
all of the fit. Blocks on a busy machine differ by several percent. So the median round of both
sorts is told too, of hundreds; and what these parts take by their own clocks, with one checkpoint a
minute.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tintray
from tintray.jobs.engine.fit_checkpoints import INTERVAL, Checkpoints
from tintray.jobs.events import RoundDone
from tintray.storage.catalog.leases import Leases
from tintray.storage.catalog.queue import Queue


@dataclass
class Meter:
    """Whether recovery is on in the block that runs, and what was measured of each."""

    block: int
    on: bool = True
    saves: list[float] = field(default_factory=list)  # processor seconds of each checkpoint
    beats: list[float] = field(default_factory=list)  # of each word with the catalog
    rounds: list[tuple[float, float]] = field(default_factory=list)  # of this block
    each: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    blocks: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    walls: list[float] = field(default_factory=list)
    began: tuple[float, float] = (0.0, 0.0)

    def hear(self, event: object) -> None:
        """Note a round, and end a block with its last; the first block warms up."""
        if not isinstance(event, RoundDone):
            return
        if not event.held_back:
            now = time.process_time(), time.perf_counter()
            self.rounds.append((now[0] - self.began[0], now[1] - self.began[1]))
        if not event.round % self.block:
            if event.round > self.block:
                self.each[self.on] += [processor for processor, _ in self.rounds]
                processor, wall = (statistics.mean(of) for of in zip(*self.rounds, strict=True))
                self.blocks[self.on].append(processor)
                self.walls.append(wall)
            self.rounds.clear()
            self.on = not self.on
        self.began = time.process_time(), time.perf_counter()

    def due(self, _: Checkpoints, round_: int) -> bool:
        """One checkpoint in each block with recovery, at its middle."""
        return self.on and round_ % self.block == self.block // 2

    def timed(self, kept: list[float], call: Callable[..., Any], clock: Callable[[], float]) -> Any:
        """The same call, done only where recovery is on, and timed."""

        def timed(*args: Any, **options: Any) -> Any:
            if not self.on:
                return None
            began = clock()
            try:
                return call(*args, **options)
            finally:
                kept.append(clock() - began)

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description="What recovery costs when nothing fails.")
    parser.add_argument("job", type=Path)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--block", type=int, default=20)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    fixed = [f"fit.rounds={given.rounds}", "cluster.workers=0", "fit.floor=false"]
    spec = tintray.load_spec(given.job, (*fixed, *given.overrides))
    meter = Meter(given.block)
    beat, save = time.thread_time, time.process_time
    with (
        patch.object(Checkpoints, "due", lambda self, round_: meter.due(self, round_)),
        patch.object(Checkpoints, "save", meter.timed(meter.saves, Checkpoints.save, save)),
        patch.object(Leases, "renew", meter.timed(meter.beats, Leases.renew, beat)),
        patch.object(Queue, "stop_requested", meter.timed(meter.beats, Queue.stop_requested, beat)),
    ):
        tintray.run(spec, on_event=meter.hear)
    report(meter)


def report(meter: Meter) -> None:
    """Print what was measured."""
    with_, without = (statistics.median(meter.blocks[on]) for on in (True, False))
    median = {on: statistics.median(of) for on, of in meter.each.items()}
    spread = statistics.pstdev(meter.blocks[False]) / without
    save = statistics.median(meter.saves)
    # As a job runs: a word with the catalog each second, a renewal four times in a lease's length,
    # and a checkpoint each minute; both clocks run at the pace of this machine.
    minute = 60 * without / statistics.median(meter.walls)  # processor seconds of rounds in one
    beats = 64 * statistics.median(meter.beats)
    per_minute = save * 60 / INTERVAL + beats
    result = {
        "blocks": len(meter.blocks[True]),
        "round_s": without,
        "with_recovery_s": with_,
        "interleaved_share": with_ / without - 1,
        "median_round_share": median[True] / median[False] - 1,
        "spread": spread,
        "checkpoint_s": save,
        "beats_s_per_minute": beats,
        "share": per_minute / minute,
    }
    print(
        f"a round: {without:.4f} s, with recovery {with_:.4f} s, in {result['blocks']} blocks each "
        f"of {meter.block} rounds with a checkpoint; spread of blocks {spread:.1%}"
    )
    print(
        f"the median of {len(meter.each[True])} rounds with recovery takes "
        f"{result['median_round_share']:+.2%} of one of {len(meter.each[False])} without"
    )
    print(
        f"a checkpoint: {save:.3f} s; heartbeats: {beats:.3f} s a minute; together "
        f"{result['share']:.2%} of a fit"
    )
    print(json.dumps({name: round(value, 5) for name, value in result.items()}))


if __name__ == "__main__":
    main()
