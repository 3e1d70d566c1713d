"""What a cluster runs for a job: ``python -m tintray.jobs.queue.entry JOB ATTEMPT``.

Two processes: the driver, and this one, which imports nothing heavy before the driver has ended.
It passes signals on, keeps what the driver says as an artifact, notes a death that the driver could
not note itself (out of memory, say), and hands over the job that goes next.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from tintray.storage.secrets import redact

_KEPT_LINES = 20_000


def main() -> int:
    """Run the driver of the job in ``sys.argv``; returns its exit code."""
    job_id, attempt = sys.argv[1], int(sys.argv[2])
    driver = subprocess.Popen(
        [sys.executable, "-m", "tintray.jobs.queue.driving", job_id, str(attempt)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: driver.send_signal(number))
    said: deque[str] = deque(maxlen=_KEPT_LINES)
    assert driver.stdout is not None
    for line in driver.stdout:  # Ray keeps what is printed, and shows it to all who ask
        line = redact(line)
        print(line, end="", flush=True)
        said.append(line)
    code = driver.wait()
    _settle(job_id, attempt, code, "".join(said))
    return code if code >= 0 else 128 - code


def _settle(job_id: str, attempt: int, code: int, log: str) -> None:
    """After the driver: keep its log, note its death, hand over the next job."""
    from tintray.errors import TintrayError
    from tintray.jobs.queue.driving import open_catalog
    from tintray.jobs.queue.handover import LOG, dispatch
    from tintray.jobs.runs.recovery import Recovery
    from tintray.storage.artifacts.blobs import put_blob
    from tintray.storage.artifacts.store import open_store
    from tintray.storage.catalog.artifacts import KnownArtifact
    from tintray.storage.catalog.queue import Claim

    try:
        catalog, url = Recovery(restarts=1).wait(open_catalog)
    except TintrayError as error:  # the driver has said so too; nothing can be noted anywhere
        print(f"error: {error}", flush=True)
        return
    claim = Claim(job_id, attempt)
    last = log.strip().rpartition("\n")[2]
    with catalog:
        with _warned():
            if code < 0:
                killed = -code == signal.SIGKILL
                why = "out of memory, or by somebody" if killed else "see its log"
                ended = f"its driver was ended by {signal.Signals(-code).name} ({why})"
                catalog.queue.mark_dead(claim, ended)
            elif code > 0 and not catalog.queue.fail_unstarted(
                claim, f"its driver ended before it began: {last}"
            ):
                catalog.queue.mark_dead(claim, f"its driver ended and could not say why ({last})")
        with _warned():
            ref = put_blob(open_store(catalog.jobs.get(job_id).store_url), log.encode())
            catalog.artifacts.record([KnownArtifact(ref, LOG, {"job": job_id})], job_id=job_id)
        with _warned():
            cluster = catalog.queue.find(job_id).cluster
            if cluster is not None:
                dispatch(catalog, url, cluster)


@contextmanager
def _warned() -> Iterator[None]:
    """Go on after what fails: the next job must not wait for it."""
    from tintray.errors import TintrayError

    try:
        yield
    except TintrayError as error:
        print(f"warning: {error}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
