"""Days are cut by one calendar: the product's own, whatever the servers and the operating system hold."""

from __future__ import annotations

import contextlib

import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import sync, target_performance
from tests.integration.test_pipeline import campaigns, write
from worker import migrate
from worker.celery import Servers
from worker.config import Settings


@pytest.mark.parametrize(
    ("zone", "moments", "expected"),
    [
        # Standard time all the year since 2026, which not every copy of the zone data knows.
        ("America/Vancouver", ["2026-11-20T07:30:00Z"], {"2026-11-20": 1}),
        ("America/Edmonton", ["2026-11-20T06:30:00Z"], {"2026-11-20": 1}),
        ("Africa/Casablanca", ["2027-02-10T23:30:00Z"], {"2027-02-10": 1}),
        # The clock goes back over midnight at 02:31Z: the 7th has begun and goes on.
        (
            "America/St_Johns",
            ["2010-11-07T02:29:59Z", "2010-11-07T02:30:30Z", "2010-11-07T03:00:00Z", "2010-11-07T03:31:00Z"],
            {"2010-11-06": 1, "2010-11-07": 3},
        ),
        # The 30th was left out.
        ("Pacific/Apia", ["2011-12-30T09:59:59Z", "2011-12-30T10:00:00Z"], {"2011-12-29": 1, "2011-12-31": 1}),
    ],
)
def test_days_are_built_where_calendars_differ(
    bare_settings: Settings, writer: Connection, zone: str, moments: list[str], expected: dict[str, int]
) -> None:
    settings = bare_settings.model_copy(update={"reporting_timezone": zone})
    with contextlib.closing(Servers.open(settings)) as servers:
        migrate.migrate(servers.sink, settings)
        (campaign, *_) = campaigns(writer)
        for moment in moments:
            write(writer, "INSERT INTO clicks (campaign_id, created_at) VALUES (%s, %s)", campaign, moment)
        sync(servers)
        assert {str(row[0]): row[3] for row in target_performance(servers)} == expected
