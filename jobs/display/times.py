"""Moments and lengths of time as people read them."""

from __future__ import annotations

from datetime import UTC, datetime


def moment(at: datetime | str, timespec: str = "seconds") -> str:
    """A moment in the zone of this machine (or of ``TZ``): ``2026-01-02 04:04:05+01:00``.

    One without an offset is taken as UTC. Text that is no moment of ISO 8601, or is of a year that
    no clock shows, is answered as it is.
    """
    try:
        known = datetime.fromisoformat(at) if isinstance(at, str) else at
        known = known if known.tzinfo else known.replace(tzinfo=UTC)
        return known.astimezone().isoformat(" ", timespec)
    except (ValueError, OverflowError, OSError):
        return str(at)


def duration(seconds: float) -> str:
    """Seconds for people: ``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
