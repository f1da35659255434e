"""Faults of the calendar: days that servers and the product's own zone data cut differently, and calendars that change.

A chapter with the first of them is played in a zone of which ClickHouse's and PostgreSQL's data may be older.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta

from tests.chaos import writers
from tests.chaos.faults import STEP_SECONDS, Scene, fault
from tests.chaos.stage import Violation, eventually
from worker import calendars
from worker.calendar import Calendar, own
from worker.windows import to_micros

DIFFERING = "days that calendars cut differently"
ZONES = ("America/St_Johns", "America/Vancouver")
"""Where clocks went back over midnight, and where much zone data does not know what they show since November 2026."""

CHANGE = datetime(2026, 11, 1, 9, tzinfo=UTC)
CAMPAIGN = 4


def zone_of(seed: int, number: int, names: set[str], *, always: bool) -> str:
    """The reporting time zone of a chapter with these faults: two of three with rows for it are in one of `ZONES`."""
    if DIFFERING not in names:
        return "UTC"
    return ZONES[0] if always else random.Random(f"{seed}/{number}").choice(("UTC", *ZONES))


@fault(DIFFERING, "data", lambda rng: {"day": rng.randint(2, 27), "count": rng.randint(5, 60)})
def around_midnight(scene: Scene, day: int, count: int) -> Iterator[None]:
    """Rows in the hour that one calendar gives to a day and the other to the day before it."""
    with scene.stage.postgres() as connection, connection.cursor() as cursor:
        for table in writers.TABLES:
            for begin in (f"2026-11-{day:02}T06:55:00Z", "2010-11-07T02:25:00Z"):
                cursor.execute(
                    f"INSERT INTO {table} (campaign_id, created_at) "
                    "SELECT %s, %s::timestamptz + n * interval '1 minute' FROM generate_series(0, %s) AS n",
                    (CAMPAIGN, begin, count),
                )
    yield


@fault("calendar changed by who died", "worker", lambda rng: {"day": rng.randint(2, 27)}, 0.5)
def changed_and_died(scene: Scene, day: int) -> Iterator[None]:
    """Other zone data is adopted, days are cut by it, and the right data comes back; each time its adopter dies before a
    day is marked."""
    stage = scene.stage
    right = own(stage.settings.reporting_timezone)
    kept = sum(start < to_micros(CHANGE) for start in right.starts)
    shifted = (*right.offsets[:kept], right.offsets[-1] - 3600)
    moment = right.bounds(date(2026, 11, day)).lo + timedelta(minutes=30)

    def announced(found: Calendar) -> None:
        with stage.servers() as servers:
            entries = calendars.history(servers.sink)
            number = entries[0].number + 1
            named = Calendar(found.zone, f"9999.{number:06}", found.starts, found.offsets)
            calendars._announce(servers.sink, number, named)

    def counted() -> bool:
        with stage.servers() as servers:
            days = servers.sink.query(
                "reading metrics",
                "SELECT count() FROM daily_campaign_performance WHERE date_id >= '2026-11-01' AND updated_at >= %(at)s",
                {"at": began},
            )
        return bool(days[0][0])

    with stage.servers() as servers:
        began = servers.ledger.now()
    announced(Calendar(right.zone, "", (*right.starts[:kept], to_micros(CHANGE)), shifted))
    for table in writers.TABLES:
        stage.write(f"INSERT INTO {table} (campaign_id, created_at) VALUES (%s, %s)", CAMPAIGN, moment)
    with suppress(Violation):
        eventually(counted, "days are cut by the other calendar", 2 * STEP_SECONDS)
    yield

    def adopted() -> None:
        def ended() -> bool:
            with stage.servers() as servers:
                return calendars.told(servers.sink, stage.settings)[0] != "wrong"

        eventually(ended, "the calendar is adopted", 60)

    scene.repairs.append(lambda: announced(right))
    scene.afterwards.append(adopted)
