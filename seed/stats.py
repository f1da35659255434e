"""What the source holds, in one row of totals."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal

from psycopg2.extensions import connection as Connection

from seed.connection import transaction
from seed.sql import statement


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of one instant. Times carry a zone; None where there is no event. `budget` is of all campaigns."""

    advertisers: int
    campaigns: int
    running_campaigns: int
    budget: Decimal
    impressions: int
    clicks: int
    first_event_at: datetime | None
    last_event_at: datetime | None
    last_written_at: datetime | None

    @property
    def ctr(self) -> float | None:
        """Σclicks/Σimpressions; None without impressions."""
        return self.clicks / self.impressions if self.impressions else None


def totals(conn: Connection, *, today: date) -> Totals:
    """Exact totals, from one snapshot; `today` decides which campaigns are running. Reads both event tables whole."""
    with transaction(conn) as cursor:
        cursor.execute(statement("totals"), {"today": today})
        row = cursor.fetchone()
    assert row is not None  # noqa: S101 - aggregates without GROUP BY give exactly one row
    return Totals(*row)
