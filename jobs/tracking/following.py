"""A job while it is told of: what it tells goes on to its tracker, and to Ray's metrics."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tintray.errors import CancelledError, LeaseLostError, printable, shortened
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.settings import CATALOG_VARIABLE
from tintray.jobs.engine.finding import manifest_of
from tintray.jobs.events import Event, JobChecked, Notice, OnEvent, Published
from tintray.jobs.tracking.live import LiveMetrics
from tintray.jobs.tracking.sending import Sender
from tintray.jobs.tracking.tracker import End, TrackedJob, TrackedMerge, Tracker, open_tracker
from tintray.jobs.tracking.values import Curves, figures, parameters
from tintray.storage.artifacts.publish import parse_merge_url

PATIENCE = 60.0
"""Seconds that a job waits at its end for its tracker to take what is left."""
TAKE_FILES = ("mlflow", "wandb")
_REPORT_SECONDS = 300.0
_COMMAND = "from tintray.jobs.cli import main; raise SystemExit(main())"

_log = logging.getLogger(__name__)


@contextmanager
def followed(spec: JobSpec, job_id: str, restarts: int, on_event: OnEvent) -> Iterator[OnEvent]:
    """Tell whoever watches a job also of this: its tracker, and Ray's metrics where Ray runs.

    ``restarts`` is how often the job went on by itself before. However this block ends, the
    tracker hears of it. Nothing that a tracker does ends the job.
    """
    live = LiveMetrics(job_id, spec.name, restarts)
    tracking = spec.tracking
    tracker = None
    if tracking is not None:
        job = TrackedJob(job_id, spec.name, str(spec.store), str(spec.catalog), tracking)
        tracker = Following(job, on_event)

    def tell(event: Event) -> None:
        on_event(event)
        live.take(event)
        if tracker is not None:
            tracker.take(event)

    end: End | None = "failed"
    try:
        yield tell
        end = "finished"
    except (CancelledError, KeyboardInterrupt):
        end = "killed"
        raise
    except LeaseLostError:  # the job and its run are another driver's
        end = None
        raise
    finally:
        live.end()
        if tracker is not None:
            tracker.end(end)


@dataclass
class Following:
    """What of a job's events goes to its tracker, in the thread of a sender."""

    job: TrackedJob
    on_event: OnEvent
    curves: Curves = field(default_factory=Curves)
    sender: Sender | None = None  # from the moment at which the job is known to be one
    told: bool = False  # that something went wrong
    files: TemporaryDirectory[str] | None = None  # what the tracker is given of the merge

    def take(self, event: Event) -> None:
        """Have the tracker told of an event; waits for nothing but the report of a merge."""
        values = self.curves.take(event)
        if isinstance(event, JobChecked) and self.sender is None:
            self.sender = Sender(lambda: open_tracker(self.job))
            self.sender.start()
        if self.sender is None:
            return
        match event:
            case JobChecked():
                names, lineage = parameters(event.job), event.lineage
                self.sender.put(lambda tracker: tracker.begin(names, lineage))
            case Published():
                self._take_published(event.url)
        if values:
            self.sender.put(values)
        self._tell_failure()

    def _take_published(self, url: str) -> None:
        assert self.sender is not None, "a job is checked before it is published"
        self.files = TemporaryDirectory(prefix="tintray-tracking-")
        folder, step = Path(self.files.name), self.curves.last
        if self.sender.failure is None and self.job.spec.tracker in TAKE_FILES:
            _write_report(self.job, url, folder / "report.html")
        self.sender.put(lambda tracker: _publish(url, step, folder, tracker))

    def end(self, how: End | None) -> None:
        """Have the run closed, and wait for what is left; not long where nobody answers."""
        if self.sender is None:
            return
        if how is not None:
            self.sender.put(lambda tracker: tracker.end(how))
        whole = self.sender.close(PATIENCE if how else 0.0)
        if self.files is not None:
            self.files.cleanup()
        self._tell_failure()
        if not whole and how:
            self.on_event(Notice(f"{self.job.spec.tracker} did not take all that was told of it"))

    def _tell_failure(self) -> None:
        if self.sender is None or self.told or (why := self.sender.failure) is None:
            return
        self.told = True
        tracker = self.job.spec.tracker
        self.on_event(
            Notice(f"{tracker} does not take what it is told ({printable(why)}); the job goes on")
        )


def _publish(url: str, step: int, folder: Path, tracker: Tracker) -> None:
    """Give a tracker the figures and files of a merge: its manifest, and what is in a folder."""
    manifest = manifest_of(*parse_merge_url(url))
    written = json.dumps(manifest.to_json(), indent=2)
    (folder / "merge.json").write_text(written, encoding="utf-8")
    files = sorted(folder.iterdir())
    tracker.published(TrackedMerge(manifest.ref, url, figures(manifest), files), step)


def _write_report(job: TrackedJob, url: str, report: Path) -> None:
    """Write the report of a merge, in a process of its own; without it the job is as good."""
    # The URL of a catalog may have a password: it goes no way on which others can read it.
    environment = {**os.environ, CATALOG_VARIABLE: job.catalog, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", _COMMAND, "report", url, "-o", str(report)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_REPORT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.warning("the tracker gets no report: %s", error)
        return
    if done.returncode:
        _log.warning("the tracker gets no report: %s", shortened(printable(done.stderr.strip())))
