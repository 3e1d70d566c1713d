"""What the commands on stores and catalogs answer with, as :mod:`jobs.results` for merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tintray.jobs.records import Record


@dataclass(frozen=True)
class ArtifactLine(Record):
    """One blob, as the catalog and the store know it."""

    sha256: str
    kind: str  # such as "tint"; "unknown" where only the store knows it
    size: int  # bytes
    created: str | None  # ISO 8601, UTC
    needed_by: Sequence[str]  # "merge ten/v1", "job ten-1a2b3c4d", "pin"; empty: gc may take it
    in_store: bool


@dataclass(frozen=True)
class DamageLine(Record):
    """An artifact that is not what it was."""

    key: str
    problem: str
    needed_by: Sequence[str]


@dataclass(frozen=True)
class VerifyReport(Record):
    """What was read of a store, and what of it is damaged."""

    store: str
    artifacts: int
    bytes: int
    damaged: Sequence[DamageLine]


@dataclass(frozen=True)
class GarbageLine(Record):
    """Something that nobody needs."""

    key: str
    size: int
    reason: str


@dataclass(frozen=True)
class GarbageReport(Record):
    """What a collection deleted, or would delete."""

    store: str
    dry_run: bool
    garbage: Sequence[GarbageLine]
    garbage_bytes: int
    kept: int
    kept_bytes: int
    young: int  # of those kept: needed by nobody, but younger than the age limit
    young_bytes: int


@dataclass(frozen=True)
class Removed(Record):
    """A merge that is no longer there."""

    merge: str  # "name/version"
    url: str
    unneeded_bytes: int  # what of its files nobody else needs; gc frees it
    children: Sequence[str] = ()  # merges that grew from it: whole, but without this way back
    dry_run: bool = False


@dataclass(frozen=True)
class Copied(Record):
    """A merge that is in another store too."""

    merge: str  # "name/version"
    source: str
    url: str
    files: int
    bytes: int
    catalog: str | None  # the destination's, if the merge was entered in one
    dry_run: bool = False


@dataclass(frozen=True)
class SchemaChange(Record):
    """The version of a catalog's tables before and after."""

    catalog: str
    before: str | None  # None: it was created
    after: str
    dry_run: bool = False


@dataclass(frozen=True)
class ForgottenRounds(Record):
    """What was forgotten of rounds of jobs that are over."""

    catalog: str
    rounds: int
    dry_run: bool = False


@dataclass(frozen=True)
class Relocated(Record):
    """A store that a catalog knows at another place by now."""

    catalog: str
    before: str
    store: str
    merges: int
    dry_run: bool = False


@dataclass(frozen=True)
class DatabaseReport(Record):
    """What a look into a catalog's database found."""

    catalog: str
    schema: str
    needed: str
    rows: Mapping[str, int]
    problems: Sequence[str]
    idle_jobs: Sequence[str]  # not over, and nobody works on them


@dataclass(frozen=True)
class Check(Record):
    """One thing that tintray stands on."""

    name: str
    ok: bool
    found: str
    fix: str | None = None

    @classmethod
    def failed(cls, name: str, sentence: str) -> Check:
        """One that went wrong, from the sentence of an error, which ends with what to do."""
        problem, _, fix = sentence.rpartition("; ")
        return cls(name, False, problem or fix, fix if problem else None)


@dataclass(frozen=True)
class Diagnosis(Record):
    """All that ``tintray doctor`` looked at."""

    healthy: bool
    checks: Sequence[Check]


@dataclass(frozen=True)
class Shared(Record):
    """A merge that was pushed or pulled, or would be."""

    merge: str  # "name/v3"
    source: str
    destination: str
    files: Sequence[str]  # all that lies there then
    bytes: int
    dry_run: bool = False
    already: bool = False  # it was there, and was verified
    written: bool = False

    def done(self, *, already: bool = False) -> Shared:
        """The same once all of it is there."""
        return replace(self, already=already, written=not already and not self.dry_run)
