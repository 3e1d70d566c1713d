"""Setting tintray up for a person: the configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tintray.jobs.config.settings import write_config
from tintray.jobs.queue.ray_jobs import jobs_address
from tintray.jobs.records import Record
from tintray.storage.secrets import shown_url


@dataclass(frozen=True)
class Configured(Record):
    """What was written, passwords left out."""

    path: str
    settings: Mapping[str, str]
    dry_run: bool = False


def configure(
    values: Mapping[str, str], *, replace: bool = False, dry_run: bool = False
) -> Configured:
    """Write the configuration file of this user; see :func:`jobs.config.settings.write_config`.

    Raises ``SpecError``: a value cannot be what it is to be, or there is a file already that is not
    to be replaced.
    """
    given = dict(values)
    if "address" in given:
        given["address"] = jobs_address(given["address"])
    path = write_config(given, replace=replace, dry_run=dry_run)
    shown = {name: shown_url(value) for name, value in given.items()}
    return Configured(str(path), shown, dry_run)
