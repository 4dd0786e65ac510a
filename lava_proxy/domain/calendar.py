"""Billing calendar: which cycle a moment belongs to when no plan says otherwise."""

from __future__ import annotations

from datetime import UTC, datetime


def month_cycle_id(at: datetime) -> str:
    """The UTC calendar month of an aware time, such as "2026-11": the tier cycle of a connection without a plan."""
    assert at.tzinfo is not None
    utc = at.astimezone(UTC)
    return f"{utc.year:04d}-{utc.month:02d}"
