"""One row of a table: a job, run and measured; kept under its settings, the code and the data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tintray
from benchmarks.kept import Kept, code_hash
from benchmarks.quality.sampling import sampling_error
from benchmarks.quality.zoos import Zoo, data_hash, held_back
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.events import PhaseStarted


@dataclass(frozen=True)
class Measured:
    """What a merge keeps: shares of 1, by task; processor seconds of its fit.

    ``share`` is what a task owns over the backbone, in numbers and with its head; ``tint_bytes``
    the mean size of its file. ``sampling`` is the standard deviation of the normalised accuracy if
    other test examples had been drawn; None where it was not asked for.
    """

    accuracy: float | None
    normalised: Mapping[str, float]
    agreement: Mapping[str, float]
    share: float
    tint_bytes: int
    seconds: float
    rounds: int
    merge: str = ""
    sampling: float | None = None
    notices: Sequence[str] = field(default_factory=tuple)

    @property
    def kept(self) -> float:
        """Normalised accuracy: the mean over tasks."""
        return sum(self.normalised.values()) / len(self.normalised)

    @property
    def agreed(self) -> float:
        """The mean agreement with the experts."""
        return sum(self.agreement.values()) / len(self.agreement)


@dataclass(frozen=True)
class Bench:
    """Where zoos are, and where everything that is measured is kept."""

    zoos: Path
    store: Path
    rounds: int | None = None  # of every fit; None is what the row or the default says

    @cached_property
    def kept(self) -> Kept:
        """What was measured before."""
        return Kept(self.store)

    def spec(
        self, zoo: Zoo, overrides: Sequence[str], seed: int, *, trial: bool = False
    ) -> JobSpec:
        """The job of a row; as a trial, on parts of the pools."""
        own = (f"store={self.store}", f"catalog=sqlite:///{self.store}/catalog.db")
        rounds = (f"fit.rounds={self.rounds}",) if self.rounds else ()
        spec = zoo.spec(self.zoos, (f"fit.seed={seed}", *overrides, *rounds, *own))
        return held_back(spec) if trial else spec

    def run(
        self, zoo: Zoo, overrides: Sequence[str], seed: int = 0, *, trial: bool = False
    ) -> Measured:
        """One job, or what a call before this one kept of it."""
        spec = self.spec(zoo, overrides, seed, trial=trial)
        key = self.key(spec, f"{zoo.name} {'trial' if trial else 'row'}")
        rounds = f" rounds={self.rounds}" if self.rounds else ""
        note = f"{zoo.name} {' '.join(overrides)} seed={seed}{rounds}{' trial' * trial}"
        found = self.kept.once(key, note, lambda: asdict(run_job(spec, sampled=not trial)))
        return Measured(**found)

    def placement(self, zoo: Zoo, overrides: Sequence[str]) -> dict[str, Any]:
        """What a job that looks for its site says of the search."""
        spec = self.spec(zoo, overrides, 0)
        key = self.key(spec, f"{zoo.name} placement")
        found: dict[str, Any] = self.kept.once(
            key, f"{zoo.name} placement", lambda: tintray.run(spec).manifest.placement
        )
        return found

    @staticmethod
    def key(spec: JobSpec, what: str, *modules: str) -> str:
        """What a result depends on: the job, the program with ``modules``, models and data."""
        return f"{what} {spec.digest()} {code_hash(*modules)} {data_hash(spec)}"


def run_job(spec: JobSpec, *, sampled: bool) -> Measured:
    """Run a job in this process; ``sampled``: also draw its test examples again."""
    began: dict[str, float] = {}

    def on_event(event: object) -> None:
        if isinstance(event, PhaseStarted):
            began[event.phase] = time.process_time()

    merge = tintray.run(spec, on_event=on_event)
    found = merge.summary()
    normalised = {t.name: t.normalised for t in found.tasks if t.normalised is not None}
    return Measured(
        accuracy=found.average,
        normalised=normalised,
        agreement={task.name: task.agreement for task in found.tasks},
        share=found.tint_share,
        tint_bytes=found.tint_bytes,
        seconds=began["evaluating"] - began["fitting"],
        rounds=found.rounds,
        merge=f"{found.name}/{found.version}",
        sampling=sampling_error(merge.url, str(spec.store), list(normalised)) if sampled else None,
        notices=found.notices,
    )
